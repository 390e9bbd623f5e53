"""Before a point is published: is everything that it refers to still there?

A writer's index may be old: a pack may have been lost, or pruned behind its back. When all packs that
the index names are there with their lengths, nothing more need be read; otherwise every chunk that the
new point's maps name is looked for.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from holdfast_common.errors import ObjectMissing
from holdfast_common.repository.disk_map import DiskMap, PageStore
from holdfast_common.repository.key_sets import ReaderKeys
from holdfast_common.repository.manifest import BlobRecord, DiskSummary
from holdfast_common.repository.object_store import ObjectStore
from holdfast_common.repository.repository_index import RepositoryIndex


def stored_packs(store: ObjectStore) -> dict[bytes, int]:
    """Digest and length of every pack in the store."""
    found = {}
    for info in store.list("packs/"):
        digest = info.name.rpartition("/")[2]
        if len(digest) == 64 and all(character in "0123456789abcdef" for character in digest):
            found[bytes.fromhex(digest)] = info.length
    return found


def check_references(
    store: ObjectStore,
    keys: ReaderKeys,
    *,
    index: RepositoryIndex,
    written: Sequence[bytes],
    disks: Iterable[DiskSummary],
    blobs: Iterable[BlobRecord],
) -> None:
    """Raises: ObjectMissing naming the first chunk or pack that is gone; RepositoryFailed."""
    present = stored_packs(store)
    for digest in written:
        if digest not in present:
            raise ObjectMissing("a pack of this attempt is gone", pack=digest.hex())
    lost = {pack.digest for pack in index.packs() if present.get(pack.digest) != pack.length}
    if not lost and not index.has_vanished(store):
        return
    fresh = index.reloaded()
    for chunk_id in _chunks(store, keys, disks, blobs):
        places = fresh.find_all(chunk_id)
        if not any(
            present.get(place.origin.pack.digest) == place.origin.pack.length for place in places
        ):
            raise ObjectMissing(
                "data that this point refers to is no longer in the repository",
                chunk=chunk_id.hex(),
                advice="run `holdfast repo check`; the next backup of this VM should be a full one",
            )


def _chunks(
    store: ObjectStore, keys: ReaderKeys, disks: Iterable[DiskSummary], blobs: Iterable[BlobRecord]
) -> Iterator[bytes]:
    pages = PageStore(store, keys)
    for disk in disks:
        disk_map = DiskMap(pages, disk.root, capacity_bytes=disk.header.capacity_bytes)
        for number, reference in disk_map.references():
            leaf = disk_map.load_leaf(number, reference)
            yield from {chunk_id for chunk_id in leaf.ids if chunk_id is not None}
    for blob in blobs:
        yield from (chunk_id for chunk_id, _ in blob.chunks)
