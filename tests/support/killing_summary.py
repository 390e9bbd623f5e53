"""Adds up the kills of all processes of a test run, and tells them in one line at its end."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass

import pytest

PROPERTY = "killed steps"


@dataclass
class KillTally:
    """``traced``: all steps, of which ``steps`` were chosen. ``left``: kills after which something was wrong."""

    traced: int = 0
    steps: int = 0
    killed: int = 0
    left: int = 0

    def facts(self) -> dict[str, int]:
        return asdict(self)

    def text(self) -> str:
        return (
            f"steps {self.steps} killed {self.killed} left {self.left}"
            f" (of {self.traced} traced; reads and writes that repeat: first, second and last)"
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
