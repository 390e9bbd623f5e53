"""Disk images for tests: made and judged by qemu, and a few that qemu cannot make."""

from __future__ import annotations

import random
import shutil
import subprocess
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Protocol

import pytest

from holdfast_common.extents import Extent
from holdfast_common.formats.vmdk_chain import open_chain_at

MIB = 1 << 20

needs_qemu = pytest.mark.skipif(
    shutil.which("qemu-img") is None, reason="needs qemu-img: install qemu-utils to run this"
)


class Sink(Protocol):
    def write(self, offset: int, data: memoryview) -> None: ...

    def finish(self) -> None: ...

    def close(self) -> None: ...


def qemu_img(*arguments: str | Path) -> str:
    """Run qemu-img; a failure shows what it said."""
    done = subprocess.run(
        ["qemu-img", *map(str, arguments)], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, f"qemu-img {arguments}: {done.stdout}{done.stderr}"
    return done.stdout


def qemu_write(path: Path, writes: Iterable[tuple[int, int, int]], *, kind: str = "vmdk") -> None:
    """Fill (offset, length, byte) ranges of an image through qemu-io."""
    commands = [f"write -P {byte} {offset} {length}" for offset, length, byte in writes]
    arguments = [part for command in commands for part in ("-c", command)]
    done = subprocess.run(
        ["qemu-io", "-f", kind, *arguments, str(path)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "failed" not in done.stdout + done.stderr, done.stdout + done.stderr


def make_raw(path: Path, capacity_bytes: int, *, seed: int, parts: int = 12) -> list[Extent]:
    """A raw disk with random data in random sectors, first and last sector included."""
    source = random.Random(seed)
    written = []
    with path.open("wb") as file:
        file.truncate(capacity_bytes)
        sectors = capacity_bytes // 512
        places = [(0, 1), (sectors - 1, 1)]
        for _ in range(parts):
            start = source.randrange(sectors)
            places.append((start, min(source.choice([1, 7, 127, 128, 129, 300]), sectors - start)))
        for start, length in sorted(places):
            file.seek(start * 512)
            file.write(source.randbytes(length * 512))
            written.append(Extent(offset=start * 512, length=length * 512))
    return written


def chain_to_raw(
    paths: Sequence[Path], raw: Path, *, step: int = MIB, direct: bool = False
) -> None:
    """Read a chain's allocated extents into a raw file."""
    with open_chain_at(paths, direct=direct) as chain, raw.open("wb") as file:
        file.truncate(chain.capacity_bytes)
        buffer = memoryview(bytearray(step))
        for extent in chain.allocated():
            offset = extent.offset
            while offset < extent.end:
                view = buffer[: min(step, extent.end - offset)]
                chain.read_into(offset, view)
                file.seek(offset)
                file.write(view)
                offset += len(view)


def raw_to_sink(raw: Path, sink: Sink, extents: Iterable[Extent], *, step: int) -> None:
    """Write extents of a raw disk into a sink and finish it."""
    with raw.open("rb") as file:
        for extent in extents:
            offset = extent.offset
            while offset < extent.end:
                file.seek(offset)
                data = file.read(min(step, extent.end - offset))
                sink.write(offset, memoryview(data))
                offset += len(data)
    sink.finish()
    sink.close()
