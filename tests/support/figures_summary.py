"""What tests count and tell: lines, and numbers that are added up over all processes of a test run, printed at its end."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Mapping

import pytest

LINE = "figures in a line"
COUNTS = "figures added up"

RecordProperty = Callable[[str, object], None]


def tell_line(record_property: RecordProperty, line: str) -> None:
    record_property(LINE, line)


def tell_counts(record_property: RecordProperty, counts: Mapping[str, Mapping[str, int]]) -> None:
    """Numbers by name, by title.

    Only plain dicts reach the process that collects: a worker that is given a Counter to send dies of it, with all
    the tests that it had before it.
    """
    record_property(COUNTS, {title: dict(numbers) for title, numbers in counts.items()})


class FiguresSummary:
    """A pytest plugin of the process that collects the reports."""

    def __init__(self) -> None:
        self._lines: set[str] = set()
        self._sums: defaultdict[str, Counter[str]] = defaultdict(Counter)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when != "call":
            return
        for name, value in report.user_properties:
            if name == LINE:
                self._lines.add(str(value))
            elif name == COUNTS and isinstance(value, Mapping):
                for title, counts in value.items():
                    self._sums[title].update(counts)

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        for line in sorted(self._lines):
            terminalreporter.write_line(line)
        for title, counts in sorted(self._sums.items()):
            told = ", ".join(f"{name} {count}" for name, count in sorted(counts.items()))
            terminalreporter.write_line(f"{title}: {told}")
