"""Every kind of sealed object in every other's place: kind, id, lineage, repository, domain, epoch, segments.

The forger here is a listed writer: he can sign whatever he likes, and what he changes he signs again.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
from blake3 import blake3
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from holdfast_common.errors import HoldfastError, IntegrityError, Refused
from holdfast_common.repository.chunk_codec import (
    BlobBinding,
    SegmentHeader,
    SegmentSealer,
    segment_cipher,
)
from holdfast_common.repository.fence import Fence, load_fences, store_fence
from holdfast_common.repository.key_changes import rotate, settle
from holdfast_common.repository.key_sets import ReaderKeys, SegmentKeyRequest
from holdfast_common.repository.keys import RepositoryKeys
from holdfast_common.repository.layout import (
    LINEAGE_KINDS,
    SIGNED_KINDS,
    BlobKind,
    ObjectKind,
)
from holdfast_common.repository.lease import load_leases
from holdfast_common.repository.points import list_points
from holdfast_common.repository.proof import load_provers, store_proof
from holdfast_common.repository.randomness import SYSTEM_RANDOMNESS
from holdfast_common.repository.sealed_object import (
    HEADER,
    SEGMENT_BYTES,
    SIGNATURE_BYTES,
    ObjectHeader,
)
from holdfast_common.repository.writers import ROLE_VERIFY, ROLE_WRITE
from support.controller_copies import with_copy_keys
from support.memory_store import MemoryStore
from support.repositories import (
    LINEAGE,
    FixedClock,
    Repository,
    authorise,
    disk_header,
    new_repository,
    patterned,
)

KINDS = list(ObjectKind)
OTHER = "vcenter-1/another-vm"
SIGNER = Ed25519PrivateKey.generate()
BODY = bytes(range(256)) * (2 * SEGMENT_BYTES // 256) + b"the last segment"  # three segments


def rotated_keys() -> RepositoryKeys:
    """Of a repository with two epochs."""
    store = MemoryStore()
    made = new_repository(store)
    keys = rotate(store, made.keys)
    settle(store, keys)
    return keys


KEYS = rotated_keys()
OTHERS = rotated_keys()


def lineage_keys(lineage: str = LINEAGE, keys: RepositoryKeys = KEYS) -> ReaderKeys:
    return with_copy_keys(keys.reader_keys(lineage), keys)


def sealed(kind: ObjectKind, keys: ReaderKeys, body: bytes = BODY) -> bytes:
    signing_key = SIGNER if kind in SIGNED_KINDS else None
    return keys.seal(kind, body, signing_key=signing_key, randomness=SYSTEM_RANDOMNESS)


def signed_again(data: bytes, kind: ObjectKind) -> bytes:
    """With a right signature of a listed writer, when that kind has one."""
    if kind not in SIGNED_KINDS:
        return data
    unsigned = data[:-64]
    message = b"holdfast 1 object signature\x00" + blake3(unsigned).digest()
    return unsigned + SIGNER.sign(message)


OBJECTS = {kind: sealed(kind, lineage_keys()) for kind in KINDS}


def with_header(data: bytes, kind: ObjectKind, **changes: object) -> bytes:
    """Another header over the same segments."""
    header = replace(ObjectHeader.decode(data), **changes)  # type: ignore[arg-type]  # any of its fields
    return signed_again(header.encode() + data[HEADER.size :], kind)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_an_object_opens_as_what_it_is(kind: ObjectKind) -> None:
    assert lineage_keys().open(kind, OBJECTS[kind]).body == BODY


@pytest.mark.parametrize("wanted", KINDS, ids=lambda kind: kind.name)
@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_no_kind_passes_for_another(kind: ObjectKind, wanted: ObjectKind) -> None:
    """As it is; with the other kind written into its header; and with that one's signature or without."""
    if kind is wanted:
        return
    data = OBJECTS[kind]
    with pytest.raises(IntegrityError):
        lineage_keys().open(wanted, data)
    changed = ObjectHeader.decode(data)
    tag = lineage_keys().lineage_tag if wanted in LINEAGE_KINDS else bytes(16)
    header = replace(changed, kind=wanted, lineage_tag=tag).encode()
    body = data[HEADER.size : len(data) - (SIGNATURE_BYTES if kind in SIGNED_KINDS else 0)]
    forged = header + body
    if wanted in SIGNED_KINDS:
        forged = signed_again(forged + SIGNER.public_key().public_bytes_raw() + bytes(64), wanted)
    with pytest.raises(IntegrityError):
        lineage_keys().open(wanted, forged)


SWAPS: dict[str, Callable[[ReaderKeys], dict[str, object]]] = {
    "object id": lambda _: {"object_id": bytes(15) + b"\x01"},
    "salt": lambda _: {"salt": bytes(32)},
    "epoch": lambda _: {"key_epoch": 1},
    "an epoch that nobody has": lambda _: {"key_epoch": 77},
    "lineage": lambda _: {"lineage_tag": lineage_keys(OTHER).lineage_tag},
    "repository": lambda _: {"repository_id": bytes.fromhex(OTHERS.repository_id)},
    "domain": lambda _: {"domain_id": OTHERS.secrets.domain_id},
}


@pytest.mark.parametrize("swap", SWAPS)
@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_no_field_of_a_header_can_be_another(kind: ObjectKind, swap: str) -> None:
    """The reader who wants the true one refuses it, and so does the one whom it pretends to be for."""
    original = OBJECTS[kind]
    forged = with_header(original, kind, **SWAPS[swap](lineage_keys()))
    readers = [lineage_keys()]
    if swap == "lineage" and kind in LINEAGE_KINDS:
        readers.append(lineage_keys(OTHER))
    if swap == "repository":
        readers.append(lineage_keys(keys=OTHERS))
    for reader in readers:
        with pytest.raises(IntegrityError):
            reader.open(kind, forged)
    object_id = ObjectHeader.decode(original).object_id
    if swap == "object id":
        with pytest.raises(IntegrityError, match="another belongs"):
            lineage_keys().open(kind, forged, object_id=object_id)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_whole_objects_of_other_owners_are_refused(kind: ObjectKind) -> None:
    """Nothing forged: true objects, each in the place of one of ours."""
    strangers = [sealed(kind, lineage_keys(keys=OTHERS))]
    if kind in LINEAGE_KINDS:
        strangers.append(sealed(kind, lineage_keys(OTHER)))
    for stranger in strangers:
        with pytest.raises(IntegrityError):
            lineage_keys().open(kind, stranger)
    second = sealed(kind, lineage_keys())  # ours, and of that kind: told apart by its id
    with pytest.raises(IntegrityError):
        lineage_keys().open(kind, second, object_id=ObjectHeader.decode(OBJECTS[kind]).object_id)


def stored_segments(data: bytes, kind: ObjectKind) -> tuple[bytes, list[bytes], bytes]:
    end = len(data) - (SIGNATURE_BYTES if kind in SIGNED_KINDS else 0)
    body = data[HEADER.size : end]
    step = SEGMENT_BYTES + 16
    return (
        data[: HEADER.size],
        [body[at : at + step] for at in range(0, len(body), step)],
        data[end:],
    )


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_segments_cannot_be_left_out_doubled_swapped_or_taken_from_another(
    kind: ObjectKind,
) -> None:
    head, (first, second, last), trailer = stored_segments(OBJECTS[kind], kind)
    _, (alien, _, alien_last), _ = stored_segments(sealed(kind, lineage_keys()), kind)
    for pieces in (
        [first, second],
        [first],
        [],
        [first, last],
        [second, last],
        [last],
        [second, first, last],
        [first, first, last],
        [first, second, second, last],
        [first, second, last[:-1]],
        [first[:-1], second, last],
        [alien, second, last],
        [first, second, alien_last],
    ):
        forged = signed_again(head + b"".join(pieces) + trailer, kind)
        with pytest.raises(IntegrityError):
            lineage_keys().open(kind, forged)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_every_truncation_is_refused_even_when_it_is_signed_again(kind: ObjectKind) -> None:
    short = sealed(kind, lineage_keys(), b"a body of one segment")
    for length in range(len(short)):
        for forged in (short[:length], signed_again(short[:length], kind)):
            with pytest.raises(IntegrityError):
                lineage_keys().open(kind, forged)


class TestSegmentsOfPacks:
    """Blobs and segment headers: bound to all that they are called by."""

    def test_no_field_of_a_blobs_binding_can_be_another(self) -> None:
        writer = KEYS.writer_keys(LINEAGE)
        sealer = SegmentSealer(writer, SYSTEM_RANDOMNESS)
        right = sealer.next_binding(kind=BlobKind.DISK_FRAME, chunk_id=bytes(32), plain_length=64)
        stored = memoryview(bytearray(64 + 16))
        sealer.cipher.seal_into(bytes(64), right, stored)
        target = memoryview(bytearray(64))
        sealer.cipher.open_into(stored, right, target)
        wrong: list[BlobBinding] = [
            replace(right, kind=BlobKind.OPAQUE),
            replace(right, kind=BlobKind.FILE_CHUNK),
            replace(right, origin_id=bytes(16)),
            replace(right, number=1),
            replace(right, chunk_id=b"\x01" * 32),
            replace(right, plain_length=65),
        ]
        for binding in wrong:
            with pytest.raises(IntegrityError):
                sealer.cipher.open_into(stored, binding, target)
        for length in (16, 40, 79):
            with pytest.raises(IntegrityError):
                sealer.cipher.open_into(stored[:length], right, target[: length - 16])

    def test_no_field_of_a_segments_header_can_be_another(self) -> None:
        header = SegmentSealer(KEYS.writer_keys(LINEAGE), SYSTEM_RANDOMNESS).header
        alien = SegmentSealer(KEYS.writer_keys(LINEAGE), SYSTEM_RANDOMNESS).header

        def key_of(header: SegmentHeader, keys: RepositoryKeys = KEYS) -> bytes:
            request = SegmentKeyRequest(
                origin_id=header.origin_id,
                content_epoch=header.content_epoch,
                wrapped_key=header.wrapped_key,
            )
            return keys.open_segment_keys([request])[0]

        assert len(key_of(header)) == 32
        for forged in (
            replace(header, origin_id=alien.origin_id),
            replace(header, wrapped_key=alien.wrapped_key),
            replace(header, content_epoch=1),
            replace(header, wrapped_key=header.wrapped_key[:-1]),
        ):
            with pytest.raises(HoldfastError):
                key_of(forged)
        with pytest.raises(HoldfastError):  # a whole segment of one repository, in another
            key_of(header, OTHERS)

    def test_a_blob_of_another_repository_does_not_open_even_with_its_key(self) -> None:
        sealer = SegmentSealer(KEYS.writer_keys(LINEAGE), SYSTEM_RANDOMNESS)
        binding = sealer.next_binding(kind=BlobKind.OPAQUE, chunk_id=bytes(32), plain_length=4)
        stored = memoryview(bytearray(20))
        key = KEYS.open_segment_keys(
            [
                SegmentKeyRequest(
                    origin_id=sealer.header.origin_id,
                    content_epoch=sealer.header.content_epoch,
                    wrapped_key=sealer.header.wrapped_key,
                )
            ]
        )[0]
        sealer.cipher.seal_into(b"mine", binding, stored)
        moved = segment_cipher(replace(sealer.header, repository_id=bytes(16)), key)
        with pytest.raises(IntegrityError):
            moved.open_into(stored, binding, memoryview(bytearray(4)))


class TestWhoSigned:
    """Objects that are right in every way but for who signed them: nobody, or somebody shut out."""

    @pytest.fixture
    def repository(self) -> Repository:
        return new_repository(MemoryStore())

    def stranger(self, repository: Repository, how: str) -> Ed25519PrivateKey:
        key = Ed25519PrivateKey.generate()
        if how != "unlisted":
            authorise(repository, key, agent_id="gone")
        if how == "revoked":
            repository.keys.revoke_writer(
                repository.store,
                key.public_key().public_bytes_raw(),
                clock=repository.clock,
                keep_existing=True,
            )
        return key

    @pytest.mark.parametrize("how", ["unlisted", "revoked"])
    def test_its_proofs_prove_nothing(self, repository: Repository, how: str) -> None:
        keys = repository.keys.common
        digest = blake3(b"a pack").digest()
        good = repository.keys.writers(repository.store)
        key = self.stranger(repository, how)
        writers = repository.keys.writers(repository.store)
        store_proof(
            repository.store,
            [digest],
            keys=keys,
            signing_key=key,
            proven_at="2026-03-01T13:00:00.000000Z",
            randomness=SYSTEM_RANDOMNESS,
        )
        assert load_provers(repository.store, keys, writers).packs_of == {}
        assert load_provers(repository.store, keys, good).packs_of == {}

    @pytest.mark.parametrize("how", ["unlisted", "revoked"])
    def test_its_fences_close_nothing(self, repository: Repository, how: str) -> None:
        point = repository.backup(patterned(65536, "x"))
        store_fence(
            repository.store,
            Fence(closed_epoch=1, closed_at="2026-03-01T13:00:00.000000Z", census={}),
            keys=repository.keys.common,
            signing_key=self.stranger(repository, how),
            randomness=SYSTEM_RANDOMNESS,
        )
        listed = list_points(repository.store, repository.keys)
        assert [found.point_id for found in listed.points] == [point.point_id]
        writers = repository.keys.writers(repository.store)
        assert load_fences(repository.store, repository.keys.common, writers).unusable

    def test_its_leases_hold_nothing(self, repository: Repository) -> None:
        key = self.stranger(repository, "listed")
        with repository.writer(signing_key=key) as writer:
            disk = writer.begin_disk(disk_header(65536))
            disk.finish()
            keys = repository.keys
            held = load_leases(repository.store, keys.common, keys.writers(repository.store))
            assert len(held) == 1
            keys.revoke_writer(
                repository.store,
                key.public_key().public_bytes_raw(),
                clock=FixedClock(),
                keep_existing=True,
            )
            assert not load_leases(repository.store, keys.common, keys.writers(repository.store))

    def test_a_role_is_not_another(self, repository: Repository) -> None:
        """A verifier's manifest and a writer's proof: signed rightly, by who may not."""
        verifier, writer = Ed25519PrivateKey.generate(), Ed25519PrivateKey.generate()
        for key, role in ((verifier, ROLE_VERIFY), (writer, ROLE_WRITE)):
            repository.keys.authorise_writer(
                repository.store,
                key.public_key().public_bytes_raw(),
                agent_id=role,
                clock=repository.clock,
                roles=[role],
            )
        with pytest.raises(Refused):
            repository.backup(patterned(65536, "x"), signing_key=verifier)
        store_proof(
            repository.store,
            [bytes(32)],
            keys=repository.keys.common,
            signing_key=writer,
            proven_at="2026-03-01T13:00:00.000000Z",
            randomness=SYSTEM_RANDOMNESS,
        )
        writers = repository.keys.writers(repository.store)
        assert not load_provers(repository.store, repository.keys.common, writers).packs_of
