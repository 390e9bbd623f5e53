"""One object of the repository that is lost costs a VM one full backup, never its protection."""

from __future__ import annotations

from pathlib import Path

import pytest

from holdfast_lab.server import RunningLab
from support.one_process import OneProcess, disk_content, disk_truth, guest_writes

UNIT = 64 * 1024


def newest(holdfast: OneProcess, kind: str) -> Path:
    files = [path for path in (holdfast.folder / "repository" / kind).glob("*/*") if path.is_file()]
    return max(files, key=lambda path: path.stat().st_mtime_ns)


def damage(path: Path, how: str) -> None:
    data = bytearray(path.read_bytes())
    path.chmod(0o600)
    if how == "gone":
        path.unlink()
    elif how == "shorter":
        path.write_bytes(data[:-1])
    else:
        data[len(data) // 2] ^= 1
        path.write_bytes(data)


@pytest.mark.parametrize(
    ("kind", "how"),
    [
        ("points", "gone"),
        ("points", "a byte differs"),
        ("maps", "gone"),
        ("maps", "shorter"),
        ("packs", "gone"),
        ("packs", "shorter"),
    ],
)
def test_after_a_loss_the_next_backup_is_a_full_and_then_all_goes_on(
    holdfast: OneProcess, lab: RunningLab, kind: str, how: str
) -> None:
    holdfast.back_up("web")
    guest_writes(lab, "web", 3 * UNIT)
    damage(newest(holdfast, kind), how)
    failed = holdfast.back_up("web")
    assert failed.error is not None
    assert (failed.error.code, failed.error.retryable) == ("previous_lost", True)
    full = holdfast.back_up("web")
    assert (str(full.state), full.level) == ("done", "full")
    assert "no longer whole" in full.level_reason
    assert holdfast.record(full).previous_point_id == ""
    assert disk_content(holdfast, full) == disk_truth(lab, "web")
    guest_writes(lab, "web", 9 * UNIT)
    after = holdfast.back_up("web")
    assert (str(after.state), after.level) == ("done", "incremental")
    assert disk_content(holdfast, after) == disk_truth(lab, "web")
    assert not holdfast.world.ledger.open_entries()


@pytest.mark.parametrize("kind", ["points", "maps", "packs"])
def test_a_full_that_is_asked_for_needs_no_earlier_point(
    holdfast: OneProcess, lab: RunningLab, kind: str
) -> None:
    holdfast.back_up("web")
    damage(newest(holdfast, kind), "gone")
    full = holdfast.back_up("web", level="full")
    assert (str(full.state), full.level) == ("done", "full")
    assert disk_content(holdfast, full) == disk_truth(lab, "web")
