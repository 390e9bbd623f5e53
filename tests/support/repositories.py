"""Whole repositories for tests: made, written and read in a few lines, with time and chance under control."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDFExpand

from holdfast_common.extents import Extent
from holdfast_common.identity import JobId
from holdfast_common.repository.keys import RepositoryKeys, create_repository
from holdfast_common.repository.manifest import DiskHeader, ManifestFacts, PointDisk
from holdfast_common.repository.object_store import ObjectStore
from holdfast_common.repository.points import Point
from holdfast_common.repository.randomness import SYSTEM_RANDOMNESS, Randomness
from holdfast_common.repository.reader import RepositoryReader
from holdfast_common.repository.recipients import NewRecipient
from holdfast_common.repository.recovery_sheet import RecoverySheet
from holdfast_common.repository.repository_index import RepositoryIndex
from holdfast_common.repository.writer import PointWriter, PreparedPoint
from holdfast_common.repository.writers import ROLES

LINEAGE = "vcenter-1/5028a1c3-vm"
BLOCK = 64 * 1024
DEVICE_KEY = 2000


class FixedClock:
    """A clock that moves only when told."""

    def __init__(self) -> None:
        self.moment = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)
        self.seconds = 1000.0

    def now(self) -> datetime:
        return self.moment

    def monotonic_seconds(self) -> float:
        return self.seconds

    def seconds_since_1970(self) -> float:
        return self.moment.timestamp()

    def advance(self, seconds: float) -> None:
        """Both clocks go on."""
        self.seconds += seconds
        self.moment += timedelta(seconds=seconds)


class SeededRandomness:
    """The same bytes in every run. HPKE's sender is written out here, from RFC 9180: the product's own
    draws its ephemeral key where no test can reach it; that the product opens what this one seals shows
    that both mean the same."""

    def __init__(self, seed: str) -> None:
        self._seed = seed.encode()
        self._count = 0

    def draw(self, count: int) -> bytes:
        self._count += 1
        return hashlib.shake_256(self._seed + self._count.to_bytes(8, "big")).digest(count)

    def seal_to(self, public_key: bytes, *, plain: bytes, info: bytes) -> bytes:
        ephemeral = X25519PrivateKey.from_private_bytes(self.draw(32))
        encapsulated = ephemeral.public_key().public_bytes_raw()
        kem = b"KEM\x00\x20"
        suite = b"HPKE\x00\x20\x00\x01\x00\x02"
        shared = ephemeral.exchange(X25519PublicKey.from_public_bytes(public_key))
        secret = _expand(
            kem,
            _extract(kem, b"", b"eae_prk", shared),
            b"shared_secret",
            encapsulated + public_key,
            32,
        )
        context = (
            b"\x00"
            + _extract(suite, b"", b"psk_id_hash", b"")
            + _extract(suite, b"", b"info_hash", info)
        )
        root = _extract(suite, secret, b"secret", b"")
        key = _expand(suite, root, b"key", context, 32)
        nonce = _expand(suite, root, b"base_nonce", context, 12)
        return encapsulated + AESGCM(key).encrypt(nonce, plain, b"")


def _extract(suite: bytes, salt: bytes, label: bytes, material: bytes) -> bytes:
    return hmac.digest(salt or bytes(32), b"HPKE-v1" + suite + label + material, "sha256")


def _expand(suite: bytes, key: bytes, label: bytes, info: bytes, length: int) -> bytes:
    labelled = length.to_bytes(2, "big") + b"HPKE-v1" + suite + label + info
    return HKDFExpand(algorithm=SHA256(), length=length, info=labelled).derive(key)


@dataclass
class Repository:
    """A repository with one listed writer, and short ways to use it."""

    store: ObjectStore
    keys: RepositoryKeys
    sheet: RecoverySheet
    signing_key: Ed25519PrivateKey
    clock: FixedClock
    randomness: Randomness = field(default_factory=lambda: SYSTEM_RANDOMNESS)
    workers: int = 0
    jobs: int = 0

    def new_job(self) -> JobId:
        self.jobs += 1
        return JobId(f"JOB{self.jobs:05d}")

    def writer(
        self,
        *,
        job_id: JobId | None = None,
        attempt: int = 1,
        store: ObjectStore | None = None,
        signing_key: Ed25519PrivateKey | None = None,
        lineage: str = LINEAGE,
        index: RepositoryIndex | None = None,
        damaged_packs: Collection[bytes] = (),
    ) -> PointWriter:
        return PointWriter(
            store if store is not None else self.store,
            self.keys.writer_keys(lineage),
            signing_key=signing_key or self.signing_key,
            agent_id="proxy-1",
            job_id=job_id or self.new_job(),
            attempt=attempt,
            clock=self.clock,
            workers=self.workers,
            index=index,
            randomness=self.randomness,
            damaged_packs=damaged_packs,
        )

    def grant(self, prepared: PreparedPoint, *, controller_epoch: int = 1) -> bytes:
        return self.keys.commit_grant(
            job_id=prepared.manifest.job_id,
            attempt=prepared.manifest.attempt,
            manifest_digest=prepared.manifest_digest,
            controller_epoch=controller_epoch,
        )

    def backup(
        self,
        image: bytes | bytearray,
        *,
        ranges: Iterable[tuple[int, int]] | None = None,
        previous: PointDisk | None = None,
        compare: bool = False,
        blobs: dict[str, bytes] | None = None,
        job_id: JobId | None = None,
        attempt: int = 1,
        store: ObjectStore | None = None,
        signing_key: Ed25519PrivateKey | None = None,
        lineage: str = LINEAGE,
        facts: ManifestFacts | None = None,
    ) -> Point:
        """One point of one disk. ``ranges``: (offset, length) to write, all of it by default."""
        job_id = job_id or self.new_job()
        with self.writer(
            job_id=job_id, attempt=attempt, store=store, signing_key=signing_key, lineage=lineage
        ) as writer:
            disk = writer.begin_disk(disk_header(len(image)), previous=previous, compare=compare)
            for offset, length in [(0, len(image))] if ranges is None else ranges:
                disk.write(offset, memoryview(image)[offset : offset + length])
            disk.finish()
            for kind, data in (blobs or {}).items():
                writer.add_blob(kind, data)
            prepared = writer.prepare(facts or ManifestFacts(order=self.jobs))
            point_id = writer.publish(prepared, self.grant(prepared))
        with self.reader(lineage) as reader:
            return reader.load_point(point_id)

    def reader(
        self,
        lineage: str = LINEAGE,
        *,
        store: ObjectStore | None = None,
        index: RepositoryIndex | None = None,
    ) -> RepositoryReader:
        return RepositoryReader(
            store if store is not None else self.store,
            self.keys.reader_keys(lineage),
            segment_keys=self.keys,
            workers=self.workers,
            index=index,
        )

    def restored(
        self,
        point: Point,
        *,
        device_key: int = DEVICE_KEY,
        lineage: str = LINEAGE,
        store: ObjectStore | None = None,
    ) -> bytes:
        """A whole disk of a point."""
        with self.reader(lineage, store=store) as reader:
            source = reader.open_disk(point, device_key)
            image = bytearray(source.capacity_bytes)
            step = 1 << 20
            for offset in range(0, len(image), step):
                source.read_into(offset, memoryview(image)[offset : offset + step])
            source.close()
            return bytes(image)


def disk_header(capacity_bytes: int, *, device_key: int = DEVICE_KEY) -> DiskHeader:
    return DiskHeader(
        device_key=device_key, uuid=f"6000C29{device_key}", capacity_bytes=capacity_bytes
    )


def new_repository(
    store: ObjectStore,
    *,
    recipients: Sequence[NewRecipient] = (),
    seed: str | None = None,
    workers: int = 0,
) -> Repository:
    """A repository with one writer; ``seed`` makes all of its bytes repeat."""
    randomness: Randomness = SYSTEM_RANDOMNESS if seed is None else SeededRandomness(seed)
    clock = FixedClock()
    keys, sheet = create_repository(
        store, recipients=recipients, clock=clock, randomness=randomness
    )
    signing_key = Ed25519PrivateKey.from_private_bytes(randomness.draw(32))
    made = Repository(store, keys, sheet, signing_key, clock, randomness, workers)
    authorise(made, signing_key, agent_id="proxy-1")
    return made


def authorise(repository: Repository, signing_key: Ed25519PrivateKey, *, agent_id: str) -> None:
    repository.keys.authorise_writer(
        repository.store,
        signing_key.public_key().public_bytes_raw(),
        agent_id=agent_id,
        clock=repository.clock,
        roles=sorted(ROLES),  # these tests' one key closes epochs as well
    )


def patterned(length: int, seed: str) -> bytearray:
    """Bytes that differ everywhere and compress a little."""
    image = bytearray(hashlib.shake_256(seed.encode()).digest(length))
    for start in range(0, length, 4096):
        end = min(start + 1024, length)
        image[start:end] = bytes([start >> 12 & 255]) * (end - start)
    return image


def total(extents: Iterable[Extent]) -> int:
    return sum(extent.length for extent in extents)
