"""Names of vSphere's entities: in and out without a loss; what a new VM and its files can be called."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from holdfast_common.errors import UsageError
from holdfast_controller.vsphere.entity_names import (
    FILE_NAME_BYTES_MAX,
    check_new_name,
    escaped_name,
    file_name_of,
    plain_name,
)


@given(st.text())
def test_a_name_comes_back_as_it_was_given(name: str) -> None:
    told = escaped_name(name)
    assert plain_name(told) == name
    assert not set("/\\") & set(told)


@given(st.text(alphabet="%25fF/\\cC"))
def test_no_sequence_of_percent_signs_is_read_twice(name: str) -> None:
    assert plain_name(escaped_name(name)) == name


def test_capital_sequences_are_read_too_and_others_are_left() -> None:
    assert plain_name("a%2Fb%5Cc%25d") == "a/b\\c%d"
    assert plain_name("50% off %zz %41") == "50% off %zz %41"


@given(st.text())
def test_a_file_name_is_never_a_path_nor_too_long(name: str) -> None:
    made = file_name_of(name)
    assert made
    assert made not in (".", "..")
    assert made == made.strip(" .")
    assert not set("/\\[]%\"'\n\0*?") & set(made)
    assert len(made.encode()) <= FILE_NAME_BYTES_MAX


@pytest.mark.parametrize("name", ["", "  ", " a", "a\n", "a\nb", "n" * 81, "n" * 78 + "/"])
def test_a_name_that_vsphere_would_not_show_so_is_refused(name: str) -> None:
    with pytest.raises(UsageError, match="a VM's name"):
        check_new_name(name)


@pytest.mark.parametrize("name", ["a", "n" * 80, "n" * 77 + "/", "..", "[x] y", "東京"])
def test_other_names_are_good(name: str) -> None:
    check_new_name(name)
