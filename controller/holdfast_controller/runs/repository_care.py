"""What the controller does with its repository itself: prune, forget, hold, and make the catalogue anew.

One at a time. Everything that deletes is in the audit trail and in the table of rounds before it happens.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime

from holdfast_common.clock import parse_utc, utc_text
from holdfast_common.errors import HoldfastError, Locked, NotFound
from holdfast_common.identity import JobId, LineageId, PointId
from holdfast_common.repository.directory_store import DirectoryStore
from holdfast_common.repository.fence import load_fences
from holdfast_common.repository.forget import ForgetPlan, PointName, forget_point, plan_forget
from holdfast_common.repository.holds import held_points, hold_point, unhold_point
from holdfast_common.repository.manifest_record import point_record
from holdfast_common.repository.points import Point, PointList, list_points
from holdfast_common.repository.prune import prune
from holdfast_common.repository.prune_report import PruneLimits, PruneReport
from holdfast_controller.runs.world import World
from holdfast_controller.store.catalogue import PointRow
from holdfast_controller.store.prunes import PruneTable


@dataclass(frozen=True, slots=True, kw_only=True)
class Rebuilt:
    """What a catalogue lacked, and what it knew that is not there."""

    added: tuple[PointId, ...]
    removed: tuple[PointId, ...]
    unusable: tuple[str, ...]


class RepositoryCare:
    """Thread-safe: who comes while another one is at work is told so."""

    def __init__(self, world: World, prunes: PruneTable) -> None:
        self._world = world
        self._prunes = prunes
        self._lock = threading.Lock()

    def prune(self, limits: PruneLimits, *, actor: str) -> PruneReport:
        """One round. Raises: as `repository.prune.prune`; Locked."""
        world = self._world
        with self._alone() as store:
            seen = self._last_seen()
            prune_id = 0
            if not limits.dry_run:
                self._audit(actor, "prune", result="begins")
                prune_id = self._prunes.begin(at=utc_text(world.clock.now()))
            problem = ""
            report = PruneReport()
            try:
                report = prune(
                    store,
                    world.keeper.keys(),
                    signing_key=world.keeper.pruner_key(),
                    clock=world.clock,
                    limits=limits,
                    last_seen=seen,
                    check=self._check_stopping,
                )
            except HoldfastError as error:
                problem = error.line()
                raise
            finally:
                if prune_id:
                    self._prunes.end(
                        prune_id,
                        at=utc_text(world.clock.now()),
                        counts=counts_of(report),
                        problem=problem,
                    )
            return report

    def forget(self, point_ids: Sequence[PointId], *, actor: str, dry_run: bool) -> ForgetPlan:
        """Remove the manifests of these points, but those that are held or too young. Raises: NotFound."""
        world = self._world
        with self._alone() as store:
            keys = world.keeper.keys()
            found = {point.point_id: point for point in list_points(store, keys).points}
            chosen = []
            for point_id in point_ids:
                if point_id in found:
                    point = found[point_id]
                    chosen.append(PointName(name=point.name, digest=point.digest))
                elif not dry_run:
                    world.catalogue.remove(point_id)  # an earlier order ended between the two
            fences = load_fences(store, keys.common, keys.writers(store))
            plan = plan_forget(chosen, held=held_points(store), fences=fences)
            if dry_run:
                return plan
            ids = {point.name: point.point_id for point in found.values()}
            for item in plan.forgotten:
                self._audit(actor, "forget a point", what=ids[item.name], result="begins")
                forget_point(store, item)
                world.catalogue.remove(ids[item.name])
            return plan

    def hold(self, point_id: PointId, *, reason: str, actor: str) -> None:
        """Raises: NotFound, RepositoryFull."""
        world = self._world
        with self._alone() as store:
            point = self._point(store, point_id)
            self._audit(actor, "hold a point", what=point_id, result=reason or "no reason given")
            hold_point(
                store,
                point,
                held_at=utc_text(world.clock.now()),
                reason=reason,
                keys=world.keeper.keys().common,
                signing_key=world.keeper.pruner_key(),
            )

    def unhold(self, point_id: PointId, *, actor: str) -> bool:
        """Whether it was held. Raises: NotFound."""
        with self._alone() as store:
            point = self._point(store, point_id)
            self._audit(actor, "let go of a point", what=point_id, result="begins")
            return unhold_point(store, point.name)

    def held(self) -> frozenset[str]:
        """Names of manifests that are held."""
        with DirectoryStore.open(self._world.keeper.folder) as store:
            return held_points(store)

    def rebuild(self, *, actor: str, dry_run: bool) -> Rebuilt:
        """Make the catalogue's points what the repository's are, from the manifests alone."""
        world = self._world
        with self._alone() as store:
            listed: PointList = list_points(store, world.keeper.keys())
            known = {row.point_id for row in world.catalogue.points()}
            there = {point.point_id: point for point in listed.points}
            unusable = {item.name.rpartition("/")[2] for item in listed.unusable}
            added = [point for point in listed.points if point.point_id not in known]
            # a point that cannot be read just now is not gone
            removed = sorted(known - there.keys() - unusable)
            if not dry_run:
                self._audit(actor, "rebuild the catalogue", result=f"{len(added)} added")
                for point in added:
                    world.catalogue.add(self._row(point))
                for point_id in removed:
                    world.catalogue.remove(point_id)
            return Rebuilt(
                added=tuple(point.point_id for point in added),
                removed=tuple(removed),
                unusable=tuple(f"{item.name}: {item.reason}" for item in listed.unusable),
            )

    def _row(self, point: Point) -> PointRow:
        record = point_record(point.manifest)
        return PointRow(
            point_id=point.point_id,
            repository_id=self._world.keeper.repository_id,
            lineage_id=LineageId(record.lineage_id),
            job_id=JobId(record.job_id),
            vcenter_id=record.vcenter_id,
            instance_uuid=record.instance_uuid,
            vm_name=record.vm_name,
            created_at=record.snapshot_at or record.created_at,
            record=record.encode().decode(),
        )

    def _point(self, store: DirectoryStore, point_id: PointId) -> Point:
        for point in list_points(store, self._world.keeper.keys()).points:
            if point.point_id == point_id:
                return point
        raise NotFound("the point is not in the repository", point=point_id)

    @contextmanager
    def _alone(self) -> Iterator[DirectoryStore]:
        if not self._lock.acquire(blocking=False):
            raise Locked("the repository is being pruned, or points are being forgotten")
        try:
            self._world.keeper.keys()
            with DirectoryStore.open(self._world.keeper.folder) as store:
                yield store
        finally:
            self._lock.release()

    def _last_seen(self) -> datetime | None:
        seen = [job.created_at for job in self._world.jobs.latest(limit=1)]
        last = self._prunes.latest()
        if last is not None:
            seen.append(last.ended_at or last.started_at)
        return max((parse_utc(text) for text in seen), default=None)

    def _check_stopping(self) -> None:
        if self._world.stopping.is_set():
            raise Locked("the controller is stopping; the next prune goes on from here")

    def _audit(self, actor: str, action: str, *, result: str, what: str = "") -> None:
        self._world.audit.append(
            actor=actor,
            action=action,
            object=what or self._world.keeper.repository_id,
            result=result,
        )


def counts_of(report: PruneReport) -> dict[str, int]:
    """A round's figures, as they are kept and shown."""
    return {
        "deleted": report.deleted,
        "deleted_bytes": report.deleted_bytes,
        "doomed": report.doomed,
        "doomed_bytes": report.doomed_bytes,
        "repacked": report.repacked,
        "moved_bytes": report.moved_bytes,
        "kept_for_later": report.kept_for_later,
        "fence": report.fence,
        "missing_chunks": report.missing_chunks,
    }
