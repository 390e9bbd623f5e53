"""How much memory one stream takes of an agent, above idle: for a small disk and for a large sparse one.

Run: PYTHONPATH=tests .venv/bin/python -m benchmarks.agent_memory [--folder FOLDER] [--data-mib N] [--way WAY]…

For every way to reach a disk (direct, hotadd, nfc, and files to restore to): full backup, incremental,
restore, read-back, a prune, and a check of all data, each in a child process with all of the agent's code loaded. Idle is its resident
memory before the step; printed is the peak (VmHWM) above that. The exit code is 0 when no peak is above
100 MiB, the goal for any size of disk.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import random
import re
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Generic, ParamSpec, TypeVar

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from holdfast_agent.pipelines.check_repository import check_repository
from holdfast_agent.pipelines.restore_disks import restore_disks
from holdfast_agent.pipelines.verify_disks import verify_disks
from holdfast_agent.transports import direct_datastore
from holdfast_common.blocks.sink import NewDisk
from holdfast_common.clock import SystemClock
from holdfast_common.extents import Extent
from holdfast_common.identity import PointId
from holdfast_common.job_result import Outcome
from holdfast_common.job_spec import AreaSource, CheckRepository, DiskTicket
from holdfast_common.repository.directory_store import DirectoryStore
from holdfast_common.repository.forget import PointName, forget_point
from holdfast_common.repository.points import list_points
from holdfast_common.repository.prune import prune
from holdfast_common.repository.prune_report import PruneLimits
from holdfast_common.repository.writers import ROLE_PRUNE
from holdfast_common.units import GIB, KIB, MIB, TIB
from support.backup_jobs import (
    LINEAGE,
    Site,
    direct_ticket,
    disk_uuid,
    goes_on,
    make_site,
    point_of,
)
from support.disk_ways import DiskWay, disk_ways

GOAL_BYTES = 100 * MIB
DISKS = {"1 GiB": GIB, "sparse 1 TiB": TIB}
PIECE_BYTES = 16 * MIB  # runs of whole frames, as most data lies: nothing takes more memory
CHANGES = 1000
ROUNDS_MAX = 10  # of pruning, until nothing is left to do
KEY = 2000
Given = ParamSpec("Given")
Result = TypeVar("Result")


@dataclass(frozen=True)
class Done(Generic[Result]):
    """What a child returned, and its peak above idle."""

    result: Result
    peak_bytes: int
    seconds: float


def main() -> int:
    """Measure all steps of all ways with each disk."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, help="where the disks and repositories are made")
    parser.add_argument("--data-mib", type=int, default=512, help="data in each disk, at most 1024")
    parser.add_argument("--way", action="append", help="only this one; may be given again")
    chosen = parser.parse_args()
    peaks: dict[str, int] = {}
    for name, capacity in DISKS.items():
        with tempfile.TemporaryDirectory(dir=chosen.folder) as folder:
            site = make_site(Path(folder) / "site")
            in_child(make_disk, site, capacity, chosen.data_mib * MIB)
            site.disks[KEY] = capacity
            with disk_ways(site, KEY) as ways:
                unknown = set(chosen.way or ()) - set(ways)
                if unknown:
                    parser.error(f"ways are: {', '.join(ways)}")
                for label, way in ways.items():
                    if not chosen.way or label in chosen.way:
                        peak = max(measure(f"{name:>12}  {label:<21}", site, way))
                        peaks[label] = max(peaks.get(label, 0), peak)
    figures = {label: round(peak / MIB, 1) for label, peak in peaks.items()}
    print(json.dumps({"goal_mib": GOAL_BYTES // MIB, "peak_mib": figures}))
    return 0 if max(peaks.values()) <= GOAL_BYTES else 1


def measure(label: str, site: Site, way: DiskWay) -> Iterator[int]:
    """The peak of each step, also printed. What only takes restores gets a point of another way.

    What is no agent's work is done in children too: this process stays as it was.
    """
    source = in_child(way.source).result
    if source is None:
        point = in_child(full, site, direct_ticket(f"web/disk-{KEY}.vmdk"), PointId("")).result
    else:
        done = in_child(full, site, source, PointId(""))
        yield printed(f"{label} full", done)
        change(site)
        source = in_child(way.source).result
        assert source is not None
        done = in_child(incremental, site, source, done.result)
        yield printed(f"{label} incremental", done)
        point = done.result
    yield printed(f"{label} restore", in_child(restore, site, in_child(way.target).result, point))
    ticket = in_child(way.restored).result
    yield printed(f"{label} read back", in_child(read_back, site, ticket, point))
    pruner = in_child(new_pruner, site).result
    yield printed(f"{label} prune", in_child(prune_all, site, pruner, point))
    yield printed(f"{label} check", in_child(check, site, point))


def full(site: Site, ticket: DiskTicket, _: PointId) -> PointId:
    """Everything of the disk."""
    return point_of(site.back_up([site.disk_to_back_up(KEY, ticket=ticket)]))


def incremental(site: Site, ticket: DiskTicket, point: PointId) -> PointId:
    """What `change` wrote."""
    disk = site.disk_to_back_up(
        KEY, ticket=ticket, areas=AreaSource.CHANGED, areas_reason="changes"
    )
    context = site.context(extents={KEY: changed_extents(site)})
    return point_of(site.back_up([disk], previous=point, context=context, level="incremental"))


def restore(site: Site, ticket: DiskTicket, point: PointId) -> PointId:
    """To a new disk."""
    restore_disks(site.spec(site.restore_work(point, {KEY: ticket})), site.context())
    return point


def read_back(site: Site, ticket: DiskTicket, point: PointId) -> PointId:
    """The new disk, compared with the point."""
    work = site.verify_work(point, {KEY: ticket})
    assert verify_disks(site.spec(work), site.context()).outcome is Outcome.DONE
    return point


def new_pruner(site: Site) -> bytes:
    """A key that may prune, which the controller has."""
    signing_key = Ed25519PrivateKey.generate()
    with DirectoryStore.open(site.repository.folder) as store:
        site.repository.keys.authorise_writer(
            store,
            signing_key.public_key().public_bytes_raw(),
            agent_id="controller",
            clock=SystemClock(),
            roles=(ROLE_PRUNE,),
        )
    return signing_key.private_bytes_raw()


def prune_all(site: Site, pruner: bytes, kept: PointId) -> PointId:
    """As the controller does: the other points of the disk are forgotten, and what only they needed goes."""
    keys = site.repository.keys
    with DirectoryStore.open(site.repository.folder) as store:
        for point in list_points(store, keys).points:
            if point.point_id != kept:
                forget_point(store, PointName(name=point.name, digest=point.digest))
        for _ in range(ROUNDS_MAX):
            done = prune(
                store,
                keys,
                signing_key=Ed25519PrivateKey.from_private_bytes(pruner),
                clock=SystemClock(),
                limits=PruneLimits(grace=timedelta(0)),
            )
            print(f"{'':>14}prune: {done.repacked} packs repacked, {done.deleted} objects deleted")
            if not done.fence and not done.deleted:
                break
        else:
            raise AssertionError(f"a prune never ends: {done}")
    return kept


def check(site: Site, point: PointId) -> PointId:
    """Everything in the repository decoded and hashed."""
    keys = (site.repository.reader_keys(LINEAGE),)
    work = CheckRepository(read_data=True, point_ids=(), keys=keys)
    assert check_repository(site.spec(work), site.context()).outcome is Outcome.DONE
    return point


def changed_extents(site: Site) -> list[Extent]:
    """Where the guest writes: all over the disk."""
    distance = site.disks[KEY] // CHANGES
    return [Extent(offset=number * distance, length=700) for number in range(CHANGES)]


def change(site: Site) -> None:
    """As the guest."""
    stamp = random.Random(time.monotonic_ns()).randbytes(700)
    for extent in changed_extents(site):
        site.write(KEY, extent.offset, stamp)


def make_disk(site: Site, capacity: int, data_bytes: int) -> None:
    """A disk with data in runs at equal distances."""
    chance = random.Random(1)
    runs = max(data_bytes // PIECE_BYTES, 1)
    distance = capacity // runs // PIECE_BYTES * PIECE_BYTES
    disk = NewDisk(capacity_bytes=capacity, disk_uuid=disk_uuid(KEY))
    sink = direct_datastore.open_sink(
        direct_ticket(f"web/disk-{KEY}.vmdk"), site.configuration, disk=disk, check=goes_on
    )
    with closing(sink):
        for number in range(runs):
            for offset in range(0, PIECE_BYTES, MIB):
                half = chance.randbytes(MIB // 2)
                data = memoryview(half + half[:1024] * (MIB // 2048))
                sink.write(number * distance + offset, data)
        sink.finish()


def in_child(
    work: Callable[Given, Result], *args: Given.args, **kwargs: Given.kwargs
) -> Done[Result]:
    """Do it in a child process."""
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)

    def measured() -> None:
        Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
        idle = resident("VmRSS")
        started = time.monotonic()
        result = work(*args, **kwargs)
        sender.send(Done(result, resident("VmHWM") - idle, time.monotonic() - started))
        sender.close()

    child = context.Process(target=measured)
    child.start()
    sender.close()
    with receiver:
        found: Done[Result] = receiver.recv()
    child.join(60)
    return found


def printed(label: str, done: Done[PointId]) -> int:
    """Its peak."""
    print(f"{label:<48}{done.peak_bytes / MIB:6.1f} MiB  {done.seconds:5.1f} s", flush=True)
    return done.peak_bytes


def resident(field: str) -> int:
    """Bytes of one of this process's memory figures."""
    match = re.search(rf"^{field}:\s+(\d+) kB", Path("/proc/self/status").read_text(), re.M)
    assert match is not None
    return int(match[1]) * KIB


if __name__ == "__main__":
    sys.exit(main())
