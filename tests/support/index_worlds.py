"""Repositories into which index objects can be put without packs."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from holdfast_common.repository.chunk_codec import SegmentHeader
from holdfast_common.repository.index import IndexBuilder
from holdfast_common.repository.index_cache import IndexCache
from holdfast_common.repository.key_sets import ReaderKeys
from holdfast_common.repository.layout import BlobKind, ObjectKind, index_name
from holdfast_common.repository.pack import PackBlob, PackContents, PackSegment
from holdfast_common.repository.repository_index import RepositoryIndex
from holdfast_common.repository.sealed_object import ObjectHeader
from holdfast_common.repository.writers import WriterList
from support.memory_store import MemoryStore
from support.repositories import new_repository


def chunk_id(number: int) -> bytes:
    """The id of a chunk that is only a number."""
    return hashlib.sha256(number.to_bytes(8, "big")).digest()


def pack(numbers: list[int], *, name: str) -> PackContents:
    """A pack that holds these chunks, as far as an index knows."""
    header = SegmentHeader(
        repository_id=bytes(16),
        domain_id=bytes(16),
        origin_id=hashlib.md5(name.encode()).digest(),
        content_epoch=1,
        wrapped_key=bytes(80),
    )
    blobs = tuple(
        PackBlob(
            segment=0,
            number=position,
            offset=144 + position * 100,
            stored_length=100,
            ciphertext_digest=bytes(32),
            chunk_id=chunk_id(number),
            kind=BlobKind.DISK_FRAME,
            blocks=number % 16 + 1,
            presence=(1 << number % 16 + 1) - 1,
            plain_length=(number % 16 + 1) * 65536,
            digests=hashlib.shake_128(chunk_id(number)).digest((number % 16 + 1) * 16),
        )
        for position, number in enumerate(numbers)
    )
    return PackContents(
        digest=hashlib.sha256(name.encode()).digest(),
        length=10_000,
        segments=(PackSegment(offset=0, header=header),),
        blobs=blobs,
    )


class IndexWorld:
    """A repository with a writer and a pruner, and this machine's cache."""

    def __init__(self, store: MemoryStore, *, cache: IndexCache | None = None) -> None:
        self.store = store
        self.cache = cache
        self.repository = new_repository(store)
        self.pruner = Ed25519PrivateKey.generate()
        self.repository.keys.authorise_writer(
            store,
            self.pruner.public_key().public_bytes_raw(),
            agent_id="controller",
            clock=self.repository.clock,
            roles=["prune"],
        )

        self.index = RepositoryIndex(store, self.keys)  # one that is kept, and uses no cache

    def refresh(self) -> None:
        """Let the kept index see what is there now."""
        self.index.refresh(self.writers)

    @property
    def keys(self) -> ReaderKeys:
        return self.repository.keys.common

    @property
    def writers(self) -> WriterList:
        return self.repository.keys.writers(self.store)

    def put(self, *packs: PackContents) -> str:
        """One index object of these packs; its name."""
        builder = IndexBuilder()
        for item in packs:
            builder.add(item)
        key = self.repository.signing_key
        data = self.keys.seal(
            ObjectKind.INDEX,
            builder.encode(writer=key.public_key().public_bytes_raw()),
            signing_key=key,
            randomness=self.repository.randomness,
        )
        name = index_name(ObjectHeader.decode(data).object_id)
        self.store.put(name, data)
        return name

    def opened(self) -> RepositoryIndex:
        """The index as a new process opens it."""
        if self.cache is not None:
            self.cache = IndexCache(self.cache.folder)
        return self.opened_again()

    def opened_again(self) -> RepositoryIndex:
        """The index as a process opens it that has opened it before."""
        index = RepositoryIndex(self.store, self.keys, cache=self.cache)
        index.refresh(self.writers)
        return index

    def cache_files(self) -> Iterator[Path]:
        assert self.cache is not None
        return (path for path in self.cache.folder.rglob("*") if path.is_file())

    def forget_cache(self) -> None:
        for path in list(self.cache_files()):
            path.unlink()

    def revoke_writer(self) -> None:
        """The writer's key is not trusted any more."""
        self.repository.keys.revoke_writer(
            self.store,
            self.repository.signing_key.public_key().public_bytes_raw(),
            clock=self.repository.clock,
            keep_existing=False,
        )
