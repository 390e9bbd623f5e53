"""One worker of a backup: windows of a disk -> digests, id, known? -> compressed, sealed, decoded, packed.

Each worker is owned by one thread and has its own buffers, compressor and open pack, so there is no lock
on the data's path. Nothing counts before it was opened, decompressed and hashed again.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Final

from holdfast_common.direct_writes import page_aligned
from holdfast_common.errors import IntegrityError
from holdfast_common.repository.chunk_codec import Compressor, Decompressor
from holdfast_common.repository.chunk_location import ChunkLocation
from holdfast_common.repository.derivation import Hasher
from holdfast_common.repository.forgetting import overwrite_ends
from holdfast_common.repository.layout import (
    BLOCK_BYTES,
    BLOCKS_PER_FRAME,
    DEDUP_BLOCKS_MIN,
    FRAME_BYTES,
    TAG_BYTES,
    BlobKind,
)
from holdfast_common.repository.pack_listing import PresentPacks
from holdfast_common.repository.pack_writer import PackWriter
from holdfast_common.repository.repository_index import RepositoryIndex
from holdfast_common.repository.trusted_chunks import TrustedChunks
from holdfast_common.repository.window import Window, WindowBuffer
from holdfast_common.units import MIB

OPAQUE_CHUNK_BYTES: Final = MIB
_NOT_COMPARED: Final = (b"",) * BLOCKS_PER_FRAME  # digests that equal none


@dataclass(frozen=True, slots=True, kw_only=True)
class WindowResult:
    """What became of a window's blocks; bytes in the counts."""

    number: int
    zero_blocks: tuple[int, ...]
    frame_id: bytes | None
    frame_blocks: tuple[int, ...]  # in the frame's order
    received_bytes: int = 0
    zero_bytes: int = 0
    unchanged_bytes: int = 0
    known_bytes: int = 0
    new_bytes: int = 0
    stored_bytes: int = 0


@dataclass(slots=True)
class KnownChunks:
    """Chunks that this attempt may refer to without storing them again. Shared by its workers.

    These are its own, those that its writer stored before, and those in packs that another one than their
    writer proved. (Otherwise one bad proxy could poison everybody's points under a true id.)
    """

    index: RepositoryIndex
    trusted: TrustedChunks
    packs: PresentPacks
    claimed: dict[bytes, object] = field(default_factory=dict)
    used_indexes: set[bytes] = field(default_factory=set)  # index objects that were relied on

    def claim(self, chunk_id: bytes, *, blocks: int) -> bool:
        """Whether the caller must store it; of several callers only one is told so."""
        mine = object()
        # setdefault is one atomic step: two workers never both store the same frame.
        if self.claimed.setdefault(chunk_id, mine) is not mine:
            return False
        for location in self.index.find_all(chunk_id):
            fits = location.blocks == blocks and not location.is_hollow
            if fits and self.is_there(location) and self.trusted.trusts(location):
                object_id = self.index.object_of(location)
                if object_id is not None:
                    self.used_indexes.add(object_id)
                    return False
        return True

    def is_there(self, location: ChunkLocation) -> bool:
        """Whether the pack is in the store as the index knows it: an index alone proves nothing."""
        pack = location.origin.pack
        return self.packs.get(pack.digest) == pack.length

    def forget(self, chunk_ids: Iterable[bytes]) -> None:
        """These are in the index now; keeping them twice would cost memory."""
        for chunk_id in chunk_ids:
            self.claimed.pop(chunk_id, None)


class FrameWorker:
    """Owns buffers, a compressor and an open pack. One thread."""

    def __init__(
        self, *, packs: PackWriter, known: KnownChunks, hasher: Hasher, level: int
    ) -> None:
        self.packs = packs
        self._known = known
        self._hasher = hasher
        self._compressor = Compressor(level)
        self._decompressor = Decompressor()
        self._window = WindowBuffer()
        self._joined = page_aligned(FRAME_BYTES)
        self._opened = page_aligned(FRAME_BYTES)
        self._decoded = page_aligned(FRAME_BYTES)

    def process(self, window: Window) -> WindowResult:
        """Read what is to be read of a window and store what is new in it.

        Raises: IntegrityError, RepositoryFull, RepositoryFailed, and what the window's source raises.
        """
        buffer = window.load(self._window)
        nonzero = buffer.nonzero(window.received)
        before: Sequence[bytes | None] = window.previous_digests or _NOT_COMPARED
        zero_blocks: list[int] = []
        frame_blocks: list[int] = []
        digests: list[bytes] = []
        received = zero = unchanged = new = 0
        for block in range(BLOCKS_PER_FRAME):
            bit = 1 << block
            if window.zeroed & bit and before[block] is not None:
                zero_blocks.append(block)
            if not window.received & bit:
                continue
            data = buffer.blocks[block]
            if block == window.tail_block:
                data = data[: window.tail_length]
            received += len(data)
            if not nonzero & bit:
                zero += len(data)
                if before[block] is not None:
                    zero_blocks.append(block)
                continue
            digest = self._hasher.block_digest(data)
            if digest == before[block]:
                unchanged += len(data)
                continue
            frame_blocks.append(block)
            digests.append(digest)
            new += len(data)
        known = stored = 0
        frame_id = None
        if frame_blocks:
            joined = b"".join(digests)
            frame_id = self._hasher.frame_id(joined)
            if len(frame_blocks) < DEDUP_BLOCKS_MIN or self._known.claim(
                frame_id, blocks=len(frame_blocks)
            ):
                plain = self._frame(buffer, frame_blocks, length=new)
                stored = self._store(
                    plain, kind=BlobKind.DISK_FRAME, chunk_id=frame_id, digests=joined
                )
            else:
                known, new = new, 0
        return WindowResult(
            number=window.number,
            zero_blocks=tuple(zero_blocks),
            frame_id=frame_id,
            frame_blocks=tuple(frame_blocks),
            received_bytes=received,
            zero_bytes=zero,
            unchanged_bytes=unchanged,
            known_bytes=known,
            new_bytes=new,
            stored_bytes=stored,
        )

    def store_opaque(self, data: bytes) -> tuple[tuple[bytes, int], ...]:
        """Store a blob in chunks of 1 MiB; their ids and lengths. Raises: as `process`."""
        chunks = []
        for start in range(0, len(data), OPAQUE_CHUNK_BYTES):
            part = memoryview(data)[start : start + OPAQUE_CHUNK_BYTES]
            chunk_id = self._hasher.chunk_id(part)
            if self._known.claim(chunk_id, blocks=0):
                self._store(part, kind=BlobKind.OPAQUE, chunk_id=chunk_id, digests=b"")
            chunks.append((chunk_id, len(part)))
        return tuple(chunks)

    def _frame(self, buffer: WindowBuffer, blocks: list[int], *, length: int) -> memoryview:
        """The frame's bytes: a part of the window if its blocks lie together, else joined."""
        first, last = blocks[0], blocks[-1]
        if last - first + 1 == len(blocks):
            return buffer.data[first * BLOCK_BYTES : first * BLOCK_BYTES + length]
        for place, block in enumerate(blocks):
            start = place * BLOCK_BYTES
            count = min(BLOCK_BYTES, length - start)
            self._joined[start : start + count] = buffer.blocks[block][:count]
        return self._joined[:length]

    def _store(self, plain: memoryview, *, kind: BlobKind, chunk_id: bytes, digests: bytes) -> int:
        payload = self._compressor.payload(plain)
        stored_length = len(payload) + TAG_BYTES
        sealer = self.packs.sealer(stored_length)
        binding = sealer.next_binding(kind=kind, chunk_id=chunk_id, plain_length=len(plain))
        room = self.packs.room(stored_length)
        sealer.cipher.seal_into(payload, binding, room)
        if isinstance(payload, bytes):  # the compressor's; only its length is still needed
            overwrite_ends(payload)
        # Decode before it counts: an encoder's or a memory's fault must not become somebody's last copy.
        opened = self._opened[: len(payload)]
        sealer.cipher.open_into(room, binding, opened)
        decoded = opened
        if len(payload) != len(plain):
            decoded = self._decoded[: len(plain)]
            self._decompressor.decompress_into(opened, decoded)
        if self._id_of(decoded, kind=kind) != chunk_id:
            raise IntegrityError(
                "what was encoded does not decode to what was read; this machine's memory may be faulty"
            )
        self.packs.append(
            number=binding.number,
            stored_length=stored_length,
            chunk_id=chunk_id,
            kind=kind,
            plain_length=len(plain),
            digests=digests,
        )
        return stored_length

    def _id_of(self, plain: bytes | memoryview, *, kind: BlobKind) -> bytes:
        if kind is BlobKind.DISK_FRAME:
            return frame_id_of(plain, self._hasher)
        return self._hasher.chunk_id(plain)


def frame_id_of(plain: bytes | memoryview, hasher: Hasher) -> bytes:
    """The id of a whole disk frame, from its bytes."""
    view = memoryview(plain)
    return hasher.frame_id(
        b"".join(
            hasher.block_digest(view[start : start + BLOCK_BYTES])
            for start in range(0, len(view), BLOCK_BYTES)
        )
    )
