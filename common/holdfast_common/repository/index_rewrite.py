"""Several index segments into one, without the packs that go: rows keep their origins' writers.

Works on the columns. The digests stand in the packs' order again, so that comparing disks reads them in runs.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from holdfast_common.repository.index import (
    LOCATION_ROW,
    ORIGIN_ROW,
    PACK_ROW,
    Array,
    IndexBuilder,
    IndexSegment,
    Section,
    decoded_segment,
    encoded_sections,
    filter_bits,
)
from holdfast_common.repository.layout import BLOCK_DIGEST_BYTES, KEY_BYTES
from holdfast_common.repository.pack import PackContents

NOBODY = bytes(KEY_BYTES)  # the writer of what no index names: never trusted for dedup
_DIGEST = np.dtype(f"V{BLOCK_DIGEST_BYTES}")


@dataclass(frozen=True, slots=True)
class OpenIndex:
    """A segment with its body, in which the digests lie."""

    segment: IndexSegment
    body: bytes


def index_of_packs(contents: Sequence[PackContents]) -> OpenIndex:
    """An index of packs as their own footers describe them; who wrote them is not known."""
    builder = IndexBuilder()
    for each in contents:
        builder.add(each)
    body = builder.encode(writer=NOBODY)
    return OpenIndex(decoded_segment(body), body)


def rewritten_index(
    parts: Sequence[OpenIndex],
    *,
    kept: Collection[bytes],
    writers: Mapping[bytes, bytes],
    supersedes: Sequence[bytes],
    besides: Collection[bytes] = frozenset(),
) -> bytes:
    """The body of one index of all packs of the parts that are kept, each once.

    ``writers``: by origin, for parts that do not know them; ``supersedes``: object ids. ``besides``: packs
    of which parts say different things: only the last part, made of their own footers, is believed.
    """
    merging = _Merging(writers)
    for number, part in enumerate(parts, start=1):
        merging.add(part, kept, besides if number < len(parts) else frozenset())
    return merging.encode(supersedes)


class _Merging:
    def __init__(self, writers: Mapping[bytes, bytes]) -> None:
        self._known_writers = writers
        self._packs: dict[bytes, int] = {}  # digest -> length, in the order of their rows
        self._origins: list[Array] = []
        self._origin_count = 0
        self._writers: dict[bytes, int] = {}
        self._rows: list[Array] = []
        self._prefixes: list[Array] = []
        self._tails: list[Array] = []
        self._digests: list[Array] = []
        self._digest_count = 0

    def add(self, part: OpenIndex, kept: Collection[bytes], besides: Collection[bytes]) -> None:
        """Take from a part the packs that are kept and were not in an earlier one."""
        segment = part.segment
        digests = [row["digest"].tobytes() for row in segment.packs]
        known = {*self._packs, *besides}
        taken = np.array([each in kept and each not in known for each in digests], np.bool_)
        if not taken.any():
            return
        new_pack = np.cumsum(taken) - 1 + len(self._packs)
        for digest, row, is_taken in zip(digests, segment.packs, taken, strict=True):
            if is_taken:
                self._packs[digest] = int(row["length"])
        origin_taken = taken[segment.origins["pack"]]
        new_origin = np.cumsum(origin_taken) - 1 + self._origin_count
        origins = segment.origins[origin_taken].copy()
        origins["pack"] = new_pack[origins["pack"]]
        origins["writer"] = [self._writer(segment, row) for row in origins]
        self._origins.append(origins)
        self._origin_count += len(origins)
        self._add_rows(part, origin_taken, new_origin)

    def _add_rows(self, part: OpenIndex, origin_taken: Array, new_origin: Array) -> None:
        segment = part.segment
        taken = np.flatnonzero(origin_taken[segment.locations["origin"]])
        rows = segment.locations[taken].copy()
        in_pack_order = np.lexsort((rows["offset"], new_origin[rows["origin"]]))
        rows, taken = rows[in_pack_order], taken[in_pack_order]
        rows["origin"] = new_origin[rows["origin"]]
        counts = rows["blocks"].astype(np.int64)
        starts = np.cumsum(counts) - counts
        inside = np.arange(int(counts.sum())) - np.repeat(starts, counts)
        all_digests = np.frombuffer(
            part.body,
            _DIGEST,
            count=segment.digests_length // BLOCK_DIGEST_BYTES,
            offset=segment.digests_offset,
        )
        self._digests.append(
            all_digests[np.repeat(rows["digest"].astype(np.int64), counts) + inside]
        )
        rows["digest"] = starts + self._digest_count
        self._digest_count += int(counts.sum())
        self._rows.append(rows)
        self._prefixes.append(segment.prefixes[taken])
        self._tails.append(segment.tails[taken])

    def _writer(self, segment: IndexSegment, origin: np.void) -> int:
        writer = segment.writers[int(origin["writer"])]
        if writer == NOBODY:
            writer = self._known_writers.get(origin["origin_id"].tobytes(), NOBODY)
        return self._writers.setdefault(writer, len(self._writers))

    def encode(self, supersedes: Sequence[bytes]) -> bytes:
        """All of it, sorted."""
        rows = _joined(self._rows, LOCATION_ROW)
        prefixes = _joined(self._prefixes, np.dtype("<u8"))
        tails = _joined(self._tails, np.dtype("V24"))
        ids = np.zeros((len(rows), 4), ">u8")
        ids[:, 0] = prefixes
        ids[:, 1:] = np.frombuffer(tails.tobytes(), ">u8").reshape(-1, 3)
        order = np.lexsort((ids[:, 3], ids[:, 2], ids[:, 1], ids[:, 0]))
        packs = np.array(list(self._packs.items()), PACK_ROW)
        return encoded_sections(
            {
                Section.PACKS: packs.tobytes(),
                Section.ORIGINS: _joined(self._origins, ORIGIN_ROW).tobytes(),
                Section.WRITERS: b"".join(self._writers),
                Section.PREFIXES: prefixes[order].astype("<u8").tobytes(),
                Section.TAILS: tails[order].tobytes(),
                Section.LOCATIONS: rows[order].tobytes(),
                Section.FILTER: filter_bits(ids[order], rows[order]),
                Section.DIGESTS: _joined(self._digests, _DIGEST).tobytes(),
                Section.SUPERSEDES: b"".join(supersedes),
            }
        )


def _joined(pieces: Sequence[Array], row: np.dtype[np.void] | np.dtype[np.uint64]) -> Array:
    return np.concatenate(pieces) if pieces else np.zeros(0, row)
