"""One loop over virtual time: threads of the product run one at a time, and the seed says which one goes on.

Below everything else of the simulation. A life is what dies together: a controller, an agent. What the product has of
threads stands above it, in `virtual_threading`.
"""

from __future__ import annotations

import _thread
import heapq
import random
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from simulation.virtual_threading import VirtualThread

BEGIN: Final = datetime(2026, 3, 2, 1, 0, 0, tzinfo=UTC)
DEAD_WAITS_MAX: Final = (
    3  # who waits on although he is dead is told that what he waits for is there
)
STEPS_MAX: Final = 400_000  # of one seed: more is a loop that never ends


class Crashed(BaseException):
    """The process that this thread belongs to is dead: nothing that it does counts any more."""


class Violation(AssertionError):
    """What must never be, was."""


class Deadlock(AssertionError):
    """Nothing can go on, and no time will change that."""


@dataclass(eq=False)
class Life:
    """A process. ``crash_at``: the step of its own at which it dies; 0: at none."""

    name: str
    dead: bool = False
    steps: int = 0
    crash_at: int = 0
    tasks: list[Task] = field(default_factory=list)


def _baton() -> _thread.LockType:
    """Taken; who gives it lets the one who waits for it go on."""
    baton = _thread.allocate_lock()
    baton.acquire()
    return baton


@dataclass(eq=False)
class _Runner:
    """A real thread, kept for the next task."""

    baton: _thread.LockType = field(default_factory=_baton)
    work: Callable[[], None] | None = None


@dataclass(eq=False)
class Task:
    """A virtual thread."""

    life: Life
    name: str
    baton: _thread.LockType
    thread: VirtualThread | None = None
    notified: bool = False
    turn: int = 0  # of its wait: older timers are none of it
    waiters: list[Task] | None = None
    dead_waits: int = 0
    blocked: bool = False


_idle: list[_Runner] = []


def _runs(runner: _Runner) -> None:
    while True:
        runner.baton.acquire()
        assert runner.work is not None
        runner.work()


def _runner() -> _Runner:
    if _idle:
        return _idle.pop()
    runner = _Runner()
    threading.Thread(target=_runs, args=(runner,), daemon=True).start()
    return runner


class Kernel:
    """The loop of one seed; whoever makes it is its first task."""

    def __init__(self, seed: int) -> None:
        self.now = 0.0
        self.wall_offset = 0.0
        self.random = random.Random(seed * 7919 + 1)
        self.trace: list[str] = []
        self.failure: BaseException | None = None
        self.steps = 0
        self.threads_made = 0
        self._ready: list[Task] = []
        self._timers: list[tuple[float, int, Task | Callable[[], None], int]] = []
        self._number = 0
        self.main = Task(Life("the driver"), "driver", _baton())
        self.current = self.main

    # -- tasks ------------------------------------------------------------------------------------

    def spawn(self, life: Life, name: str, work: Callable[[], None]) -> Task:
        """Begin a thread of a life; it runs when the loop says so."""
        runner = _runner()
        task = Task(life, name, runner.baton)
        life.tasks.append(task)

        def whole() -> None:
            try:
                self.check()
                work()
            except Crashed:
                pass
            except BaseException as error:  # noqa: BLE001 - the driver raises it: a violation, or a bug of ours
                self.failure = self.failure or error
            life.tasks.remove(task)
            _idle.append(runner)
            if task.thread is not None:
                task.thread.ended.set()
            following = self._following()
            self.current = following
            following.baton.release()

        runner.work = whole
        self._ready.append(task)
        return task

    def call_at(self, moment: float, work: Callable[[], None]) -> None:
        """Have something happen at a moment, in no thread: it must not wait."""
        self._number += 1
        heapq.heappush(self._timers, (moment, self._number, work, 0))

    def block(self, waiters: list[Task] | None, seconds: float | None) -> bool:
        """Wait until woken (True), or so long (False). Raises: Crashed."""
        task = self.current
        if task.life.dead:
            task.dead_waits += 1
            if task.dead_waits > DEAD_WAITS_MAX:
                return True
            raise Crashed
        task.notified = False
        task.blocked = True
        task.turn += 1
        if waiters is not None:
            waiters.append(task)
            task.waiters = waiters
        if seconds is not None:
            self._number += 1
            due = self.now + max(0.0, seconds)
            heapq.heappush(self._timers, (due, self._number, task, task.turn))
        following = self._following()
        if following is not task:
            self.current = following
            following.baton.release()
            task.baton.acquire()
        if task is self.main and self.failure is not None:
            raise self.failure
        if task.life.dead:
            raise Crashed
        return task.notified

    def wake(self, task: Task, *, notified: bool = True) -> None:
        """It goes on when its turn comes."""
        if task.waiters is not None and task in task.waiters:
            task.waiters.remove(task)
        task.waiters = None
        task.blocked = False
        task.turn += 1
        task.notified = notified
        self._ready.append(task)

    def sleep(self, seconds: float) -> None:
        """Let time pass. Raises: Crashed."""
        self.block(None, seconds)

    def step(self, name: str) -> None:
        """A moment at which the process may die, and others may go on. Raises: Crashed."""
        life = self.current.life
        if life.dead:
            raise Crashed
        life.steps += 1
        self.steps += 1
        if self.steps > STEPS_MAX and self.failure is None:
            self.failure = AssertionError(f"the seed does not end: {name} at {self.now:.0f} s")
        if life.crash_at and life.steps >= life.crash_at:
            self.trace.append(f"{self.now:.3f} {life.name} dies at step {life.steps}: {name}")
            self.kill(life)
            raise Crashed

    def check(self) -> None:
        """Raises: Crashed when the present thread's process is dead."""
        if self.current.life.dead:
            raise Crashed

    def kill(self, life: Life) -> None:
        """The process is dead from now on; its threads end as soon as they have their turn."""
        life.dead = True
        for task in life.tasks:
            if task.blocked:
                self.wake(task, notified=False)

    def _following(self) -> Task:
        if self.failure is not None:
            self._ready = [each for each in self._ready if each is not self.main]
            return self.main
        while not self._ready:
            if not self._timers:
                self.failure = Deadlock(f"nothing goes on after {self.now:.3f} s")
                return self.main
            moment, _, found, turn = heapq.heappop(self._timers)
            if isinstance(found, Task):
                if found.turn == turn:
                    self.now = max(self.now, moment)
                    self.wake(found, notified=False)
            else:
                self.now = max(self.now, moment)
                found()
        ready = self._ready
        return ready.pop(self.random.randrange(len(ready)) if len(ready) > 1 else 0)


class VirtualClock:
    """`holdfast_common.clock.Clock`; the wall clock may jump unless it ``is_right``, the other one never does."""

    def __init__(self, kernel: Kernel, *, is_right: bool = False) -> None:
        self._kernel = kernel
        self._is_right = is_right

    def now(self) -> datetime:
        offset = 0.0 if self._is_right else self._kernel.wall_offset
        return BEGIN + timedelta(seconds=self._kernel.now + offset)

    def monotonic_seconds(self) -> float:
        return self._kernel.now
