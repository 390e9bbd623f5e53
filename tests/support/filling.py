"""One pass of filling a small disk: random backups until it is full, then what an operator does about it.

What the operator needs: nothing acknowledged is harmed, the error says what it is, and forgetting and
pruning make room although there is not one free byte, even when others take what little comes free.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Final

from holdfast_common.clock import SystemClock
from holdfast_common.errors import HoldfastError, RepositoryFull
from holdfast_common.repository.check import check_data
from holdfast_common.repository.directory_store import RESERVE_SHARE, DirectoryStore
from holdfast_common.repository.fence import load_fences
from holdfast_common.repository.file_system import FileStatus, SystemFiles
from holdfast_common.repository.forget import PointName, forget_point, plan_forget
from holdfast_common.repository.holds import held_points
from holdfast_common.repository.points import Point, list_points
from holdfast_common.repository.prune_report import GRACE, PruneLimits
from holdfast_common.repository.reserve import RESERVE_BYTES, keep_reserve_quietly
from support.pruning import Pruner
from support.repositories import FixedClock, Repository, new_repository
from support.small_disks import Ballast, free_bytes, small_disk

BACKUPS_MAX: Final = 400
ROUNDS_MAX: Final = 8
BLOCK_BYTES: Final = 64 * 1024
SMALL_BYTES: Final = 256 * 1024
WAIT_SECONDS_MAX: Final = 30.0
_VMS_MAX: Final = 4


class _Time(FixedClock):
    """The machine's time, which may jump ahead, together with the times of all files."""

    def __init__(self, probe: Path) -> None:
        self._clock = SystemClock()
        self._probe = probe
        self._jumps: list[tuple[float, float]] = []  # when, and how far

    def now(self) -> datetime:
        return self._clock.now() + timedelta(seconds=sum(jump for _, jump in self._jumps))

    def monotonic_seconds(self) -> float:
        return self._clock.monotonic_seconds() + sum(jump for _, jump in self._jumps)

    def seconds_since_1970(self) -> float:
        return self.now().timestamp()

    def advance(self, seconds: float) -> None:
        before = self._clock.now().timestamp()
        end = time.monotonic() + WAIT_SECONDS_MAX
        self._probe.touch()
        while self._probe.stat().st_mtime <= before:  # files get the time of the last tick
            assert time.monotonic() < end, "file times stand still"
            self._probe.touch()
        self._jumps.append((before, seconds))

    def of_file(self, modified_seconds: float) -> float:
        """The time at which it was written."""
        return modified_seconds + sum(j for at, j in self._jumps if at < modified_seconds)


class _Files(SystemFiles):
    """The system's calls; before one of them somebody else takes all the room."""

    def __init__(self, clock: _Time) -> None:
        self._clock = clock
        self._countdown = -1
        self._act: Callable[[], None] = lambda: None

    def before_call(self, number: int, act: Callable[[], None]) -> None:
        """Act before the call of that number, from 0, which needs room."""
        self._countdown, self._act = number, act

    def create_file(self, path: str, *, at: int) -> int:
        self._count()
        return super().create_file(path, at=at)

    def write(self, descriptor: int, data: memoryview) -> int:
        self._count()
        return super().write(descriptor, data)

    def pwrite(self, descriptor: int, data: memoryview, offset: int) -> int:
        self._count()
        return super().pwrite(descriptor, data, offset)

    def sync(self, descriptor: int) -> None:
        self._count()
        super().sync(descriptor)

    def make_directory(self, path: str, *, at: int | None = None) -> None:
        self._count()
        super().make_directory(path, at=at)

    def rename(self, source: str, target: str, *, at: int) -> None:
        self._count()
        super().rename(source, target, at=at)

    def status(self, path: str, *, at: int) -> FileStatus:
        found = super().status(path, at=at)
        return replace(found, modified_seconds=self._clock.of_file(found.modified_seconds))

    def _count(self) -> None:
        self._countdown -= 1
        if self._countdown == -1:
            self._act()


@dataclass(frozen=True)
class PassFacts:
    """What a pass came to."""

    points: int
    full_at: int  # bytes that were free when the disk was called full
    errors: int  # attempts that were told so
    deleted_bytes: int
    rounds: int


@dataclass
class _Vm:
    lineage: str
    image: bytearray
    last: Point | None = None


@dataclass
class _Pass:
    kind: str
    disk: Path
    chance: random.Random
    repository: Repository
    pruner: Pruner
    files: _Files
    clock: _Time
    ballast: Ballast
    vms: list[_Vm]
    originals: dict[str, tuple[str, bytes]] = field(default_factory=dict)
    told: list[str] = field(default_factory=list)  # what the user reads

    def back_up(self, vm: _Vm) -> bool:
        """Whether there was room. Every other failure is raised."""
        wanted, ranges = bytearray(vm.image), None
        if vm.last is not None:
            blocks = len(wanted) // BLOCK_BYTES
            changed = sorted(
                self.chance.sample(range(blocks), self.chance.randint(1 + blocks // 4, blocks))
            )
            ranges = [(block * BLOCK_BYTES, BLOCK_BYTES) for block in changed]
            for offset, length in ranges:
                wanted[offset : offset + length] = self.chance.randbytes(length)
        try:
            keep_reserve_quietly(self.repository.store)  # as a job does
            point = self.repository.backup(
                wanted,
                ranges=ranges,
                previous=vm.last.disks[0] if vm.last is not None else None,
                lineage=vm.lineage,
                blobs={"vmx": vm.lineage.encode()},
            )
        except RepositoryFull as error:
            self.told.append(error.line())
            return False
        vm.image, vm.last = wanted, point
        self.originals[point.point_id] = (vm.lineage, bytes(wanted))
        return True

    def fill(self) -> None:
        """Until an attempt is told that there is no room."""
        self.ballast.take(int(free_bytes(self.disk) * self.chance.uniform(0.3, 0.9)))
        joins_at = self.chance.randint(0, 12) if self.chance.random() < 0.7 else BACKUPS_MAX
        for number in range(BACKUPS_MAX):
            if number == joins_at:
                self.files.before_call(self.chance.randint(0, 60), self.ballast.take_all)
            if not self.back_up(self.chance.choice(self.vms)):
                return
        raise AssertionError("the disk is never full")

    def judge(self) -> None:
        """All that was acknowledged is there and whole; nothing else shows; check is clean."""
        store, keys = self.repository.store, self.repository.keys
        listed = list_points(store, keys)
        assert not listed.unusable, listed.unusable
        found: dict[str, Point] = {point.point_id: point for point in listed.points}
        assert found.keys() == self.originals.keys()
        for name, (lineage, image) in self.originals.items():
            assert self.repository.restored(found[name], lineage=lineage) == image, name
        report = check_data(store, keys, segment_keys=keys, workers=1)
        assert report.is_clean, report.damaged

    def forget(self) -> None:
        """All of one VM, and some of the others'."""
        store, keys = self.repository.store, self.repository.keys
        gone = self.chance.choice([vm for vm in self.vms if vm.last is not None])
        points = [
            point
            for point in list_points(store, keys).points
            if point.manifest.lineage_id == gone.lineage or self.chance.random() < 0.3
        ]
        named = [PointName(name=point.name, digest=point.digest) for point in points]
        fences = load_fences(store, keys.common, keys.writers(store))
        for chosen in plan_forget(named, held=held_points(store), fences=fences).forgotten:
            forget_point(store, chosen)
        for point in points:
            del self.originals[point.point_id]
        for vm in self.vms:
            if vm.last is not None and vm.last.point_id not in self.originals:
                vm.last = None

    def prune(self, *, crowded: bool) -> tuple[int, int]:
        """Rounds until there is nothing to do; bytes deleted, and rounds. ``crowded``: no room between them."""
        deleted = 0
        for number in range(ROUNDS_MAX):
            self.clock.advance(GRACE.total_seconds() + 3600)
            if crowded and not deleted:
                self.ballast.take_all()
                self.files.before_call(self.chance.randint(0, 6), self.ballast.take_all)
            before = free_bytes(self.disk)
            report = self.pruner.round(limits=PruneLimits())
            self.files.before_call(-1, self.ballast.take_all)  # never
            assert report.waiting is None, report
            if report.deleted_bytes and not report.moved_bytes:
                # the reserve is made again; file systems tell in their own units what is free
                grown = free_bytes(self.disk) - before
                assert grown > report.deleted_bytes // 2 - RESERVE_BYTES, (grown, report)
            deleted += report.deleted_bytes
            if not report.fence and not report.deleted:
                return deleted, number + 1
        raise AssertionError("pruning never ends")

    def run(self) -> PassFacts:
        while not any(vm.last for vm in self.vms):
            assert self.back_up(self.vms[0]), "the first point finds room"
        self.fill()
        full_at = free_bytes(self.disk)
        points = len(self.originals)
        self.ballast.take_all()
        self.back_up(self.chance.choice(self.vms))  # without harm
        self.judge()
        self.forget()
        deleted, rounds = self.prune(crowded=self.chance.random() < 0.5)
        assert deleted
        self.judge()
        if free_bytes(self.disk) < self._room_wanted():
            self.ballast.go()
        small = _Vm("vcenter-1/small", bytearray(self.chance.randbytes(SMALL_BYTES)))
        assert self.back_up(small), "the next backup finds room"
        self.judge()
        assert all(line.startswith("repository_full: ") for line in self.told), self.told
        return PassFacts(points, full_at, len(self.told), deleted, rounds)

    def _room_wanted(self) -> int:
        return KIND_CAPACITY[self.kind] // RESERVE_SHARE + 4 * SMALL_BYTES


KIND_CAPACITY: Final = {"ext4": 64 << 20, "xfs": 320 << 20, "btrfs": 128 << 20}


def fill_once(kind: str, seed: int, folder: Path) -> PassFacts:
    """One pass. Raises: whatever is wrong, with a note that says which pass it was."""
    chance = random.Random(f"{kind}-{seed}")
    clock = _Time(folder / "probe")
    files = _Files(clock)
    with (
        small_disk(kind, folder) as disk,
        DirectoryStore.create(disk / "repository", files=files) as store,
    ):
        repository = new_repository(store)
        repository.clock = clock
        largest = KIND_CAPACITY[kind] // (16 * BLOCK_BYTES) // 2
        vms = [
            _Vm(
                f"vcenter-1/vm-{number}",
                bytearray(chance.randbytes(chance.randint(largest // 4, largest) * BLOCK_BYTES)),
            )
            for number in range(chance.randint(2, _VMS_MAX))
        ]
        work = _Pass(
            kind,
            disk,
            chance,
            repository,
            Pruner.of(repository),
            files,
            clock,
            Ballast(disk),
            vms,
        )
        try:
            return work.run()
        except (HoldfastError, OSError, AssertionError) as error:
            error.add_note(f"{kind}, pass {seed}")
            raise
