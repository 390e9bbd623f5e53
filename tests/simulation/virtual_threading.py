"""In the place of the module `threading`: events, locks and threads of virtual time. Nothing of the product knows.

Above `virtual_time`, whose kernel lets one of them go on at a time.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from simulation.virtual_time import Crashed, Kernel, Task


class VirtualEvent:
    """`threading.Event`."""

    def __init__(self, kernel: Kernel) -> None:
        self._kernel = kernel
        self._flag = False
        self._waiters: list[Task] = []

    def is_set(self) -> bool:
        return self._flag

    def set(self) -> None:
        self._flag = True
        for task in list(self._waiters):
            self._kernel.wake(task)

    def clear(self) -> None:
        self._flag = False

    def wait(self, timeout: float | None = None) -> bool:
        if self._flag:
            self._kernel.check()
            return True
        return self._kernel.block(self._waiters, timeout) or self._flag


class VirtualLock:
    """`threading.Lock`, and ``again``: `threading.RLock`."""

    def __init__(self, kernel: Kernel, *, again: bool = False) -> None:
        self._kernel = kernel
        self._again = again
        self._owner: Task | None = None
        self._depth = 0
        self._waiters: list[Task] = []

    def acquire(self, blocking: bool = True, timeout: float = -1) -> bool:
        kernel = self._kernel
        me = kernel.current
        if self._again and self._owner is me:
            self._depth += 1
            return True
        deadline = None if timeout < 0 else kernel.now + timeout
        while self._owner is not None:
            if not blocking or (deadline is not None and kernel.now >= deadline):
                return False
            if self._owner.life.dead:
                raise Crashed
            kernel.block(self._waiters, None if deadline is None else deadline - kernel.now)
        self._owner = me
        self._depth = 1
        return True

    def release(self) -> None:
        self._depth -= 1
        if self._depth:
            return
        self._owner = None
        if self._waiters:
            self._kernel.wake(self._waiters[0])

    def locked(self) -> bool:
        return self._owner is not None

    def __enter__(self) -> bool:
        return self.acquire()

    def __exit__(self, *_: object) -> None:
        self.release()


class VirtualThread:
    """`threading.Thread`; it belongs to the life of whoever starts it."""

    def __init__(
        self,
        kernel: Kernel,
        target: Callable[..., object],
        args: tuple[Any, ...],
        name: str,
    ) -> None:
        self._kernel = kernel
        self._target = target
        self._args = args
        self.name = name
        self.ended = VirtualEvent(kernel)
        self.task: Task | None = None
        kernel.threads_made += 1
        self._number = kernel.threads_made

    def __hash__(self) -> int:
        """The product keeps threads in sets: their order must not depend on where they lie in memory."""
        return self._number

    def __eq__(self, other: object) -> bool:
        return self is other

    def start(self) -> None:
        self._kernel.check()
        life = self._kernel.current.life
        self.task = self._kernel.spawn(life, self.name, self._run)
        self.task.thread = self

    def _run(self) -> None:
        self._target(*self._args)

    def join(self, timeout: float | None = None) -> None:
        self.ended.wait(timeout)

    def is_alive(self) -> bool:
        return self.task is not None and not self.ended.is_set()


class VirtualThreading:
    """The module, for one kernel."""

    def __init__(self, kernel: Kernel) -> None:
        self._kernel = kernel

    def Event(self) -> VirtualEvent:  # noqa: N802 - the module's names
        return VirtualEvent(self._kernel)

    def Lock(self) -> VirtualLock:  # noqa: N802
        return VirtualLock(self._kernel)

    def RLock(self) -> VirtualLock:  # noqa: N802
        return VirtualLock(self._kernel, again=True)

    def Thread(  # noqa: N802
        self,
        target: Callable[..., object],
        args: tuple[Any, ...] = (),
        name: str = "",
        daemon: bool = True,
    ) -> VirtualThread:
        assert daemon, "threads of the product do not hold the program up"
        return VirtualThread(self._kernel, target, args, name)

    def current_thread(self) -> VirtualThread | None:
        return self._kernel.current.thread
