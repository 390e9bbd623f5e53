"""Lets the N-th call of a workload fail, and judges what is left with the production code."""

from __future__ import annotations

import copy
from dataclasses import dataclass

from holdfast_common.errors import HoldfastError
from support.crash_judge import judge_image
from support.crash_workloads import WORKLOADS, Recording
from support.faulty_files import CallFault, FaultKind, FaultyFiles
from support.interleaving import Turns
from support.memory_files import MemoryFiles

SLOW_SECONDS = 2000.0  # a lease lives for 1,800


@dataclass(frozen=True)
class FaultRun:
    """How a workload with a fault ended. ``hit``: the call that failed; empty when none did: a clean run."""

    hit: str
    error: HoldfastError | None


def run_with_fault(made: Recording, fault: CallFault) -> FaultRun:
    """Run a recorded workload again with a fault, then judge the disk as it is, without one.

    Raises: whatever is wrong: an error that is not ours, a disk that cannot be gone on with, a leak.
    """
    clock = copy.copy(made.start.clock)
    memory = MemoryFiles.of(made.before, now=clock.seconds_since_1970)
    promised = list(made.promised)
    files = FaultyFiles(memory, fault, slow=lambda: clock.advance(SLOW_SECONDS))
    error: HoldfastError | None = None
    try:
        turns = Turns(made.start.seed)
        rig = made.start.on(files, mark=promised.append, turns=turns, clock=clock)
        WORKLOADS[made.name].run(rig)
    except HoldfastError as raised:
        error = raised
    left = [path for path in memory.open_descriptors() if path != str(made.start.root)]
    assert not left, f"{fault} at {files.hit}: left open: {left}"
    if fault.kind is FaultKind.FULL and error is not None:
        assert error.code == "repository_full", f"{fault} at {files.hit}: told as {error!r}"
    if fault.kind is FaultKind.SHORT:
        assert error is None, (
            f"{fault} at {files.hit}: a short call is gone on with, but: {error!r}"
        )
    judge_image(made, memory.image(), promised=promised, clock=clock)
    return FaultRun(hit=files.hit, error=error)
