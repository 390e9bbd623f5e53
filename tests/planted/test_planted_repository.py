"""Crash states find what they are for: bugs planted in copies of the product. See docs/crash-states.md."""

from __future__ import annotations

from pathlib import Path

import pytest

from support.crash_judge import Harm
from support.planted_crashes import (
    Row,
    found_in_a_copy,
    patch_path,
    patches,
    rows_of_the_page,
    workload_of,
)
from support.planting import PROJECT, applies

ROWS = {row.patch: row for row in rows_of_the_page()}
FEW = ("02", "07", "08", "09", "10", "11", "12", "16", "18")  # that are found within seconds
CAUGHT = {str(harm) for harm in Harm} - {Harm.RUN}  # by a failed check, restore or next backup


def test_the_page_has_a_row_for_every_patch() -> None:
    assert list(ROWS) == patches()
    assert len(ROWS) >= 12
    assert all(row.loss in CAUGHT and len(row.state) > 10 for row in ROWS.values())


@pytest.mark.parametrize("name", patches())
def test_a_patch_of_the_repository_still_applies(name: str) -> None:
    assert applies(patch_path(name), PROJECT) == ""


@pytest.mark.parametrize("name", [name for name in patches() if name.startswith(FEW)])
def test_a_planted_bug_is_found_by_crash_states(name: str, tmp_path: Path) -> None:
    assert_found(ROWS[name], tmp_path)


@pytest.mark.long
@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", [name for name in patches() if not name.startswith(FEW)])
def test_every_planted_bug_is_found_by_crash_states(name: str, tmp_path: Path) -> None:
    assert_found(ROWS[name], tmp_path)


def assert_found(row: Row, folder: Path) -> None:
    found = found_in_a_copy(row.patch, folder)
    assert found.losses, f"{row.patch}: nothing is lost on {found.images} disks"
    assert found.workload == row.workload == workload_of(row.patch)
    assert found.loss == row.loss, found
