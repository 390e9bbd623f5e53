"""Counts the planted breaks of rules over all processes of a test run, and tells them in one line."""

from __future__ import annotations

import pytest

PROPERTY = "planted rule"


class PlantingSummary:
    """A pytest plugin of the process that collects the reports."""

    def __init__(self) -> None:
        self._planted: set[str] = set()
        self._caught: set[str] = set()

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when != "call":
            return
        for name, value in report.user_properties:
            if name == PROPERTY:
                self._planted.add(str(value))
                if report.passed:
                    self._caught.add(str(value))

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        if not self._planted:
            return
        missed = ", ".join(sorted(self._planted - self._caught))
        count = len(self._planted)
        terminalreporter.write_line(
            f"rules {count} planted {count} caught {len(self._caught)}"
            + (f" (not caught: {missed})" if missed else "")
        )
