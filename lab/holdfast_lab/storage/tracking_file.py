"""A change tracking file, ``-ctk.vmdk``: for each granule of the disk, when it last changed.

VMware does not publish its format; this one is the lab's own. Little endian:

    offset  size  field
         0     8  magic "LABCTK", 0, 1
         8     8  capacity of the disk, bytes
        16     8  bytes per granule
        24     8  epoch: the number that writes are marked with now
        32     4  flags: 1 switched on under a snapshot, 2 the host stopped uncleanly
        36    48  uuid of the change ids, text
        84     4  CRC-32 of the 84 bytes before
      4096     -  one epoch of 4 bytes per granule, 0 = unchanged since tracking began

A frozen link's file stays as it was when the link was frozen, so one file answers for every
older change id: a granule changed after ``uuid/n`` when its mark is greater than n.
"""

from __future__ import annotations

import os
import struct
import zlib
from array import array
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from holdfast_lab.storage.extent_file import write_exactly
from holdfast_lab.storage.flat import copy_data, data_areas
from holdfast_lab.storage.runs import Area

HEADER = struct.Struct("<8sQQQI48s")
CHECKSUM = struct.Struct("<I")
MAGIC = b"LABCTK\x00\x01"
MARKS_POSITION = 4096
MARK_BYTES = 4
MARKS_PIECE = 64 * 1024
FLAG_UNDER_SNAPSHOT = 1
FLAG_UNCLEAN = 2
GRANULARITY_MIN = 64 * 1024
GRANULES_MAX = 2**21  # 64 KiB up to 128 GiB, then twice as much with each doubling


@dataclass(frozen=True, slots=True, kw_only=True)
class TrackingHeader:
    """The state at the head of the file."""

    capacity_bytes: int
    granularity: int
    epoch: int
    uuid: str
    under_snapshot: bool = False
    unclean: bool = False

    @property
    def change_id(self) -> str:
        """``uuid/sequence``; clients must treat it as opaque."""
        return f"{self.uuid}/{self.epoch}"

    @property
    def granules(self) -> int:
        """How many marks the file has."""
        return -(-self.capacity_bytes // self.granularity)


def granularity_for(capacity_bytes: int) -> int:
    """Grows with the disk, so that the number of marks stays bounded."""
    granularity = GRANULARITY_MIN
    while granularity * GRANULES_MAX < capacity_bytes:
        granularity *= 2
    return granularity


def create_tracking(path: Path, header: TrackingHeader) -> None:
    """A new file with no marks, replacing an older one."""
    path.unlink(missing_ok=True)
    file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        os.ftruncate(file, MARKS_POSITION + header.granules * MARK_BYTES)
        _write_header(file, header)
    finally:
        os.close(file)


def copy_tracking(source: Path, target: Path, *, epoch: int) -> None:
    """The file for a new link: all marks so far, and another epoch for what comes."""
    header = load_header(source)
    if header is None:
        return
    target.unlink(missing_ok=True)
    source_file = os.open(source, os.O_RDONLY)
    try:
        target_file = os.open(target, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            size = os.fstat(source_file).st_size
            os.ftruncate(target_file, size)
            copy_data(source_file, target_file, size)
            _write_header(target_file, replace(header, epoch=epoch))
        finally:
            os.close(target_file)
    finally:
        os.close(source_file)


def load_header(path: Path) -> TrackingHeader | None:
    """The state; None when there is no file or it is damaged."""
    try:
        with path.open("rb") as file:
            content = file.read(HEADER.size + CHECKSUM.size)
    except FileNotFoundError:
        return None
    if len(content) < HEADER.size + CHECKSUM.size:
        return None
    packed = content[: HEADER.size]
    if CHECKSUM.unpack(content[HEADER.size :])[0] != zlib.crc32(packed):
        return None
    magic, capacity, granularity, epoch, flags, uuid = HEADER.unpack(packed)
    if magic != MAGIC:
        return None
    return TrackingHeader(
        capacity_bytes=capacity,
        granularity=granularity,
        epoch=epoch,
        uuid=uuid.rstrip(b"\0").decode("ascii"),
        under_snapshot=bool(flags & FLAG_UNDER_SNAPSHOT),
        unclean=bool(flags & FLAG_UNCLEAN),
    )


def save_header(path: Path, header: TrackingHeader) -> None:
    """Change the state; the marks stay, new granules of a grown disk have none."""
    file = os.open(path, os.O_RDWR)
    try:
        os.ftruncate(file, MARKS_POSITION + header.granules * MARK_BYTES)
        _write_header(file, header)
    finally:
        os.close(file)


def forget_marks(path: Path) -> None:
    """Drop every mark: older change ids then answer as if nothing had changed."""
    file = os.open(path, os.O_RDWR)
    try:
        size = os.fstat(file).st_size
        os.ftruncate(file, MARKS_POSITION)
        os.ftruncate(file, size)
    finally:
        os.close(file)


def damage(path: Path) -> None:
    """Make the head unreadable."""
    file = os.open(path, os.O_RDWR)
    try:
        write_exactly(file, 16, b"\xff" * 16)
    finally:
        os.close(file)


def mark(path: Path, header: TrackingHeader, offset: int, length: int) -> None:
    """Note that ``[offset, offset + length)`` changed in the header's epoch."""
    if length <= 0:
        return
    first = offset // header.granularity
    count = (offset + length - 1) // header.granularity + 1 - first
    file = os.open(path, os.O_RDWR)
    try:
        piece = array("I", [header.epoch]).tobytes()
        write_exactly(file, MARKS_POSITION + first * MARK_BYTES, piece * count)
    finally:
        os.close(file)


def changed_after(
    path: Path, header: TrackingHeader, sequence: int, start_offset: int
) -> Iterator[Area]:
    """Whole granules with a mark greater than ``sequence``, not before the start's granule."""
    first = start_offset // header.granularity
    end = MARKS_POSITION + header.granules * MARK_BYTES
    file = os.open(path, os.O_RDONLY)
    try:
        for stored in data_areas(file, MARKS_POSITION + first * MARK_BYTES, end):
            yield from _marked(file, stored, header.granularity, sequence)
    finally:
        os.close(file)


def _marked(file: int, stored: Area, granularity: int, sequence: int) -> Iterator[Area]:
    at = stored.offset
    while at < stored.end:
        content = os.pread(file, min(MARKS_PIECE, stored.end - at), at)
        if not content:
            return
        marks = array("I")
        marks.frombytes(content)
        number = (at - MARKS_POSITION) // MARK_BYTES
        index = 0
        while index < len(marks):
            if marks[index] <= sequence:
                index += 1
                continue
            begin = index
            while index < len(marks) and marks[index] > sequence:
                index += 1
            yield Area((number + begin) * granularity, (index - begin) * granularity)
        at += len(content)


def _write_header(file: int, header: TrackingHeader) -> None:
    flags = FLAG_UNDER_SNAPSHOT * header.under_snapshot + FLAG_UNCLEAN * header.unclean
    packed = HEADER.pack(
        MAGIC,
        header.capacity_bytes,
        header.granularity,
        header.epoch,
        flags,
        header.uuid.encode("ascii"),
    )
    write_exactly(file, 0, packed + CHECKSUM.pack(zlib.crc32(packed)))
