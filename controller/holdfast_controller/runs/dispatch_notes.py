"""What was decided for a job, kept with it: what its run told, whom it went to, and what it waited for before."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Final

from holdfast_common.errors import HoldfastError
from holdfast_common.identity import JobId, RunId
from holdfast_controller.decide.dispatch import Begun, Wait
from holdfast_controller.decide.job_times import WAITED
from holdfast_controller.runs.world import World

log = logging.getLogger(__name__)


LANES: Final = "lanes"  # an event's name
TOLD_MAX: Final = 20  # of VMs that have no job in the run: a person reads no more
SECONDS_MIN: Final = 0.1  # less is no wait that anybody could mend


def note_told(world: World, run_id: RunId, told: Sequence[str]) -> None:
    """What a run told of a VM ("web: ...") stands with that VM's job; some of the rest with the first one.

    Raises: StoreFailed, Locked.
    """
    if not told:
        return
    jobs = world.jobs.jobs_of_run(run_id)
    of_vms = {job.subject: job.job_id for job in jobs}
    rest = []
    for text in told:
        job_id = of_vms.get(text.partition(": ")[0])
        if job_id is None:
            rest.append(text)
        else:
            world.jobs.note(job_id, "told", text)
    for text in shortened_list(rest):
        world.jobs.note(jobs[0].job_id, "told", text)


def shortened_list(texts: Sequence[str], *, at_most: int = TOLD_MAX) -> list[str]:
    """The first of them, and how many more there are."""
    more = len(texts) - at_most
    return [*texts[:at_most], *([f"and {more} more"] if more > 0 else [])]


def note_dispatch(world: World, begun: Begun) -> None:
    """Raises: nothing. That it could not be written down holds no job up."""
    try:
        if begun.way is not None:
            world.jobs.set_agent(begun.job_id, begun.way.agent_id)
        if begun.lanes_text:
            world.jobs.note(begun.job_id, LANES, begun.lanes_text)
    except HoldfastError as error:
        _not_noted(begun.job_id, error)
    note_waits(world, begun.job_id, begun.waits)


def note_waits(world: World, job_id: JobId, waits: Sequence[Wait]) -> None:
    """What a job waited for that begins now, or never will. Raises: nothing."""
    try:
        for wait in waits:
            if wait.seconds >= SECONDS_MIN:
                world.jobs.note(job_id, f"{WAITED}{wait.load.text}", f"{wait.seconds:.1f} s")
    except HoldfastError as error:
        _not_noted(job_id, error)


def _not_noted(job_id: JobId, error: HoldfastError) -> None:
    log.warning(
        "what was decided for a job could not be written down",
        extra={"job_id": job_id, "error": error.line()},
    )
