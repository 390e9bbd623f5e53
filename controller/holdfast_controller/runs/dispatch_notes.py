"""What the dispatcher decided for a job, kept with it: whom it went to, and what it waited for before."""

from __future__ import annotations

import logging
from typing import Final

from holdfast_common.errors import HoldfastError
from holdfast_controller.decide.dispatch import Begun
from holdfast_controller.decide.job_times import WAITED
from holdfast_controller.runs.world import World

log = logging.getLogger(__name__)


SECONDS_MIN: Final = 0.1  # less is no wait that anybody could mend


def note_dispatch(world: World, begun: Begun) -> None:
    """Raises: nothing. That it could not be written down holds no job up."""
    try:
        if begun.way is not None:
            world.jobs.set_agent(begun.job_id, begun.way.agent_id)
        for wait in begun.waits:
            if wait.seconds >= SECONDS_MIN:
                world.jobs.note(begun.job_id, f"{WAITED}{wait.load.text}", f"{wait.seconds:.1f} s")
    except HoldfastError as error:
        log.warning(
            "what a job waited for could not be written down",
            extra={"job_id": begun.job_id, "error": error.line()},
        )
