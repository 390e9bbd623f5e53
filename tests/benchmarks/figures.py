"""What the benchmark's rounds came to: rows kept in a file, a table for people, goals for programs."""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from holdfast_common.units import MIB

PEERS = ("restic", "borg")
SIZES = {"first_size", "level1_size", "again_bytes", "incremental_bytes", "memory"}
RATES = {"restore_rate"}


@dataclass
class Rows:
    """One row for each tool and kind of work of a round; appended to ``path`` as they come."""

    path: Path
    rounds: list[dict[tuple[str, str], float]] = field(default_factory=list)
    told: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.path.write_text("")

    def begin_round(self, number: int) -> None:
        print(f"round {number}", flush=True)
        self.rounds.append({})

    def add(self, tool: str, work: str, value: float) -> None:
        self.rounds[-1][tool, work] = value
        row = {"round": len(self.rounds) - 1, "tool": tool, "work": work, "value": value}
        with self.path.open("a") as file:
            file.write(json.dumps(row) + "\n")
        print(f"  {tool:<9} {work:<18} {shown(work, value)}", flush=True)

    def tell(self, line: str) -> None:
        """Once, however often it is said; printed with the table."""
        if line not in self.told:
            self.told.append(line)

    def median(self, tool: str, work: str) -> float | None:
        values = [each[tool, work] for each in self.rounds if (tool, work) in each]
        return statistics.median(values) if values else None

    def each(self, figure: Callable[[dict[tuple[str, str], float]], float]) -> float | None:
        """The median over the rounds of one round's figure; None when no round has it."""
        values = []
        for values_of_round in self.rounds:
            try:
                values.append(figure(values_of_round))
            except (KeyError, ValueError):
                continue
        return statistics.median(values) if values else None


def shown(work: str, value: float) -> str:
    if work in SIZES:
        return f"{value / MIB:9.1f} MiB"
    if work in RATES:
        return f"{value / MIB:9.0f} MiB/s"
    return f"{value:9.3f} s"


def print_table(rows: Rows) -> None:
    """Medians of all tools and kinds of work, and the peers' commands."""
    tools = ("holdfast", *PEERS, "dd")
    works = list(dict.fromkeys(work for each in rows.rounds for _, work in each))
    print(f"{'':<20}" + "".join(f"{tool:>16}" for tool in tools))
    for work in works:
        cells = [rows.median(tool, work) for tool in tools]
        texts = ["" if cell is None else shown(work, cell).strip() for cell in cells]
        print(f"{work:<20}" + "".join(f"{text:>16}" for text in texts))
    print("\n".join(rows.told))


def faster(ours: str, theirs: str) -> Callable[[dict[tuple[str, str], float]], float]:
    """How many times faster than the better peer."""
    return lambda row: min(row[peer, theirs] for peer in PEERS) / row["holdfast", ours]


@dataclass(frozen=True, slots=True)
class Goal:
    """``at_least``: the figure must reach the goal; otherwise it must not pass it."""

    goal: float
    figure: Callable[[dict[tuple[str, str], float]], float]
    at_least: bool = True


GOALS = {
    "first": Goal(4.0, faster("first", "first")),
    "first_size": Goal(
        1.02,
        lambda row: row["holdfast", "first_size"] / row["restic", "first_size"],
        at_least=False,
    ),
    "level1": Goal(5.0, faster("level1", "first")),
    "level1_size": Goal(
        1.08,
        lambda row: row["holdfast", "level1_size"] / row["restic", "first_size"],
        at_least=False,
    ),
    "incremental": Goal(30.0, faster("incremental", "again")),
    "incremental_bytes": Goal(
        0.1,
        lambda row: (
            row["holdfast", "incremental_bytes"] / min(row[peer, "again_bytes"] for peer in PEERS)
        ),
        at_least=False,
    ),
    "scan": Goal(10.0, faster("scan", "again")),
    "restore": Goal(5.0, faster("restore", "restore")),
    "restore_dd": Goal(
        0.8, lambda row: row["holdfast", "restore_rate"] / row["dd", "restore_rate"]
    ),
    "verify": Goal(5.0, faster("verify", "verify")),
    "memory": Goal(100.0, lambda row: row["holdfast", "memory"] / MIB, at_least=False),
}


def summary(rows: Rows) -> dict[str, dict[str, object]]:
    """Each goal with its figure; what was not measured is not met."""
    found: dict[str, dict[str, object]] = {}
    for name, goal in GOALS.items():
        figure = rows.each(goal.figure)
        met = figure is not None and (figure >= goal.goal if goal.at_least else figure <= goal.goal)
        found[name] = {
            "figure": None if figure is None else round(figure, 3),
            "goal": goal.goal,
            "met": met,
        }
    return found
