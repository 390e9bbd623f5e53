"""Small real disks that fill up: nothing is harmed, the user reads why, and pruning makes room at 0 bytes free."""

from __future__ import annotations

from pathlib import Path

import pytest

from support.filling import fill_once

EXT4_PASSES = 100
GROUPS = 5
OTHER_PASSES = 5
FEW_PASSES = 2


def test_a_disk_that_fills_up_at_a_random_place_harms_nothing(tmp_path: Path) -> None:
    fill_passes("ext4", range(1000, 1000 + FEW_PASSES), tmp_path)


@pytest.mark.long
@pytest.mark.timeout(900)
@pytest.mark.parametrize("group", range(GROUPS))
def test_a_hundred_ext4_disks_that_fill_up_harm_nothing(group: int, tmp_path: Path) -> None:
    fill_passes("ext4", range(group, EXT4_PASSES, GROUPS), tmp_path)


@pytest.mark.long
@pytest.mark.timeout(900)
@pytest.mark.parametrize("kind", ["xfs", "btrfs"])
def test_other_disks_that_fill_up_harm_nothing(kind: str, tmp_path: Path) -> None:
    fill_passes(kind, range(OTHER_PASSES), tmp_path)


def fill_passes(kind: str, seeds: range, folder: Path) -> None:
    done = []
    for seed in seeds:
        done.append(fill_once(kind, seed, folder))
        print(f"{kind}, pass {seed}: {done[-1]}")
    assert all(facts.errors for facts in done)
