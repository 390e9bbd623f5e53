"""Lies of change tracking show bugs of the product: planted in copies, each must be noticed."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from support.planting import PROJECT, applies, copied_product, plant, run_tests

PATCHES = sorted((PROJECT / "tests" / "planted" / "tracking").glob("*.patch"))
TEST = (
    "tests/together/test_tracking_bugs.py"
    "::test_a_few_lies_of_each_kind_are_found_and_no_wrong_point_claims_to_be_proven"
)


def test_there_are_bugs_to_plant() -> None:
    assert len(PATCHES) >= 3


@pytest.mark.parametrize("patch", PATCHES, ids=lambda patch: patch.stem)
def test_a_patch_of_change_tracking_still_applies(patch: Path) -> None:
    assert applies(patch, PROJECT) == ""


@pytest.mark.long
@pytest.mark.timeout(600)
@pytest.mark.parametrize("patch", PATCHES, ids=lambda patch: patch.stem)
def test_a_planted_bug_is_found_by_lies_of_change_tracking(patch: Path, tmp_path: Path) -> None:
    copy = copied_product(tmp_path / "copy")
    plant(patch, copy)
    run = run_tests(copy, (TEST,))
    shutil.rmtree(copy)
    assert run.caught, f"{patch.stem} is not noticed: {run.told()}"
