"""What an index object says of each of its packs, so that two of them can be told to say the same.

An index is any writer's claim about anybody's packs. One that names a pack and says little, or something else
of it, must never stand for one that says all. Between `pack_survey` and `prune_plan`, `prune_writing`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import numpy as np
from blake3 import blake3

from holdfast_common.repository.index import Array, IndexSegment
from holdfast_common.repository.layout import BLOCK_DIGEST_BYTES

_COLUMNS: Final = ("number", "offset", "stored", "plain", "kind", "blocks", "presence")
_UNCLEAR: Final = b"?"
_ORIGIN_COLUMNS: Final = ("origin_id", "epoch", "wrapped_key")


def claims_of(segment: IndexSegment, body: bytes, *, object_id: bytes) -> Mapping[bytes, bytes]:
    """By pack: a digest of all that the segment says of it, its writers too, whatever the order of its rows.

    A pack that one segment names twice is said nothing clear of: its digest equals no other's.
    """
    packs = [row["digest"].tobytes() for row in segment.packs]
    rows = segment.locations
    row_packs = segment.origins["pack"][rows["origin"]] if len(rows) else np.zeros(0, "<u4")
    order = np.lexsort((rows["number"], rows["offset"], row_packs))
    ends = np.searchsorted(row_packs[order], np.arange(len(packs)), side="right")
    said = _said(segment, order)
    digests = np.frombuffer(
        body, np.uint8, count=segment.digests_length, offset=segment.digests_offset
    ).reshape(-1, BLOCK_DIGEST_BYTES)
    claims: dict[bytes, bytes] = {}
    start = 0
    lengths = segment.packs["length"].tolist()
    for pack, length, end in zip(packs, lengths, ends.tolist(), strict=True):
        if pack in claims:
            claims[pack] = _UNCLEAR + blake3(object_id + pack).digest()
        else:
            hasher = blake3(int(length).to_bytes(8, "little"))
            hasher.update(said[start:end].tobytes())
            hasher.update(_digests_of(rows[order[start:end]], digests))
            claims[pack] = hasher.digest()
        start = end
    return claims


def is_clear(claim: bytes) -> bool:
    """Whether a pack is named once there."""
    return len(claim) == blake3.digest_size


def _said(segment: IndexSegment, order: Array) -> Array:
    """A line for each row, in that order: everything but where it stands in its segment."""
    rows = segment.locations[order]
    origins = segment.origins[rows["origin"]]
    writers = np.array([np.void(key) for key in segment.writers]) if segment.writers else None
    fields = [("prefix", "<u8"), ("tail", segment.tails.dtype, segment.tails.shape[1:])]
    fields += [(name, rows.dtype[name]) for name in _COLUMNS]
    fields += [(name, origins.dtype[name]) for name in _ORIGIN_COLUMNS]
    said = np.zeros(len(rows), np.dtype([*fields, ("writer", "V32")]))
    said["prefix"] = segment.prefixes[order]
    said["tail"] = segment.tails[order]
    for name in _COLUMNS:
        said[name] = rows[name]
    for name in _ORIGIN_COLUMNS:
        said[name] = origins[name]
    if writers is not None:
        said["writer"] = writers[origins["writer"]]
    return said


def _digests_of(rows: Array, digests: Array) -> bytes:
    """The digests of these rows' blocks, one row after the other."""
    counts = rows["blocks"].astype(np.int64)
    starts = np.cumsum(counts) - counts
    inside = np.arange(int(counts.sum())) - np.repeat(starts, counts)
    chosen = np.repeat(rows["digest"].astype(np.int64), counts) + inside
    return bytes(digests[chosen].tobytes())
