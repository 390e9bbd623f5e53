"""When a prune does not begin: a clock in doubt, a fence that nobody can read, points that are missing."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from datetime import datetime
from typing import Final

from holdfast_common.clock import parse_utc, utc_text
from holdfast_common.errors import IntegrityError, PointsMissing, Refused, RepositoryFailed
from holdfast_common.repository.fence import Fences
from holdfast_common.repository.lease_survey import AnnouncedWriter
from holdfast_common.repository.live_chunks import Needed
from holdfast_common.repository.prune_plan import ClockFacts, clock_problem

_TOLD_MAX: Final = 10  # names in the message; the error has all of them


def refuse_missing(expected: Collection[str], there: Collection[str], fences: Fences) -> set[str]:
    """Compare the manifests that must be there with those that are.

    One that the next census does not have never counts again, also when it is put back. So what was not
    forgotten must be there, readable or not. The expected ones that a fence called dead, which only those are
    that never counted: they may be gone. Raises: PointsMissing.
    """
    dead = {name for fence in fences.by_epoch.values() for name in fence.tombstones}
    gone = set(expected) - set(there)
    missing = sorted(gone - dead)
    if missing:
        more = len(missing) - _TOLD_MAX
        error = PointsMissing(
            "restore points are missing that the catalogue knows, so nothing is deleted",
            points=len(missing),
            names=" ".join(missing[:_TOLD_MAX]) + (f" and {more} more" if more > 0 else ""),
        )
        error.names = tuple(missing)
        raise error
    return gone


def refuse_unknown(needed: Needed) -> None:
    """Raises: IntegrityError: what the points need is not known; names the manifests that nobody can use."""
    if not needed.problems:
        return
    more = len(needed.unusable) - _TOLD_MAX
    names = " ".join(needed.unusable[:_TOLD_MAX]) + (f" and {more} more" if more > 0 else "")
    raise IntegrityError(
        f"what the points need is not known, so nothing more is deleted: {needed.problems[0]}",
        problems=len(needed.problems),
        **({"manifests": names} if names else {}),
        advice="run `holdfast check`; repair what it names (`holdfast repo repair --from COPY`), or delete those"
        " points: `holdfast point delete POINT --give-up` where the manifest itself stays damaged, or nobody who may"
        " signed it",
    )


def refuse_unread(fences: Fences) -> None:
    """Raises: RepositoryFailed: what a fence says is not known now, and may be another day."""
    if fences.unread:
        raise RepositoryFailed(
            "a fence cannot be read, so nothing is deleted",
            epochs=", ".join(map(str, sorted(fences.unread))),
            advice="see that the storage is healthy, then prune again; `holdfast repo repair` mends what is lost",
        )


def refuse_doubtful_clock(
    fences: Fences,
    leases: Iterable[AnnouncedWriter],
    *,
    now: datetime,
    storage_now: datetime | None,
    last_seen: datetime | None,
) -> None:
    """Compare this clock with every time that is written down. Raises: Refused."""
    facts = clock_facts(fences, leases, now=now, storage_now=storage_now, last_seen=last_seen)
    if problem := clock_problem(facts):
        raise Refused(
            f"nothing is deleted by a doubtful clock: {problem}",
            now=utc_text(now),
            advice="see that the clock is right, then prune again with --accept-clock",
        )


def clock_facts(
    fences: Fences,
    leases: Iterable[AnnouncedWriter],
    *,
    now: datetime,
    storage_now: datetime | None,
    last_seen: datetime | None,
) -> ClockFacts:
    """Every time that is written down. ``last_seen``: the youngest one that is known from elsewhere."""
    seen = [] if last_seen is None else [last_seen]
    if fences.newest is not None:
        seen.append(parse_utc(fences.newest.closed_at))
    for lease in leases:
        if lease.stored_at is not None:
            seen.append(lease.stored_at)
        elif lease.record is not None:
            seen.append(parse_utc(lease.record.written_at))
    return ClockFacts(now=now, storage_now=storage_now, last_seen=max(seen, default=None))
