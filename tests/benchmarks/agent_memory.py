"""How much memory one stream takes of an agent, above idle: for a small disk and for a large sparse one.

Run: .venv/bin/python tests/benchmarks/agent_memory.py [--folder FOLDER] [--data-mib N]

Each step (full backup, incremental, restore, read-back) runs in a child process with all of the agent's
code loaded. Idle is its resident memory before the step; printed is the peak (VmHWM) above that. The
exit code is 0 when no peak is above 100 MiB, the goal for any size of disk.
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
from collections.abc import Callable
from contextlib import closing
from multiprocessing.connection import Connection
from pathlib import Path

TESTS = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(TESTS))

from holdfast_agent.pipelines.restore_disks import restore_disks  # noqa: E402 - as above
from holdfast_agent.pipelines.verify_disks import verify_disks  # noqa: E402 - as above
from holdfast_agent.transports import direct_datastore  # noqa: E402 - as above
from holdfast_common.blocks.sink import NewDisk  # noqa: E402 - as above
from holdfast_common.identity import PointId  # noqa: E402 - as above
from holdfast_common.job_result import Outcome  # noqa: E402 - as above
from holdfast_common.units import GIB, KIB, MIB, TIB  # noqa: E402 - as above
from support.backup_jobs import (  # noqa: E402 - the path comes first
    Site,
    direct_ticket,
    disk_uuid,
    goes_on,
    make_site,
    point_of,
)

GOAL_BYTES = 100 * MIB
DISKS = {"1 GiB": GIB, "sparse 1 TiB": TIB}
PIECE_BYTES = 256 * KIB
CHANGES = 1000
KEY = 2000
Step = Callable[[Site, PointId], PointId]


def main() -> int:
    """Measure all steps with each disk."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, help="where the disks and repositories are made")
    parser.add_argument("--data-mib", type=int, default=512, help="data in each disk")
    chosen = parser.parse_args()
    peaks: list[int] = []
    for name, capacity in DISKS.items():
        with tempfile.TemporaryDirectory(dir=chosen.folder) as folder:
            site = make_site(Path(folder) / "site")
            step_bytes = make_disk(site, capacity, chosen.data_mib * MIB)
            point = PointId("")
            for label, step in steps(step_bytes).items():
                started = time.monotonic()
                point, peak = in_child(step, site, point)
                seconds = time.monotonic() - started
                print(
                    f"{name:>12}  {label:<12} {peak / MIB:6.1f} MiB  {seconds:5.1f} s", flush=True
                )
                peaks.append(peak)
    print(json.dumps({"goal_mib": GOAL_BYTES // MIB, "peak_mib": round(max(peaks) / MIB, 1)}))
    return 0 if max(peaks) <= GOAL_BYTES else 1


def steps(step_bytes: int) -> dict[str, Step]:
    """What is measured, in order; each gets the last point and returns the next one's."""

    def full(site: Site, _: PointId) -> PointId:
        return point_of(site.back_up())

    def incremental(site: Site, point: PointId) -> PointId:
        changes = [
            site.write(KEY, number * step_bytes % site.disks[KEY], b"changed" * 100)
            for number in range(CHANGES)
            if number * step_bytes < site.disks[KEY]
        ]
        return point_of(site.incremental(point, {KEY: changes}))

    def restore(site: Site, point: PointId) -> PointId:
        work = site.restore_work(point, {KEY: site.file_ticket("back.vmdk")})
        restore_disks(site.spec(work), site.context())
        return point

    def read_back(site: Site, point: PointId) -> PointId:
        work = site.verify_work(point, {KEY: site.file_ticket("back.vmdk")})
        assert verify_disks(site.spec(work), site.context()).outcome is Outcome.DONE
        return point

    return {"full": full, "incremental": incremental, "restore": restore, "read back": read_back}


def make_disk(site: Site, capacity: int, data_bytes: int) -> int:
    """A disk with data in pieces at equal distances; returns the distance."""
    chance = random.Random(1)
    pieces = data_bytes // PIECE_BYTES
    distance = max(capacity // pieces // PIECE_BYTES, 1) * PIECE_BYTES
    disk = NewDisk(capacity_bytes=capacity, disk_uuid=disk_uuid(KEY))
    sink = direct_datastore.open_sink(
        direct_ticket(f"web/disk-{KEY}.vmdk"), site.configuration, disk=disk, check=goes_on
    )
    with closing(sink):
        for number in range(min(pieces, capacity // distance)):
            half = chance.randbytes(PIECE_BYTES // 2)
            sink.write(number * distance, memoryview(half + half[:1024] * (PIECE_BYTES // 2048)))
        sink.finish()
    site.disks[KEY] = capacity
    return distance


def in_child(step: Step, site: Site, point: PointId) -> tuple[PointId, int]:
    """A step's result and its peak above idle, in bytes."""
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    child = context.Process(target=measured, args=(step, site, point, sender))
    child.start()
    sender.close()
    with receiver:
        found: tuple[PointId, int] = receiver.recv()
    child.join(60)
    return found


def measured(step: Step, site: Site, point: PointId, sender: Connection) -> None:
    """In the child."""
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    idle = resident("VmRSS")
    result = step(site, point)
    sender.send((result, resident("VmHWM") - idle))
    sender.close()


def resident(field: str) -> int:
    """Bytes of one of this process's memory figures."""
    match = re.search(rf"^{field}:\s+(\d+) kB", Path("/proc/self/status").read_text(), re.M)
    assert match is not None
    return int(match[1]) * KIB


if __name__ == "__main__":
    sys.exit(main())
