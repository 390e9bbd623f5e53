"""What operators can do with the repository itself: message in, message out."""

from __future__ import annotations

from datetime import timedelta
from typing import Final

from holdfast_common.clock import utc_text
from holdfast_common.identity import PointId
from holdfast_common.repository.prune_report import GRACE, PruneLimits, PruneReport
from holdfast_common.units import size_text
from holdfast_common.wire import operator_pb2
from holdfast_controller.decide.retention import KnownPoint, beyond_last
from holdfast_controller.runs.repository_care import RepositoryCare, counts_of
from holdfast_controller.runs.world import World
from holdfast_controller.service.access_rules import current_actor

CALL_SECONDS_MAX: Final = 90.0  # a call ends before its caller gives up; the next one goes on


class RepositoryActions:
    """Thread-safe."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._care = RepositoryCare(world, world.prunes)

    def prune(self, request: operator_pb2.PruneRequest) -> operator_pb2.RepositoryChange:
        """One round, or what it would do."""
        grace = GRACE
        if request.HasField("grace_minutes"):
            grace = timedelta(minutes=request.grace_minutes)
        limits = PruneLimits(
            grace=grace,
            seconds_max=min(request.seconds_max or CALL_SECONDS_MAX, CALL_SECONDS_MAX),
            moved_bytes_max=request.moved_bytes_max or PruneLimits().moved_bytes_max,
            dry_run=request.dry_run,
            accept_clock=request.accept_clock,
        )
        report = self._care.prune(limits, actor=current_actor())
        return operator_pb2.RepositoryChange(
            plan=_prune_lines(report, dry_run=request.dry_run),
            done=not request.dry_run,
            counts=counts_of(report),
            names=report.names[:1000],
        )

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
        plan = self._care.forget(list(by_id), actor=current_actor(), dry_run=request.dry_run)
        lines = []
        for item in plan.forgotten:
            row = by_id[PointId(item.name.rpartition("/")[2])]
            lines.append(f"forget {row.point_id} of {row.vm_name}, taken {row.created_at[:19]}")
        for item, reason in plan.kept:
            lines.append(f"keep {item.name.rpartition('/')[2]}: {reason}")
        return operator_pb2.RepositoryChange(
            plan=lines,
            done=not request.dry_run,
            counts={"forgotten": len(plan.forgotten), "kept": len(plan.kept)},
            names=[item.name.rpartition("/")[2] for item in plan.forgotten],
        )

    def hold(self, request: operator_pb2.HoldRequest) -> operator_pb2.RepositoryChange:
        """Hold a point, or let go of it. Raises: NotFound."""
        point_id = self._world.catalogue.point(request.point_id).point_id
        if request.release:
            was_held = self._care.unhold(point_id, actor=current_actor())
            line = f"{point_id} is no longer held" if was_held else f"{point_id} was not held"
        else:
            self._care.hold(point_id, reason=request.reason, actor=current_actor())
            line = f"{point_id} is held: it is never forgotten before `holdfast point unhold`"
        return operator_pb2.RepositoryChange(plan=[line], done=True, names=[point_id])

    def rebuild(self, request: operator_pb2.RebuildRequest) -> operator_pb2.RepositoryChange:
        """Make the catalogue of points anew, from the repository alone."""
        rebuilt = self._care.rebuild(actor=current_actor(), dry_run=request.dry_run)
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


def _prune_lines(report: PruneReport, *, dry_run: bool) -> list[str]:
    verb = "would be" if dry_run else "were"
    lines = [
        f"{report.deleted} objects {verb} deleted, {size_text(report.deleted_bytes)}",
        f"{report.doomed} objects {verb} found dead, {size_text(report.doomed_bytes)}:"
        " they go after the grace time",
        f"{report.repacked} packs {verb} repacked, {size_text(report.moved_bytes)} moved",
    ]
    if report.kept_for_later:
        lines.append(f"{report.kept_for_later} packs wait for a later round")
    if report.waiting is not None and report.waiting.until is not None:
        lines.append(f"waiting for the grace time, until {utc_text(report.waiting.until)[:19]}Z")
    if report.waiting is not None and report.waiting.writers:
        jobs = ", ".join(
            writer.record.job_id if writer.record is not None else "an unreadable lease"
            for writer in report.waiting.writers
        )
        lines.append(f"waiting for writers at work: {jobs}")
    if report.out_of_time:
        lines.append("the time was over: the next round goes on from here")
    if report.was_full:
        lines.append("the repository was full: nothing was repacked; prune again")
    if report.missing_chunks:
        lines.append(f"{report.missing_chunks} chunks that points need are missing: run a check")
    return lines
