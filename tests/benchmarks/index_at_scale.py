"""An index of many synthetic chunks on this machine: how fast it opens, what memory it takes, lookups a second.

Run: PYTHONPATH=tests .venv/bin/python -m benchmarks.index_at_scale [--chunks 100000000] [--folder FOLDER]

Segments are as large as merging makes them (4,194,304 chunks), with smaller ones as a log-structured index
has them. Opening and lookups happen in a child process of one thread, warm: every file was read before.
As a backup asks, with filters, half of the ids are there; as a restore asks all of them. The last line is JSON: each goal, its figure, whether it was met.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import re
import resource
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np

from holdfast_common.repository.index_merge import MERGED_CHUNKS_MAX
from holdfast_common.repository.repository_index import RepositoryIndex
from support.synthetic_index import SyntheticIndex

BATCH = 1024
BATCHES = 400
GOALS = {"open_seconds": 2.0, "memory_bytes": float(2 << 30), "lookups_per_second": 200_000.0}


@dataclass(frozen=True)
class Figures:
    """What the child measured."""

    chunks: int
    segments: int
    open_seconds: float
    anonymous_bytes: int
    filter_bytes: int
    filtered: float  # lookups a second, as a backup asks
    unfiltered: float  # as a restore asks: all are there
    found: int  # of those that are there, at the end

    @property
    def memory_bytes(self) -> int:
        return self.anonymous_bytes + self.filter_bytes

    def goals(self) -> dict[str, dict[str, float | bool]]:
        figures = {
            "open_seconds": self.open_seconds,
            "memory_bytes": float(self.memory_bytes),
            "lookups_per_second": min(self.filtered, self.unfiltered),
        }
        return {
            name: {
                "figure": round(figure, 3),
                "goal": GOALS[name],
                "met": figure >= GOALS[name]
                if name.startswith("lookups")
                else figure <= GOALS[name],
            }
            for name, figure in figures.items()
        }


def sizes(chunks: int) -> list[int]:
    """How a log-structured index of so many chunks is cut."""
    found = []
    rest = chunks
    while rest > MERGED_CHUNKS_MAX * 2:
        found.append(MERGED_CHUNKS_MAX)
        rest -= MERGED_CHUNKS_MAX
    while rest > 1 << 16:
        found.append(rest // 2)
        rest -= rest // 2
    return [*found, rest]


def measured(chunks: int, folder: Path, tell: Callable[[str], None] = lambda _: None) -> Figures:
    """Make the files in ``folder`` and measure in a child process."""
    index = SyntheticIndex(folder)
    samples = []
    for seed, size in enumerate(sizes(chunks)):
        samples.append(index.add(size, seed=seed))
        tell(f"segment {seed + 1} of {len(sizes(chunks))}: {size} chunks")
    for path in sorted(folder.rglob("*")):  # warm
        if path.is_file():
            with path.open("rb") as file:
                while file.read(1 << 24):
                    pass
    near, far = multiprocessing.get_context("fork").Pipe()
    child = multiprocessing.get_context("fork").Process(target=_child, args=(index, samples, far))
    child.start()
    child.join(3600)
    assert child.exitcode == 0, "the child failed"
    figures = near.recv()
    assert isinstance(figures, Figures)
    return figures


def _child(index: SyntheticIndex, samples: list[bytes], answer: Connection) -> None:
    writers = index.repository.keys.writers(index.store)
    started = time.perf_counter()
    opened = RepositoryIndex(index.store, index.repository.keys.common, cache=index.cache)
    opened.refresh(writers)
    open_seconds = time.perf_counter() - started
    assert not opened.refused, opened.refused
    rates = {}
    found = 0
    for filtered in (True, False):
        batches = _batches(samples, known=BATCH // 2 if filtered else BATCH)
        for batch in batches:  # maps what it touches
            opened.look_up(batch, filtered=filtered)
        found = 0
        before = _cpu_seconds()
        for batch in batches:
            found += sum(len(each.rows) for each in opened.look_up(batch, filtered=filtered))
        rates[filtered] = BATCH * len(batches) / (_cpu_seconds() - before)
    mapped = opened._mapped
    answer.send(
        Figures(
            chunks=opened.chunk_count,
            segments=len(index.store.listed),
            open_seconds=open_seconds,
            anonymous_bytes=_anonymous_bytes(),
            filter_bytes=sum(len(table.filter) for table in mapped if table.filter is not None),
            filtered=rates[True],
            unfiltered=rates[False],
            found=found,
        )
    )


def _batches(samples: list[bytes], *, known: int) -> list[bytes]:
    """So many ids of each batch are there, as many of each segment's as it has samples; the others are not."""
    random = np.random.default_rng(99)
    ids = np.frombuffer(b"".join(samples), "V32")
    batches = []
    for _ in range(BATCHES):
        there = ids[random.integers(0, len(ids), known)].tobytes()
        batches.append(there + random.bytes(32 * (BATCH - known)))
    return batches


def _anonymous_bytes() -> int:
    found = re.search(r"RssAnon:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found[1]) * 1024


def _cpu_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--chunks", type=int, default=100_000_000)
    parser.add_argument("--folder", type=Path, default=None)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.folder, prefix="index-") as folder:
        figures = measured(
            arguments.chunks, Path(folder), lambda text: print(text, file=sys.stderr, flush=True)
        )
    print(f"{figures.chunks} chunks in {figures.segments} segments")
    print(f"opened in {figures.open_seconds:.3f} s")
    print(
        f"anonymous memory {figures.anonymous_bytes >> 20} MiB, filters {figures.filter_bytes >> 20} MiB"
    )
    print(
        f"lookups a second on one core: {figures.filtered:,.0f} for a backup, {figures.unfiltered:,.0f} for a restore"
    )
    goals = figures.goals()
    print(json.dumps(goals))
    return 0 if all(goal["met"] for goal in goals.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
