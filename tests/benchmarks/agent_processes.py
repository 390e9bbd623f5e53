"""Many agents of one controller in a few processes: between `benchmarks.controller_load` and `benchmarks.agent_host`."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from holdfast_common.places import find_places
from holdfast_common.wire import operator_pb2
from holdfast_controller.commands.operator_client import operators
from support.installation import PYTHON, Installation

PROCESSES = 4


class AgentProcess:
    """One process of agents: an order at a time, answered before the next."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True)
        self.log = folder / "log"
        with self.log.open("wb") as log:
            self._process = subprocess.Popen(
                [*PYTHON, "benchmarks.agent_host", str(folder)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )

    def tell(self, do: str, **order: object) -> None:
        """Give an order; `answer` waits for what comes of it."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({"do": do, **order}) + "\n")
        self._process.stdin.flush()

    def answer(self) -> dict[str, Any]:
        """What came of the last order."""
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"agents ended: {self.log.read_text(errors='replace')[-2000:]}")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def kill(self) -> None:
        """However far it is."""
        self._process.kill()
        self._process.wait(10)


@dataclass
class Report:
    """What the agents noted in some time."""

    connected: int = 0
    answers: list[float] = field(default_factory=list)
    welcomes: list[float] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)

    def add(self, found: dict[str, Any]) -> None:
        """One process more."""
        self.connected += found["connected"]
        self.answers += found["answers"]
        self.welcomes += found["welcomes"]
        self.losses += found["losses"]

    def p99_ms(self) -> float:
        """Of the answers to heartbeats; there are some."""
        return percentile(self.answers, 0.99) * 1000


class Agents:
    """All processes of agents."""

    def __init__(self, folder: Path, count: int) -> None:
        self.count = count
        self._processes = [AgentProcess(folder / f"hosts-{n}") for n in range(PROCESSES)]

    def enrol(self, installation: Installation) -> None:
        """Each with a token of its own."""
        shares: list[dict[str, str]] = [{} for _ in self._processes]
        with operators(find_places({"HOLDFAST_HOME": str(installation.home)})) as client:
            for number in range(self.count):
                name = f"proxy-{number:04}"
                asked = operator_pb2.CreateTokenRequest(
                    role="proxy", host_name=name, valid_minutes=60
                )
                token = client.call(client.stub.CreateToken, asked).token
                shares[number % len(shares)][name] = token
        controller = f"127.0.0.1:{installation.session_port}"
        for process, tokens in zip(self._processes, shares, strict=True):
            process.tell("enrol", tokens=tokens, controller=controller)
        enrolled = sum(process.answer()["enrolled"] for process in self._processes)
        assert enrolled == self.count, f"{enrolled} of {self.count} agents are enrolled"

    def connect(self) -> None:
        """All at once."""
        self._all("connect")

    def report(self) -> Report:
        """Since the last report."""
        report = Report()
        for found in self._all("report"):
            report.add(found)
        return report

    def wait_connected(self, seconds: float) -> Report:
        """Until all are, or the time is over: what was noted meanwhile."""
        report = self.report()
        ends_at = time.monotonic() + seconds
        while report.connected < self.count and time.monotonic() < ends_at:
            time.sleep(0.5)
            more = self.report()
            report.connected = more.connected
            report.answers += more.answers
            report.welcomes += more.welcomes
            report.losses += more.losses
        return report

    def kill(self) -> None:
        """All processes."""
        for process in self._processes:
            process.kill()

    def _all(self, do: str) -> list[dict[str, Any]]:
        for process in self._processes:
            process.tell(do)
        return [process.answer() for process in self._processes]


def percentile(values: Sequence[float], share: float) -> float:
    """The smallest value that so large a share does not pass."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]
