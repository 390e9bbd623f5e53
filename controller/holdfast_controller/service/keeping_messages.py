"""What `status` tells of keeping the repository, as a message."""

from __future__ import annotations

from collections.abc import Collection

from holdfast_common.clock import utc_text
from holdfast_common.identity import LineageId
from holdfast_common.wire import operator_pb2
from holdfast_controller.runs.keeping_state import TaskState, keeping_states
from holdfast_controller.runs.verified_data import last_look
from holdfast_controller.runs.world import World
from holdfast_controller.store import settings as names


def keeping_message(world: World, *, covered: Collection[LineageId]) -> operator_pb2.Keeping:
    """``covered``: VMs that a policy covers which is switched on. Raises: StoreFailed, Locked."""
    uncovered = [
        points
        for lineage_id, points in world.protection.points_by_vm().items()
        if lineage_id not in covered
    ]
    found = operator_pb2.Keeping(
        tasks=[_task(state) for state in keeping_states(world)],
        uncovered_vms=len(uncovered),
        uncovered_points=sum(uncovered),
        scrubbed_at=world.settings.get(names.SCRUBBED_AT),
    )
    if (data := last_look(world)) is not None:
        found.looked_at = data.seen_at
        found.stored_bytes = data.total_bytes
        found.unproven_bytes = data.unproven_bytes
        found.oldest_proof_at = data.oldest_at
    return found


def _task(state: TaskState) -> operator_pb2.KeepingTask:
    return operator_pb2.KeepingTask(
        task=state.task,
        last_at=state.last_at,
        last_run=state.last_run,
        result=state.result,
        well=state.is_well,
        next_at="" if state.next_at is None else utc_text(state.next_at),
        held_up=state.held_up,
    )
