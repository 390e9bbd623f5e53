"""One stream's memory: the same for a small and a huge disk, and below the agent's limit."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

LIMIT_MIB = 100
PROGRAM = """
import sys
from pathlib import Path
from support.repositories import DEVICE_KEY, disk_header, new_repository
from holdfast_common.repository.directory_store import DirectoryStore
from holdfast_common.repository.manifest import ManifestFacts
import random

def peak_mib():
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM")) / 1024

capacity, data_mib, root = int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3])
repository = new_repository(DirectoryStore.create(root), workers=3)
block = bytearray(random.Random(1).randbytes(1 << 20))
idle = peak_mib()
with repository.writer() as writer:
    disk = writer.begin_disk(disk_header(capacity))
    step = capacity // data_mib >> 20 << 20
    for number in range(data_mib):
        block[:8] = number.to_bytes(8, "big")
        for at in range(65536, 1 << 20, 65536):
            block[at : at + 8] = (number * 16 + at).to_bytes(8, "big")
        disk.write(number * step, block)
    disk.finish()
    prepared = writer.prepare(ManifestFacts())
    writer.publish(prepared, repository.grant(prepared))
backup = peak_mib() - idle
with repository.reader() as reader:
    source = reader.open_disk(reader.load_point(prepared.point_id), DEVICE_KEY)
    buffer = memoryview(bytearray(1 << 20))
    for extent in source.allocated():
        for offset in range(extent.offset, extent.end, 1 << 20):
            source.read_into(offset, buffer)
print(round(backup), round(peak_mib() - idle))
"""


def peaks(capacity: int, *, data_mib: int, root: Path) -> tuple[int, int]:
    """Peak MiB above idle after a backup, and after a restore besides."""
    root_of_repository = Path(__file__).parents[3]
    output = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(capacity), str(data_mib), str(root)],
        check=True,
        capture_output=True,
        text=True,
        env={"PYTHONPATH": f"{root_of_repository}/tests:{root_of_repository}/common"},
    ).stdout
    backup, restore = output.split()
    return int(backup), int(restore)


@pytest.mark.parametrize("capacity", [256 << 20, 1 << 40], ids=["256 MiB", "1 TiB"])
def test_one_stream_needs_less_than_a_hundred_mebibytes(capacity: int, tmp_path: Path) -> None:
    backup, restore = peaks(capacity, data_mib=200, root=tmp_path / "repository")
    print(f"capacity {capacity}: backup {backup} MiB above idle, restore {restore} MiB")
    assert backup <= LIMIT_MIB
    assert restore <= LIMIT_MIB
