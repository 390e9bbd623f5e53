"""What the controller's repository is and holds, for `repo list` and `repo show`. Nothing is changed.

What can be told without the repository is told also while it cannot be reached; why not, is one of the problems.
"""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Final

from holdfast_common.clock import Clock
from holdfast_common.errors import FormatError, HoldfastError, IntegrityError, ObjectMissing
from holdfast_common.identity import LineageId
from holdfast_common.repository.directory_store import DirectoryStore
from holdfast_common.repository.fence import Fences, load_fences
from holdfast_common.repository.hang_watch import watched_files, while_it_answers
from holdfast_common.repository.holds import Hold, held_points, read_hold
from holdfast_common.repository.key_generation import KeyGenerationHead
from holdfast_common.repository.layout import FORMAT_VERSION, hold_name
from holdfast_common.repository.lease_survey import AnnouncedWriter, survey_leases
from holdfast_common.repository.object_store import ObjectStore
from holdfast_common.repository.reserve import RESERVE_NAME
from holdfast_common.repository.storage_time import storage_time
from holdfast_common.repository.writers import WriterList
from holdfast_common.units import size_text
from holdfast_controller.runs.doctor import REPOSITORY_FREE_BYTES_MIN
from holdfast_controller.runs.repository_verdict import RepositoryVerdict, repository_verdict
from holdfast_controller.runs.world import World
from holdfast_controller.store import settings as names
from holdfast_controller.store.catalogue import PointRow
from holdfast_controller.store.prunes import PruneRow

NAME: Final = "default"  # a controller has one repository
COUNT_SECONDS_MAX: Final = 15.0  # a call ends before its caller gives up
_LOOK_EVERY: Final = 256  # objects, until the time is looked at
KINDS: Final = {
    "packs/": "packs",
    "index/": "index segments",
    "maps/": "maps",
    "points/": "points",
    "proofs/": "proofs",
    "fences/": "fences",
    "leases/": "leases",
    "holds/": "holds",
    "writers/": "lists of writers",
    "keys/": "key generations",
    "controller/": "copies of the controller",
    "reserve/": "reserve",
    "aside/": "set aside by repairs",
    "about/": "about",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class ObjectsOfKind:
    """How many objects of a kind there are, and what they take."""

    kind: str
    objects: int
    stored_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """What the repository takes. ``is_whole`` False: not all of it was counted."""

    kinds: tuple[ObjectsOfKind, ...] = ()
    is_whole: bool = False

    @property
    def stored_bytes(self) -> int:
        """Of all kinds that were counted."""
        return sum(each.stored_bytes for each in self.kinds)


@dataclass(frozen=True, slots=True, kw_only=True)
class RepositorySummary:
    """A line of `repo list`. Zeros and empty texts: not known."""

    repository_id: str
    folder: str
    created_at: str
    usage: Usage
    free_bytes: int
    capacity_bytes: int
    points: int
    vms: int
    prune: PruneRow | None  # the newest round that was no dry run; None: there was none
    verdict: RepositoryVerdict
    problems: tuple[str, ...]
    format: int = FORMAT_VERSION


@dataclass(frozen=True, slots=True, kw_only=True)
class VmShare:
    """The points of one VM. ``stored_bytes``: what they added when they were made."""

    vm_name: str
    instance_uuid: str
    points: int
    oldest_at: str
    newest_at: str
    capacity_bytes: int
    stored_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class RepositoryInside:
    """What only the repository itself tells."""

    generation: KeyGenerationHead
    key_epoch: int
    writers: WriterList
    fences: Fences
    announced: tuple[tuple[AnnouncedWriter, bool], ...]  # each with whether prune waits for it
    holds: tuple[Hold, ...]
    reserve_bytes: int


def repository_summary(world: World) -> RepositorySummary | None:
    """None: no repository was made yet."""
    repository_id = world.settings.get(names.REPOSITORY_ID)
    if not repository_id:
        return None
    points = world.catalogue.points()
    usage, free, capacity = Usage(), 0, 0
    problems = []
    try:
        world.keeper.keys()
        free, capacity = _space(world)
        usage = while_it_answers(partial(_used, world))
    except HoldfastError as error:
        problems.append(error.line())
    verdict = repository_verdict(world)
    prune = world.prunes.latest_change()
    if capacity and free < REPOSITORY_FREE_BYTES_MIN:
        problems.append(f"only {size_text(free)} are free")
    problems += [text for text in (verdict.damage, verdict.doubt) if text]
    if prune is not None and prune.problem:
        problems.append(f"the last prune did not end well: {prune.problem}")
    if not world.settings.get(names.SHEET_CONFIRMED_AT):
        problems.append("the recovery sheet was never confirmed: no backup will start")
    proxies = [agent for agent in world.link.connected() if agent.role == "proxy"]
    if not any(repository_id in agent.repositories for agent in proxies):
        problems.append("no connected proxy reaches it")
    return RepositorySummary(
        repository_id=repository_id,
        folder=str(world.keeper.folder),
        created_at=world.settings.get(names.REPOSITORY_CREATED_AT)
        or world.settings.get(names.INITIALISED_AT),
        usage=usage,
        free_bytes=free,
        capacity_bytes=capacity,
        points=len(points),
        vms=len({point.lineage_id for point in points}),
        prune=prune,
        verdict=verdict,
        problems=tuple(problems),
    )


def _used(world: World) -> Usage:
    folder = world.keeper.folder
    with DirectoryStore.open(folder, files=watched_files(folder)) as store:
        return counted(store, world.clock)


def repository_inside(world: World) -> RepositoryInside:
    """Raises: NoRepository, WrongKey, IntegrityError, TimedOut, RepositoryFailed."""
    return while_it_answers(partial(_inside, world))


def _inside(world: World) -> RepositoryInside:
    keys = world.keeper.keys()
    generation = world.keeper.generation().head
    folder = world.keeper.folder
    with DirectoryStore.open(folder, files=watched_files(folder)) as store:
        common = keys.common
        writers = keys.writers(store)
        now, storage_now = world.clock.now(), storage_time(store)
        announced = survey_leases(store, common, writers)
        held = []
        for name in sorted(held_points(store)):
            try:
                held.append(read_hold(store, hold_name(name), common, writers))
            except ObjectMissing:
                continue  # somebody let go of it this moment
            except (IntegrityError, FormatError) as error:
                held.append(Hold(point_name=name, point_digest=b"", held_at="", reason=str(error)))
        reserve = store.head(RESERVE_NAME)
        return RepositoryInside(
            generation=generation,
            key_epoch=keys.secrets.current.epoch,
            writers=writers,
            fences=load_fences(store, common, writers),
            announced=tuple(
                (each, each.is_at_work(now=now, storage_now=storage_now)) for each in announced
            ),
            holds=tuple(held),
            reserve_bytes=0 if reserve is None else reserve.length,
        )


def counted(store: ObjectStore, clock: Clock, *, seconds_max: float = COUNT_SECONDS_MAX) -> Usage:
    """All objects by kind; it stops where it is when the time is over. Raises: RepositoryFailed."""
    deadline = clock.monotonic_seconds() + seconds_max
    kinds = []
    is_whole = True
    for prefix, kind in KINDS.items():
        objects = stored_bytes = 0
        for info in store.list(prefix):
            objects += 1
            stored_bytes += info.length
            if objects % _LOOK_EVERY == 0 and clock.monotonic_seconds() > deadline:
                is_whole = False
                break
        kinds.append(ObjectsOfKind(kind=kind, objects=objects, stored_bytes=stored_bytes))
    return Usage(kinds=tuple(kinds), is_whole=is_whole)


def vm_shares(points: Sequence[PointRow]) -> list[VmShare]:
    """By VM, those with the most first."""
    by_lineage: dict[LineageId, list[PointRow]] = {}
    for point in points:
        by_lineage.setdefault(point.lineage_id, []).append(point)
    shares = []
    for rows in by_lineage.values():
        rows.sort(key=lambda row: row.created_at)
        newest = rows[-1]
        shares.append(
            VmShare(
                vm_name=newest.vm_name,
                instance_uuid=newest.instance_uuid,
                points=len(rows),
                oldest_at=rows[0].created_at,
                newest_at=newest.created_at,
                capacity_bytes=sum(disk.capacity_bytes for disk in newest.decoded().disks),
                stored_bytes=sum(disk.stored_bytes for row in rows for disk in row.decoded().disks),
            )
        )
    return sorted(shares, key=lambda share: (-share.stored_bytes, share.vm_name))


def _space(world: World) -> tuple[int, int]:
    with contextlib.suppress(OSError):
        found = shutil.disk_usage(world.keeper.folder)
        return found.free, found.total
    return 0, 0
