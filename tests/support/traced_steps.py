"""Counts the steps of a program, and lets one stand still where it was told to.

A test writes ``plan.json`` into a folder: its id, and the step to stop at. Every step that the
program makes from then on is written into a file of that plan; the program that reaches the step
writes ``<id>.reached`` and stands still for ever: until it is killed, or until ``<id>.go`` is there.
Without a plan nothing happens.
"""

from __future__ import annotations

import json
import os
import threading
import time
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path

PLAN = "plan.json"
ANY = "*"  # as a step's name: the how manieth step of all, whatever it is
STOP_SECONDS_MAX = 600.0  # nobody stands still for longer: whoever should have killed us is dead
POLL_SECONDS = 0.01


@dataclass(frozen=True, order=True)
class Step:
    """One step: which program makes it, what it is, and the how manieth of its name it is."""

    program: str
    name: str
    occurrence: int

    def __str__(self) -> str:
        return f"{self.program}: {self.name} #{self.occurrence}"


class Tracer:
    """The program's side. Thread-safe."""

    def __init__(self, folder: Path, program: str) -> None:
        self._folder = folder
        self._program = program
        self._lock = threading.Lock()
        self._stamp: tuple[int, int] = (0, 0)
        self._plan: dict[str, object] = {}
        self._counts: Counter[str] = Counter()
        self._total = 0

    def step(self, name: str) -> None:
        """Count one step; stand still when it is the one."""
        with self._lock:
            plan_id = self._plan_now()
            if not plan_id:
                return
            self._counts[name] += 1
            self._total += 1
            step = Step(self._program, name, self._counts[name])
            with (self._folder / f"{plan_id}.steps").open("a") as file:
                file.write(json.dumps(asdict(step)) + "\n")
            counted = Step(self._program, ANY, self._total)
            stop = self._plan.get("stop") in (asdict(step), asdict(counted))
        if stop:
            self._stand_still(plan_id)

    def _plan_now(self) -> str:
        path = self._folder / PLAN
        try:
            found = path.stat()
        except FileNotFoundError:
            return ""
        stamp = (found.st_ino, found.st_mtime_ns)
        if stamp != self._stamp:
            self._stamp = stamp
            self._plan = json.loads(path.read_text())
            self._counts.clear()
            self._total = 0
        return str(self._plan["id"])

    def _stand_still(self, plan_id: str) -> None:
        (self._folder / f"{plan_id}.reached").touch()
        go = self._folder / f"{plan_id}.go"
        until = time.monotonic() + STOP_SECONDS_MAX
        while not go.exists():
            if time.monotonic() > until:
                os._exit(99)
            time.sleep(POLL_SECONDS)


class TracePlan:
    """The test's side: one folder, one plan at a time."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self._number = 0
        self._id = ""

    def arm(self, stop: Step | None = None) -> None:
        """From now on steps are counted; ``stop``: where to stand still."""
        self._number += 1
        self._id = f"plan{self._number:04d}"
        plan = {"id": self._id, "stop": None if stop is None else asdict(stop)}
        written = self.folder / f"{self._id}.json"
        written.write_text(json.dumps(plan))
        written.replace(self.folder / PLAN)

    def disarm(self) -> None:
        """No step is counted any more; one that stands still goes on standing."""
        (self.folder / PLAN).unlink(missing_ok=True)

    def reached(self) -> bool:
        """Whether the program stands at the step."""
        return (self.folder / f"{self._id}.reached").exists()

    def let_go(self) -> None:
        """Whoever stands still goes on."""
        (self.folder / f"{self._id}.go").touch()

    def steps(self) -> list[Step]:
        """What was counted since `arm`, in the order of the file."""
        path = self.folder / f"{self._id}.steps"
        if not path.exists():
            return []
        return [Step(**json.loads(line)) for line in path.read_text().splitlines()]
