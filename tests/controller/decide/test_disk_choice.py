"""Disks by key or label: what is backed up, and each that is not, by name."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from holdfast_common.errors import UsageError
from holdfast_controller.decide.disk_choice import (
    ALL_DISKS,
    NOT_CHOSEN,
    WantedDisks,
    choose_disks,
    unsaved_disks,
)
from holdfast_controller.facts import DiskFacts
from support.vm_facts import VM, disk_of

SYSTEM = disk_of(2000, "Hard disk 1")
DATA = disk_of(2001, "Hard disk 2")
SHARED = disk_of(2002, "Hard disk 3", unprotected_reason="independent")
DISKS = (SYSTEM, DATA, SHARED)


def keys(disks: tuple[DiskFacts, ...]) -> list[int]:
    return [disk.device_key for disk in disks]


@pytest.mark.parametrize(
    ("selectors", "excludes", "chosen"),
    [
        ((), (), [2000, 2001]),
        (("disk:2000",), (), [2000]),
        (('disk:"Hard disk 2"',), (), [2001]),
        (("disk:Hard disk 2",), (), [2001]),
        (("disk:Hard disk *",), ("disk:2000",), [2001]),
        ((), ("disk:*",), []),
        (("disk:2001",), ("disk:Hard disk 2",), []),
        (("disk:2002",), (), []),
    ],
)
def test_disks_are_chosen_and_excluded_by_key_and_label(
    selectors: tuple[str, ...], excludes: tuple[str, ...], chosen: list[int]
) -> None:
    assert keys(choose_disks(DISKS, selectors, excludes=excludes).chosen) == chosen


def test_each_disk_that_is_left_out_is_told_by_name_and_why() -> None:
    found = choose_disks(DISKS, ("disk:2000", "disk:2002"), excludes=("disk:2000",))
    assert [each.text() for each in found.left_out] == [
        "Hard disk 1 (key 2000, 1.0 GiB): excluded by disk:2000",
        "Hard disk 2 (key 2001, 1.0 GiB): not chosen",
        "Hard disk 3 (key 2002, 1.0 GiB): independent",
    ]
    assert not found.is_whole
    assert choose_disks(DISKS[:2]).is_whole


def test_a_selector_that_names_no_disk_of_the_vm_is_told_once() -> None:
    found = choose_disks(DISKS, ("disk:2000", "disk:4711"), excludes=("disk:4711", "disk:swap"))
    assert found.unmatched == ("disk:4711", "disk:swap")


def test_a_number_is_a_key_and_never_a_label() -> None:
    odd = disk_of(2003, "2000")
    assert keys(choose_disks((SYSTEM, odd), ("disk:2000",)).chosen) == [2000]


@pytest.mark.parametrize("selector", ["", "2000", "disk:", 'disk:""', "disk: ", "tag:gold"])
def test_what_names_no_disk_is_refused_and_says_what_does(selector: str) -> None:
    for selectors, excludes in (((selector,), ()), ((), (selector,))):
        with pytest.raises(UsageError) as caught:
            choose_disks(DISKS, selectors, excludes=excludes)
        assert "disk:2000" in caught.value.advice


SELECTORS = st.lists(
    st.sampled_from(["disk:2000", "disk:2001", "disk:2002", "disk:*", "disk:Hard disk 3", "disk:x"])
)


@given(selectors=SELECTORS, excludes=SELECTORS)
def test_every_disk_is_backed_up_or_named(selectors: list[str], excludes: list[str]) -> None:
    found = choose_disks(DISKS, selectors, excludes=excludes)
    told = [*keys(found.chosen), *(each.device_key for each in found.left_out)]
    assert sorted(told) == [2000, 2001, 2002]
    assert all(each.reason for each in found.left_out)


def test_disks_that_nobody_wants_say_why_and_are_no_less_frozen() -> None:
    wanted = WantedDisks(selectors=("disk:2000", "disk:2002"), excludes=("disk:2002",))
    vm = wanted.of_vm(replace(VM, disks=DISKS))
    assert [disk.excluded_by for disk in vm.disks] == ["", NOT_CHOSEN, "excluded by disk:2002"]
    assert keys(vm.frozen_disks) == [2000, 2001]
    assert keys(vm.protected_disks) == [2000]
    assert keys(vm.unprotected_disks) == []  # nobody is warned of a disk that nobody wants
    everything = ALL_DISKS.of_vm(replace(VM, disks=DISKS))
    assert keys(everything.protected_disks) == [2000, 2001]
    assert keys(everything.unprotected_disks) == [2002]


@pytest.mark.parametrize(
    ("wishes", "unsaved"),
    [
        ([], {2002: "independent"}),
        (
            [WantedDisks(excludes=("disk:2001",))],
            {2001: "excluded by disk:2001", 2002: "independent"},
        ),
        # another policy saves it
        ([WantedDisks(excludes=("disk:2001",)), ALL_DISKS], {2002: "independent"}),
        (
            [WantedDisks(excludes=("disk:2001",)), WantedDisks(selectors=("disk:2000",))],
            {
                2001: f"excluded by disk:2001; {NOT_CHOSEN}",
                2002: "independent",
            },
        ),
    ],
)
def test_what_nothing_saves_is_what_no_snapshot_freezes_and_what_no_policy_wants(
    wishes: list[WantedDisks], unsaved: dict[int, str]
) -> None:
    assert {disk.device_key: disk.reason for disk in unsaved_disks(DISKS, wishes)} == unsaved
