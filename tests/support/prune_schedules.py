"""Random schedules of backups, prunes, forgetting, crashes and clocks, on the product's own writer and prune.

Writers stand still at any step while others work, also between their last look and the manifest's put;
a prune is killed at any call, or stands still there while others work, another prune among them, or one
of its reads fails. Keys are rotated and writers revoked in between, at any of these moments too. In the
end every acknowledged point that nobody forgot must count, and every point that counts be whole.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from holdfast_common.errors import HoldfastError, RepositoryFailed
from holdfast_common.identity import JobId
from holdfast_common.repository.fence import load_fences
from holdfast_common.repository.forget import PointName, forget_point, plan_forget
from holdfast_common.repository.holds import held_points
from holdfast_common.repository.key_changes import rotate, settle
from holdfast_common.repository.keys import RepositoryKeys
from holdfast_common.repository.layout import manifest_name
from holdfast_common.repository.manifest import ManifestFacts
from holdfast_common.repository.object_store import ObjectInfo, Upload
from holdfast_common.repository.points import Point, list_points
from holdfast_common.repository.prune import prune
from holdfast_common.repository.prune_report import PruneLimits
from holdfast_common.repository.writer import PointWriter, PreparedPoint
from holdfast_common.repository.writers import ROLE_VERIFY, ROLE_WRITE
from support.memory_store import MemoryStore
from support.pruning import Pruner
from support.repositories import BLOCK, LINEAGE, FixedClock, Repository, disk_header, new_repository

USED = (0, 1, 2, 3, 16, 17, 18, 19)  # blocks that a schedule writes: two frames of four
CAPACITY = 20 * BLOCK
STEPS = 16
KILLED = "the process was killed here"
STANDS_STILL, IS_KILLED, READ_FAILS = "stands still", "is killed", "read fails"


class Interrupting:
    """A store that, before one of its calls, lets something else happen, or fails from then on.

    Or one object cannot be read once: the first that is asked for from that call on.
    """

    def __init__(
        self, inner: MemoryStore, *, call: int, happens: Callable[[], None], what: str
    ) -> None:
        self._inner = inner
        self._call = call
        self._happens = happens
        self._killed = what == IS_KILLED
        self._read_fails = what == READ_FAILS and call > 0
        self.calls = 0

    def _step(self) -> None:
        self.calls += 1
        if self.calls == self._call:
            self._happens()
        if self._killed and self.calls >= self._call:
            raise RepositoryFailed(KILLED)  # a new one: it keeps the frames that it went through

    def put(self, name: str, data: bytes | bytearray | memoryview) -> None:
        self._step()
        self._inner.put(name, data)

    def begin(self, *, bulk: bool = False) -> Upload:
        self._step()
        return self._inner.begin(bulk=bulk)

    def get(self, name: str, *, length_max: int) -> bytes:
        self._step()
        if self._read_fails and self.calls >= self._call:
            self._read_fails = False
            raise RepositoryFailed("input/output error", name=name)
        return self._inner.get(name, length_max=length_max)

    def read_into(self, name: str, offset: int, buffer: memoryview) -> None:
        self._inner.read_into(name, offset, buffer)

    def head(self, name: str) -> ObjectInfo | None:
        self._step()
        return self._inner.head(name)

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        self._step()
        return iter(list(self._inner.list(prefix)))

    def confirm(self, names: Iterable[str]) -> None:
        self._step()
        self._inner.confirm(names)

    def delete(self, name: str) -> None:
        self._step()
        self._inner.delete(name)

    def storage_time(self) -> object:
        return self._inner.storage_time()

    def stored_at(self, name: str) -> object:
        return self._inner.stored_at(name)


@dataclass
class Writing:
    """One attempt, somewhere between its announcement and its end."""

    job_id: JobId
    clock: FixedClock
    store: Interrupting
    values: tuple[int, ...]  # of the blocks of USED
    previous: Point | None
    writer: PointWriter
    public_key: bytes
    authority: bytes  # whose word it takes for a grant: of the keys that it began with
    prepared: PreparedPoint | None = None
    written: bool = False


@dataclass
class Template:
    """One repository, made once: schedules begin with copies of it."""

    repository: Repository
    pruner: Pruner

    @classmethod
    def make(cls) -> Template:
        repository = new_repository(MemoryStore())
        return cls(repository, Pruner.of(repository))


@dataclass
class Schedule:
    """One run. ``events`` tells its story."""

    template: Template
    seed: int
    events: list[str] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        self.random = random.Random(self.seed)
        made = self.template.repository
        assert isinstance(made.store, MemoryStore)
        self.world = FixedClock()  # the storage's
        self.store = MemoryStore(made.store.objects)
        self.keys = RepositoryKeys(  # it remembers the highest list of writers that it saw
            made.keys.secrets, generation=made.keys.generation, randomness=made.randomness
        )
        self.signing_key = made.signing_key  # of the writers that begin now
        self.unfinished: list[bytes] = []  # public keys whose revocation failed half way
        # where the storage tells no time, writers' clocks may differ by less than the margin
        self.tells_time = self.random.random() < 0.7
        if self.tells_time:
            self.store.now = self.world.now
        self.writings: list[Writing] = []
        self.acknowledged: set[str] = set()  # names of points
        self.values: dict[str, tuple[int, ...]] = {}
        self.forgotten: set[str] = set()
        self.jobs = 0
        self.depth = 0
        self.at_work: Writing | None = None  # whose call is being carried out

    def run(self) -> None:
        self.begin()
        for writing in list(self.writings):
            self.write(writing)
            self.publish(writing)
        for _ in range(STEPS):
            self.step()
        for writing in list(self.writings):
            if self.random.random() < 0.5:
                self.publish(writing)
        self.finish_revocations()
        self.world.advance(self.random.choice([0, 90_000]))
        self.prune_round()
        self.world.advance(90_000)
        self.prune_round()
        self.judge()

    def step(self) -> None:
        steps: list[tuple[int, Callable[[], None]]] = [
            (5, self.begin),
            (12, self.go_on),
            (5, self.prune_round),
            (4, self.forget),
            (1, self.crash_writer),
            (3, self.time_passes),
            (1, self.change_keys),
        ]
        weights = [weight for weight, _ in steps]
        self.random.choices([step for _, step in steps], weights)[0]()

    def note(self, what: str) -> None:
        self.events.append("  " * self.depth + what)
        self.counts[what.split(" ", maxsplit=1)[0]] += 1

    def time_passes(self) -> None:
        seconds = self.random.choice([1, 600, 2000, 4000, 90_000])
        self.world.advance(seconds)
        for writing in self.writings:
            if self.random.random() < 0.7:  # the others are suspended
                writing.clock.advance(seconds)
        self.note(f"time passes: {seconds} s")

    def begin(self) -> None:
        if len(self.writings) >= 3:
            return
        clock = FixedClock()
        skew = self.random.choice([0, 0, 3600, -3600, 34_560_000, -34_560_000])
        if not self.tells_time:
            skew = self.random.randint(-140, 140)
        clock.moment = self.world.moment + timedelta(seconds=skew)
        self.jobs += 1
        job_id = JobId(f"JOB{self.jobs:05d}")
        store = self.interrupting(chance=0.2)
        previous = self.some_point() if self.random.random() < 0.6 else None
        made = self.template.repository
        repository = Repository(store, self.keys, made.sheet, self.signing_key, clock)
        authority = self.keys.authority_public
        try:
            writer = repository.writer(job_id=job_id)
        except HoldfastError as error:
            self.note(f"refused {job_id}: {error}")
            return
        values = self.new_values(previous)
        public_key = repository.signing_key.public_key().public_bytes_raw()
        self.writings.append(
            Writing(job_id, clock, store, values, previous, writer, public_key, authority)
        )
        self.note(f"begins {job_id} on {previous.name[-8:] if previous else None} skew {skew}")

    def go_on(self) -> None:
        if not self.writings:
            return
        writing = self.random.choice(self.writings)
        if not writing.written:
            self.write(writing)
        elif writing.prepared is None:
            self.prepare(writing)
        else:
            self.publish(writing)

    @contextmanager
    def working(self, writing: Writing) -> Iterator[None]:
        """What happens in the block is this writer's doing; others work meanwhile, not he himself."""
        before, self.at_work = self.at_work, writing
        try:
            yield
        finally:
            self.at_work = before

    def write(self, writing: Writing) -> None:
        with self.working(writing):
            self._write(writing)

    def _write(self, writing: Writing) -> None:
        try:
            previous = writing.previous.disks[0] if writing.previous else None
            disk = writing.writer.begin_disk(disk_header(CAPACITY), previous=previous)
            before = self.values[writing.previous.name] if writing.previous else (0,) * len(USED)
            for block, value, old in zip(USED, writing.values, before, strict=True):
                if value != old:
                    disk.write(block * BLOCK, bytes([value]) * BLOCK)
            disk.finish()
        except HoldfastError as error:
            self.ended(writing, f"failed {writing.job_id}: {error}")
            return
        writing.written = True
        self.note(f"written {writing.job_id}")

    def prepare(self, writing: Writing) -> None:
        try:
            with self.working(writing):
                writing.prepared = writing.writer.prepare(ManifestFacts(order=self.jobs))
        except HoldfastError as error:
            self.ended(writing, f"failed {writing.job_id}: {error}")
            return
        self.note(f"prepared {writing.job_id}")

    def publish(self, writing: Writing) -> None:
        if not writing.written:
            return
        if writing.prepared is None:
            self.prepare(writing)
        if writing.prepared is None:
            return
        prepared = writing.prepared
        name = manifest_name(self.keys.reader_keys(LINEAGE).lineage_tag, writing.job_id)
        self.values[name] = writing.values
        if self.random.random() < 0.4 and not self.depth:
            # it stands still somewhere in its publishing
            writing.store._call = writing.store.calls + self.random.randint(1, 12)
            writing.store._happens = self.meanwhile
        try:
            grant = self.keys.commit_grant(
                job_id=writing.job_id,
                attempt=prepared.manifest.attempt,
                manifest_digest=prepared.manifest_digest,
                controller_epoch=1,
                authority=writing.authority,
            )
            with self.working(writing):
                writing.writer.publish(prepared, grant)
        except HoldfastError as error:
            self.ended(writing, f"unpublished {writing.job_id}: {error}")
            return
        if writing.authority != self.keys.authority_public and self.is_revoked(writing):
            # No list that was put after the rotation can be read with its keys. The controller cuts off
            # whom it revokes, and hears of no result.
            self.ended(writing, f"unheard {writing.job_id}")
            return
        self.acknowledged.add(name)
        self.ended(writing, f"acknowledged {writing.job_id}")

    def meanwhile(self) -> None:
        """What others do while one stands still."""
        if self.depth:
            return
        self.depth += 1
        standing = [each for each in self.writings if each is self.at_work]
        self.writings = [each for each in self.writings if each is not self.at_work]
        for _ in range(self.random.randint(1, 4)):
            self.step()
        self.writings += standing
        self.depth -= 1

    def ended(self, writing: Writing, story: str) -> None:
        self.note(story)
        if writing in self.writings:
            self.writings.remove(writing)
        writing.writer.abandon()

    def crash_writer(self) -> None:
        if self.writings:
            writing = self.random.choice(self.writings)
            self.writings.remove(writing)
            self.note(f"crashed {writing.job_id}")

    def prune_round(self) -> None:
        clock = FixedClock()
        jump = self.random.choice([0] * 12 + [3600, -3600, 34_560_000, -34_560_000])
        clock.moment = self.world.moment + timedelta(seconds=jump)
        store = self.interrupting(chance=0.5, kill=True)
        try:
            report = prune(
                store,
                self.keys,
                signing_key=self.template.pruner.signing_key,
                clock=clock,
                limits=PruneLimits(
                    reserve_bytes=0,
                    grace=timedelta(seconds=self.random.choice([0, 0, 3600])),
                    accept_clock=self.tells_time and self.random.random() < 0.7,
                ),
                last_seen=self.world.moment,
            )
        except HoldfastError as error:
            self.note(f"prune-ended jump {jump}: {error}")
            return
        self.note(f"pruned fence {report.fence} deleted {report.deleted} jump {jump}")
        self.counts["deleted objects"] += report.deleted
        self.counts["repacked"] += report.repacked

    def interrupting(self, *, chance: float, kill: bool = False) -> Interrupting:
        call = self.random.randint(1, 60) if self.random.random() < chance else -1
        what = self.random.choices([STANDS_STILL, IS_KILLED, READ_FAILS], [4, 4 if kill else 0, 1])[
            0
        ]
        happens = self.meanwhile if what == STANDS_STILL else lambda: None
        return Interrupting(self.store, call=call, happens=happens, what=what)

    def change_keys(self) -> None:
        """Rotate them, or shut a writer out; another one takes its place."""
        if self.random.random() < 0.5:
            self.keys = rotate(self.store, self.keys)
            settle(self.store, self.keys)
            self.note("rotated keys")
        else:
            self.revoke_writer()

    def revoke_writer(self) -> None:
        retired = self.signing_key.public_key().public_bytes_raw()
        self.signing_key = Ed25519PrivateKey.from_private_bytes(self.random.randbytes(32))
        self.keys.authorise_writer(
            self.store,
            self.signing_key.public_key().public_bytes_raw(),
            agent_id="proxy-1",
            clock=self.world,
            roles=(ROLE_WRITE, ROLE_VERIFY),
        )
        self.note("revoked the writer")
        keys = self.keys
        try:
            keys.revoke_writer(
                self.interrupting(chance=0.5, kill=True),
                retired,
                clock=self.world,
                keep_existing=True,
            )
        except HoldfastError as error:
            self.note(f"half-revoked it: {error}")
            self.unfinished.append(retired)

    def is_revoked(self, writing: Writing) -> bool:
        found = self.keys.writers(self.store).of(writing.public_key)
        return found is None or bool(found.revoked_at)

    def finish_revocations(self) -> None:
        """As who was told that it failed does: again."""
        for key in self.unfinished:
            self.keys.revoke_writer(self.store, key, clock=self.world, keep_existing=True)
        self.unfinished = []

    def forget(self) -> None:
        point = self.some_point()
        if point is None:
            return
        fences = load_fences(self.store, self.keys.common, self.keys.writers(self.store))
        named = PointName(name=point.name, digest=point.digest)
        plan = plan_forget([named], held=held_points(self.store), fences=fences)
        for chosen in plan.forgotten:
            forget_point(self.store, chosen)
            self.forgotten.add(chosen.name)
            self.note(f"forgotten {chosen.name[-8:]}")

    def some_point(self) -> Point | None:
        points = list_points(self.store, self.keys).points
        return self.random.choice(points) if points else None

    def new_values(self, previous: Point | None) -> tuple[int, ...]:
        """Few different ones, so that whole frames repeat."""
        half = len(USED) // 2
        if previous is None:
            left, right = self.random.randint(1, 3), self.random.randint(1, 3)
            return (left,) * half + (right,) * half
        values = list(self.values[previous.name])
        if self.random.random() < 0.5:
            start = self.random.choice([0, half])
            values[start : start + half] = [self.random.randint(1, 3)] * half
        else:
            values[self.random.randrange(len(values))] = self.random.randint(1, 3)
        return tuple(values)

    def judge(self) -> None:
        """Raises AssertionError with the story."""
        story = "\n".join([f"seed {self.seed}", *self.events])
        made = self.template.repository
        repository = Repository(self.store, self.keys, made.sheet, self.signing_key, self.world)
        counted = {point.name: point for point in list_points(self.store, self.keys).points}
        for name in self.acknowledged - self.forgotten:
            assert name in counted, f"an acknowledged point is gone: {name}\n{story}"
        for name, point in counted.items():
            try:
                restored = repository.restored(point)
            except HoldfastError as error:
                raise AssertionError(f"{name} cannot be restored: {error}\n{story}") from error
            assert restored == image_of(self.values[name]), f"{name} has wrong bytes\n{story}"
        self.counts["points judged"] += len(counted)


def image_of(values: tuple[int, ...]) -> bytes:
    """The disk's bytes."""
    image = bytearray(CAPACITY)
    for block, value in zip(USED, values, strict=True):
        image[block * BLOCK : (block + 1) * BLOCK] = bytes([value]) * BLOCK
    return bytes(image)


def run_schedules(seeds: range) -> Counter[str]:
    """All of them; what happened, counted."""
    template = Template.make()
    total: Counter[str] = Counter()
    for seed in seeds:
        schedule = Schedule(template, seed)
        schedule.run()
        total += schedule.counts
    return total
