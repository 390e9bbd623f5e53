"""Which chunks of others a backup builds on: those that somebody proved who did not write them, and no others."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from holdfast_common.repository.check import check_data
from holdfast_common.repository.frame_worker import FrameWorker
from holdfast_common.repository.index import IndexBuilder
from holdfast_common.repository.layout import ObjectKind, index_name, pack_name
from holdfast_common.repository.pack import PackContents, read_contents
from holdfast_common.repository.points import Point
from holdfast_common.repository.proof import load_provers, proven_packs, store_proof
from holdfast_common.repository.sealed_object import ObjectHeader
from holdfast_common.repository.writers import ROLE_VERIFY, ROLE_WRITE, load_writers
from holdfast_common.units import MIB
from support.memory_store import MemoryStore
from support.pruning import Pruner
from support.repositories import Repository, new_repository, patterned

IMAGE = patterned(2 * MIB, "golden image")
OTHER = "vcenter-1/other-vm"
THIRD = "vcenter-1/third-vm"


@pytest.fixture
def store() -> MemoryStore:
    return MemoryStore()


@pytest.fixture
def repository(store: MemoryStore) -> Repository:
    return new_repository(store)


def proxy(
    repository: Repository, *, roles: tuple[str, ...] = (ROLE_WRITE, ROLE_VERIFY)
) -> Ed25519PrivateKey:
    """As the controller lists one."""
    key = Ed25519PrivateKey.generate()
    repository.keys.authorise_writer(
        repository.store,
        public(key),
        agent_id=f"proxy-{public(key).hex()[:4]}",
        clock=repository.clock,
        roles=roles,
    )
    return key


def public(key: Ed25519PrivateKey) -> bytes:
    return key.public_key().public_bytes_raw()


def prove(repository: Repository, point: Point, *, by: Ed25519PrivateKey) -> str:
    return store_proof(
        repository.store,
        point.manifest.packs,
        proven_at="2026-03-01T13:00:00.000000Z",
        keys=repository.keys.common,
        signing_key=by,
    )


def revoke(repository: Repository, key: Ed25519PrivateKey) -> None:
    repository.keys.revoke_writer(
        repository.store, public(key), clock=repository.clock, keep_existing=True
    )


def known_bytes(
    repository: Repository, *, by: Ed25519PrivateKey | None = None, image: bytes | bytearray = IMAGE
) -> int:
    """How much of the image a backup by that proxy takes for known; the point must be right."""
    point = repository.backup(image, signing_key=by, lineage=THIRD)
    assert repository.restored(point, lineage=THIRD) == image
    return point.disks[0].summary.known_bytes


@contextmanager
def poisoning(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A proxy whose program was changed: it stores zeros under the true ids."""
    honest = FrameWorker._store

    def store(worker: FrameWorker, plain: memoryview, **named: object) -> int:
        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(FrameWorker, "_id_of", lambda *_, **__: named["chunk_id"])
            return honest(worker, memoryview(bytes(len(plain))), **named)  # type: ignore[arg-type]  # handed on

    with monkeypatch.context() as patched:
        patched.setattr(FrameWorker, "_store", store)
        yield


@pytest.mark.parametrize("is_revoked", [False, True])
def test_a_proxy_that_proves_its_own_poison_poisons_nobody(
    repository: Repository, monkeypatch: pytest.MonkeyPatch, is_revoked: bool
) -> None:
    bad = proxy(repository)
    with poisoning(monkeypatch):
        point = repository.backup(IMAGE, signing_key=bad, lineage=OTHER)
    prove(repository, point, by=bad)
    if is_revoked:
        revoke(repository, bad)
        prove(repository, point, by=bad)
    assert known_bytes(repository) == 0


def test_poison_is_not_proven_by_who_verifies_honestly(
    repository: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    with poisoning(monkeypatch):
        repository.backup(IMAGE, signing_key=proxy(repository), lineage=OTHER)
    report = check_data(repository.store, repository.keys, segment_keys=repository.keys)
    assert report.proven_packs == ()
    assert report.damaged


def test_of_two_proxies_each_builds_on_what_the_other_stored_and_it_verified_itself(
    repository: Repository,
) -> None:
    """Also a third one builds on both then: each was proven by somebody who did not write it."""
    first, second, third = (proxy(repository) for _ in range(3))
    other_image = patterned(2 * MIB, "another image")
    of_first = repository.backup(IMAGE, signing_key=first)
    of_second = repository.backup(other_image, signing_key=second, lineage=OTHER)
    for point in (of_first, of_second):
        prove(repository, point, by=first)
    assert known_bytes(repository, by=first, image=other_image) == len(other_image)
    assert known_bytes(repository, by=third, image=other_image) == len(other_image)
    assert known_bytes(repository, by=third) == 0
    for point in (of_first, of_second):
        prove(repository, point, by=second)
    assert known_bytes(repository, by=second) == len(IMAGE)


@pytest.mark.parametrize("when", ["before", "after"])
def test_who_was_revoked_vouches_for_nobody_whenever_it_signed(
    repository: Repository, when: str
) -> None:
    verifier = proxy(repository)
    point = repository.backup(IMAGE, signing_key=proxy(repository), lineage=OTHER)
    if when == "before":
        prove(repository, point, by=verifier)
        repository.clock.advance(86_400)
    revoke(repository, verifier)
    if when == "after":
        prove(repository, point, by=verifier)
    assert known_bytes(repository) == 0
    report = check_data(repository.store, repository.keys, segment_keys=repository.keys)
    assert report.is_clean, report.damaged


def test_a_proof_that_an_older_list_of_writers_accepted_at_a_revocation_counts_for_nothing(
    repository: Repository, store: MemoryStore
) -> None:
    verifier = proxy(repository)
    point = repository.backup(IMAGE, signing_key=proxy(repository), lineage=OTHER)
    name = prove(repository, point, by=verifier)
    revoke(repository, verifier)
    keys = repository.keys
    listed = keys.writers(store)
    digest = keys.common.open(ObjectKind.PROOF, store.objects[name]).digest
    accepting = replace(
        listed,
        writers=tuple(replace(each, accepted=frozenset({digest})) for each in listed.writers),
    )
    assert load_provers(store, keys.common, accepting).packs_of == {}


def test_who_may_only_verify_proves_what_others_build_on_and_who_may_only_write_does_not(
    repository: Repository,
) -> None:
    writer, verifier = (
        proxy(repository, roles=(ROLE_WRITE,)),
        proxy(repository, roles=(ROLE_VERIFY,)),
    )
    point = repository.backup(IMAGE, lineage=OTHER)
    prove(repository, point, by=writer)
    third = proxy(repository)
    assert known_bytes(repository, by=third) == 0
    prove(repository, point, by=verifier)
    assert known_bytes(repository, by=proxy(repository)) == len(IMAGE)


def test_what_a_revoked_verifier_proved_is_pruned(
    repository: Repository, store: MemoryStore
) -> None:
    store.now = repository.clock.now
    pruner = Pruner.of(repository)
    kept, gone = proxy(repository), proxy(repository)
    point = repository.backup(IMAGE)
    names = {by: prove(repository, point, by=by) for by in (kept, gone)}
    revoke(repository, gone)
    writers = load_writers(store, repository.keys.common)
    proven = proven_packs(store, names.values(), repository.keys.common, writers)
    assert proven == {names[kept]: frozenset(point.manifest.packs), names[gone]: frozenset()}
    pruner.until_done()
    assert [name for name in store.objects if name.startswith("proofs/")] == [names[kept]]


def contents_of(repository: Repository, point: Point) -> PackContents:
    """Of the point's one pack."""
    (pack,) = point.manifest.packs
    info = repository.store.head(pack_name(pack))
    assert info is not None
    return read_contents(repository.store, pack, length=info.length, keys=repository.keys.common)


def put_index(repository: Repository, contents: PackContents, *, by: Ed25519PrivateKey) -> None:
    builder = IndexBuilder()
    builder.add(contents)
    data = repository.keys.common.seal(
        ObjectKind.INDEX,
        builder.encode(writer=public(by)),
        signing_key=by,
        randomness=repository.randomness,
    )
    repository.store.put(index_name(ObjectHeader.decode(data).object_id), data)


def test_an_index_that_lies_about_a_proven_pack_is_not_believed(
    repository: Repository, store: MemoryStore
) -> None:
    """The ids that others will ask for, at the places of an honest writer's proven blobs."""
    honest = repository.backup(patterned(2 * MIB, "honest"), lineage=OTHER)
    prove(repository, honest, by=proxy(repository))
    elsewhere = replace(repository, store=store.copy())
    wanted = contents_of(elsewhere, elsewhere.backup(IMAGE, lineage=THIRD))
    contents = contents_of(repository, honest)
    blobs = tuple(
        replace(blob, chunk_id=other.chunk_id, digests=other.digests)
        for blob, other in zip(contents.blobs, wanted.blobs, strict=True)
    )
    put_index(repository, replace(contents, blobs=blobs), by=proxy(repository))
    assert known_bytes(repository) == 0


def test_a_pack_of_which_the_index_hides_a_blob_is_not_proven(
    repository: Repository, store: MemoryStore
) -> None:
    """Else its writer could name that blob after the proof."""
    contents = contents_of(repository, repository.backup(IMAGE))
    for name in [each for each in store.objects if each.startswith("index/")]:
        store.delete(name)
    put_index(repository, replace(contents, blobs=contents.blobs[:-1]), by=repository.signing_key)
    report = check_data(store, repository.keys, segment_keys=repository.keys)
    assert report.packs_decoded == 1
    assert report.proven_packs == ()


def test_packs_that_nobody_is_known_to_have_written_are_taken_for_known_by_nobody(
    repository: Repository, store: MemoryStore
) -> None:
    """Their index is gone and they speak for themselves: whoever wrote them may have proven them as well."""
    bad = proxy(repository)
    point = repository.backup(IMAGE, signing_key=bad, lineage=OTHER)
    prove(repository, point, by=bad)
    for name in [each for each in store.objects if each.startswith("index/")]:
        del store.objects[name]
    with repository.writer(lineage=THIRD) as writer:
        index = writer._index
        assert index.recover(store)
        pack = point.manifest.packs[0]
        places = index.by_pack([pack])[pack]
        assert places
        assert not any(writer._known.trusted.trusts(place) for place in places)


def test_a_proven_pack_whose_footers_cannot_be_read_is_not_built_on(
    repository: Repository, store: MemoryStore
) -> None:
    point = repository.backup(IMAGE, lineage=OTHER)
    prove(repository, point, by=proxy(repository))
    (name,) = [each for each in store.objects if each.startswith("packs/")]
    store.objects[name] = store.objects[name][:-24] + bytes(24)
    assert known_bytes(repository, by=proxy(repository)) == 0
