"""Adds up how restores in place ended under faults, over all processes of a test run, and tells it in one line."""

from __future__ import annotations

from collections import Counter

import pytest

PROPERTY = "restores in place"
NAMES = ("calls", "writes", "old", "restored", "broken")


class RestoringSummary:
    """A pytest plugin of the process that collects the reports."""

    def __init__(self) -> None:
        self._sums: Counter[str] = Counter()

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when != "teardown":
            return  # the sums are noted when a test's fixtures end
        for name, value in report.user_properties:
            if name == PROPERTY and isinstance(value, dict):
                self._sums.update(value)

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        if self._sums:
            told = ", ".join(f"{name} {self._sums[name]}" for name in NAMES)
            terminalreporter.write_line(f"in place: {told}")
