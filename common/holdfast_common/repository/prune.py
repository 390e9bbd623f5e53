"""One round of pruning: mark, move, publish the next fence, delete what two fences in a row call dead.

Before it, what the last round began is finished, and the oldest writer is waited for. Every step can be the last one: what a round leaves is found by the next. Nothing is remembered but in the
fences. What needs no room is done first, so that a full repository can be pruned.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Final

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from holdfast_common.clock import Clock, utc_text
from holdfast_common.errors import (
    ObjectMissing,
    RepositoryFull,
)
from holdfast_common.repository.fence import (
    Fence,
    Fences,
    confirm_newest,
    load_fences,
    tombstoned_packs,
)
from holdfast_common.repository.index_merge import merge_while_many
from holdfast_common.repository.key_sets import KeyRing, ReaderKeys
from holdfast_common.repository.layout import fence_name, index_name, pack_name
from holdfast_common.repository.lease_survey import AnnouncedWriter, litter, survey_leases
from holdfast_common.repository.live_chunks import Needed, find_needed
from holdfast_common.repository.object_store import ObjectStore
from holdfast_common.repository.pack_survey import PackSurvey, survey_packs
from holdfast_common.repository.proof import proven_packs
from holdfast_common.repository.prune_plan import (
    DEAD_SHARE_MIN,
    DELETION_ORDER,
    FENCES_KEPT,
    FenceFacts,
    FoundObjects,
    PackPlan,
    deletable,
    is_dated_ahead,
    is_followed,
    plan_indexes,
    plan_packs,
    waiting,
)
from holdfast_common.repository.prune_progress import DELETING, SURVEYING, PruneProgress, Tell
from holdfast_common.repository.prune_refusals import (
    refuse_doubtful_clock,
    refuse_missing,
    refuse_unknown,
    refuse_unread,
)
from holdfast_common.repository.prune_report import DEFAULT_LIMITS, PruneLimits, PruneReport
from holdfast_common.repository.prune_writing import (
    check_newest,
    copy_needed,
    publish_fence,
    rewrite_indexes,
)
from holdfast_common.repository.randomness import SYSTEM_RANDOMNESS, Randomness
from holdfast_common.repository.repair_staging import remove_finished_replacements
from holdfast_common.repository.reserve import keep_reserve
from holdfast_common.repository.storage_time import storage_time, stored_at
from holdfast_common.repository.stored_objects import stored_objects
from holdfast_common.repository.writers import WriterList, load_writers

log = logging.getLogger(__name__)

_LOOK_EVERY: Final = 256  # deletions, until it is asked whether another one prunes meanwhile


class _OutOfTime(Exception):
    pass


def prune(
    store: ObjectStore,
    ring: KeyRing,
    *,
    signing_key: Ed25519PrivateKey,
    clock: Clock,
    limits: PruneLimits = DEFAULT_LIMITS,
    last_seen: datetime | None = None,
    expected_points: Collection[str] = (),
    check: Callable[[], None] = lambda: None,
    tell: Tell = lambda _: None,
    randomness: Randomness = SYSTEM_RANDOMNESS,
) -> PruneReport:
    """One round. ``signing_key``: listed in the role `prune`. ``last_seen``: the youngest time known before.

    ``expected_points``: names of the manifests that a catalogue knows, read before; a repository cannot tell by
    itself that one was taken away. A caller without a catalogue has none: then a missing manifest is a forgotten one.
    ``check``: called often; raises when the work is to stop, which is safe at any time. ``tell``: how far it is.
    Raises: Refused (the clock), PointsMissing, IntegrityError (what is needed is not known), Locked (another one
    prunes), RepositoryFull, RepositoryFailed.
    """
    return _Round(
        store=store,
        ring=ring,
        signing_key=signing_key,
        clock=clock,
        limits=limits,
        expected_points=frozenset(expected_points),
        outer_check=check,
        tell=tell,
        randomness=randomness,
        now=clock.now(),
        deadline=clock.monotonic_seconds() + limits.seconds_max,
    ).run(last_seen)


@dataclass(slots=True, kw_only=True)
class _Round:
    store: ObjectStore
    ring: KeyRing
    signing_key: Ed25519PrivateKey
    clock: Clock
    limits: PruneLimits
    expected_points: frozenset[str]
    outer_check: Callable[[], None]
    tell: Tell
    randomness: Randomness
    now: datetime
    deadline: float
    storage_now: datetime | None = None
    existing: dict[str, int] = field(default_factory=dict)  # all that may be deleted, with lengths
    deleted: list[str] = field(default_factory=list)
    deleted_bytes: int = 0
    report: PruneReport = field(default_factory=PruneReport)

    @property
    def keys(self) -> ReaderKeys:
        return self.ring.common

    def run(self, last_seen: datetime | None) -> PruneReport:
        store, keys = self.store, self.keys
        writers = load_writers(store, keys)
        fences = load_fences(store, keys, writers)
        refuse_unread(fences)
        self.storage_now = storage_time(store)
        leases = survey_leases(store, keys, writers)
        if not self.limits.accept_clock:
            refuse_doubtful_clock(
                fences, leases, now=self.now, storage_now=self.storage_now, last_seen=last_seen
            )
        there = {info.name for info in store.list("points/")}
        gone = refuse_missing(self.expected_points, there, fences)
        if not self.limits.dry_run:
            remove_finished_replacements(store)
            # what is contained in another one is dead in the plan below
            merge_while_many(
                store,
                keys,
                writers,
                signing_key=self.signing_key,
                randomness=self.randomness,
                check=self.outer_check,
            )
        self.existing = {
            info.name: info.length
            for prefix in DELETION_ORDER
            for info in stored_objects(store, prefix)
        }
        try:
            if not self.limits.dry_run:
                self._delete_litter(leases)
                self._delete(fences)
            facts = self._fence_facts(fences, leases)
            wait = waiting(facts)
            self.report = replace(self.report, waiting=wait)
            if wait is None or self.limits.dry_run:
                self._next_fence(fences, writers, begins_anew=is_dated_ahead(facts))
        except _OutOfTime:
            self.report = replace(self.report, out_of_time=True)
        if self.limits.dry_run:
            return self.report
        keep_reserve(store, self.randomness, length=self.limits.reserve_bytes)
        return replace(
            self.report,
            deleted=len(self.deleted),
            deleted_bytes=self.deleted_bytes,
            void_points=tuple(sorted(gone | (self.expected_points & set(self.deleted)))),
            names=tuple(self.deleted),
        )

    def _fence_facts(self, fences: Fences, leases: tuple[AnnouncedWriter, ...]) -> FenceFacts:
        newest = fences.newest
        name = "" if newest is None else fence_name(newest.closed_epoch)
        return FenceFacts(
            newest=newest,
            newest_stored_at=stored_at(self.store, name) if name else None,
            current_epoch=fences.current_epoch,
            writers=leases,
            now=self.now,
            storage_now=self.storage_now,
            grace=self.limits.grace,
            pending=newest is not None and any(name in self.existing for name in newest.tombstones),
        )

    def _next_fence(self, fences: Fences, writers: WriterList, *, begins_anew: bool) -> None:
        needed = find_needed(
            self.store, self.ring, fences=fences, check=self._check, tell=self.tell
        )
        refuse_unknown(needed)
        # once more: this listing is the one that decides what counts
        refuse_missing(self.expected_points, {*needed.census, *needed.void}, fences)
        # what it called dead, or since when, is not known: two new ones begin anew
        if fences.newest_problem or begins_anew:
            if not self.limits.dry_run:
                self._publish(fences, needed, [])
            return
        self.tell(PruneProgress(step=SURVEYING))
        survey = survey_packs(
            self.store,
            self.keys,
            writers,
            needed=needed.chunks,
            needed_indexes=needed.indexes,
            doomed=tombstoned_packs(fences),
            dead_share_min=DEAD_SHARE_MIN,
            check=self._check,
        )
        found = self._found(needed, survey, writers)
        plan = plan_packs(found, moved_bytes_max=self.limits.moved_bytes_max)
        self.report = replace(
            self.report,
            missing_chunks=survey.missing_chunks,
            kept_for_later=plan.kept_for_later,
            refused_indexes=tuple(survey.refused_indexes),
        )
        if self.limits.dry_run:
            self._tell_plan(found, plan, fences)
            return
        dead = self._moved(found, survey, plan)
        if dead or is_followed(fences.newest, existing=self.existing, census=needed.census):
            self._publish(fences, needed, sorted(dead))

    def _found(self, needed: Needed, survey: PackSurvey, writers: WriterList) -> FoundObjects:
        return FoundObjects(
            packs=survey.packs,
            missing_chunks=survey.missing_chunks,
            refused_indexes=survey.refused_indexes,
            indexes=survey.indexes,
            needed_indexes=needed.indexes,
            maps={n: size for n, size in self.existing.items() if n.startswith("maps/")},
            needed_maps=needed.maps,
            void_manifests=needed.void,
            proofs=proven_packs(self.store, self.existing, self.keys, writers),
        )

    def _moved(self, found: FoundObjects, survey: PackSurvey, plan: PackPlan) -> set[str]:
        """Copy and rewrite what the plan says; names of all that is dead then."""
        going = {_digest(name) for name in plan.dead if name.startswith("packs/")}
        self.store.confirm(pack_name(digest) for digest in plan.indexed)  # whoever put them
        try:
            repacked = copy_needed(
                self.store,
                survey,
                plan,
                keys=self.keys,
                randomness=self.randomness,
                go_on=self._has_time,
                tell=self.tell,
            )
            going |= set(repacked.done)
            index_plan = plan_indexes(found, going=going)
            rewritten = rewrite_indexes(
                self.store,
                survey,
                index_plan,
                added=[*repacked.new, *(survey.contents[each] for each in plan.indexed)],
                going=going,
                keys=self.keys,
                signing_key=self.signing_key,
                randomness=self.randomness,
            )
        except RepositoryFull:
            # What was written is in no index, and garbage. What needs no room goes all the same.
            self.report = replace(self.report, was_full=True)
            return set(plan.dead)
        self.report = replace(
            self.report,
            repacked=len(repacked.done),
            moved_bytes=repacked.moved_bytes,
            rewritten_indexes=len(rewritten),
        )
        dead = set(plan.dead) | {pack_name(digest) for digest in repacked.done}
        dead |= {fact.name for fact in index_plan.dead}
        return dead | {index_name(object_id) for object_id in rewritten}

    def _publish(self, fences: Fences, needed: Needed, dead: list[str]) -> None:
        epoch = fences.current_epoch
        fence = Fence(
            closed_epoch=epoch,
            closed_at=utc_text(self.clock.now()),
            census=needed.census,
            tombstones=dead,
            decided_epoch=epoch - 1,
            first_kept=max(1, epoch - FENCES_KEPT + 1),
        )
        was_full = publish_fence(
            self.store,
            fence,
            keys=self.keys,
            signing_key=self.signing_key,
            randomness=self.randomness,
        )
        self.report = replace(self.report, was_full=self.report.was_full or was_full)
        before = set(fences.newest.tombstones if fences.newest is not None else ())
        fresh = [name for name in dead if name not in before]
        self.report = replace(
            self.report,
            fence=epoch,
            doomed=len(fresh),
            doomed_bytes=sum(self.existing.get(name, 0) for name in fresh),
        )
        self._delete(Fences(by_epoch={**fences.by_epoch, epoch: fence}))
        for info in list(stored_objects(self.store, "fences/")):
            if info.name < fence_name(fence.first_kept):
                with contextlib.suppress(ObjectMissing):
                    self.store.delete(info.name)

    def _delete(self, fences: Fences) -> None:
        """What the two newest fences call dead. None of it can ever be needed again."""
        newest = fences.newest
        if newest is None:
            return
        before = fences.by_epoch.get(newest.closed_epoch - 1)
        names = [name for name in deletable(newest, before) if name in self.existing]
        if names:
            confirm_newest(self.store, fences)
        for number, name in enumerate(names):
            self._check()
            if number % _LOOK_EVERY == 0:
                check_newest(self.store, newest.closed_epoch)
            self.tell(PruneProgress(step=DELETING, done=number, total=len(names)))
            with contextlib.suppress(ObjectMissing):
                self.store.delete(name)
            self.deleted.append(name)
            self.deleted_bytes += self.existing.pop(name)

    def _delete_litter(self, leases: tuple[AnnouncedWriter, ...]) -> None:
        for name in litter(leases, now=self.now, storage_now=self.storage_now):
            self._check()
            with contextlib.suppress(ObjectMissing):
                self.store.delete(name)

    def _tell_plan(self, found: FoundObjects, plan: PackPlan, fences: Fences) -> None:
        going = {_digest(name) for name in plan.dead if name.startswith("packs/")}
        index_plan = plan_indexes(found, going=going | set(plan.repacked))
        dead = set(plan.dead) | {pack_name(digest) for digest in plan.repacked}
        dead |= {fact.name for fact in index_plan.dead}
        dead |= {fact.name for group in index_plan.rewritten for fact in group}
        again = self._deleted_again(fences) & dead & self.existing.keys()
        fresh = dead - again
        self.report = replace(
            self.report,
            deleted=len(again),
            deleted_bytes=_total(self.existing, again),
            doomed=len(fresh),
            doomed_bytes=_total(self.existing, fresh),
            repacked=len(plan.repacked),
            moved_bytes=plan.moved_bytes,
            rewritten_indexes=sum(len(group) for group in index_plan.rewritten),
            names=tuple(sorted(dead)),
        )

    def _deleted_again(self, fences: Fences) -> set[str]:
        """What this round deletes if it is still dead: while it waits, only what two fences call dead."""
        newest = fences.newest
        if newest is None:
            return set()
        if self.report.waiting is None:
            return set(newest.tombstones)
        return set(deletable(newest, fences.by_epoch.get(newest.closed_epoch - 1)))

    def _has_time(self) -> bool:
        self.outer_check()
        return self.clock.monotonic_seconds() < self.deadline

    def _check(self) -> None:
        if not self._has_time():
            raise _OutOfTime


def _digest(name: str) -> bytes:
    return bytes.fromhex(name.rpartition("/")[2])


def _total(existing: Mapping[str, int], names: Iterable[str]) -> int:
    return sum(existing.get(name, 0) for name in names)
