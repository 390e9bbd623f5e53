"""Restore in place while the controller's database fails: the VM has its old disks or its restored ones, whole."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from holdfast_common.job_spec import TransportKind
from support.failing_store import Failure, failing_writes
from support.one_process import one_round
from support.restoring import InPlace, in_place_rig

ROUNDS = 3  # a write that fails while something is undone leaves it to the next round
WRITES_MIN = 20


@pytest.fixture
def rig(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[InPlace]:
    with in_place_rig(tmp_path, monkeypatch) as ready:
        yield ready


@pytest.mark.long
@pytest.mark.timeout(1800)  # some fifty whole restores, on a machine that may be busy
@pytest.mark.parametrize("failure", [Failure.FULL, Failure.UNSURE])
def test_wherever_one_write_fails_a_restore_leaves_old_disks_or_restored_ones(
    rig: InPlace, failure: Failure
) -> None:
    holdfast = rig.holdfast
    world = holdfast.world
    threading.Thread(
        target=holdfast.reconciler.run, args=(holdfast.engine.reconciled,), daemon=True
    ).start()
    broken = []
    for number in itertools.count():
        rig.guest_writes(number)
        before = rig.standing()
        with failing_writes(world.jobs._database, failure, first=number) as failing:
            ended = rig.run(TransportKind.DIRECT)
        for _ in range(ROUNDS):
            one_round(rig.holdfast.reconciler)
        problem = rig.judge(number, before, ended)
        if world.jobs.unfinished():
            problem += "; its job has not ended"
        if problem:
            broken.append(f"write {number} ({ended or 'done'}): {problem}")
        if not failing.failed:
            break
    assert number > WRITES_MIN
    assert not broken, "\n".join(broken)
