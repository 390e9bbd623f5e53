"""Adds up the kills of all processes of a test run, and tells them in one line at its end."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass

import pytest

PROPERTY = "killed steps"


@dataclass
class KillTally:
    """``planned``: what a whole sweep kills, of which ``steps`` were tried. ``left``: something was wrong afterwards.
    ``foreign_calls``: those in the lab's log about snapshots and a disk that are not ours.

    ``traced``: all steps of the traced jobs, the many that repeat included.
    """

    traced: int = 0
    planned: int = 0
    steps: int = 0
    killed: int = 0
    left: int = 0
    foreign_calls: int = 0

    def facts(self) -> dict[str, int]:
        return asdict(self)

    def text(self) -> str:
        sums = f"steps {self.steps} killed {self.killed} left {self.left}, foreign calls {self.foreign_calls}"
        if self.steps < self.planned:
            return f"{sums} (a choice by seed of {self.planned}; make test-long kills at all)"
        return (
            f"{sums} (of {self.traced} traced: calls that only read at their first, second and last, writes to"
            " a disk at their first, second and middle one, calls about tasks at their first, of further"
            " transports what they add)"
        )


class KillSummary:
    """A pytest plugin of the process that collects the reports."""

    def __init__(self) -> None:
        self._sums: Counter[str] = Counter()

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when != "teardown":
            return  # noted when a test's fixtures end
        for name, value in report.user_properties:
            if name == PROPERTY and isinstance(value, dict):
                self._sums.update(value)

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        if self._sums:
            terminalreporter.write_line(KillTally(**self._sums).text())
