"""What the last of many incrementals costs beside the tenth: of one VM, on an ordinary and on a sparse 64 TiB disk.

Run: PYTHONPATH=tests .venv/bin/python -m benchmarks.many_points [--points 10000] [--folder FOLDER]

Each incremental changes 10 MiB in 90 places of 1,024 leaves, through the product's own writer on a
directory, with the local index and the pack listing that a running proxy keeps. Now and then what a prune of the controller does
is done: index segments are merged, superseded ones and what ended writers' leases left are deleted. Only the incrementals that are compared hold data that
takes compressing. The cost is CPU time (user and system), the median of some; those around the tenth (of a second
repository) and the last ones are made in turns, since this machine's other work makes both dearer. The last line is JSON.
"""

from __future__ import annotations

import argparse
import gc
import hashlib
import json
import os
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from holdfast_common.repository.directory_store import DirectoryStore
from holdfast_common.repository.index_cache import IndexCache
from holdfast_common.repository.index_merge import SEGMENTS_MAX, merge_index
from holdfast_common.repository.layout import BLOCK_BYTES, LEAF_BYTES
from holdfast_common.repository.lease_survey import litter, survey_leases
from holdfast_common.repository.manifest import ManifestFacts, PointDisk
from holdfast_common.repository.pack_listing import PackListing
from holdfast_common.repository.points import find_job_point
from holdfast_common.repository.repository_index import RepositoryIndex
from holdfast_common.repository.writer import PointWriter
from holdfast_common.units import GIB, MIB, TIB
from support.repositories import LINEAGE, disk_header, new_repository

LEAVES = 1024  # of 16 MiB, with data in all of them
CLUSTERS = 64  # where they lie on a large disk
PLACES_PER_LEAF = 85
AROUND = 5  # the tenth: these before it and after it
GOAL = 1.2


@dataclass
class History:
    """A repository to which one VM's incrementals are added."""

    folder: Path
    capacity_bytes: int
    places: int = 90  # changed by each incremental
    leaves: int = LEAVES
    listing: PackListing = field(default_factory=PackListing)
    doomed: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.folder.mkdir()
        self.store = DirectoryStore.create(self.folder / "repository")
        self.repository = new_repository(self.store)
        self.cache = IndexCache(self.folder / "index")
        self.random = random.Random(1)
        self.noise = os.urandom(MIB)
        stride = max(self.capacity_bytes // LEAF_BYTES // CLUSTERS, self.leaves // CLUSTERS)
        self.areas = [
            cluster * stride + leaf
            for cluster in range(CLUSTERS)
            for leaf in range(self.leaves // CLUSTERS)
        ]
        self.pruner = Ed25519PrivateKey.generate()
        self.repository.keys.authorise_writer(
            self.store,
            self.pruner.public_key().public_bytes_raw(),
            agent_id="controller",
            clock=self.repository.clock,
            roles=["prune"],
        )
        self.disk: PointDisk | None = None
        whole = (
            (leaf * LEAF_BYTES + window * MIB, self._plain(1, (leaf, window)))
            for leaf in self.areas
            for window in range(16)
        )
        self._write(whole, order=0)

    def add(self, number: int, *, real: bool) -> float:
        """One incremental; its CPU seconds."""
        if number % (SEGMENTS_MAX // 2) == 0:
            self.maintain()
        chosen = sorted(self.random.sample(range(len(self.areas) * PLACES_PER_LEAF), self.places))
        gc.collect()  # neither history pays for the other's objects
        pieces = []
        for place in chosen:
            leaf, position = divmod(place, PLACES_PER_LEAF)
            blocks = self.random.choice([1, 2, 2])
            data = self._noise(blocks) if real else self._plain(blocks, (number, place))
            pieces.append((self.areas[leaf] * LEAF_BYTES + position * 3 * BLOCK_BYTES, data))
        before = time.process_time()
        self._write(pieces, order=number)
        return time.process_time() - before

    def maintain(self) -> None:
        """What a prune does: delete ended leases, merge, and in time delete what is contained."""
        writers = self.repository.keys.writers(self.store)
        keys = self.repository.keys.common
        leases = survey_leases(self.store, keys, writers)
        for name in litter(leases, now=self.repository.clock.now(), storage_now=None):
            self.store.delete(name)
        if merge_index(self.store, keys, writers, signing_key=self.pruner) is None:
            return
        for name in self.doomed:
            self.store.delete(name)
        index = RepositoryIndex(self.store, keys, cache=self.cache)
        index.refresh(writers)
        self.doomed = list(index.superseded())

    @property
    def map_objects(self) -> int:
        """In which the newest point's tree lies."""
        assert self.disk is not None
        return len(self.disk.used.maps) if self.disk.used is not None else 0

    def _write(self, pieces: Iterable[tuple[int, bytes]], *, order: int) -> None:
        repository = self.repository
        job_id = repository.new_job()
        with PointWriter(
            self.store,
            repository.keys.writer_keys(LINEAGE),
            signing_key=repository.signing_key,
            agent_id="proxy-1",
            job_id=job_id,
            attempt=1,
            clock=repository.clock,
            workers=0,
            listing=self.listing,
            cache=self.cache,
        ) as writer:
            disk = writer.begin_disk(disk_header(self.capacity_bytes), previous=self.disk)
            for offset, data in pieces:
                disk.write(offset, data)
            disk.finish()
            prepared = writer.prepare(ManifestFacts(order=order))
            writer.publish(prepared, repository.grant(prepared))
        point = find_job_point(self.store, repository.keys.reader_keys(LINEAGE), job_id)
        assert point is not None
        self.disk = point.disks[0]

    def _plain(self, blocks: int, seed: object) -> bytes:
        return b"".join(
            hashlib.sha256(f"{seed} {block}".encode()).digest().ljust(BLOCK_BYTES, b"x")
            for block in range(blocks)
        )

    def _noise(self, blocks: int) -> bytes:
        half = BLOCK_BYTES // 2
        starts = [self.random.randrange(MIB - half) for _ in range(blocks)]
        return b"".join(
            self.noise[start : start + half] + bytes(range(256)) * (half // 256) for start in starts
        )


@dataclass(frozen=True)
class Costs:
    """CPU seconds of an incremental, and what they come to."""

    tenth: float
    last: float
    map_objects: int

    @property
    def ratio(self) -> float:
        return self.last / self.tenth


def measured(
    old: History,
    young: History,
    points: int,
    tell: Callable[[str], None] = lambda _: None,
) -> Costs:
    """Add so many incrementals to ``old``: the last ones in turns with those around the tenth of ``young``."""
    for number in range(1, points - 2 * AROUND):
        cost = old.add(number, real=False)
        if number % 100 == 0:
            tell(f"{number}: {cost * 1000:.0f} ms, {old.map_objects} map objects")
    for number in range(1, 10 - AROUND):
        young.add(number, real=False)
    tenth: list[float] = []
    last: list[float] = []
    for turn in range(2 * AROUND + 1):
        tenth.append(young.add(10 - AROUND + turn, real=True))
        last.append(old.add(points - 2 * AROUND + turn, real=True))
        tell(
            f"around the tenth {tenth[-1] * 1000:.0f} ms, around the last {last[-1] * 1000:.0f} ms"
        )
    return Costs(
        tenth=statistics.median(tenth),
        last=statistics.median(last),
        map_objects=old.map_objects,
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--points", type=int, default=10_000)
    parser.add_argument("--folder", type=Path, default=None)
    arguments = parser.parse_args()
    goals = {}
    for name, capacity in (("sparse_64_tib", 64 * TIB), ("ordinary", 64 * GIB)):
        with tempfile.TemporaryDirectory(dir=arguments.folder, prefix="points-") as folder:
            costs = measured(
                History(Path(folder, "old"), capacity),
                History(Path(folder, "young"), capacity),
                arguments.points,
                lambda text: print(text, file=sys.stderr, flush=True),
            )
        print(
            f"{name}: the tenth incremental {costs.tenth * 1000:.1f} ms of CPU, number "
            f"{arguments.points} {costs.last * 1000:.1f}: {costs.ratio:.2f} times the tenth, "
            f"{costs.map_objects} map objects",
            flush=True,
        )
        met = costs.ratio <= GOAL and arguments.points >= 10_000
        goals[name] = {"figure": round(costs.ratio, 3), "goal": GOAL, "met": met}
    print(json.dumps(goals))
    return 0 if all(goal["met"] for goal in goals.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
