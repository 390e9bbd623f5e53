"""Where a backup's CPU seconds go: each phase of the engine, summed over all threads.

Run: PYTHONPATH=tests .venv/bin/python -m benchmarks.phases [--folder FOLDER] [--mib N] [--level N]

A first backup, an incremental and a compare scan run in this process with clocks of each thread's CPU time
around the engine's phases; they cost some per cent themselves, so totals here are no benchmark.
"""

from __future__ import annotations

import argparse
import functools
import os
import resource
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from benchmarks.disk_image import change_image, make_image
from benchmarks.our_proxy import make_empty_disk
from holdfast_agent.pipelines.backup_disks import back_up_disks
from holdfast_common.extents import Extent
from holdfast_common.identity import PointId
from holdfast_common.job_spec import AreaSource
from holdfast_common.repository.chunk_codec import Compressor, Decompressor, SegmentCipher
from holdfast_common.repository.derivation import Hasher
from holdfast_common.repository.disk_writer import DiskWriter
from holdfast_common.repository.frame_worker import FrameWorker, KnownChunks
from holdfast_common.repository.map_editor import MapEditor
from holdfast_common.repository.new_indexes import NewIndexes
from holdfast_common.repository.pack_writer import CompletePack, PackWriter
from holdfast_common.repository.window import Window, WindowBuffer
from holdfast_common.repository.writer import PointWriter
from holdfast_common.units import MIB
from support.backup_jobs import Site, make_site, point_of

KEY = 2000
PHASES: tuple[tuple[str, type, str], ...] = (
    ("read", Window, "load"),
    ("zero test", WindowBuffer, "nonzero"),
    ("digests, made twice", Hasher, "block_digest"),
    ("known?", KnownChunks, "claim"),
    ("compress", Compressor, "payload"),
    ("seal", SegmentCipher, "seal_into"),
    ("decode: open", SegmentCipher, "open_into"),
    ("decode: decompress", Decompressor, "decompress_into"),
    ("decode: compare", FrameWorker, "_id_of"),
    ("pack: digest of the blob", PackWriter, "append"),
    ("pack: hash and write", PackWriter, "_flush"),
    ("pack: footers", PackWriter, "close"),
    ("pack: make durable", CompletePack, "commit"),
    ("worker, the rest", FrameWorker, "process"),
    ("map: take results", DiskWriter, "_apply_ready"),
    ("map: pages", MapEditor, "put"),
    ("map: last pages", MapEditor, "finish"),
    ("index", NewIndexes, "flush"),
    ("prepare the point", PointWriter, "prepare"),
    ("publish", PointWriter, "publish"),
)


@dataclass
class Phases:
    """CPU seconds of each phase, without the phases inside it."""

    seconds: dict[str, float] = field(default_factory=dict)
    lock: threading.Lock = field(default_factory=threading.Lock)
    own: threading.local = field(default_factory=threading.local)

    def clocked(self, name: str, method: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(method)
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            inner_before = getattr(self.own, "inner", 0.0)
            self.own.inner = 0.0
            began = time.thread_time()
            try:
                return method(*args, **kwargs)
            finally:
                took = time.thread_time() - began
                with self.lock:
                    self.seconds[name] = self.seconds.get(name, 0.0) + took - self.own.inner
                self.own.inner = inner_before + took

        return wrapper


@contextmanager
def clocked_phases() -> Iterator[Phases]:
    """Clocks around all phases, in this process."""
    phases = Phases()
    before = [(owner, name, getattr(owner, name)) for _, owner, name in PHASES]
    for label, owner, name in PHASES:
        setattr(owner, name, phases.clocked(label, getattr(owner, name)))
    try:
        yield phases
    finally:
        for owner, name, method in before:
            setattr(owner, name, method)


def main() -> int:
    """Print a table for each kind of work."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, help="where the image and the repository are made")
    parser.add_argument("--mib", type=int, default=1024)
    parser.add_argument("--level", type=int, default=3)
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=chosen.folder) as folder:
        print_phases(Path(folder), chosen.mib * MIB, level=chosen.level)
    return 0


def print_phases(folder: Path, capacity_bytes: int, *, level: int) -> None:
    """A first backup, an incremental and a scan."""
    images = [folder / f"day{day}.img" for day in range(3)]
    make_image(images[0], capacity_bytes, seed=1)
    site = make_site(folder / "site")
    make_empty_disk(site, KEY, capacity_bytes)
    everything = [Extent(offset=0, length=capacity_bytes)]
    point = measured("first backup", site, images[0], everything, level=level)
    changed = change_image(images[0], images[1], seed=2)
    point = measured("incremental", site, images[1], changed, level=level, previous=point)
    change_image(images[1], images[2], seed=3)
    measured("compare scan", site, images[2], everything, level=level, previous=point)


def measured(
    title: str,
    site: Site,
    image: Path,
    areas: list[Extent],
    *,
    level: int,
    previous: PointId | None = None,
) -> PointId:
    """One backup, and its table."""
    path = site.flat_file(KEY)
    path.unlink(missing_ok=True)
    os.link(image, path)
    changes = title == "incremental"
    disk = site.disk_to_back_up(
        KEY,
        areas=AreaSource.CHANGED if changes else AreaSource.EVERYTHING,
        areas_reason="benchmark",
    )
    kind = "full" if previous is None else "incremental"
    work = replace(site.backup_work([disk], previous=previous, level=kind), compression_level=level)
    before, began = resource.getrusage(resource.RUSAGE_SELF), time.perf_counter()
    with clocked_phases() as phases:
        result = back_up_disks(site.spec(work), site.context(extents={KEY: areas}))
    wall, after = time.perf_counter() - began, resource.getrusage(resource.RUSAGE_SELF)
    user, system = after.ru_utime - before.ru_utime, after.ru_stime - before.ru_stime
    print(f"{title}: {wall:.2f} s, CPU {user:.2f} user + {system:.2f} system")
    for label, _, _ in PHASES:
        if label in phases.seconds:
            print(f"  {label:<26}{phases.seconds[label]:8.3f}")
    rest = user + system - sum(phases.seconds.values())
    print(f"  {'all other':<26}{rest:8.3f}", flush=True)
    return point_of(result)


if __name__ == "__main__":
    sys.exit(main())
