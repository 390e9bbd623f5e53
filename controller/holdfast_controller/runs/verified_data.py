"""What proofs say of the data that is there: how much was never read back, and how long ago the rest was. See `proof`.

Looked at when a check is planned, and when one has ended: the packs' names and the proofs are read, no data. Who proved
it does not matter here; that nobody vouches for his own data is asked where it is used (`trusted_chunks`).
"""

from __future__ import annotations

import logging
from datetime import timedelta
from functools import partial
from typing import Final

import msgspec

from holdfast_common.clock import parse_utc, utc_text
from holdfast_common.errors import HoldfastError
from holdfast_common.identity import LineageId
from holdfast_common.repository.directory_store import DirectoryStore
from holdfast_common.repository.hang_watch import watched_files, while_it_answers
from holdfast_common.repository.mount_probe import check_answers
from holdfast_common.repository.proof import load_proof_times
from holdfast_common.repository.prune_plan import CLOCK_TOLERANCE
from holdfast_common.repository.storage_time import stored_at
from holdfast_common.repository.stored_objects import stored_objects
from holdfast_controller.decide.keeping import DataFacts, bytes_to_read, share_text
from holdfast_controller.runs.world import World
from holdfast_controller.store import settings as names

log = logging.getLogger(__name__)

UNKNOWN: Final = "1970-01-01T00:00:00.000000Z"  # of a pack that may be as old as any


class VerifiedData(msgspec.Struct, frozen=True, kw_only=True):
    """What was found at ``seen_at``. ``first_unproven_at``: when the oldest pack was stored that was never read; "": all were.

    ``oldest_at``: when the pack was read and found true of which that is longest ago; "": none was.
    """

    seen_at: str
    packs: int = 0
    total_bytes: int = 0
    unproven_packs: int = 0
    unproven_bytes: int = 0
    first_unproven_at: str = ""
    oldest_at: str = ""


def last_look(world: World) -> VerifiedData | None:
    """As it was looked at last; None: never."""
    found = world.settings.get(names.VERIFIED_DATA)
    return msgspec.json.decode(found, type=VerifiedData) if found else None


def read_back_at(world: World) -> dict[LineageId, str]:
    """By VM: when its newest point was taken of which all data was read back since, and found true. Of others: nothing.

    A point needs nothing that was stored after its backup had ended, but for what a prune moved, which reads it too.
    """
    found = last_look(world)
    if found is None or not found.packs:
        return {}
    before = found.seen_at
    if found.first_unproven_at:
        before = min(before, utc_text(parse_utc(found.first_unproven_at) - CLOCK_TOLERANCE))
    return world.keeping.read_back_at(before)


def look(world: World) -> VerifiedData:
    """Look now, and keep it. Raises: NoRepository, TimedOut, RepositoryFailed."""
    found, _ = while_it_answers(partial(_look, world, old_before=""))
    return _kept(world, found)


def check_subset(world: World, *, runs: int) -> str:
    """The share of the data that the next check reads, of ``runs`` within the days that it is configured for.

    Raises: as `look`.
    """
    days = world.configuration.keeping.check.read_days
    young = timedelta(days=days * max(0, runs - 2) / runs)
    old_before = utc_text(world.clock.now() - young)
    found, old_bytes = while_it_answers(partial(_look, world, old_before=old_before))
    before = world.settings.get(names.KEEPING_UNPROVEN_BYTES)
    facts = DataFacts(
        total=found.total_bytes,
        unproven=found.unproven_bytes,
        unproven_before=int(before) if before else found.unproven_bytes,
        old=old_bytes,
    )
    _kept(world, found)
    return share_text(bytes_to_read(facts, runs=runs), found.total_bytes)


def after_check(world: World) -> None:
    """What is known anew when a check has ended; that it cannot be looked at now ends nothing."""
    try:
        found = look(world)
        world.settings.set(names.KEEPING_UNPROVEN_BYTES, str(found.unproven_bytes))
    except HoldfastError as error:
        log.warning("what was read back is not known", extra={"error": error.line()})


def _kept(world: World, found: VerifiedData) -> VerifiedData:
    world.settings.set(names.VERIFIED_DATA, msgspec.json.encode(found).decode())
    return found


def _look(world: World, *, old_before: str) -> tuple[VerifiedData, int]:
    """And how many bytes were proven before then."""
    folder = world.keeper.folder
    check_answers(folder)
    keys = world.keeper.keys()
    unproven: dict[str, int] = {}
    oldest, first = "", ""
    packs = total = old_bytes = 0
    with DirectoryStore.open(folder, files=watched_files(folder)) as store:
        now = world.clock.now()
        times = load_proof_times(store, keys.common, keys.writers(store)).of_prover.values()
        for info in stored_objects(store, "packs/"):
            packs, total = packs + 1, total + info.length
            digest = bytes.fromhex(info.name.rpartition("/")[2])
            proven_at = max((each.get(digest, "") for each in times), default="")
            if not proven_at:
                unproven[info.name] = info.length
                continue
            oldest = min(oldest or proven_at, proven_at)
            old_bytes += info.length if proven_at < old_before else 0
        for name in unproven:
            moment = stored_at(store, name)
            if moment is None and store.head(name) is None:
                continue  # a prune took it away this moment
            text = UNKNOWN if moment is None else utc_text(moment)
            first = min(first or text, text)
    found = VerifiedData(
        seen_at=utc_text(now),
        packs=packs,
        total_bytes=total,
        unproven_packs=len(unproven),
        unproven_bytes=sum(unproven.values()),
        first_unproven_at=first,
        oldest_at=oldest,
    )
    return found, old_bytes
