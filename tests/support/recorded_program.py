"""Runs one workload on a real directory and prints its record: ``python -m support.recorded_program NAME ROOT``.

`strace` looks on from outside; the record must be what it sees.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

from blake3 import blake3

from holdfast_common.repository.file_system import SystemFiles
from support.crash_rig import Rig
from support.crash_workloads import WORKLOADS, record_on
from support.recorded_files import Recorded
from support.repositories import FixedClock

BEGIN = "/the-workload-begins-here"


class ClockedFiles(SystemFiles):
    """The operating system's calls, on a disk whose times are the workload's."""

    def __init__(self, clock: FixedClock) -> None:
        self._clock = clock

    def create_file(self, path: str, *, at: int) -> int:
        descriptor = super().create_file(path, at=at)
        self._date(descriptor)
        return descriptor

    def sync(self, descriptor: int) -> None:
        super().sync(descriptor)
        self._date(descriptor)

    def _date(self, descriptor: int) -> None:
        moment = self._clock.seconds_since_1970()
        os.utime(descriptor, (moment, moment))


def main() -> None:
    name, root = sys.argv[1], Path(sys.argv[2])
    clock = FixedClock()
    rig = Rig(files=ClockedFiles(clock), root=root, seed=0, clock=clock)
    WORKLOADS[name].prepare(rig)
    there = sorted(str(path) for path in root.rglob("*") if path.is_file())
    Path(BEGIN).exists()  # a call that the trace shows
    for call in record_on(name, rig, paths=there):
        print(json.dumps(row(call, root)))


def row(call: Recorded, root: Path) -> list[str | int]:
    """A call without where the disk is mounted, its data as a digest."""
    disk = str(root.parent).rstrip("/")
    below = [path.removeprefix(disk) or "/" for path in (call.path, call.target) if path]
    return [call.call, call.offset, len(call.data), blake3(call.data).hexdigest()[:16], *below]


if __name__ == "__main__":
    main()
