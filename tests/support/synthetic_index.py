"""An index of any number of chunks on this machine, without the repository's objects: made in sorted order."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from blake3 import blake3

from holdfast_common.errors import RepositoryFailed
from holdfast_common.repository.index import (
    LOCATION_ROW,
    ORIGIN_ROW,
    PACK_ROW,
    Section,
    empty_filter,
    note_in_filter,
    packed_filter,
    section_start,
)
from holdfast_common.repository.index_cache import IndexCache
from holdfast_common.repository.index_cache_builder import SegmentBody, store_in_cache
from holdfast_common.repository.index_table import TAIL_WORDS
from holdfast_common.repository.layout import BlobKind, ObjectKind, index_name
from holdfast_common.repository.object_store import ObjectInfo
from holdfast_common.repository.sealed_object import OpenedObject
from support.memory_store import MemoryStore
from support.repositories import Repository, new_repository

CHUNKS_PER_PACK = 64
STORED_LENGTH = 1 << 20


class SyntheticIndex:
    """Segments of random ids in a cache folder, and a store that lists their objects but cannot read them."""

    def __init__(self, folder: Path) -> None:
        self.store = ListedStore()
        self.repository: Repository = new_repository(self.store)
        self.cache = IndexCache(folder)

    def add(self, chunks: int, *, seed: int) -> bytes:
        """One segment's file; some of its ids, one after the other."""
        keys = self.repository.keys.common
        random = np.random.default_rng(seed)
        body, sample = _body(
            chunks, random, self.repository.signing_key.public_key().public_bytes_raw()
        )
        header = keys.new_header(ObjectKind.INDEX, self.repository.randomness)
        found = OpenedObject(
            header=header,
            body=b"",
            digest=blake3(seed.to_bytes(8, "little")).digest(),
            signer=self.repository.signing_key.public_key().public_bytes_raw(),
        )
        name = index_name(header.object_id)
        source = SegmentBody(
            found, lambda start, length: bytes(body[start : start + length]), len(body)
        )
        made = store_in_cache(self.cache, name, source, stored_length=STORED_LENGTH, keys=keys)
        assert made is not None
        self.store.listed.append(name)
        return sample


class ListedStore(MemoryStore):
    """Index objects that are only names: whoever needs one has lost the cache."""

    def __init__(self) -> None:
        super().__init__()
        self.listed: list[str] = []

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        if prefix != "index/":
            yield from super().list(prefix)
        else:
            yield from (ObjectInfo(name=name, length=STORED_LENGTH) for name in sorted(self.listed))

    def get(self, name: str, *, length_max: int) -> bytes:
        if name.startswith("index/"):
            raise RepositoryFailed("this index object is in the cache only", name=name)
        return super().get(name, length_max=length_max)


def _body(chunks: int, random: np.random.Generator, writer: bytes) -> tuple[memoryview, bytes]:
    packs = -(-chunks // CHUNKS_PER_PACK)
    pack_rows = np.zeros(packs, PACK_ROW)
    pack_rows["digest"] = np.frombuffer(random.bytes(32 * packs), "V32")
    pack_rows["length"] = 64 << 20
    origins = np.zeros(packs, ORIGIN_ROW)
    origins["origin_id"] = np.frombuffer(random.bytes(16 * packs), "V16")
    origins["pack"] = np.arange(packs)
    prefixes = np.sort(random.integers(0, 1 << 64, chunks, np.uint64))
    tails = np.frombuffer(random.bytes(chunks * TAIL_WORDS * 8), "<u8").reshape(-1, TAIL_WORDS)
    rows = np.zeros(chunks, LOCATION_ROW)
    rows["origin"] = random.integers(0, packs, chunks)
    rows["number"] = np.arange(chunks) % CHUNKS_PER_PACK
    rows["offset"] = 144 + rows["number"] * (1 << 20)
    rows["stored"] = 1 << 19
    rows["plain"] = 1 << 20
    rows["kind"] = BlobKind.DISK_FRAME
    rows["blocks"] = 16
    rows["presence"] = (1 << 16) - 1
    flags = empty_filter(chunks)
    note_in_filter(flags, tails.byteswap(), rows)
    sections = {
        Section.PACKS: pack_rows.tobytes(),
        Section.ORIGINS: origins.tobytes(),
        Section.WRITERS: writer,
        Section.PREFIXES: prefixes.tobytes(),
        Section.TAILS: tails.tobytes(),
        Section.LOCATIONS: rows.tobytes(),
        Section.FILTER: packed_filter(flags),
        Section.DIGESTS: b"",
    }
    chosen = random.integers(0, chunks, min(chunks, 4096))
    ids = np.zeros((len(chosen), 4), "<u8")
    ids[:, 0] = prefixes[chosen].byteswap()
    ids[:, 1:] = tails[chosen]
    # digests are not made: the section is said to be as long as the locations need
    lengths = {section: len(data) for section, data in sections.items()}
    lengths[Section.DIGESTS] = 16 * 16
    start = section_start(lengths)
    return memoryview(b"".join([start, *sections.values(), bytes(16 * 16)])), ids.tobytes()
