"""A repository at work beneath which every call can be recorded: its programs, with time and chance fixed.

`crash_workloads` says what they do when the machine crashes.
"""

from __future__ import annotations

import contextlib
import copy
import hashlib
import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from datetime import timedelta
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from holdfast_common.errors import NotFound
from holdfast_common.identity import JobId
from holdfast_common.repository.directory_store import DirectoryStore
from holdfast_common.repository.fence import load_fences
from holdfast_common.repository.file_system import FileSystem
from holdfast_common.repository.forget import PointName, forget_point, plan_forget
from holdfast_common.repository.holds import held_points
from holdfast_common.repository.keys import create_repository
from holdfast_common.repository.manifest import ManifestFacts, PointDisk
from holdfast_common.repository.points import list_points
from holdfast_common.repository.prune import prune
from holdfast_common.repository.prune_report import GRACE, PruneLimits, PruneReport
from holdfast_common.repository.recovery_sheet import RecoverySheet
from holdfast_common.repository.repository_index import RepositoryIndex
from holdfast_common.repository.writers import ROLE_PRUNE
from support.interleaving import Turns
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
TWO_FRAMES = (0, 1, 2, 3, 16, 17, 18, 19)  # so many that they are looked up; the others are zero
FIRST_FRAME = TWO_FRAMES[:4]
RESERVE_BYTES = 4096
WEB, MAIL = "vcenter-1/web", "vcenter-1/mail"
READY = "repository"


@dataclass(frozen=True)
class Original:
    """What a point must hold when it is visible."""

    lineage: str
    image: bytes


@dataclass(frozen=True)
class Interruption:
    """What happens just before an object with such a name is stored."""

    prefix: str
    happens: Callable[[], object]


class InterruptedStore(DirectoryStore):
    """A store whose program sleeps in between, while others go on."""

    interruption: Interruption

    def put(self, name: str, data: bytes | bytearray | memoryview) -> None:
        if name.startswith(self.interruption.prefix):
            self.interruption.happens()
        super().put(name, data)


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

    def open_store(self, name: str, *, interruption: Interruption | None = None) -> DirectoryStore:
        """A program's own store; ``name`` makes its temporary names repeat."""
        if interruption is None:
            return DirectoryStore.open(self.root, files=self.files, randomness=self.chance(name))
        store = InterruptedStore.open(self.root, files=self.files, randomness=self.chance(name))
        assert isinstance(store, InterruptedStore)
        store.interruption = interruption
        return store

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

    def prune(
        self,
        name: str,
        *,
        grace: timedelta = GRACE,
        before_its_fence: Callable[[], object] | None = None,
    ) -> PruneReport:
        """One round. ``before_its_fence``: what happens when all is counted and the fence is not stored yet."""
        used = self.used()
        interruption = Interruption("fences/", before_its_fence) if before_its_fence else None
        with self.open_store(name, interruption=interruption) as store:
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
        meanwhile: Callable[[], object] | None = None,
    ) -> None:
        """A point. ``base``: the one that it builds on; ``blocks``: what changed since, else all is compared.

        ``meanwhile``: what happens just before the manifest is stored.
        """
        interruption = Interruption("points/", meanwhile) if meanwhile is not None else None
        with self.begun(
            name,
            image,
            lineage=lineage,
            base=base,
            blocks=blocks,
            proxy=proxy,
            interruption=interruption,
        ) as publish:
            publish()

    @contextlib.contextmanager
    def begun(
        self,
        name: str,
        image: bytes | bytearray,
        *,
        lineage: str = WEB,
        base: str = "",
        blocks: Iterable[int] | None = None,
        proxy: int = 1,
        interruption: Interruption | None = None,
        is_suspended: bool = False,
    ) -> Iterator[Callable[[], None]]:
        """A point of which all but the manifest is stored; what is yielded stores that, and promises the point.

        ``is_suspended``: its machine stands still meanwhile, and so do its clocks.
        """
        used = self.used()
        self.originals[name] = Original(lineage, bytes(image))
        self.orders += 1
        order = self.orders
        store = self.open_store(f"{name}-{proxy}", interruption=interruption)
        worker = replace(
            used,
            store=store,
            randomness=self.chance(f"{name}-writer"),
            clock=copy.copy(self.clock) if is_suspended else self.clock,
        )
        key = self.other_signing_key() if proxy == 2 else None
        previous = self.previous(base) if base else None
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
            done: list[str] = []

            def publish() -> None:
                if not done:
                    writer.publish(prepared, used.grant(prepared))
                    done.append(name)
                    self.mark(f"point {name}")

            yield publish
        store.close()
        self.clock.advance(60)


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
