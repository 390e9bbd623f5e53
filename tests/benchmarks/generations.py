"""Ten generations of one disk in the engine: size, time of the incrementals, restore of the tenth, garbage.

Run: PYTHONPATH=tests .venv/bin/python -m benchmarks.generations [--folder FOLDER] [--mib N] [--generations N]

The image is that of `make bench`; in each generation 3.7 % of what is allocated change in scattered places,
as a hypervisor's change tracking would tell them. Pipelines run in this process, with all that users pay:
lease, sealing, decode before commit, fsync. Printed is the table of FORMAT.md, "Ten generations".
Garbage is what the newest point alone does not need: whole frames, and dead blocks inside live frames.
At the end all points but the newest are forgotten and the repository is pruned, first as users prune it, then
with every pack repacked that has anything dead in it, to see what moving costs.
"""

from __future__ import annotations

import argparse
import os
import resource
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from benchmarks.disk_image import change_file, file_sha256, make_image
from benchmarks.our_proxy import make_empty_disk
from holdfast_agent.pipelines.backup_disks import back_up_disks
from holdfast_agent.pipelines.restore_disks import restore_disks
from holdfast_common.clock import SystemClock
from holdfast_common.extents import Extent
from holdfast_common.identity import PointId
from holdfast_common.job_result import JobResult
from holdfast_common.job_spec import AreaSource
from holdfast_common.repository import prune as pruning
from holdfast_common.repository import prune_plan
from holdfast_common.repository.directory_store import DirectoryStore
from holdfast_common.repository.disk_map import DiskMap, PageStore
from holdfast_common.repository.layout import BlobKind
from holdfast_common.repository.points import list_points
from holdfast_common.repository.prune_report import PruneLimits
from holdfast_common.repository.reader import RepositoryReader
from holdfast_common.repository.writers import ROLE_PRUNE
from holdfast_common.units import MIB
from support.backup_jobs import LINEAGE, Site, make_site, point_of

KEY = 2000


@dataclass(frozen=True, slots=True)
class Garbage:
    """Stored bytes of disk frames: all, those that no block of the newest point uses, dead parts of others."""

    stored: int
    dead_frames: int
    dead_parts: int


def main() -> int:
    """Print the table's rows."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, help="where the image and the repository are made")
    parser.add_argument("--mib", type=int, default=4096)
    parser.add_argument("--generations", type=int, default=10)
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=chosen.folder) as folder:
        measure(Path(folder), chosen.mib * MIB, chosen.generations)
    return 0


def measure(folder: Path, capacity_bytes: int, generations: int) -> None:
    """All generations, the restore of the last, and the garbage."""
    image = folder / "disk.img"
    make_image(image, capacity_bytes, seed=1)
    site = make_site(folder / "site")
    make_empty_disk(site, KEY, capacity_bytes)
    site.flat_file(KEY).unlink()
    os.link(image, site.flat_file(KEY))
    everything = [Extent(offset=0, length=capacity_bytes)]
    point = timed("generation 1, all of it", site, lambda: back_up(site, everything, None))
    for number in range(2, generations + 1):
        changed = change_file(image, seed=number)
        told = sum(extent.length for extent in changed) / MIB
        name = f"generation {number}, {told:.1f} MiB in {len(changed)} places"
        point = timed(name, site, partial(back_up, site, changed, point))
    ticket = site.file_ticket("restored.vmdk")
    timed(
        f"restore of generation {generations}",
        site,
        lambda: restore_disks(site.spec(site.restore_work(point, {KEY: ticket})), site.context()),
    )
    restored = site.root / "restores" / "restored-flat.vmdk"
    print("the restored disk is equal:", file_sha256(restored) == file_sha256(image))
    found = garbage(site, point)
    print(
        f"disk frames {found.stored / MIB:.1f} MiB, not needed by the last generation:"
        f" {found.dead_frames / MIB:.1f} MiB whole frames, {found.dead_parts / MIB:.1f} MiB parts"
    )
    prune_all_but(site, point)


def timed(name: str, site: Site, work: Callable[[], JobResult]) -> PointId:
    """Do it, and print what it took; the newest point."""
    os.sync()
    size = stored_bytes(site.repository.folder)
    before, began = resource.getrusage(resource.RUSAGE_SELF), time.perf_counter()
    result = work()
    wall, after = time.perf_counter() - began, resource.getrusage(resource.RUSAGE_SELF)
    cpu = after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime
    now = stored_bytes(site.repository.folder)
    print(
        f"{name:<48} {wall:7.2f} s {cpu:7.2f} CPU s, {(now - size) / MIB:8.1f} MiB added,"
        f" {now / MIB:8.1f} MiB in all",
        flush=True,
    )
    return point_of(result) if result.point_id is not None else PointId("")


def back_up(site: Site, areas: list[Extent], previous: PointId | None) -> JobResult:
    """One generation."""
    disk = site.disk_to_back_up(
        KEY,
        areas=AreaSource.EVERYTHING if previous is None else AreaSource.CHANGED,
        areas_reason="benchmark",
    )
    kind = "full" if previous is None else "incremental"
    work = site.backup_work([disk], previous=previous, level=kind)
    return back_up_disks(site.spec(work), site.context(extents={KEY: areas}))


def prune_all_but(site: Site, point_id: PointId) -> None:
    """Forget every other point; a round of pruning as users have it, and one that repacks at anything dead."""
    repository = site.repository
    signing_key = Ed25519PrivateKey.generate()
    with DirectoryStore.open(repository.folder) as store:
        repository.keys.authorise_writer(
            store,
            signing_key.public_key().public_bytes_raw(),
            agent_id="controller",
            clock=SystemClock(),
            roles=(ROLE_PRUNE,),
        )
        for point in list_points(store, repository.keys.reader_keys(LINEAGE)).points:
            if point.point_id != point_id:
                store.delete(point.name)
        for share in (prune_plan.DEAD_SHARE_MIN, 1e-9):
            for module in (prune_plan, pruning):
                vars(module)["DEAD_SHARE_MIN"] = share
            before, began = resource.getrusage(resource.RUSAGE_SELF), time.perf_counter()
            report = pruning.prune(
                store,
                repository.keys,
                signing_key=signing_key,
                clock=SystemClock(),
                limits=PruneLimits(grace=timedelta(0)),
            )
            wall, after = time.perf_counter() - began, resource.getrusage(resource.RUSAGE_SELF)
            cpu = after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime
            print(
                f"prune, repacking at {share:.0%} dead: {wall:.2f} s {cpu:.2f} CPU s,"
                f" {report.repacked} packs repacked, {report.moved_bytes / MIB:.1f} MiB moved,"
                f" {report.doomed_bytes / MIB:.1f} MiB dead now, {report.deleted_bytes / MIB:.1f} MiB"
                f" deleted, waiting: {report.waiting}",
                flush=True,
            )


def garbage(site: Site, point_id: PointId) -> Garbage:
    """What stands in the repository, and what of it one point does not need."""
    places: dict[bytes, set[int]] = defaultdict(set)
    keys = site.repository.keys.reader_keys(LINEAGE)
    with (
        DirectoryStore.open(site.repository.folder) as store,
        RepositoryReader(store, keys, segment_keys=site.repository.keys, workers=0) as reader,
    ):
        disk = reader.load_point(point_id).disk(KEY)
        disk_map = DiskMap(
            PageStore(store, keys), disk.summary.root, capacity_bytes=disk.header.capacity_bytes
        )
        for number, reference in disk_map.references():
            leaf = disk_map.load_leaf(number, reference)
            for chunk_id, place in zip(leaf.ids, leaf.places, strict=True):
                if chunk_id is not None:
                    places[chunk_id].add(place)
        stored = dead = parts = 0
        for locations in reader.index.by_pack(
            [pack.digest for pack in reader.index.packs()]
        ).values():
            for location in locations:
                if location.kind is not BlobKind.DISK_FRAME:
                    continue
                stored += location.stored_length
                used = len(places.get(location.chunk_id, ()))
                if not used:
                    dead += location.stored_length
                else:
                    parts += location.stored_length * (location.blocks - used) // location.blocks
    return Garbage(stored, dead, parts)


def stored_bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


if __name__ == "__main__":
    sys.exit(main())
