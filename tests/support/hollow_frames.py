"""Frames without their dead blocks, as a repacker that holds content keys may leave them (FORMAT.md, "hollow")."""

from __future__ import annotations

from collections.abc import Mapping

from holdfast_common.repository.chunk_location import ChunkLocation
from holdfast_common.repository.disk_map import DiskMap, PageStore
from holdfast_common.repository.frame_reader import FrameReader
from holdfast_common.repository.layout import (
    BLOCK_BYTES,
    BLOCK_DIGEST_BYTES,
    BLOCKS_PER_LEAF,
    BlobKind,
    index_name,
    pack_name,
)
from holdfast_common.repository.live_chunks import find_needed
from holdfast_common.repository.pack_survey import survey_packs
from holdfast_common.repository.pack_writer import CompletePack, PackWriter
from holdfast_common.repository.points import list_points
from holdfast_common.repository.prune_plan import IndexPlan
from holdfast_common.repository.prune_writing import rewrite_indexes
from holdfast_common.repository.repository_index import RepositoryIndex
from holdfast_common.repository.writers import load_writers
from support.pruning import Pruner
from support.repositories import LINEAGE, Repository


def needed_blocks(repository: Repository) -> dict[bytes, int]:
    """Of each frame that points use: bit per block that one of them needs."""
    found: dict[bytes, int] = {}
    for point in list_points(repository.store, repository.keys).points:
        keys = repository.keys.of_tag(point.lineage_tag)
        assert keys is not None, "a repository's own keys are those of all lineages"
        for disk in point.disks:
            disk_map = DiskMap(
                PageStore(repository.store, keys),
                disk.summary.root,
                capacity_bytes=disk.header.capacity_bytes,
            )
            for number, reference in disk_map.references():
                leaf = disk_map.load_leaf(number, reference)
                for block in range(BLOCKS_PER_LEAF):
                    chunk_id = leaf.ids[block]
                    if chunk_id is not None:
                        found[chunk_id] = found.get(chunk_id, 0) | 1 << leaf.places[block]
    return found


def hollow_out(repository: Repository, pruner: Pruner) -> int:
    """Store all chunks anew, frames without what no point needs, in two copies the first of them; how many
    lack blocks. The packs and index objects of before are gone."""
    store, keys = repository.store, repository.keys
    writers = load_writers(store, keys.common)
    index = RepositoryIndex(store, keys.common)
    index.refresh(writers)
    frames = FrameReader(store, keys.common, index=index, segment_keys=keys)
    complete: list[CompletePack] = []
    packs = PackWriter(
        store,
        keys.writer_keys(LINEAGE),
        randomness=repository.randomness,
        finished=complete.append,
        pack_bytes=1 << 20,
    )
    hollow = _store_needed(
        [places[0] for places in _by_chunk(index).values()],
        needed_blocks(repository),
        frames=frames,
        packs=packs,
    )
    packs.close()
    survey = survey_packs(
        store,
        keys.common,
        writers,
        needed=find_needed(store, keys).chunks,
        needed_indexes=frozenset(),
        doomed=frozenset(),
        dead_share_min=0.0,
    )
    going = set(survey.packs)
    done = rewrite_indexes(
        store,
        survey,
        IndexPlan(dead=(), rewritten=(tuple(survey.indexes),)),
        added=[each.commit() for each in complete],
        going=going,
        keys=keys.common,
        signing_key=pruner.signing_key,
        randomness=repository.randomness,
    )
    for name in (*map(index_name, done), *map(pack_name, going)):
        store.delete(name)
    return hollow


def _by_chunk(index: RepositoryIndex) -> Mapping[bytes, list[ChunkLocation]]:
    found: dict[bytes, list[ChunkLocation]] = {}
    for places in index.by_pack([pack.digest for pack in index.packs()]).values():
        for place in places:
            found.setdefault(place.chunk_id, []).append(place)
    return found


def _store_needed(
    places: list[ChunkLocation],
    needed: Mapping[bytes, int],
    *,
    frames: FrameReader,
    packs: PackWriter,
) -> int:
    hollow = 0
    for place in places:
        plain = bytes(frames.read_at(place))
        if place.kind is not BlobKind.DISK_FRAME:
            _store(packs, place, plain)
            continue
        bits = needed.get(place.chunk_id, 0)
        if not bits:
            continue
        digests = frames.index.digests(place)
        if bits == (1 << place.blocks) - 1:
            _store(packs, place, plain, digests=digests)
            continue
        if not hollow:  # a copy that has less than the other one
            _store(packs, place, plain, digests=digests, presence=bits & (bits - 1))
        _store(packs, place, plain, digests=digests, presence=bits)
        hollow += 1
    return hollow


def _store(
    packs: PackWriter,
    place: ChunkLocation,
    plain: bytes,
    *,
    digests: bytes = b"",
    presence: int | None = None,
) -> None:
    """Seal and append one blob; ``presence``: the blocks of it that are stored."""
    if presence is not None:
        plain = b"".join(
            plain[block * BLOCK_BYTES : (block + 1) * BLOCK_BYTES]
            for block in range(len(digests) // BLOCK_DIGEST_BYTES)
            if presence >> block & 1
        )
    stored_length = len(plain) + 16
    sealer = packs.sealer(stored_length)
    binding = sealer.next_binding(kind=place.kind, chunk_id=place.chunk_id, plain_length=len(plain))
    sealer.cipher.seal_into(plain, binding, packs.room(stored_length))
    packs.append(
        number=binding.number,
        stored_length=stored_length,
        chunk_id=place.chunk_id,
        kind=place.kind,
        plain_length=len(plain),
        digests=digests,
        presence=presence,
    )
