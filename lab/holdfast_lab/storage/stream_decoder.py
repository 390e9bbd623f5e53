"""Decode uploaded streamOptimized VMDKs, strictly: what an import lease receives.

The lab judges the product here, so tables, directory and footer are compared with the grains
that were seen, and where qemu-img is installed it must find the same content.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import zlib
from array import array
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from holdfast_lab.storage.errors import StreamCut, StreamRefused
from holdfast_lab.storage.extent_file import write_exactly
from holdfast_lab.storage.stream_layout import (
    DEFLATE,
    DIRECTORY_AT_END,
    FLAG_COMPRESSED,
    FLAG_MARKERS,
    GRAIN_MARKER,
    HEADER,
    MAGIC,
    MARKER_DIRECTORY,
    MARKER_END,
    MARKER_FOOTER,
    MARKER_TABLE,
    SECTOR_BYTES,
    TABLE_BYTES,
    TABLE_ENTRIES,
    VERSION,
)

CAPACITY_SECTORS_MAX = 62 * 2**40 // SECTOR_BYTES  # vSphere's largest disk
GRAIN_SECTORS_ALLOWED = frozenset({8, 16, 32, 64, 128})
OVERHEAD_SECTORS_MAX = 65536  # qemu puts whole directories and tables before the grains
DESCRIPTOR_BYTES_MAX = 20 * SECTOR_BYTES
COMPARE_SECONDS_MAX = 600
ZEROS_BYTES = 64 * 1024

# Gives up to so many bytes, fewer only at the end of the stream.
Read = Callable[[int], bytes]


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamFacts:
    """What was found. ``judge`` is ``qemu-img`` or ``lab``: who vouches for the content."""

    capacity_bytes: int
    grains: int
    stream_bytes: int
    judge: str = "lab"


@dataclass(slots=True)
class _State:
    """What has been seen of one stream."""

    capacity_sectors: int
    grain_sectors: int
    directory_at_end: bool
    grains: int = 0
    pending: dict[int, dict[int, int]] = field(default_factory=dict)  # table -> index -> sector
    tables: dict[int, int] = field(default_factory=dict)  # finished tables: number -> sector
    directory_sector: int | None = None
    footer_seen: bool = False


def decode_stream(read: Read, to: Path, *, capacity_bytes: int | None = None) -> StreamFacts:
    """Decode one stream into a raw file, new or existing and empty, in one pass.

    ``capacity_bytes``: what the stream must say (None: anything).
    Raises: StreamRefused; StreamCut when it ends too early.
    """
    file = os.open(to, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        return _Decoder(read, file, capacity_bytes).decode()
    finally:
        os.close(file)


def decode_upload(stream: Path, to: Path, *, capacity_bytes: int | None = None) -> StreamFacts:
    """Decode a stored stream; with qemu-img on the machine it must agree on every byte.

    Raises: StreamRefused, StreamCut.
    """
    with stream.open("rb") as source:
        facts = decode_stream(source.read, to, capacity_bytes=capacity_bytes)
    if shutil.which("qemu-img") is None:
        return facts
    check_with_qemu(stream, to)
    return StreamFacts(
        capacity_bytes=facts.capacity_bytes,
        grains=facts.grains,
        stream_bytes=facts.stream_bytes,
        judge="qemu-img",
    )


def check_with_qemu(stream: Path, decoded: Path) -> None:
    """Does qemu-img find the same content in a stored stream? Raises: StreamRefused."""
    result = subprocess.run(
        ["qemu-img", "compare", "-f", "vmdk", "-F", "raw", str(stream), str(decoded)],
        capture_output=True,
        text=True,
        check=False,
        timeout=COMPARE_SECONDS_MAX,
    )
    if result.returncode != 0:
        raise StreamRefused(f"qemu-img disagrees: {result.stdout.strip()} {result.stderr.strip()}")


class _Decoder:
    """One pass over one stream."""

    def __init__(self, read: Read, file: int, capacity_bytes: int | None) -> None:
        self._source = read
        self._file = file
        self._wanted_capacity = capacity_bytes
        self._position = 0
        self._state = _State(0, 0, directory_at_end=True)

    def decode(self) -> StreamFacts:
        """See ``decode_stream``."""
        self._read_header()
        try:
            os.ftruncate(self._file, self._state.capacity_sectors * SECTOR_BYTES)
        except OSError as error:  # a file system's largest file may be smaller than a disk's
            raise StreamRefused(
                f"no room for {self._state.capacity_sectors} sectors: {error.strerror}"
            ) from error
        while self._marker():
            pass
        self._check_end()
        return StreamFacts(
            capacity_bytes=self._state.capacity_sectors * SECTOR_BYTES,
            grains=self._state.grains,
            stream_bytes=self._position,
        )

    # -- the parts of a stream -------------------------------------------------------------

    def _read_header(self) -> None:
        fields = HEADER.unpack(self._exactly(HEADER.size))
        magic, version, flags, capacity, grain, descriptor, descriptor_size, entries = fields[:8]
        directory, overhead, compression = fields[9], fields[10], fields[13]
        if magic != MAGIC:
            raise StreamRefused("no VMDK: the magic is missing")
        if version != VERSION:
            raise StreamRefused(f"streamOptimized version {version}; only version 3 is imported")
        if flags & (FLAG_COMPRESSED | FLAG_MARKERS) != FLAG_COMPRESSED | FLAG_MARKERS:
            raise StreamRefused("grains must be compressed and have markers")
        if compression != DEFLATE or entries != TABLE_ENTRIES or grain not in GRAIN_SECTORS_ALLOWED:
            raise StreamRefused("compression, table size or grain size is not supported")
        if not 0 < capacity <= CAPACITY_SECTORS_MAX:
            raise StreamRefused(f"capacity of {capacity} sectors")
        if self._wanted_capacity not in {None, capacity * SECTOR_BYTES}:
            raise StreamRefused(
                f"{capacity} sectors, but the disk has {self._wanted_capacity} bytes"
            )
        if not 0 < overhead <= OVERHEAD_SECTORS_MAX:
            raise StreamRefused(f"{overhead} sectors before the grains")
        if descriptor != 1 or not 0 < descriptor_size < overhead:
            raise StreamRefused("the embedded descriptor is not where it belongs")
        self._skip_overhead(overhead)
        self._state = _State(capacity, grain, directory_at_end=directory == DIRECTORY_AT_END)

    def _skip_overhead(self, sectors: int) -> None:
        """Also makes sure that no reader of the stream is led to another file."""
        text = self._exactly(min(sectors * SECTOR_BYTES - HEADER.size, DESCRIPTOR_BYTES_MAX))
        if b"parentFileNameHint" in text or b'createType="streamOptimized"' not in text:
            raise StreamRefused("the embedded descriptor is not that of a stream without parents")
        left = sectors * SECTOR_BYTES - self._position
        while left > 0:
            left -= len(self._exactly(min(left, ZEROS_BYTES)))

    def _marker(self) -> bool:
        """One marker with what belongs to it; False at the end."""
        sector = self._position // SECTOR_BYTES
        head = self._up_to(SECTOR_BYTES)
        if not head and not self._state.directory_at_end:
            return False  # a file whose directory is in front ends without a marker
        if len(head) < SECTOR_BYTES:
            raise StreamCut(f"the stream ended at byte {self._position}")
        value, size = GRAIN_MARKER.unpack_from(head)
        if size:
            self._grain(sector, value, size, head[GRAIN_MARKER.size :])
            return True
        kind = int.from_bytes(head[12:16], "little")
        if kind == MARKER_END:
            if value:
                raise StreamRefused("a broken end marker")
            return False
        if kind == MARKER_TABLE:
            self._table(value)
        elif kind == MARKER_DIRECTORY:
            self._directory(value)
        elif kind == MARKER_FOOTER:
            self._footer(value)
        else:
            raise StreamRefused(f"unknown marker type {kind}")
        return True

    def _grain(self, sector: int, lba: int, size: int, begin: bytes) -> None:
        state = self._state
        grain_bytes = state.grain_sectors * SECTOR_BYTES
        if lba % state.grain_sectors or lba >= state.capacity_sectors or size > 2 * grain_bytes:
            raise StreamRefused(f"a grain for sector {lba} of {size} bytes")
        rest = max(size - len(begin), 0)
        packed = begin[:size] + self._exactly(rest + -rest % SECTOR_BYTES)[:rest]
        inflater = zlib.decompressobj()
        try:
            data = inflater.decompress(packed, grain_bytes + 1)
        except zlib.error as error:
            raise StreamRefused(f"the grain for sector {lba} does not inflate") from error
        left = (state.capacity_sectors - lba) * SECTOR_BYTES
        if not inflater.eof or len(data) not in {grain_bytes, min(grain_bytes, left)}:
            raise StreamRefused(f"the grain for sector {lba} inflates to {len(data)} bytes")
        table, index = divmod(lba // state.grain_sectors, TABLE_ENTRIES)
        grains = state.pending.setdefault(table, {})
        if index in grains or table in state.tables:
            raise StreamRefused(f"a second grain for sector {lba}, or one after its table")
        grains[index] = sector
        state.grains += 1
        write_exactly(self._file, lba * SECTOR_BYTES, memoryview(data)[:left])

    def _table(self, sectors: int) -> None:
        place = self._position // SECTOR_BYTES
        if sectors * SECTOR_BYTES != TABLE_BYTES:
            raise StreamRefused(f"a grain table of {sectors} sectors")
        entries = array("I")
        entries.frombytes(self._exactly(TABLE_BYTES))
        listed = {index: sector for index, sector in enumerate(entries) if sector > 1}
        for number, grains in self._state.pending.items():
            if grains == listed:
                del self._state.pending[number]
                self._state.tables[number] = place
                return
        if listed:
            raise StreamRefused("a grain table does not list the grains that were sent")

    def _directory(self, sectors: int) -> None:
        state = self._state
        covered = state.grain_sectors * TABLE_ENTRIES
        wanted = -(-state.capacity_sectors // covered)
        if sectors != -(-wanted * 4 // SECTOR_BYTES):
            raise StreamRefused(f"a grain directory of {sectors} sectors for {wanted} tables")
        state.directory_sector = self._position // SECTOR_BYTES
        entries = array("I")
        entries.frombytes(self._exactly(sectors * SECTOR_BYTES))
        for number, place in enumerate(entries):
            if place != state.tables.get(number, 0) and number in state.tables:
                raise StreamRefused(f"the grain directory does not know table {number}")

    def _footer(self, sectors: int) -> None:
        fields = HEADER.unpack(self._exactly(HEADER.size))
        state = self._state
        if sectors != 1 or fields[:2] != (MAGIC, VERSION) or fields[3] != state.capacity_sectors:
            raise StreamRefused("the footer is not that of this stream")
        if fields[9] != state.directory_sector:
            raise StreamRefused("the footer does not point to the grain directory")
        state.footer_seen = True

    def _check_end(self) -> None:
        state = self._state
        if state.directory_at_end:
            if any(state.pending.values()):
                raise StreamRefused("grains without a grain table")
            if not state.footer_seen:
                raise StreamRefused("the stream has no footer")
        while content := self._source(ZEROS_BYTES):
            self._position += len(content)
            if content.strip(b"\0"):
                raise StreamRefused("data after the end of the stream")

    def _exactly(self, count: int) -> bytes:
        content = self._up_to(count)
        if len(content) < count:
            raise StreamCut(f"the stream ended at byte {self._position}")
        return content

    def _up_to(self, count: int) -> bytes:
        """Fewer bytes only at the end; a source may give its bytes in small parts."""
        content = self._source(count) if count else b""
        while content and len(content) < count:
            more = self._source(count - len(content))
            if not more:
                break
            content += more
        self._position += len(content)
        return content
