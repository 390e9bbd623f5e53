"""A backup's copy while its agent is at work on it: what it reads from, and what is written down when it was slowed."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from contextlib import AbstractContextManager

from holdfast_common.errors import HoldfastError
from holdfast_common.identity import AgentId, JobId
from holdfast_common.job_result import JobResult
from holdfast_common.job_spec import Attempt
from holdfast_controller.decide.job_times import LANE, SLOWED
from holdfast_controller.decide.lanes import Lane, storage_text
from holdfast_controller.decide.load_limits import LoadKey
from holdfast_controller.facts import DiskFacts
from holdfast_controller.runs.loads import latency_gate
from holdfast_controller.runs.world import World

log = logging.getLogger(__name__)


def copying(
    world: World, attempt: Attempt, agent_id: AgentId, disks: Sequence[DiskFacts]
) -> AbstractContextManager[None]:
    """Until the block ends the copy is slowed with the datastores that these disks are read from."""

    def slowed(load: LoadKey, seconds: float) -> None:
        try:
            world.jobs.note(attempt.job_id, f"{SLOWED}{load.text}", f"{seconds:.1f} s")
        except HoldfastError as error:
            log.warning("that a copy was slowed is not noted", extra={"error": error.line()})

    return world.streams.running(
        attempt,
        agent_id,
        {
            disk.device_key: tuple(
                latency_gate(link.datastore_id, link.datastore_name) for link in disk.chain
            )
            for disk in disks
        },
        now=world.clock.monotonic_seconds,
        slowed=slowed,
    )


def note_lanes(world: World, job_id: JobId, lanes: Sequence[Lane], result: JobResult) -> None:
    """How long each lane took, where there is more than one: the longest decides. Raises: nothing."""
    seconds = {disk.device_key: disk.duration_seconds for disk in result.disks}
    try:
        for number, lane in enumerate(lanes if len(lanes) > 1 and seconds else ()):
            spent = sum(seconds.get(disk.device_key, 0.0) for disk in lane)
            event = f"{LANE}{number + 1}: {storage_text(lane)}"
            world.jobs.note(job_id, event, f"{spent:.1f} s")
    except HoldfastError as error:
        log.warning("how long lanes took is not noted", extra={"error": error.line()})
