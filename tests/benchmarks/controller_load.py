"""One controller with a thousand agents, while jobs move on all the time: run with `make bench-controller`.

Run: PYTHONPATH=tests .venv/bin/python -m benchmarks.controller_load [--agents N] [--seconds N] [--down-seconds N]

The controller is `holdfast controller run` as it is installed, with 1,024 open files as a shell gives them; jobs
that move on in its own process are all that is added (`benchmarks.loaded_controller`). The agents are the product's
sessions, each with a certificate of its own that it enrolled for, a connection and a stream, in a few processes on
the same machine (`benchmarks.agent_host`). Everything is counted from outside: answers to heartbeats by the agents,
transitions in the database, memory by the kernel. Then the controller is killed and started. The last line printed
is JSON, each goal with its figure; what could not be measured is not met.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import signal
import sqlite3
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

from benchmarks.agent_processes import Agents
from holdfast_common.clock import SystemClock, utc_text
from holdfast_common.places import find_places
from support.installation import PYTHON, Installation
from support.waiting import wait_until

AGENTS = 1000
SECONDS = 60.0  # that are measured
TRANSITIONS = 105.0  # offered a second
BURSTS = (100, 1000)
OPEN_FILES = 1024  # as a shell gives them; systemd gives more
CONNECT_SECONDS_MAX = 120.0
HEARTBEAT_SECONDS = 10.0  # as controllers have them

MEMORY_GOAL_MIB = 256
P99_GOAL_MS = 250
RECONNECT_GOAL_SECONDS = 30
TRANSITIONS_GOAL = 100


class Controller:
    """The controller's process, looked at from outside."""

    def __init__(self, installation: Installation) -> None:
        self._installation = installation

    def start(self) -> float:
        """When it was started."""
        started_at = time.monotonic()
        self._installation.start_controller()
        return started_at

    @property
    def pid(self) -> int:
        """Of the present one."""
        ready = json.loads((self._installation.folder / "controller.ready").read_text())
        return int(ready["pid"])

    def memory_peak_mib(self) -> float:
        """The kernel's VmHWM."""
        status = Path(f"/proc/{self.pid}/status").read_text()
        line = next(line for line in status.splitlines() if line.startswith("VmHWM:"))
        return int(line.split()[1]) / 1024

    def cpu_seconds(self) -> float:
        """User and system, of all its threads."""
        fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def kill(self) -> None:
        """As a crash does."""
        self._installation.kill("controller", signal.SIGKILL)

    def burst(self, jobs: int, told: Path) -> dict[str, Any] | None:
        """One run of so many jobs; None: it did not begin them all in time."""
        told.unlink(missing_ok=True)
        told.with_suffix(".jobs").write_text(str(jobs))
        os.kill(self.pid, signal.SIGUSR1)
        wait_until(told.exists, seconds=180, what="the burst has begun")
        found: dict[str, Any] = json.loads(told.read_text())
        return found


def transitions_between(database: Path, begin: str, end: str) -> int:
    """As they stand in the database: every row of a job's story is one; the bursts come later."""
    with closing(sqlite3.connect(f"file:{database}?mode=ro", uri=True)) as connection:
        question = "SELECT count(*) FROM job_events WHERE at >= ? AND at < ?"
        return int(connection.execute(question, (begin, end)).fetchone()[0])


@dataclass
class Figures:
    """None: not measured."""

    agents: int = 0
    memory_mib: float | None = None
    p99_ms: float | None = None
    reconnect_seconds: float | None = None
    transitions_per_second: float | None = None

    def goals(self, agents: int) -> dict[str, dict[str, object]]:
        """As the last line says them."""
        return {
            "agents": {"figure": self.agents, "goal": agents, "met": self.agents >= agents},
            "memory": _at_most(self.memory_mib, MEMORY_GOAL_MIB),
            "p99": _at_most(self.p99_ms, P99_GOAL_MS),
            "reconnect": _at_most(self.reconnect_seconds, RECONNECT_GOAL_SECONDS),
            "transitions": {
                "figure": _rounded(self.transitions_per_second),
                "goal": TRANSITIONS_GOAL,
                "met": (self.transitions_per_second or 0) >= TRANSITIONS_GOAL,
            },
        }


def _rounded(figure: float | None) -> float | None:
    return None if figure is None else round(figure, 1)


def _at_most(figure: float | None, goal: float) -> dict[str, object]:
    return {
        "figure": _rounded(figure),
        "goal": goal,
        "met": figure is not None and figure < goal,
    }


@dataclass(frozen=True, kw_only=True)
class Pace:
    """How long is measured, and how often an agent is heard meanwhile; both in seconds."""

    measured: float
    heartbeat: float
    down: float = 0.0  # between the controller's end and its start

    @property
    def heartbeats_min(self) -> float:
        """Of each agent; the first may be due late."""
        return max(1.0, self.measured // self.heartbeat - 1)


def measure(installation: Installation, agents: Agents, figures: Figures, pace: Pace) -> None:
    """All phases; what was measured stands in ``figures`` whatever comes after."""
    controller = Controller(installation)
    controller.start()
    begun, used = time.monotonic(), controller.cpu_seconds()
    agents.enrol(installation)
    print(
        f"{agents.count} agents enrolled in {time.monotonic() - begun:.1f} s,"
        f" {controller.cpu_seconds() - used:.1f} s of the controller's CPU; it uses"
        f" {controller.memory_peak_mib():.0f} MiB at most",
        flush=True,
    )
    begun, used = time.monotonic(), controller.cpu_seconds()
    agents.connect()
    report = agents.wait_connected(CONNECT_SECONDS_MAX)
    print(
        f"{report.connected} agents connected in {max(report.welcomes, default=begun) - begun:.1f} s,"
        f" {controller.cpu_seconds() - used:.1f} s of the controller's CPU",
        flush=True,
    )
    steady(installation, controller, agents, figures, pace)
    figures.memory_mib = controller.memory_peak_mib()
    restart(controller, agents, figures, pace)
    figures.memory_mib = max(figures.memory_mib, controller.memory_peak_mib())
    print(f"memory of the controller, at most: {figures.memory_mib:.0f} MiB")
    bursts(installation, controller, agents)


def steady(
    installation: Installation,
    controller: Controller,
    agents: Agents,
    figures: Figures,
    pace: Pace,
) -> None:
    """All are connected, and nothing happens but heartbeats and transitions."""
    time.sleep(pace.heartbeat)
    agents.report()
    begin, begun, used = SystemClock().now(), time.monotonic(), controller.cpu_seconds()
    time.sleep(pace.measured)
    lasted, used = time.monotonic() - begun, controller.cpu_seconds() - used
    end = begin + timedelta(seconds=lasted)
    report = agents.report()
    figures.agents = report.connected
    database = find_places({"HOLDFAST_HOME": str(installation.home)}).database
    moved = transitions_between(database, utc_text(begin), utc_text(end))
    figures.transitions_per_second = moved / lasted
    wanted = report.connected * max(
        1.0, lasted // HEARTBEAT_SECONDS - 1
    )  # the first may be due late
    print(
        f"{lasted:.0f} s with {report.connected} agents: {moved / lasted:.1f} transitions a second,"
        f" {used / lasted:.2f} of a core; {len(report.answers)} heartbeats answered (at least"
        f" {wanted:.0f} were due), {len(report.losses)} sessions lost"
    )
    if report.answers and len(report.answers) >= wanted:
        figures.p99_ms = report.p99_ms()
        print(
            f"heartbeats answered within: median {statistics.median(report.answers) * 1000:.1f} ms,"
            f" 99 % {figures.p99_ms:.1f} ms, all {max(report.answers) * 1000:.1f} ms",
            flush=True,
        )


def restart(controller: Controller, agents: Agents, figures: Figures, pace: Pace) -> None:
    """Killed and started: until the last agent is back, counted from the start of the process."""
    agents.report()
    controller.kill()
    time.sleep(pace.down)
    started_at = controller.start()
    ready = time.monotonic() - started_at
    report = agents.wait_connected(CONNECT_SECONDS_MAX)
    back = [at - started_at for at in report.welcomes]
    if report.connected == agents.count and back:
        figures.reconnect_seconds = max(back)
    print(
        f"killed and started: it listened after {ready:.1f} s; {report.connected} agents back, half of them"
        f" after {statistics.median(back) if back else 0:.1f} s, all after {max(back, default=0):.1f} s;"
        f" {controller.cpu_seconds():.1f} s of the controller's CPU since its start"
    )
    agents.report()
    time.sleep(2 * pace.heartbeat)
    report = agents.report()
    if report.answers:
        print(f"soon after that: 99 % of heartbeats answered within {report.p99_ms():.1f} ms")


def bursts(installation: Installation, controller: Controller, agents: Agents) -> None:
    """One run of many jobs, beside all that: printed, no goal of the last line."""
    for jobs in BURSTS:
        agents.report()
        told = controller.burst(jobs, installation.folder / "burst.json")
        answers = agents.report()
        if told is None:
            continue
        print(
            f"a run of {told['jobs']} jobs: all queued after {told['queued_seconds']:.1f} s, all begun after"
            f" {told['seconds']:.1f} s: {told['begun'] / max(told['seconds'], 0.001):.0f} starts a second;"
            f" meanwhile 99 % of heartbeats within {answers.p99_ms() if answers.answers else 0:.0f} ms",
            flush=True,
        )


@contextmanager
def installed(folder: Path, pace: Pace) -> Iterator[Installation]:
    """A controller that is set up as users do it, with the times that users have."""
    installation = Installation(
        folder,
        program_prefix={"holdfast": [*PYTHON, "benchmarks.loaded_controller"]},
        extra_environment={
            "HOLDFAST_LOAD_TRANSITIONS": str(TRANSITIONS),
            "HOLDFAST_LOAD_BURST_FILE": str(folder / "burst.json"),
        },
        forked=False,
    )
    try:
        installation.init()
        installation.configure(
            heartbeat_seconds=pace.heartbeat,
            job_lease_seconds=45.0,
            reconcile_seconds=120.0,
            jobs_at_once_max=100,
        )
        yield installation
    finally:
        installation.stop()


def main() -> int:
    """0 also when a goal is missed: this is a measurement."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, help="where everything is made")
    parser.add_argument("--agents", type=int, default=AGENTS)
    parser.add_argument("--seconds", type=float, default=SECONDS, help="that are measured")
    parser.add_argument("--heartbeat-seconds", type=float, default=HEARTBEAT_SECONDS)
    parser.add_argument("--down-seconds", type=float, default=0.0, help="before it starts again")
    parser.add_argument("--keep", action="store_true", help="leave the folder with the logs")
    chosen = parser.parse_args()
    pace = Pace(
        measured=chosen.seconds, heartbeat=chosen.heartbeat_seconds, down=chosen.down_seconds
    )
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(OPEN_FILES, most), most))
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # nothing is left running then
    folder = Path(tempfile.mkdtemp(prefix="holdfast-load-", dir=chosen.folder))
    figures = Figures()
    try:
        with installed(folder, pace) as installation:
            agents = Agents(folder, chosen.agents)
            try:
                measure(installation, agents, figures, pace)
            except (AssertionError, OSError, RuntimeError) as error:
                print(f"the measurement ended: {error}", flush=True)
            finally:
                agents.kill()
    finally:
        if chosen.keep:
            print(f"logs are in {folder}")
        else:
            shutil.rmtree(folder, ignore_errors=True)
    print(json.dumps(figures.goals(chosen.agents)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
