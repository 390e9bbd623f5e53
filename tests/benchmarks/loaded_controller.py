"""`holdfast` whose controller moves jobs on all the time: ``python -m benchmarks.loaded_controller controller run``.

In the controller's own process, through its own state table, as jobs' threads do it; nothing else differs. The rate
a second stands in ``HOLDFAST_LOAD_TRANSITIONS``. At SIGUSR1 its engine is given one run of many jobs whose work
takes no time, and what became of that is written to ``HOLDFAST_LOAD_BURST_FILE``; how many, stands beside it in ``….jobs``.
"""

from __future__ import annotations

import itertools
import json
import os
import signal
import sys
import threading
from collections.abc import Collection
from pathlib import Path

from holdfast_common.clock import SystemClock
from holdfast_common.job_result import JobResult, Outcome
from holdfast_controller.decide.job_state import JobEvent
from holdfast_controller.runs.engine import Engine
from holdfast_controller.runs.loads import BACKUPS
from holdfast_controller.runs.planned_job import Planned
from holdfast_controller.runs.world import World
from holdfast_controller.service import daemon
from holdfast_controller.store.jobs import JobRow
from holdfast_controller.store.new_jobs import NewJob

JOBS_AT_ONCE = 20
LIFE = (
    JobEvent.QUEUE,
    JobEvent.START,
    JobEvent.QUIESCE,
    JobEvent.SNAPSHOT,
    JobEvent.TRANSFER,
    JobEvent.COMMIT,
    JobEvent.CLEAN,
    JobEvent.END_DONE,
)
BURST_SUBJECT = "burst"
KIND = "load"  # of jobs; a kind that nothing else looks for
_burst_asked = threading.Event()


class LoadedEngine(Engine):
    """The product's, with the load from its first moment on."""

    def __init__(self, world: World) -> None:
        super().__init__(world)
        self._load = _Load(world, self)

    def reconciled(self, but: Collection[str] = ()) -> None:
        super().reconciled(but)
        self._load.begin()


class _Load:
    def __init__(self, world: World, engine: Engine) -> None:
        self._world = world
        self._engine = engine
        self._begun = threading.Lock()

    def begin(self) -> None:
        """Once."""
        if not self._begun.acquire(blocking=False):
            return
        rate = float(os.environ["HOLDFAST_LOAD_TRANSITIONS"])
        for number in range(JOBS_AT_ONCE if rate else 0):
            threading.Thread(
                target=self._transitions,
                args=(JOBS_AT_ONCE / rate, number / rate),
                name=f"load-{number}",
                daemon=True,
            ).start()
        threading.Thread(target=self._bursts, name="load-burst", daemon=True).start()

    def _transitions(self, every_seconds: float, first_after: float) -> None:
        """One job after the other, from planned to done, a transition at a time."""
        world, clock = self._world, self._world.clock
        due = clock.monotonic_seconds() + first_after
        for number in itertools.count():
            jobs = [NewJob(kind=KIND, subject=f"load {number}")]
            with world.attended.planning():
                run_id = world.jobs.create_run(kind=KIND, request={}, jobs=jobs)
                job_id = world.jobs.jobs_of_run(run_id)[0].job_id
                world.attended.attend(job_id)
            for event in LIFE:
                due += every_seconds
                if world.stopping.wait(max(0.0, due - clock.monotonic_seconds())):
                    return
                world.jobs.advance(job_id, event)
            world.attended.leave(job_id)
            due += every_seconds
            if world.stopping.wait(max(0.0, due - clock.monotonic_seconds())):
                return

    def _bursts(self) -> None:
        while not self._world.stopping.wait(0.2):
            if _burst_asked.is_set():
                _burst_asked.clear()
                self._burst(Path(os.environ["HOLDFAST_LOAD_BURST_FILE"]))

    def _burst(self, told_file: Path) -> None:
        count = int(told_file.with_suffix(".jobs").read_text())
        clock = SystemClock()
        lock, starts = threading.Lock(), list[float]()
        all_begun = threading.Event()

        def work(job: JobRow) -> JobResult:
            self._world.jobs.advance(job.job_id, JobEvent.TRANSFER)
            with lock:
                starts.append(clock.monotonic_seconds())
                if len(starts) == count:
                    all_begun.set()
            return JobResult(outcome=Outcome.DONE)

        planned = [
            Planned(
                job=NewJob(kind=KIND, subject=f"{BURST_SUBJECT} {number}"),
                work=work,
                loads=(BACKUPS,),
            )
            for number in range(count)
        ]
        begun_at = clock.monotonic_seconds()
        started = self._engine._start(KIND, {}, planned, [])
        queued = clock.monotonic_seconds() - begun_at
        all_begun.wait(120)
        told = {
            "jobs": len(started.job_ids),
            "queued_seconds": queued,
            "begun": len(starts),
            "seconds": max(starts, default=begun_at) - begun_at,
        }
        new = told_file.with_suffix(".new")
        new.write_text(json.dumps(told))
        new.rename(told_file)


def main() -> None:
    """As `holdfast`."""
    from holdfast_controller.main import main as run_controller

    setattr(daemon, "Engine", LoadedEngine)  # noqa: B010 - a class in place of the product's
    signal.signal(signal.SIGUSR1, lambda *_: _burst_asked.set())
    sys.argv[0] = "holdfast"
    run_controller()


if __name__ == "__main__":
    main()
