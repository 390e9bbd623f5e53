"""Lets the N-th sync of a workload fail on a real mount, and judges what is left with the production code.

Judged are the disk as a power cut would leave it, the running machine on which the next backup is made, and
the disk once more after that: what was acknowledged then must not stand on what the failed sync lost.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from holdfast_common.errors import HoldfastError
from holdfast_common.repository.file_system import SystemFiles
from support.crash_judge import judge_files
from support.crash_rig import ROOT, Rig
from support.crash_workloads import WORKLOADS, Recording
from support.interleaving import Turns
from support.memory_files import Image, MemoryFiles
from support.repositories import FixedClock
from support.unsynced_files import SyncFault
from support.unsynced_mount import UnsyncedMount


@dataclass(frozen=True)
class SyncRun:
    """How a workload with a fault ended. ``hit``: the sync that failed; empty when none did: a clean run."""

    hit: str
    error: HoldfastError | None


class _Files(SystemFiles):
    """The system's calls. What a test leaves open is closed by it."""

    def __init__(self) -> None:
        self._open: dict[int, str] = {}

    def open_directory(self, path: str, *, at: int | None = None, follow: bool = True) -> int:
        return self._opened(super().open_directory(path, at=at, follow=follow), path)

    def open_file(self, path: str, *, at: int) -> int:
        return self._opened(super().open_file(path, at=at), path)

    def create_file(self, path: str, *, at: int) -> int:
        return self._opened(super().create_file(path, at=at), path)

    def close(self, descriptor: int) -> None:
        del self._open[descriptor]  # first: closed, its number may be another thread's at once
        super().close(descriptor)

    def close_roots(self, root: Path) -> list[str]:
        """Close what stores hold; the names of what else is open."""
        left = [path for path in self._open.values() if path != str(root)]
        for descriptor in list(self._open):
            self.close(descriptor)
        return left

    def _opened(self, descriptor: int, path: str) -> int:
        self._open[descriptor] = path
        return descriptor


class _MountClock(FixedClock):
    """The mount's time is the test's."""

    def __init__(self, tell: Callable[[float], None], start: FixedClock) -> None:
        self.moment, self.seconds, self._tell = start.moment, start.seconds, tell
        tell(self.seconds_since_1970())

    def advance(self, seconds: float) -> None:
        super().advance(seconds)
        self._tell(self.seconds_since_1970())

    def plain(self) -> FixedClock:
        """A copy that tells nobody."""
        clock = FixedClock()
        clock.moment, clock.seconds = self.moment, self.seconds
        return clock


def run_with_sync_fault(mount: UnsyncedMount, made: Recording, fault: SyncFault) -> SyncRun:
    """Run a recorded workload again on the mount with a fault. Raises: whatever is wrong."""
    clock = _MountClock(mount.set_time, made.start.clock)
    promised = list(made.promised)
    files = _Files()
    error: HoldfastError | None = None
    with mount.loaded(made.before, now=clock.seconds_since_1970()) as top:
        root = mount.path / top / ROOT.name
        start = replace(made.start, root=root)
        mount.arm(fault)
        try:
            rig = start.on(files, mark=promised.append, turns=Turns(start.seed), clock=clock)
            WORKLOADS[made.name].run(rig)
        except HoldfastError as raised:
            error = raised
        hit = mount.hit()
        mount.arm(None)
        left = files.close_roots(root)
        assert not left, f"{fault} at {hit}: left open: {left}"
        told = f"{fault} at {hit}, told as {error!r}"
        _judge_disk(made, mount.after_power_cut(top), clock, promised, f"{told}: power cut")
        live = replace(made.rig, repository=None, root=root, originals=dict(made.rig.originals))
        live = live.on(files, mark=promised.append, clock=clock)
        try:
            judge_files(live, made, promised=list(promised), after="next")
        except BaseException as bad:
            bad.add_note(f"{told}: the machine runs on")
            raise
        finally:
            files.close_roots(root)
        _judge_disk(
            replace(made, rig=replace(live, root=ROOT)),
            mount.after_power_cut(top),
            clock,
            promised,
            f"{told}: power cut after the next backup",
        )
    return SyncRun(hit=hit, error=error)


def _judge_disk(
    made: Recording, image: Image, clock: _MountClock, promised: list[str], told: str
) -> None:
    plain = clock.plain()
    disk = MemoryFiles.of(image, now=plain.seconds_since_1970)
    rig: Rig = replace(made.rig, repository=None).on(disk, clock=plain)
    try:
        judge_files(rig, made, promised=list(promised))
    except BaseException as bad:
        bad.add_note(told)
        raise
