"""Makes the disk images of the benchmarks.

A disk as guests have them: a third of it holes, the rest files laid one after the other on 4 KiB
boundaries: programs and texts of this machine, and some that are compressed already. When the machine has
no more files they come again with their byte values exchanged, which keeps how well they compress and makes
every byte new. The next day's image has many small scattered places changed. Same machine, same seed:
same image. Nobody's ratios hold for other data: the share of holes and what zstd makes of it are told with
every figure.
"""

from __future__ import annotations

import hashlib
import os
import random
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import zstandard

from holdfast_common.extents import Extent

KIB = 1024
MIB = 1024 * KIB
PAGE_BYTES = 4 * KIB
PIECE_BYTES = 4 * MIB
HOLE_SHARE = 0.35
COMPRESSED_SHARE = 0.10  # of the files: pictures, archives
HOLE_MIB_MAX = 16
FILES_MIB_MAX = 24  # between two holes
FILE_BYTES_MAX = 24 * MIB
CHANGED_SHARE = 0.0373  # of what is allocated
CHANGE_BYTES = 64 * KIB
CHANGE_UNITS = (1, 1, 2, 3)
SOURCES = ("/usr/lib", "/usr/bin", "/usr/share", sys.prefix)


@dataclass(frozen=True, slots=True)
class DiskImage:
    """A raw image. ``zstd_ratio``: what is allocated, to what zstd -3 makes of it."""

    path: Path
    capacity_bytes: int
    allocated_bytes: int
    zstd_ratio: float
    sha256: str

    @property
    def hole_share(self) -> float:
        return 1 - self.allocated_bytes / self.capacity_bytes

    def allocated(self) -> Iterator[bytes]:
        """What is not a hole, in order."""
        with self.path.open("rb") as file:
            for extent in _data_extents(file.fileno(), self.capacity_bytes):
                for offset in range(extent.offset, extent.end, PIECE_BYTES):
                    yield os.pread(file.fileno(), min(PIECE_BYTES, extent.end - offset), offset)


def described(path: Path) -> DiskImage:
    """Read it whole."""
    image = DiskImage(path, path.stat().st_size, 0, 0.0, file_sha256(path))
    compressor = zstandard.ZstdCompressor(level=3)
    allocated = compressed = 0
    for data in image.allocated():
        allocated += len(data)
        compressed += len(compressor.compress(data))
    return replace(image, allocated_bytes=allocated, zstd_ratio=allocated / max(compressed, 1))


def file_sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def make_image(path: Path, capacity_bytes: int, *, seed: int) -> None:
    """Write a sparse raw image; ``path`` must not exist."""
    chance = random.Random(seed)
    contents = _contents(chance)
    with path.open("xb") as file:
        file.truncate(capacity_bytes)
        offset = 0
        while offset < capacity_bytes:
            filled = chance.randint(1, FILES_MIB_MAX * 256) * PAGE_BYTES
            hole = chance.randint(0, HOLE_MIB_MAX * 256) * PAGE_BYTES
            # keep the share of holes, whatever the dice say
            wanted = int((filled + hole) * (1 - HOLE_SHARE)) // PAGE_BYTES * PAGE_BYTES
            filled, hole = wanted, filled + hole - wanted
            _fill(file.fileno(), offset, min(filled, capacity_bytes - offset), contents)
            offset += filled + hole


def change_image(path: Path, changed: Path, *, seed: int) -> list[Extent]:
    """A copy with scattered places changed; they, ascending, as a hypervisor would tell them."""
    subprocess.run(["cp", "--sparse=always", "--reflink=auto", str(path), str(changed)], check=True)
    return change_file(changed, seed=seed)


def change_file(path: Path, *, seed: int) -> list[Extent]:
    """`change_image`, but in place. Change tracking tells units of 64 KiB; all of them is new here."""
    capacity_bytes = path.stat().st_size
    wanted = int(path.stat().st_blocks * 512 * CHANGED_SHARE)
    chance = random.Random(f"changes {seed}")
    contents = _contents(chance, as_they_are=False)
    extents: list[Extent] = []
    mean = CHANGE_BYTES * sum(CHANGE_UNITS) // len(CHANGE_UNITS)
    gap_units_max = max(2 * (capacity_bytes * mean // max(wanted, 1) - mean) // CHANGE_BYTES, 1)
    offset = written = 0
    with path.open("r+b") as file:
        while True:
            offset += chance.randint(1, gap_units_max) * CHANGE_BYTES
            length = chance.choice(CHANGE_UNITS) * CHANGE_BYTES
            if offset + length > capacity_bytes or written > wanted:
                return extents
            _fill(file.fileno(), offset, length, contents)
            extents.append(Extent(offset=offset, length=length))
            written += length
            offset += length


def _fill(file: int, offset: int, length: int, contents: Iterator[bytes]) -> None:
    """Files one after the other, each on a page's boundary, until ``length`` bytes are full."""
    end = offset + length
    while offset < end:
        content = memoryview(next(contents))[: end - offset]
        os.pwrite(file, content, offset)
        offset += -(-len(content) // PAGE_BYTES) * PAGE_BYTES


def _data_extents(file: int, capacity_bytes: int) -> Iterator[Extent]:
    offset = 0
    while offset < capacity_bytes:
        try:
            start = os.lseek(file, offset, os.SEEK_DATA)
        except OSError:  # nothing but a hole from here on
            return
        offset = os.lseek(file, start, os.SEEK_HOLE)
        yield Extent(offset=start, length=offset - start)


def _contents(chance: random.Random, *, as_they_are: bool = True) -> Iterator[bytes]:
    """Files without end; none is given twice with the same bytes. ``as_they_are``: in the first round."""
    paths = _files()
    generator = np.random.default_rng(chance.getrandbits(64))
    table = np.arange(256, dtype=np.uint8)
    table = table if as_they_are else generator.permutation(table)
    while True:
        chance.shuffle(paths)
        for path in paths:
            with path.open("rb") as file:
                content = np.frombuffer(file.read(FILE_BYTES_MAX), dtype=np.uint8)
            if chance.random() < COMPRESSED_SHARE:
                yield chance.randbytes(content.size)
            elif content.size:
                yield table[content].tobytes()
        table = generator.permutation(table)


def _files() -> list[Path]:
    """A file of several names once, as it stands on a disk."""
    found: dict[tuple[int, int], Path] = {}
    for source in SOURCES:
        for folder, folders, names in os.walk(source):
            folders.sort()
            for name in sorted(names):
                path = Path(folder, name)
                if path.is_file() and not path.is_symlink() and os.access(path, os.R_OK):
                    status = path.stat()
                    found.setdefault((status.st_dev, status.st_ino), path)
    return list(found.values())
