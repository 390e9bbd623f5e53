"""What a prune would do, decided without I/O: from what was found to what goes, moves and waits.

Two fences make a death: what one calls dead is deleted only when the next one, after the grace time and
after all older writers have ended, calls it dead again.
"""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence, Set
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

from holdfast_common.clock import parse_utc
from holdfast_common.repository.fence import Fence
from holdfast_common.repository.layout import pack_name
from holdfast_common.repository.lease_survey import AnnouncedWriter
from holdfast_common.repository.pack_survey import IndexFact, PackFact

DEAD_SHARE_MIN: Final = 0.30  # below it, moving the rest costs more than it frees
CLOCK_TOLERANCE: Final = timedelta(minutes=5)
CLOCK_JUMP_MAX: Final = timedelta(hours=24)
FENCES_KEPT: Final = 3
INDEX_GROUP_BYTES: Final = 64 << 20  # index objects that are merged into one: bounds the memory
# Within a deletion: what refers to something goes before it.
DELETION_ORDER: Final = ("points/", "proofs/", "index/", "maps/", "packs/")


@dataclass(frozen=True, slots=True, kw_only=True)
class ClockFacts:
    """What is known of the time."""

    now: datetime
    storage_now: datetime | None  # by the storage's own clock
    last_seen: datetime | None  # the youngest time that anybody wrote down before


def clock_problem(facts: ClockFacts) -> str:
    """Why this clock is not to be believed; empty: it is."""
    if facts.storage_now is not None:
        difference = abs(facts.now - facts.storage_now)
        if difference > CLOCK_TOLERANCE:
            return f"this clock and the storage's differ by {_text(difference)}"
    if facts.last_seen is None:
        return ""
    if facts.now < facts.last_seen - CLOCK_TOLERANCE:
        return f"the clock went back by {_text(facts.last_seen - facts.now)}"
    if facts.now > facts.last_seen + CLOCK_JUMP_MAX:
        return f"nothing was written for {_text(facts.now - facts.last_seen)}, or the clock jumped"
    return ""


@dataclass(frozen=True, slots=True, kw_only=True)
class FenceFacts:
    """What decides whether the next fence may be published now."""

    newest: Fence | None
    newest_stored_at: datetime | None  # by the storage's clock
    current_epoch: int
    writers: Sequence[AnnouncedWriter]
    now: datetime
    storage_now: datetime | None
    grace: timedelta
    pending: bool  # whether anything that the newest fence calls dead is still there


@dataclass(frozen=True, slots=True, kw_only=True)
class Waiting:
    """Why the next fence cannot be published yet."""

    until: datetime | None = None  # the grace time's end
    writers: tuple[AnnouncedWriter, ...] = ()  # who may still refer to what is dead


def waiting(facts: FenceFacts) -> Waiting | None:
    """None: it may be published now. The oldest writer decides, whatever the time is."""
    decided = facts.current_epoch - 1  # the next fence decides the newest closed epoch
    older = tuple(
        writer
        for writer in facts.writers
        if writer.writer_epoch <= decided
        and writer.is_at_work(now=facts.now, storage_now=facts.storage_now)
    )
    if older and decided:
        return Waiting(writers=older)
    if facts.newest is None or not facts.pending or is_dated_ahead(facts):
        return None
    age = _age(facts, facts.newest)
    return Waiting(until=facts.now + facts.grace - age) if age < facts.grace else None


def is_dated_ahead(facts: FenceFacts) -> bool:
    """Whether the newest fence was written by a clock that ran ahead: nobody knows when its grace time is over.

    Only an accepted clock comes that far. What this fence called dead is then found dead anew, behind one without any.
    """
    return facts.newest is not None and _age(facts, facts.newest) < -CLOCK_TOLERANCE


def is_followed(
    newest: Fence | None, *, existing: Container[str], census: Mapping[str, bytes]
) -> bool:
    """Whether another fence is to follow the newest one although nothing is dead.

    What it called dead is still there; or it is gone, and points that it did not count can be forgotten only
    behind another one, which nothing else might ever bring (`forget.plan_forget`).
    """
    if newest is None or not newest.tombstones:
        return False
    if any(name in existing for name in newest.tombstones):
        return True
    return any(newest.census.get(name) != digest for name, digest in census.items())


def _age(facts: FenceFacts, newest: Fence) -> timedelta:
    if facts.storage_now is not None and facts.newest_stored_at is not None:
        return facts.storage_now - facts.newest_stored_at
    return facts.now - parse_utc(newest.closed_at)


@dataclass(frozen=True, slots=True, kw_only=True)
class FoundObjects:
    """Everything in a repository that may be dead, with lengths, and what is needed of it."""

    packs: Mapping[bytes, PackFact]
    missing_chunks: int
    refused_indexes: Sequence[str]  # what only they name may look as if nobody needed it
    indexes: Sequence[IndexFact]
    needed_indexes: frozenset[bytes]  # that points name: themselves, or merged ones with them
    maps: Mapping[str, int]
    needed_maps: frozenset[str]
    void_manifests: Sequence[str]
    proofs: Mapping[str, frozenset[bytes]]  # packs that each proves


@dataclass(frozen=True, slots=True, kw_only=True)
class PackPlan:
    """What becomes of the packs, and of everything but index objects."""

    dead: frozenset[str]  # names of what no point needs
    repacked: tuple[bytes, ...]  # packs whose needed blobs are copied into new ones
    indexed: tuple[bytes, ...]  # packs in no index that points need
    moved_bytes: int
    kept_for_later: int  # packs worth repacking, beyond the limit


@dataclass(frozen=True, slots=True, kw_only=True)
class IndexPlan:
    """What becomes of the index objects once packs are gone."""

    dead: tuple[IndexFact, ...]
    rewritten: tuple[tuple[IndexFact, ...], ...]  # groups: each becomes one index object


def plan_packs(found: FoundObjects, *, moved_bytes_max: int) -> PackPlan:
    """What is needed by no point dies; a pack with too much dead in it is repacked."""
    dead_packs = {
        digest
        for digest, fact in found.packs.items()
        if (not fact.problem and not fact.needed_bytes)
        # what cannot be read may hold what is missing, or what only a refused index names
        or (
            fact.problem
            and not fact.is_indexed
            and not found.missing_chunks
            and not found.refused_indexes
        )
    }
    candidates = sorted(
        (
            fact
            for digest, fact in found.packs.items()
            if digest not in dead_packs
            and not fact.problem
            and not fact.is_doomed  # a copy of this moment is no reason to delete it in this moment
            and fact.dead_share >= DEAD_SHARE_MIN
        ),
        key=lambda fact: (-fact.dead_share, fact.digest),
    )
    repacked: list[bytes] = []
    moved = 0
    for fact in candidates:
        if moved + fact.needed_bytes <= moved_bytes_max:
            repacked.append(fact.digest)
            moved += fact.needed_bytes
    indexed = [
        digest
        for digest, fact in sorted(found.packs.items())
        if not fact.is_indexed and not fact.problem and fact.needed_bytes
    ]
    dead = {pack_name(digest) for digest in dead_packs}
    dead |= found.maps.keys() - found.needed_maps
    dead |= set(found.void_manifests)
    dead |= {name for name, packs in found.proofs.items() if not packs & found.packs.keys()}
    return PackPlan(
        dead=frozenset(dead),
        repacked=tuple(repacked),
        indexed=tuple(digest for digest in indexed if digest not in repacked),
        moved_bytes=moved,
        kept_for_later=len(candidates) - len(repacked),
    )


def plan_indexes(found: FoundObjects, *, going: Set[bytes]) -> IndexPlan:
    """``going``: packs that the next fence will call dead.

    An index object may go when others say the same of all of its packs that stay, and, if a point names it,
    one of them says that it stands in its place. Where data is missing nothing is touched: it may be found again.
    """
    if found.missing_chunks:
        return IndexPlan(dead=(), rewritten=())
    kept = found.packs.keys() - going
    whole = [fact for fact in found.indexes if fact.packs and fact.packs <= kept]
    standing = [fact for fact in whole if not _is_contained(fact, whole, found.needed_indexes)]
    replaced = {each for fact in standing for each in fact.supersedes}
    covered = {claim for fact in standing for claim in fact.claims.items()}
    names = {fact.object_id for fact in standing}
    dead: list[IndexFact] = []
    groups: list[list[IndexFact]] = [[]]
    for fact in found.indexes:
        if fact.object_id in names:
            continue
        spoken_for = {fact.object_id, *fact.supersedes} & found.needed_indexes
        said = {claim for claim in fact.claims.items() if claim[0] in kept}
        if not said - covered and not spoken_for - replaced:
            dead.append(fact)
        elif fact.packs:
            if sum(each.length for each in groups[-1]) > INDEX_GROUP_BYTES:
                groups.append([])
            groups[-1].append(fact)
        # else it has no pack, and only says in whose place it stands
    return IndexPlan(dead=tuple(dead), rewritten=tuple(tuple(group) for group in groups if group))


def _is_contained(fact: IndexFact, whole: Sequence[IndexFact], needed: frozenset[bytes]) -> bool:
    """Whether a merged index object says everything that this one says."""
    return any(
        fact.object_id in other.supersedes
        and fact.claims.items() <= other.claims.items()
        and set(fact.supersedes) & needed <= set(other.supersedes)
        for other in whole
    )


def deletable(newest: Fence | None, before: Fence | None) -> list[str]:
    """What two fences in a row call dead, in the order in which it may go."""
    if newest is None or before is None:
        return []
    both = set(newest.tombstones) & set(before.tombstones)
    return [name for prefix in DELETION_ORDER for name in sorted(both) if name.startswith(prefix)]


def _text(difference: timedelta) -> str:
    return str(difference).partition(".")[0]
