"""What the dispatcher decided for a job, kept with it: whom it went to, and what it waited for before."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Final

from holdfast_common.errors import HoldfastError
from holdfast_common.identity import JobId
from holdfast_controller.decide.dispatch import Begun, Wait
from holdfast_controller.decide.job_times import WAITED
from holdfast_controller.runs.world import World

log = logging.getLogger(__name__)


SECONDS_MIN: Final = 0.1  # less is no wait that anybody could mend


def note_dispatch(world: World, begun: Begun) -> None:
    """Raises: nothing. That it could not be written down holds no job up."""
    try:
        if begun.way is not None:
            world.jobs.set_agent(begun.job_id, begun.way.agent_id)
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
