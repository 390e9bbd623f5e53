"""What operators can do with the repository itself: message in, message out."""

from __future__ import annotations

from datetime import timedelta
from functools import partial

from holdfast_common.identity import PointId
from holdfast_common.repository.hang_watch import while_it_answers
from holdfast_common.repository.prune_report import PruneLimits
from holdfast_common.wire import operator_pb2
from holdfast_controller.decide.retention import KnownPoint, beyond_last
from holdfast_controller.runs.engine import Engine
from holdfast_controller.runs.requests import PruneRequest
from holdfast_controller.runs.world import World
from holdfast_controller.service.access_rules import current_actor
from holdfast_controller.service.operator_messages import started_message


class RepositoryActions:
    """Thread-safe."""

    def __init__(self, world: World, engine: Engine) -> None:
        self._world = world
        self._engine = engine
        self._care = engine.care

    def start_prune(self, request: operator_pb2.PruneRequest) -> operator_pb2.RunStarted:
        """Begin one round of pruning, or one that only looks. Raises: Locked, NoRepository."""
        defaults = PruneLimits()
        grace = defaults.grace
        if request.HasField("grace_minutes"):
            grace = timedelta(minutes=request.grace_minutes)
        limits = PruneLimits(
            grace=grace,
            seconds_max=request.seconds_max or defaults.seconds_max,
            moved_bytes_max=request.moved_bytes_max or defaults.moved_bytes_max,
            dry_run=request.dry_run,
            accept_clock=request.accept_clock,
        )
        started = self._engine.start_prune(PruneRequest(limits=limits, actor=current_actor()))
        return started_message(self._world, started)

    def forget(self, request: operator_pb2.ForgetRequest) -> operator_pb2.RepositoryChange:
        """Forget points that are named, and those that a rule leaves over. Raises: NotFound."""
        catalogue = self._world.catalogue
        chosen = [catalogue.point(point_id) for point_id in request.point_ids]
        rows = {row.point_id: row for row in catalogue.points(vm_name=request.vm)}
        known = [
            KnownPoint(point_id=row.point_id, lineage_id=row.lineage_id, created_at=row.created_at)
            for row in rows.values()
        ]
        over = beyond_last(known, keep_last=request.keep_last)
        chosen += [rows[PointId(point.point_id)] for point in over]
        by_id = {row.point_id: row for row in chosen}
        plan = while_it_answers(
            partial(self._care.forget, list(by_id), actor=current_actor(), dry_run=request.dry_run)
        )
        lines = []
        for item in plan.forgotten:
            row = by_id[PointId(item.name.rpartition("/")[2])]
            lines.append(f"forget {row.point_id} of {row.vm_name}, taken {row.created_at[:19]}")
        for item in plan.gone:
            row = by_id[PointId(item.name.rpartition("/")[2])]
            lines.append(
                f"forget {row.point_id} of {row.vm_name}, taken {row.created_at[:19]}:"
                " it is not in the repository, and only the catalogue drops it"
            )
        for item, reason in plan.kept:
            lines.append(f"keep {item.name.rpartition('/')[2]}: {reason}")
        return operator_pb2.RepositoryChange(
            plan=lines,
            done=not request.dry_run,
            counts={
                "forgotten": len(plan.forgotten) + len(plan.gone),
                "kept": len(plan.kept),
            },
            names=[item.name.rpartition("/")[2] for item in (*plan.forgotten, *plan.gone)],
        )

    def rebuild(self, request: operator_pb2.RebuildRequest) -> operator_pb2.RepositoryChange:
        """Make the catalogue of points anew, from the repository alone."""
        rebuilt = while_it_answers(
            partial(self._care.rebuild, actor=current_actor(), dry_run=request.dry_run)
        )
        lines = [f"add {point_id}" for point_id in rebuilt.added]
        lines += [f"remove {point_id}: it is not in the repository" for point_id in rebuilt.removed]
        lines += [f"not usable: {text}" for text in rebuilt.unusable]
        return operator_pb2.RepositoryChange(
            plan=lines,
            done=not request.dry_run,
            counts={
                "added": len(rebuilt.added),
                "removed": len(rebuilt.removed),
                "unusable": len(rebuilt.unusable),
            },
        )
