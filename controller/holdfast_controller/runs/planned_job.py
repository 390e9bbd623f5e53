"""A job about to be written down and queued: between `engine`, which plans it, and the dispatcher."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from holdfast_controller.decide.dispatch import Begun, Way
from holdfast_controller.decide.load_limits import LoadKey
from holdfast_controller.runs.lifecycle import JobWork
from holdfast_controller.runs.moved_vms import WaitingVm
from holdfast_controller.store.new_jobs import NewJob


def nothing(_: Begun) -> None:
    """Most work is the same however it begins."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Planned:
    """A job that is to be begun, its work, what it weighs on, and who could do it. See `WaitingJob`.

    ``vm``: of a backup, so that it can be asked where that is when the job is to begin.
    ``attempts_max`` 0: as the controller is configured. ``begins`` is told how, right before the work begins.
    """

    job: NewJob
    work: JobWork
    loads: tuple[LoadKey, ...]
    ways: tuple[Way, ...] = ()
    priority: int = 50
    last_good: str = ""
    attempts_max: int = 0
    lanes: int = 1
    begins: Callable[[Begun], None] = nothing
    vm: WaitingVm | None = None
