"""Disks of one job side by side: those of a lane one after another, each lane in a thread of its own.

Before `disk_copy`. A lane that fails stops the others at their next block; what failed first is what the job ends with.
"""

from __future__ import annotations

import contextvars
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, TypeVar, cast

from holdfast_agent.pipelines.context import JobContext
from holdfast_common.errors import Interrupted

LANES_MAX: Final = 8  # whatever a controller asks for: each lane has a stream's buffers
Disk = TypeVar("Disk")
Result = TypeVar("Result")
Work = Callable[[Disk, JobContext], Result]


def in_lanes(
    disks: Sequence[tuple[int, Disk]], work: Work[Disk, Result], context: JobContext
) -> list[Result]:
    """``work`` on every disk, with the number of its lane; the results in the order of the disks.

    The first lane is worked on by the caller's own thread. Raises: what failed first.
    """
    lanes = list(_by_lane(disks).values())
    run = _Run(work, context)
    threads = [run.thread(lane) for lane in lanes[1:]]
    for thread in threads:
        thread.start()
    for lane in lanes[:1]:
        run.work_on(lane)
    for thread in threads:
        thread.join()  # however long: what it reads from may be closed only then
    failure, run.failure = run.failure, None
    if failure is not None:
        try:
            raise failure
        finally:
            del (
                failure
            )  # else it and this frame hold each other, and all that its frames hold, for some time
    return [run.results[position] for position in range(len(disks))]


class _Run:
    """The lanes of one job."""

    def __init__(self, work: Work[Any, Any], context: JobContext) -> None:
        self.results: dict[int, Any] = {}  # by the disk's position
        self.failure: BaseException | None = None
        self._work = work
        self._lock = threading.Lock()
        self._context = cast("JobContext", _LaneContext(context, self._check))

    def thread(self, lane: Sequence[tuple[int, Any]]) -> threading.Thread:
        """One that works on a lane, and watches the repository's calls as the job's own does."""
        inherited = contextvars.copy_context()
        return threading.Thread(
            target=lambda: inherited.run(self.work_on, lane), name="lane", daemon=True
        )

    def work_on(self, lane: Sequence[tuple[int, Any]]) -> None:
        """Raises nothing: what fails is kept."""
        try:
            for position, disk in lane:
                self._check()
                self.results[position] = self._work(disk, self._context)
        except BaseException as error:  # noqa: BLE001 - raised in the job's own thread
            with self._lock:
                self.failure = self.failure or error

    def _check(self) -> None:
        if self.failure is not None:
            raise Interrupted("another disk of this job failed")


class _LaneContext:
    """The job's context, whose checks also hear of other lanes."""

    def __init__(self, context: JobContext, check: Callable[[], None]) -> None:
        self._context = context
        self._check = check

    def __getattr__(self, name: str) -> object:
        return getattr(self._context, name)

    def check(self) -> None:
        self._check()
        self._context.check()

    def pace(self, device_key: int, length: int) -> int:
        self._check()
        return self._context.pace(device_key, length)


def _by_lane(disks: Sequence[tuple[int, Disk]]) -> Mapping[int, list[tuple[int, Disk]]]:
    """Positions and disks by lane, in the disks' order."""
    found: dict[int, list[tuple[int, Disk]]] = {}
    for position, (lane, disk) in enumerate(disks):
        found.setdefault(lane % LANES_MAX, []).append((position, disk))
    return found
