"""At the end of a test run: how many crash states were made of each workload, and what they came to."""

from __future__ import annotations

from collections import defaultdict
from typing import Final

import pytest

PROPERTY: Final = "crash states"


class CrashSummary:
    """A pytest plugin that adds up what the tests of crash states recorded."""

    def __init__(self) -> None:
        self._counts: defaultdict[str, list[int]] = defaultdict(lambda: [0, 0, 0, 0])

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when != "call":
            return
        for name, value in report.user_properties:
            if name == PROPERTY:
                workload, *numbers = str(value).split(",")
                total = self._counts[workload]
                for place, number in enumerate(numbers):
                    total[place] += int(number)

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        if not self._counts:
            return
        told = "crash states: {}: {} states, {} distinct images ({} without temporary files), {} losses"
        for workload, numbers in sorted(self._counts.items()):
            terminalreporter.write_line(told.format(workload, *numbers))
        sums = [sum(column) for column in zip(*self._counts.values(), strict=True)]
        terminalreporter.write_line(told.format("all", *sums))
