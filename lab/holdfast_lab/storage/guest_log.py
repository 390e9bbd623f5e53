"""The log of what the guest wrote: ground truth that never looks at a VMDK.

Two files in the log's directory: ``index``, records of 40 bytes, and ``data``, the written
bytes one after the other. The number of a record, from 1, is its sequence. Layout, little
endian:

    offset  size  field
         0     4  kind
         4     4  zero
         8     8  offset in the disk
        16     8  length
        24     8  position in ``data``
        32     8  argument: revert -> the sequence to go back to, size -> bytes

The disk after sequence n is found by walking back from n, jumping where a revert says so, until
the first record or a restart, whose base image is ``baseline-<sequence>.raw``.
"""

from __future__ import annotations

import enum
import os
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from holdfast_lab.storage.errors import FileExists, TruthUnknown
from holdfast_lab.storage.extent_file import read_exactly, write_exactly
from holdfast_lab.storage.flat import copy_data, punch_hole

RECORD = struct.Struct("<II4Q")
COPY_BYTES = 1024 * 1024


class RecordKind(enum.IntEnum):
    """What happened."""

    SIZE = 1
    WRITE = 2
    ZERO = 3
    FREEZE = 4
    REVERT = 5
    RESTART = 6  # the content comes from elsewhere: the base image of this sequence


@dataclass(frozen=True, slots=True)
class Record:
    """One record; see the module for the meaning of the fields by kind."""

    kind: RecordKind
    offset: int = 0
    length: int = 0
    position: int = 0
    argument: int = 0


class GuestLog:
    """The log of one disk. The disk's lock covers every call."""

    def __init__(self, directory: Path) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self.directory = directory
        flags = os.O_RDWR | os.O_CREAT
        self._index = os.open(directory / "index", flags, 0o600)
        self._data = os.open(directory / "data", flags, 0o600)
        self._index_size = os.fstat(self._index).st_size // RECORD.size * RECORD.size
        self._data_size = os.fstat(self._data).st_size
        self._baseline_pending = self._find_pending()

    @property
    def sequence(self) -> int:
        """The number of the newest record; 0 for an empty log."""
        return self._index_size // RECORD.size

    @property
    def baseline_pending(self) -> bool:
        """Must the base image still be taken, before the guest writes?"""
        return self._baseline_pending

    def size(self, capacity_bytes: int) -> int:
        """The disk has this size from now on."""
        return self._append(Record(RecordKind.SIZE, argument=capacity_bytes))

    def write(self, offset: int, data: memoryview) -> int:
        """The guest wrote."""
        position = self._data_size
        write_exactly(self._data, position, data)
        self._data_size += len(data)
        return self._append(Record(RecordKind.WRITE, offset, len(data), position))

    def zero(self, offset: int, length: int) -> int:
        """The guest wrote zeros, or unmapped."""
        return self._append(Record(RecordKind.ZERO, offset, length))

    def freeze(self) -> int:
        """A link was frozen; the returned sequence names that moment."""
        return self._append(Record(RecordKind.FREEZE))

    def revert(self, sequence: int) -> int:
        """The disk is again what it was after ``sequence``."""
        return self._append(Record(RecordKind.REVERT, argument=sequence))

    def restart(self, capacity_bytes: int) -> int:
        """The content now comes from elsewhere; ``take_baseline`` follows before any write."""
        self._append(Record(RecordKind.RESTART))
        self._baseline_pending = True
        return self.size(capacity_bytes)

    def take_baseline(self, copy: Callable[[Path], None]) -> None:
        """Keep a base image for the newest restart; ``copy`` makes the file."""
        path = self._baseline(self._newest_restart())
        path.unlink(missing_ok=True)
        copy(path)
        self._baseline_pending = False

    def truth(self, to: Path, at: int | None = None) -> None:
        """Replay into a new sparse raw file. Raises: TruthUnknown, FileExists."""
        baseline, records = self._history(self.sequence if at is None else at)
        try:
            target = os.open(to, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
        except FileExistsError as error:
            raise FileExists(f"{to} is already there") from error
        try:
            if baseline is not None:
                self._copy_baseline(baseline, target)
            for record in records:
                self._replay(record, target)
        finally:
            os.close(target)

    def capacity_bytes(self, at: int | None = None) -> int:
        """The size of the disk after a sequence."""
        _, records = self._history(self.sequence if at is None else at)
        sizes = [record.argument for record in records if record.kind is RecordKind.SIZE]
        if not sizes:
            raise TruthUnknown("the guest log does not say the disk's size")
        return sizes[-1]

    def close(self) -> None:
        """Close the files; harmless when done twice."""
        if self._index >= 0:
            os.close(self._index)
            os.close(self._data)
            self._index = self._data = -1

    # -- inside ----------------------------------------------------------------------------

    def _append(self, record: Record) -> int:
        packed = RECORD.pack(
            record.kind, 0, record.offset, record.length, record.position, record.argument
        )
        write_exactly(self._index, self._index_size, packed)
        self._index_size += RECORD.size
        return self.sequence

    def _record(self, sequence: int) -> Record:
        content = os.pread(self._index, RECORD.size, (sequence - 1) * RECORD.size)
        kind, _, offset, length, position, argument = RECORD.unpack(content)
        return Record(RecordKind(kind), offset, length, position, argument)

    def _history(self, sequence: int) -> tuple[int | None, list[Record]]:
        """The restart to begin with (None: zeros) and the records to replay, oldest first."""
        if not 0 < sequence <= self.sequence:
            raise TruthUnknown(f"the guest log has no sequence {sequence}")
        records: list[Record] = []
        while sequence > 0:
            record = self._record(sequence)
            if record.kind is RecordKind.RESTART:
                return sequence, records[::-1]
            if record.kind is RecordKind.REVERT:
                sequence = record.argument
                continue
            records.append(record)
            sequence -= 1
        return None, records[::-1]

    def _newest_restart(self) -> int:
        for sequence in range(self.sequence, 0, -1):
            if self._record(sequence).kind is RecordKind.RESTART:
                return sequence
        raise TruthUnknown("the guest log has no restart")

    def _find_pending(self) -> bool:
        for sequence in range(self.sequence, 0, -1):
            if self._record(sequence).kind is RecordKind.RESTART:
                return not self._baseline(sequence).exists()
        return False

    def _baseline(self, sequence: int) -> Path:
        return self.directory / f"baseline-{sequence}.raw"

    def _copy_baseline(self, sequence: int, target: int) -> None:
        try:
            source = os.open(self._baseline(sequence), os.O_RDONLY)
        except FileNotFoundError as error:
            raise TruthUnknown("no base image of that time was taken") from error
        try:
            size = os.fstat(source).st_size
            os.ftruncate(target, size)
            copy_data(source, target, size)
        finally:
            os.close(source)

    def _replay(self, record: Record, target: int) -> None:
        if record.kind is RecordKind.SIZE:
            os.ftruncate(target, record.argument)
        elif record.kind is RecordKind.ZERO:
            punch_hole(target, record.offset, record.length)
        elif record.kind is RecordKind.WRITE:
            piece = memoryview(bytearray(min(COPY_BYTES, record.length)))
            done = 0
            while done < record.length:
                view = piece[: record.length - done]
                read_exactly(self._data, record.position + done, view)
                write_exactly(target, record.offset + done, view)
                done += len(view)
