"""Every system call beneath the production store fails, one after the other, until a run is clean.

Afterwards the disk is judged as after a crash: nothing acknowledged is lost, nothing half shows, the next
backup works. Nothing is left open, and a full disk is called one.
"""

from __future__ import annotations

from itertools import count

import pytest

from support.call_faults import run_with_fault
from support.crash_workloads import WORKLOADS, recording
from support.faulty_files import CallFault, FaultKind
from support.shared_work import shared_work

RUNS_MIN = 4
STRIDE = {FaultKind.IO_ERROR: 5, FaultKind.SLOW: 11}  # they hit every call, most of which read
SHORT_STRIDE = 6  # in `make test`
LONG_STRIDE = 2
FEW_CALLS = {"init"}  # workloads that make so few calls that each of them is hit
CALLS_MAX = 5000
LONG_ONLY = {"found by another"}  # backups like others'
NAMES = sorted(WORKLOADS)


@pytest.mark.repeats
@pytest.mark.parametrize("kind", FaultKind, ids=str)
@pytest.mark.parametrize("name", [name for name in NAMES if name not in LONG_ONLY])
def test_a_call_that_fails_harms_nothing(name: str, kind: FaultKind) -> None:
    stride = 1 if name in FEW_CALLS else SHORT_STRIDE * STRIDE.get(kind, 1)
    fail_each_call(name, kind, first=0, stride=stride, lasts=False)
    fail_each_call(name, kind, first=stride // 2, stride=stride, lasts=True)


@pytest.mark.long
@pytest.mark.timeout(900)
@pytest.mark.parametrize("lasts", [False, True], ids=["once", "from then on"])
@pytest.mark.parametrize("kind", FaultKind, ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_whichever_call_fails_harms_nothing(name: str, kind: FaultKind, lasts: bool) -> None:
    """Every call is hit once, half of them by a fault that lasts; by rare ones only some."""
    stride = 1 if name in FEW_CALLS else LONG_STRIDE * STRIDE.get(kind, 1)
    fail_each_call(name, kind, seed=1, lasts=lasts, first=lasts, stride=stride)


def fail_each_call(
    name: str, kind: FaultKind, *, lasts: bool, seed: int = 0, first: int = 0, stride: int = 1
) -> None:
    runs = failed = 0
    with shared_work():
        made = recording(name, seed=seed)
        for number in count(first, stride):
            assert number < CALLS_MAX, "no run was clean"
            done = run_with_fault(made, CallFault(kind, number, lasts))
            if not done.hit:
                assert done.error is None, "a run in which nothing failed"
                break
            runs += 1
            failed += done.error is not None
    assert runs >= RUNS_MIN
    # a call that fails, fails the job: only what is given back or tidied up may be passed over
    assert kind in (FaultKind.SHORT, FaultKind.SLOW) or failed > runs / 2
