"""Where a chunk lies: what an index answers, and all that is needed to read and open that copy."""

from __future__ import annotations

from dataclasses import dataclass

from holdfast_common.repository.index_segment import IndexedOrigin
from holdfast_common.repository.layout import BlobKind


@dataclass(frozen=True, slots=True, kw_only=True)
class ChunkLocation:
    """Where one copy of a chunk lies and how to open it."""

    chunk_id: bytes
    kind: BlobKind
    origin: IndexedOrigin
    number: int
    offset: int
    stored_length: int
    plain_length: int
    blocks: int
    presence: int
    digest_segment: int  # which loaded index segment holds its digests
    digest_start: int

    @property
    def is_hollow(self) -> bool:
        """Whether dead blocks were taken out of it."""
        return self.presence != (1 << self.blocks) - 1
