"""Sums up the damages of a test run over all its processes: a table of kinds of objects by damages."""

from __future__ import annotations

from collections import Counter

import pytest

PROPERTY = "damages"


class DamageSummary:
    """A pytest plugin of the process that collects the reports."""

    def __init__(self) -> None:
        self._made: Counter[tuple[str, str]] = Counter()
        self._found: Counter[tuple[str, str]] = Counter()

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when != "call":
            return
        for name, value in report.user_properties:
            if name == PROPERTY:
                assert isinstance(value, list)
                kind, damage, made, found = value
                self._made[kind, damage] += made
                self._found[kind, damage] += found

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        if not self._made:
            return
        kinds = list(dict.fromkeys(kind for kind, _ in self._made))
        damages = list(dict.fromkeys(damage for _, damage in self._made))
        terminalreporter.write_line(
            f"damages {sum(self._made.values())} found {sum(self._found.values())}"
            " (found/made; what nothing refers to may be removed)"
        )
        terminalreporter.write_line(" " * 18 + "".join(f"{damage:>10}" for damage in damages))
        for kind in kinds:
            cells = (f"{self._found[kind, d]}/{self._made[kind, d]}" for d in damages)
            terminalreporter.write_line(f"{kind:<18}" + "".join(f"{cell:>10}" for cell in cells))
