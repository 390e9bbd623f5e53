"""What the controller does with its repository itself: prune, forget, hold, and make the catalogue anew.

Two do not prune at once, and nothing is forgotten meanwhile: whether a point may go depends on the newest
fence. (A repair is an agent's work: the table of jobs keeps it apart from prunes.) Points can be held at any
time. Everything that deletes is in the audit trail, and a round in the table of rounds, before it happens.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from holdfast_common.clock import parse_utc, utc_text
from holdfast_common.errors import (
    FormatError,
    HoldfastError,
    IntegrityError,
    Locked,
    NotFound,
    ObjectMissing,
    PointsMissing,
    Refused,
)
from holdfast_common.identity import JobId, PointId
from holdfast_common.repository.derivation import lineage_tag
from holdfast_common.repository.directory_store import DirectoryStore
from holdfast_common.repository.fence import load_fences
from holdfast_common.repository.forget import (
    ForgetPlan,
    PointName,
    forget_point,
    plan_forget,
)
from holdfast_common.repository.giving_up import give_up_point
from holdfast_common.repository.hang_watch import watched_files
from holdfast_common.repository.holds import (
    Hold,
    held_points,
    hold_point,
    read_hold,
    unhold_point,
)
from holdfast_common.repository.layout import aside_name, hold_name, manifest_name
from holdfast_common.repository.mount_probe import check_answers
from holdfast_common.repository.points import Point, PointList, list_points
from holdfast_common.repository.prune import prune
from holdfast_common.repository.prune_progress import Tell
from holdfast_common.repository.prune_report import PruneLimits, PruneReport
from holdfast_controller.runs.clock_watch import clock_doubt
from holdfast_controller.runs.forget_by_rule import Chooser, SeenRepository, kept_for_readers
from holdfast_controller.runs.point_rows import point_row
from holdfast_controller.runs.unusable_points import lost_names, with_given_up, with_unusable
from holdfast_controller.runs.world import World
from holdfast_controller.store.catalogue import PointRow
from holdfast_controller.store.prunes import PruneEnd, PruneTable

HELD_ANSWER_SECONDS: Final = 5.0  # points are listed all the same

Check = Callable[[], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Rebuilt:
    """What a catalogue lacked, and what it knows that is not there."""

    added: tuple[PointId, ...]
    missing: tuple[PointId, ...]
    unusable: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class PruneWatch:
    """Whose round it is. ``check`` raises when it is to stop; ``tell`` is told how far it is."""

    job_id: JobId
    check: Callable[[], None]
    tell: Tell


class RepositoryCare:
    """Thread-safe: who comes while another one is at work is told so."""

    def __init__(self, world: World, prunes: PruneTable) -> None:
        self._world = world
        self._prunes = prunes
        self._pruning = threading.Lock()
        self._changing = threading.Lock()  # which points there are, and which are held

    def prune(
        self,
        limits: PruneLimits,
        *,
        actor: str,
        watch: PruneWatch,
        told: Callable[[PruneReport], Sequence[str]],
    ) -> PruneReport:
        """One round, or what it would do. ``told``: the same for people, as it is kept.

        Points that the catalogue knows must be there. Raises: as `repository.prune.prune`; Locked.
        """
        world = self._world
        with self._alone(self._pruning) as store:
            seen = self._last_seen()
            known = self._known_points()
            if not limits.dry_run:
                self._audit(actor, "prune", result="begins")
            prune_id = self._prunes.begin(
                at=utc_text(world.clock.now()), job_id=watch.job_id, dry_run=limits.dry_run
            )
            end = PruneEnd(counts={}, problem="it ended by a bug: see the controller's log")
            try:
                self._refuse_doubt(limits)
                report = prune(
                    store,
                    world.keeper.keys(),
                    signing_key=world.keeper.pruner_key(),
                    clock=world.clock,
                    limits=limits,
                    last_seen=seen,
                    expected_points=known.keys(),
                    check=watch.check,
                    tell=watch.tell,
                )
                end = PruneEnd(counts=counts_of(report), plan=told(report), names=report.names)
                for name in report.void_points:
                    self._audit(
                        actor, "drop a void point", what=known[name].point_id, result="done"
                    )
                    world.catalogue.remove(known[name].point_id)
            except PointsMissing as error:
                end = _missing_end(error, known)
                raise
            except HoldfastError as error:
                end = PruneEnd(counts={}, problem=error.line())
                raise
            finally:
                self._prunes.end(prune_id, end, at=utc_text(world.clock.now()))
            return report

    def forget(
        self,
        point_ids: Sequence[PointId],
        *,
        actor: str,
        dry_run: bool,
        give_up: Collection[PointId] = (),
        choose: Chooser | None = None,
        check: Callable[[], None] = lambda: None,
    ) -> ForgetPlan:
        """Remove the manifests of these points, and of those that ``choose`` adds: not of held, read, too young ones.

        A point that is not in the repository any more is dropped from the catalogue. Of those in ``give_up``,
        which the catalogue need not know, a damaged manifest goes as well. ``check``: called before each change;
        raises when nothing more is to be changed. Raises: NotFound.
        """
        world = self._world
        with self._alone(self._pruning, self._changing) as store:
            keys = world.keeper.keys()
            listed = list_points(store, keys)
            found = {point.point_id: point for point in listed.points}
            fences = load_fences(store, keys.common, keys.writers(store))
            held = held_points(store)
            if choose is not None:
                seen = SeenRepository(
                    store=store,
                    keys=keys,
                    listed=listed,
                    fences=fences,
                    held=held,
                    last_seen=self._last_seen(),
                )
                point_ids = sorted({*point_ids, *choose(seen)})
            chosen = [
                PointName(name=found[each].name, digest=found[each].digest)
                for each in point_ids
                if each in found
            ]
            known = self._known_points()
            asked = {*point_ids, *give_up} - found.keys()
            plan = with_unusable(
                plan_forget(chosen, held=held, fences=fences),
                lost_names(
                    listed, {n: row.point_id for n, row in known.items()}, asked, give_up=give_up
                ),
                listed=listed,
                held=held,
            )
            plan = with_given_up(plan, give_up, store=store, ring=keys, now=world.clock.now())
            plan = kept_for_readers(plan, world.point_use.readers())
            if dry_run:
                return plan
            ids = {name: row.point_id for name, row in known.items()}
            ids |= {point.name: point.point_id for point in found.values()}
            self._carry_out(store, plan, ids, actor=actor, check=check)
            return plan

    def _carry_out(
        self,
        store: DirectoryStore,
        plan: ForgetPlan,
        ids: Mapping[str, PointId],
        *,
        actor: str,
        check: Callable[[], None],
    ) -> None:
        world = self._world
        for item in plan.gone:
            check()
            self._audit(actor, "forget a point", what=ids[item.name], result="it was not there")
            world.catalogue.remove(ids[item.name])
        for item in plan.forgotten:
            check()
            self._audit(actor, "forget a point", what=ids[item.name], result="begins")
            forget_point(store, item, check=check)
            world.catalogue.remove(ids[item.name])
        for item, _ in plan.given_up:  # last: it needs room
            check()
            point_id = PointId(item.name.rpartition("/")[2])
            self._audit(actor, "give up a damaged point", what=point_id, result="begins")
            is_kept = give_up_point(store, world.keeper.keys(), item.name, check=check)
            world.catalogue.remove(point_id)
            where = aside_name(item.name) if is_kept else "it was not there"
            self._audit(actor, "give up a damaged point", what=point_id, result=where)

    def hold(self, point_id: PointId, *, reason: str, actor: str, check: Check) -> None:
        """``check``: called before anything is changed; raises when it is not to be. Raises: NotFound, RepositoryFull."""
        world = self._world
        with self._alone(self._changing) as store:
            point = self._point(store, point_id)
            check()
            self._audit(actor, "hold a point", what=point_id, result=reason or "no reason given")
            hold_point(
                store,
                point,
                held_at=utc_text(world.clock.now()),
                reason=reason,
                keys=world.keeper.keys().common,
                signing_key=world.keeper.pruner_key(),
            )

    def unhold(self, point: str, *, actor: str, check: Check) -> bool:
        """Whether it was held. ``point``: its id, or the name of its object. ``check``: as above. Raises: NotFound."""
        point_id = PointId(point.rpartition("/")[2])
        with self._alone(self._changing) as store:
            # its manifest may be damaged: then its hold is all that tells its name
            names = [n for n in held_points(store) if point in (n, n.rpartition("/")[2])]
            name = names[0] if len(names) == 1 else self._point(store, point_id).name
            check()
            self._audit(actor, "let go of a point", what=point_id, result="begins")
            return unhold_point(store, name)

    def held(self) -> frozenset[str]:
        """Names of manifests that are held. Raises: NoRepository, TimedOut, RepositoryFailed."""
        folder = self._world.keeper.folder
        check_answers(folder, seconds=HELD_ANSWER_SECONDS)
        with DirectoryStore.open(folder, files=watched_files(folder)) as store:
            return held_points(store)

    def hold_of(self, point_name: str) -> Hold | None:
        """Who held a point, when and why; None: it is not held. A damaged hold holds, and tells only that.

        Raises: NoRepository, TimedOut, RepositoryFailed.
        """
        folder = self._world.keeper.folder
        check_answers(folder, seconds=HELD_ANSWER_SECONDS)
        keys = self._world.keeper.keys()
        with DirectoryStore.open(folder, files=watched_files(folder)) as store:
            if point_name not in held_points(store):
                return None
            try:
                return read_hold(store, hold_name(point_name), keys.common, keys.writers(store))
            except ObjectMissing:
                return None  # somebody let go of it this moment
            except (IntegrityError, FormatError) as error:
                return Hold(
                    point_name=point_name, point_digest=b"", held_at="", reason=f"unknown: {error}"
                )

    def rebuild(self, *, actor: str, dry_run: bool, check: Check = lambda: None) -> Rebuilt:
        """Add the repository's points to the catalogue, from the manifests alone.

        What is known and not there stays known: as long as it is missed, prune deletes nothing of its data,
        and its manifest may still be put back. ``check``: called before anything is changed; raises when it is not to be.
        """
        world = self._world
        with self._alone(self._changing) as store:
            # before the listing: what a backup adds in between is in both, or in the listing alone
            known = {row.point_id for row in world.catalogue.points()}
            listed: PointList = list_points(store, world.keeper.keys())
            there = {point.point_id: point for point in listed.points}
            unusable = {item.name.rpartition("/")[2] for item in listed.unusable}
            added = [point for point in listed.points if point.point_id not in known]
            # a point that cannot be read just now is not missing
            missing = sorted(known - there.keys() - unusable)
            if not dry_run:
                self._audit(actor, "rebuild the catalogue", result=f"{len(added)} added")
                store.confirm(point.name for point in added)
                check()
                for point in sorted(added, key=lambda each: each.manifest.created_at):
                    world.catalogue.add(point_row(point, world.keeper.repository_id))
            return Rebuilt(
                added=tuple(point.point_id for point in added),
                missing=tuple(missing),
                unusable=tuple(f"{item.name}: {item.reason}" for item in listed.unusable),
            )

    def _point(self, store: DirectoryStore, point_id: PointId) -> Point:
        for point in list_points(store, self._world.keeper.keys()).points:
            if point.point_id == point_id:
                return point
        raise NotFound("the point is not in the repository", point=point_id)

    def _known_points(self) -> dict[str, PointRow]:
        """Every point of this repository that the catalogue has, by the name of its manifest."""
        repository_id = self._world.keeper.repository_id
        id_key = self._world.keeper.keys().common.id_key
        return {
            manifest_name(lineage_tag(id_key, row.lineage_id), row.job_id): row
            for row in self._world.catalogue.points()
            if row.repository_id == repository_id
        }

    @contextmanager
    def _alone(self, *locks: threading.Lock) -> Iterator[DirectoryStore]:
        folder = self._world.keeper.folder
        check_answers(folder)
        with ExitStack() as stack:
            for lock in locks:
                if not lock.acquire(blocking=False):
                    raise Locked(
                        "the repository is being pruned"
                        if lock is self._pruning
                        else "points of the repository are being changed",
                        advice="see `holdfast job list`; try again when that has ended",
                    )
                stack.callback(lock.release)
            self._world.keeper.keys()
            self._world.keeper.check_alone()
            with DirectoryStore.open(folder, files=watched_files(folder)) as store:
                yield store

    def _refuse_doubt(self, limits: PruneLimits) -> None:
        """What was found of this clock stays found, whoever asks. Raises: Refused."""
        doubt = clock_doubt(self._world)
        if doubt and not limits.accept_clock:
            raise Refused(
                f"nothing is deleted by a doubtful clock: {doubt}",
                advice="see that the clock is right, then prune again with --accept-clock",
            )

    def _last_seen(self) -> datetime | None:
        written_at = self._world.jobs.last_written_at()
        seen = [written_at] if written_at else []
        last = self._prunes.latest()
        if last is not None:
            seen.append(last.ended_at or last.started_at)
        return max((parse_utc(text) for text in seen), default=None)

    def _audit(self, actor: str, action: str, *, result: str, what: str = "") -> None:
        self._world.audit.append(
            actor=actor,
            action=action,
            object=what or self._world.keeper.repository_id,
            result=result,
        )


def _missing_end(error: PointsMissing, known: Mapping[str, PointRow]) -> PruneEnd:
    """Which points they are, for people and for programs."""
    rows = [known[name] for name in error.names]
    return PruneEnd(
        counts={"missing_points": len(rows)},
        plan=[
            f"missing: point {row.point_id} of {row.vm_name}, taken {row.created_at[:19]}"
            for row in rows
        ],
        names=error.names,
        problem=error.line(),
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
        "refused_indexes": len(report.refused_indexes),
    }
