"""What operators can do with restore points: message in, message out.

Points are listed from the catalogue, also while the repository cannot be reached; holds are only there.
"""

from __future__ import annotations

from functools import partial

from holdfast_common.errors import HoldfastError, NotFound
from holdfast_common.identity import PointId
from holdfast_common.repository.derivation import lineage_tag
from holdfast_common.repository.hang_watch import StopWhenGivenUp, while_it_answers
from holdfast_common.repository.layout import manifest_name
from holdfast_common.wire import operator_pb2
from holdfast_controller.runs.point_facts import left_out_of
from holdfast_controller.runs.repository_care import RepositoryCare
from holdfast_controller.runs.tracking_audits import confidence_of
from holdfast_controller.runs.world import World
from holdfast_controller.service.access_rules import current_actor
from holdfast_controller.service.operator_messages import point_message


class PointActions:
    """Thread-safe."""

    def __init__(self, world: World, care: RepositoryCare) -> None:
        self._world = world
        self._care = care

    def list_points(self, request: operator_pb2.PointQuery) -> operator_pb2.PointList:
        """Newest first."""
        points = self._world.catalogue.points(vm_name=request.vm)
        if request.vm and not points:
            points = self._world.catalogue.points(instance_uuid=request.vm)
        if request.vcenter:
            row = self._world.vcenters.table.named(request.vcenter)
            points = [point for point in points if point.vcenter_id == row.instance_uuid]
        held: frozenset[str] = frozenset()
        problem = ""
        try:
            held = while_it_answers(self._care.held) if points else held
        except HoldfastError as error:
            problem = error.line()
        # one job makes one point: the last part of its name is unique by itself
        ids = {name.rpartition("/")[2] for name in held}
        suspects = self._world.catalogue.suspects()
        return operator_pb2.PointList(
            points=[
                point_message(
                    point, held=point.job_id in ids, doubt=suspects.get(point.point_id, "")
                )
                for point in points
            ],
            holds_problem=problem,
        )

    def show_point(self, request: operator_pb2.PointName) -> operator_pb2.PointDetail:
        """One point with its record, and who holds it. Raises: NotFound."""
        point = self._world.catalogue.point(request.point_id)
        hold = None
        problem = ""
        try:
            tag = lineage_tag(self._world.keeper.keys().common.id_key, point.lineage_id)
            name = manifest_name(tag, point.job_id)
            hold = while_it_answers(partial(self._care.hold_of, name))
        except HoldfastError as error:
            problem = error.line()
        confidence = confidence_of(self._world, point)
        return operator_pb2.PointDetail(
            point=point_message(
                point,
                held=hold is not None,
                doubt=self._world.catalogue.suspects().get(point.point_id, ""),
            ),
            record=point.record,
            left_out=left_out_of(point),
            held_at="" if hold is None else hold.held_at,
            hold_reason="" if hold is None else hold.reason,
            holds_problem=problem,
            confidence=confidence,
            is_proven=confidence == 1.0,
        )

    def hold(self, request: operator_pb2.HoldRequest) -> operator_pb2.RepositoryChange:
        """Hold a point, or let go of it: also of one that the catalogue does not know. Raises: NotFound, TimedOut."""
        point_id = request.point_id
        try:
            point_id = self._world.catalogue.point(point_id).point_id
        except NotFound:
            if not request.release:
                raise
        waited = StopWhenGivenUp()
        actor = current_actor()
        if request.release:
            was_held = while_it_answers(
                partial(self._care.unhold, point_id, actor=actor, check=waited.check),
                gave_up=waited.stop,
            )
            line = f"{point_id} is no longer held" if was_held else f"{point_id} was not held"
        else:
            while_it_answers(
                partial(
                    self._care.hold,
                    PointId(point_id),
                    reason=request.reason,
                    actor=actor,
                    check=waited.check,
                ),
                gave_up=waited.stop,
            )
            line = f"{point_id} is held: it is never forgotten before `holdfast point unhold`"
        return operator_pb2.RepositoryChange(plan=[line], done=True, names=[point_id])
