"""What a repository is doing when the machine crashes: each workload prepares one, then is recorded.

A new workload is a function that prepares, one that runs, and a line in `WORKLOADS`.
"""

from __future__ import annotations

import contextlib
import copy
import hashlib
import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import timedelta
from pathlib import Path
from typing import Any, cast

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from holdfast_common.errors import HoldfastError, LeaseExpired, NotFound
from holdfast_common.identity import JobId
from holdfast_common.repository.directory_store import DirectoryStore
from holdfast_common.repository.fence import load_fences
from holdfast_common.repository.file_system import FileSystem
from holdfast_common.repository.forget import PointName, forget_point, plan_forget
from holdfast_common.repository.holds import held_points
from holdfast_common.repository.key_changes import (
    add_recipient,
    recipients_of,
    remove_recipient,
    rotate,
)
from holdfast_common.repository.keys import RepositoryKeys, create_repository
from holdfast_common.repository.manifest import ManifestFacts, PointDisk
from holdfast_common.repository.object_store import ObjectStore
from holdfast_common.repository.points import list_points
from holdfast_common.repository.prune import prune
from holdfast_common.repository.prune_report import GRACE, PruneLimits, PruneReport
from holdfast_common.repository.recipients import public_key_recipient
from holdfast_common.repository.recovery_sheet import RecoverySheet
from holdfast_common.repository.repository_index import RepositoryIndex
from holdfast_common.repository.writers import ROLE_PRUNE
from support.interleaving import Turns
from support.memory_files import Image, MemoryFiles
from support.recorded_files import Recorded, RecordingFiles
from support.repositories import (
    BLOCK,
    FixedClock,
    Repository,
    SeededRandomness,
    authorise,
    disk_header,
)

ROOT = Path("/repository")
BLOCKS = 6
TWO_FRAMES = (0, 1, 2, 16, 17, 18)  # the other blocks are zero
RESERVE_BYTES = 4096
WEB, MAIL = "vcenter-1/web", "vcenter-1/mail"
READY = "repository"


@dataclass(frozen=True)
class Original:
    """What a point must hold when it is visible."""

    lineage: str
    image: bytes


@dataclass
class Rig:
    """A repository in `files`, and what was promised of it."""

    files: FileSystem
    root: Path
    seed: int
    mark: Callable[[str], None] = lambda _: None
    turns: Turns = field(default_factory=lambda: Turns(0))
    originals: dict[str, Original] = field(default_factory=dict)
    clock: FixedClock = field(default_factory=FixedClock)
    sheet: RecoverySheet | None = None
    repository: Repository | None = None
    index: RepositoryIndex | None = None
    orders: int = 0

    def on(
        self,
        files: FileSystem,
        *,
        mark: Callable[[str], None] = lambda _: None,
        turns: Turns | None = None,
        clock: FixedClock | None = None,
    ) -> Rig:
        """The same repository on other files, with a life of its own from now on."""
        made = replace(
            self,
            files=files,
            mark=mark,
            turns=turns or Turns(0),
            clock=clock or copy.copy(self.clock),
            originals=dict(self.originals),
            index=None,
        )
        if self.repository is not None:
            made.repository = replace(
                self.repository,
                store=made.open_store("run"),
                clock=made.clock,
                randomness=self.chance("run"),
            )
        return made

    def open_store(self, name: str) -> DirectoryStore:
        """A program's own store; ``name`` makes its temporary names repeat."""
        return DirectoryStore.open(self.root, files=self.files, randomness=self.chance(name))

    def chance(self, name: str) -> SeededRandomness:
        return SeededRandomness(f"{self.seed}-{name}")

    def chance_of(self, name: str) -> random.Random:
        """For what the workload itself draws."""
        return random.Random(f"{self.seed}-{name}")

    def create(self) -> None:
        """Make a repository with two writers."""
        store = DirectoryStore.create(
            self.root, files=self.files, randomness=self.chance("creator")
        )
        keys, self.sheet = create_repository(
            store, recipients=(), clock=self.clock, randomness=self.chance("keys")
        )
        self.mark(READY)
        signing_key = Ed25519PrivateKey.from_private_bytes(self.chance("proxy-1").draw(32))
        self.repository = Repository(
            store, keys, self.sheet, signing_key, self.clock, self.chance("repository")
        )
        authorise(self.repository, signing_key, agent_id="proxy-1")
        authorise(self.repository, self.other_signing_key(), agent_id="proxy-2")
        self.repository.keys.authorise_writer(
            store,
            self.pruning_key().public_key().public_bytes_raw(),
            agent_id="controller",
            clock=self.clock,
            roles=(ROLE_PRUNE,),
        )
        self.mark("writers")

    def other_signing_key(self) -> Ed25519PrivateKey:
        return Ed25519PrivateKey.from_private_bytes(self.chance("proxy-2").draw(32))

    def pruning_key(self) -> Ed25519PrivateKey:
        return Ed25519PrivateKey.from_private_bytes(self.chance("controller").draw(32))

    def forget(self, name: str) -> None:
        """As `repo forget` does in the end."""
        used = self.used()
        points = list_points(used.store, used.keys).points
        point = next((each for each in points if each.point_id == name), None)
        if point is None:
            raise NotFound("there is no such point that can be read", point=name)
        named = PointName(name=point.name, digest=point.digest)
        fences = load_fences(used.store, used.keys.common, used.keys.writers(used.store))
        for chosen in plan_forget([named], held=held_points(used.store), fences=fences).forgotten:
            self.mark(f"forget {name}")  # from now on it may be gone
            forget_point(used.store, chosen)

    def keep_index(self) -> None:
        """As a proxy does that goes on running: its next writers know what was stored where."""
        used = self.used()
        self.index = RepositoryIndex(used.store, used.keys.reader_keys(WEB))
        self.index.refresh(used.keys.writers(used.store))

    def prune(self, name: str, *, grace: timedelta = GRACE) -> PruneReport:
        """One round."""
        used = self.used()
        with self.open_store(name) as store:
            return prune(
                store,
                used.keys,
                signing_key=self.pruning_key(),
                clock=self.clock,
                limits=PruneLimits(reserve_bytes=RESERVE_BYTES, grace=grace),
                last_seen=self.clock.now(),
                randomness=self.chance(f"{name}-prune"),
            )

    def next_day(self) -> None:
        """Grace times and leases are over."""
        self.clock.advance(90_000)

    def used(self) -> Repository:
        assert self.repository is not None
        return self.repository

    def image_of(self, name: str) -> bytearray:
        return bytearray(self.originals[name].image)

    def previous(self, name: str) -> PointDisk:
        """The disk of an earlier point."""
        for point in list_points(self.used().store, self.used().keys).points:
            if point.point_id == name:
                return point.disks[0]
        raise NotFound("the point to build on cannot be read", point=name)

    def back_up(
        self,
        name: str,
        image: bytes | bytearray,
        *,
        lineage: str = WEB,
        base: str = "",
        blocks: Iterable[int] | None = None,
        proxy: int = 1,
        meanwhile: Callable[[], None] | None = None,
    ) -> None:
        """A point. ``base``: the one that it builds on; ``blocks``: what changed since, else all is compared.

        ``meanwhile``: what happens just before the manifest is stored.
        """
        used = self.used()
        self.originals[name] = Original(lineage, bytes(image))
        self.orders += 1
        order = self.orders
        store = self.open_store(f"{name}-{proxy}")
        worker = replace(used, store=store, randomness=self.chance(f"{name}-writer"))
        key = self.other_signing_key() if proxy == 2 else None
        previous = self.previous(base) if base else None
        if meanwhile is not None:
            worker.store = cast("ObjectStore", _Suspended(store, meanwhile))
        with worker.writer(
            job_id=JobId(name), lineage=lineage, signing_key=key, index=self.index
        ) as writer:
            disk = writer.begin_disk(
                disk_header(len(image)), previous=previous, compare=bool(base) and blocks is None
            )
            for block in range(-(-len(image) // BLOCK)) if blocks is None else blocks:
                start = block * BLOCK
                disk.write(start, memoryview(image)[start : start + BLOCK])
            disk.finish()
            writer.add_blob("vmx", name.encode())
            prepared = writer.prepare(ManifestFacts(order=order))
            writer.publish(prepared, used.grant(prepared))
            self.mark(f"point {name}")
        store.close()
        self.clock.advance(60)


class _Suspended:
    """A store whose program sleeps before a point is stored."""

    def __init__(self, inner: DirectoryStore, meanwhile: Callable[[], None]) -> None:
        self._inner = inner
        self._meanwhile = meanwhile

    def put(self, name: str, data: bytes | bytearray | memoryview) -> None:
        if name.startswith("points/"):
            self._meanwhile()
        self._inner.put(name, data)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)


@dataclass(frozen=True)
class Workload:
    """``prepare`` is not recorded; ``run`` is. ``seeds``: how many recordings make up one workload."""

    prepare: Callable[[Rig], None]
    run: Callable[[Rig], None]


@dataclass(frozen=True)
class Recording:
    """A workload that was run."""

    name: str
    start: Rig  # as it was prepared
    rig: Rig  # as it was left
    before: Image
    promised: tuple[str, ...]  # before it was recorded
    inodes: Mapping[str, int]
    log: tuple[Recorded, ...]
    error: str = ""  # why it did not get to its end


def small_image(seed: str, *, used: Sequence[int] = range(BLOCKS)) -> bytearray:
    """Of the used blocks a fresh 2 KiB, the rest compresses to nothing: packs stay small."""
    image = bytearray((max(used) + 1) * BLOCK + 512)
    for block in used:
        fresh = hashlib.shake_256(f"{seed}-{block}".encode()).digest(2048)
        image[block * BLOCK : (block + 1) * BLOCK] = fresh + bytes([block + 1]) * (BLOCK - 2048)
    return image


def changed(image: bytearray, block: int, seed: str) -> bytearray:
    """The image with another block."""
    start = block * BLOCK
    image[start : start + 2048] = hashlib.shake_256(seed.encode()).digest(2048)
    return image


def recording(name: str, *, seed: int = 0) -> Recording:
    """Run a workload on a disk in memory, every call written down."""
    clock = FixedClock()
    memory = MemoryFiles(now=clock.seconds_since_1970)
    promised: list[str] = []
    rig = Rig(files=memory, root=ROOT, seed=seed, mark=promised.append, clock=clock)
    WORKLOADS[name].prepare(rig)
    before = memory.image()
    start = replace(rig, originals=dict(rig.originals), clock=copy.copy(rig.clock))
    turns = Turns(seed)
    files = RecordingFiles(memory, before=turns.step)
    inodes = {path: files.inode_of(path) for path in sorted(before.files)}
    rig = rig.on(files, mark=files.mark, turns=turns, clock=clock)
    error = ""
    try:
        WORKLOADS[name].run(rig)
    except HoldfastError as raised:  # a product in which something was planted
        error = f"{type(raised).__name__}: {raised}"
    return Recording(
        name=name,
        start=start,
        rig=rig,
        before=before,
        promised=tuple(promised),
        inodes=inodes,
        log=tuple(files.log),
        error=error,
    )


def record_on(name: str, rig: Rig, *, paths: Iterable[str]) -> list[Recorded]:
    """Run a workload on files of any kind. ``paths``: the files that are there, to be numbered."""
    turns = Turns(rig.seed)
    files = RecordingFiles(rig.files, before=turns.step)
    for path in paths:
        files.inode_of(path)
    WORKLOADS[name].run(rig.on(files, mark=files.mark, turns=turns, clock=rig.clock))
    return files.log


def _nothing(rig: Rig) -> None:
    """There is no repository yet."""


def _with_one_point(rig: Rig) -> None:
    rig.create()
    rig.back_up("web-1", small_image(f"{rig.seed}-web"))


def _full(rig: Rig) -> None:
    lineages = [WEB, MAIL]
    rig.chance_of("order").shuffle(lineages)
    for number, lineage in enumerate(lineages):
        rig.back_up(f"full-{number}", small_image(f"{rig.seed}-{lineage}"), lineage=lineage)


def _incremental(rig: Rig) -> None:
    chance = rig.chance_of("changes")
    image = rig.image_of("web-1")
    for number in (2, 3, 4):
        blocks = sorted(chance.sample(range(BLOCKS), chance.randint(0, 2)))
        for block in blocks:
            changed(image, block, f"{rig.seed}-{number}-{block}")
        if chance.random() < 0.3:
            image[5 * BLOCK :] = bytes(len(image) - 5 * BLOCK)
            blocks = [*blocks, 5, 6]
        told = None if chance.random() < 0.4 else sorted(set(blocks))
        rig.back_up(f"web-{number}", image, base=f"web-{number - 1}", blocks=told)


def _two_writers(rig: Rig) -> None:
    chance = rig.chance_of("changes")

    def web() -> None:
        block = chance.randrange(BLOCKS)
        image = changed(rig.image_of("web-1"), block, f"{rig.seed}-second")
        rig.back_up("web-2", image, base="web-1", blocks=[block])

    def mail() -> None:
        # mostly the same content as another proxy's: what may be taken for known is decided here
        image = changed(rig.image_of("web-1"), chance.randrange(BLOCKS), f"{rig.seed}-mail")
        rig.back_up("mail-1", image, lineage=MAIL, proxy=2)

    rig.turns.run([web, mail])


def _key_rotation(rig: Rig) -> None:
    used = rig.used()
    site = public_key_recipient(bytes([9]) * 32, label="the other site")

    def became(keys: RepositoryKeys) -> None:
        used.keys = keys
        rig.mark(f"keys {keys.generation}")

    became(add_recipient(used.store, used.keys, site, clock=rig.clock))
    became(rotate(used.store, used.keys))
    last = recipients_of(used.store, used.keys)[-1]
    became(remove_recipient(used.store, used.keys, last.recipient_id))
    image = changed(rig.image_of("web-1"), 2, f"{rig.seed}-rotated")
    rig.back_up("web-2", image, base="web-1", blocks=[2])


def _with_half_a_pack_dead(rig: Rig) -> None:
    """A forgotten point, half of whose pack another one needs."""
    rig.create()
    image = small_image(f"{rig.seed}-web", used=TWO_FRAMES)
    rig.back_up("web-1", image)
    for block in TWO_FRAMES[:3]:
        changed(image, block, f"{rig.seed}-second-{block}")
    rig.back_up("web-2", image, base="web-1", blocks=TWO_FRAMES[:3])
    rig.back_up("mail-1", small_image(f"{rig.seed}-mail"), lineage=MAIL)
    rig.forget("web-1")


def _with_something_doomed(rig: Rig) -> None:
    """The same, with a first fence that calls it dead."""
    _with_half_a_pack_dead(rig)
    rig.prune("prune-0")
    rig.next_day()


def _prune_beside_backup(rig: Rig) -> None:
    chance = rig.chance_of("changes")

    def web() -> None:
        block = chance.choice(TWO_FRAMES)
        image = changed(rig.image_of("web-2"), block, f"{rig.seed}-third")
        rig.back_up("web-3", image, base="web-2", blocks=[block])

    rig.turns.run([web, lambda: rig.prune("prune-1")])
    rig.next_day()
    rig.forget("mail-1")
    mail = rig.image_of("mail-1")  # the same again: its data stands in a pack that dies meanwhile

    def prunes() -> None:
        for number in (2, 3, 4):
            rig.prune(f"prune-{number}", grace=timedelta(0))

    rig.turns.run([lambda: rig.back_up("mail-2", mail, lineage=MAIL), prunes])


def _suspended_writer(rig: Rig) -> None:
    """A writer sleeps just before its point shows, until its lease is over and what it stands on is pruned."""
    rig.forget("mail-1")

    def meanwhile() -> None:
        for number in (1, 2, 3):
            rig.next_day()
            rig.prune(f"prune-{number}")

    with contextlib.suppress(LeaseExpired):
        rig.back_up("mail-2", rig.image_of("mail-1"), lineage=MAIL, meanwhile=meanwhile)


def _repack(rig: Rig) -> None:
    first = rig.image_of("web-1")
    rig.keep_index()
    for number in range(1, 4):
        rig.prune(f"prune-{number}")
        rig.next_day()
    # what the pruned pack held comes back, by a proxy that remembers where it lay
    image = rig.image_of("web-2")
    image[: 3 * BLOCK] = first[: 3 * BLOCK]
    rig.back_up("web-3", image, base="web-2", blocks=TWO_FRAMES[:3])


def _with_two_points(rig: Rig) -> None:
    _with_one_point(rig)
    rig.back_up("mail-1", small_image(f"{rig.seed}-mail"), lineage=MAIL)


WORKLOADS: Mapping[str, Workload] = {
    "init": Workload(_nothing, Rig.create),
    "full": Workload(Rig.create, _full),
    "incremental": Workload(_with_one_point, _incremental),
    "key rotation": Workload(_with_one_point, _key_rotation),
    "prune beside backup": Workload(_with_something_doomed, _prune_beside_backup),
    "repack": Workload(_with_half_a_pack_dead, _repack),
    "suspended writer": Workload(_with_two_points, _suspended_writer),
    "two writers": Workload(_with_one_point, _two_writers),
}

# Distinct disks to judge in `make test`: 5,000 in all, the more where more may go wrong.
IMAGES: Mapping[str, int] = {
    "init": 400,
    "full": 500,
    "incremental": 600,
    "key rotation": 500,
    "prune beside backup": 800,
    "repack": 600,
    "suspended writer": 400,
    "two writers": 1200,
}
