"""A job about to be written down and queued: between `engine`, which plans it, and the dispatcher."""

from __future__ import annotations

from dataclasses import dataclass

from holdfast_controller.decide.dispatch import Way
from holdfast_controller.decide.load_limits import LoadKey
from holdfast_controller.runs.lifecycle import JobWork
from holdfast_controller.store.new_jobs import NewJob


@dataclass(frozen=True, slots=True, kw_only=True)
class Planned:
    """A job that is to be begun, its work, what it weighs on, and who could do it. See `WaitingJob`.

    ``attempts_max`` 0: as the controller is configured.
    """

    job: NewJob
    work: JobWork
    loads: tuple[LoadKey, ...]
    ways: tuple[Way, ...] = ()
    priority: int = 50
    last_good: str = ""
    attempts_max: int = 0
