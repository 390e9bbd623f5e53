"""Runs one workload on a real directory and prints its record: ``python -m support.recorded_program NAME ROOT``.

`strace` looks on from outside; the record must be what it sees.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from blake3 import blake3

from holdfast_common.repository.file_system import SYSTEM_FILES
from support.crash_workloads import prepared, record_on
from support.recorded_files import Recorded

BEGIN = "/the-workload-begins-here"


def main() -> None:
    name, root = sys.argv[1], Path(sys.argv[2])
    rig = prepared(name, SYSTEM_FILES, root=root, seed=0)
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
