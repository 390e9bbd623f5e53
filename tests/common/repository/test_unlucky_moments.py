"""Creation that fails half-way, lists of writers that others change, and sectors that cannot be read."""

from __future__ import annotations

from itertools import count

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from holdfast_common.errors import (
    HoldfastError,
    IntegrityError,
    ObjectExists,
    Refused,
    RepositoryFailed,
)
from holdfast_common.repository.keys import create_repository, open_repository
from holdfast_common.repository.layout import aside_name
from holdfast_common.repository.recipients import RecoveryUnlock
from holdfast_common.repository.repair_objects import put_replacement, set_aside
from support.faulty_store import Fault, FaultyStore
from support.memory_store import MemoryStore
from support.repositories import FixedClock, authorise, new_repository

FAILED = RepositoryFailed("the disk failed")
NAME = "index/" + "ab" * 16


def test_a_repository_whose_creation_fails_leaves_no_keys_that_nobody_can_open() -> None:
    failed = 0
    for call in count():
        inner = MemoryStore()
        store = FaultyStore(inner, Fault(call, FAILED))
        try:
            _, sheet = create_repository(store, recipients=(), clock=FixedClock())
        except HoldfastError:
            failed += 1
            assert not [name for name in inner.objects if name.startswith("keys/")], call
            continue
        assert open_repository(inner, RecoveryUnlock(sheet)).generation == 1
        if not store.failed_at:
            break
    assert failed >= 2


class Contested(MemoryStore):
    """Somebody else puts the next list of writers first, so many times."""

    losses = 0

    def put(self, name: str, data: bytes | bytearray | memoryview) -> None:
        if name.startswith("writers/") and self.losses:
            self.losses -= 1
            raise ObjectExists("an object of this name is already stored", name=name)
        super().put(name, data)


def test_a_list_of_writers_that_others_change_is_changed_all_the_same_or_refused() -> None:
    store = Contested()
    repository = new_repository(store)
    key = Ed25519PrivateKey.generate()
    public = key.public_key().public_bytes_raw()
    store.losses = 2
    authorise(repository, key, agent_id="proxy-2")
    assert repository.keys.writers(store).of(public) is not None
    before = repository.keys.writers(store)
    store.losses = 10_000
    with pytest.raises(Refused, match="somebody else"):
        authorise(repository, Ed25519PrivateKey.generate(), agent_id="proxy-3")
    with pytest.raises(Refused, match="somebody else"):
        repository.keys.revoke_writer(store, public, clock=repository.clock, keep_existing=True)
    with pytest.raises(Refused, match="somebody else"):
        repository.keys.restate_writers(store)
    assert repository.keys.writers(store) == before


def test_a_key_that_was_revoked_is_never_listed_again() -> None:
    store = MemoryStore()
    repository = new_repository(store)
    public = repository.signing_key.public_key().public_bytes_raw()
    repository.keys.revoke_writer(store, public, clock=repository.clock, keep_existing=True)
    with pytest.raises(Refused, match="revoked"):
        authorise(repository, repository.signing_key, agent_id="proxy-1")


class BadSector(MemoryStore):
    """Of one object the second 4 KiB cannot be read."""

    def get(self, name: str, *, length_max: int) -> bytes:
        if name == NAME and len(self.objects.get(name, b"")) > 4096:
            raise RepositoryFailed("this sector cannot be read")
        return super().get(name, length_max=length_max)

    def read_into(self, name: str, offset: int, buffer: memoryview) -> None:
        if name == NAME and offset < 8192 and offset + len(buffer) > 4096:
            raise RepositoryFailed("this sector cannot be read")
        super().read_into(name, offset, buffer)


def test_what_cannot_be_read_wholly_stays_until_its_replacement_is_there() -> None:
    store = BadSector()
    data = bytes(range(256)) * 64
    store.put(NAME, data)
    assert not set_aside(store, NAME)
    assert store.objects[NAME] == data, "another day it may be read"
    assert put_replacement(store, NAME, b"good")
    assert store.objects[NAME] == b"good"
    kept = store.objects[aside_name(NAME)]
    assert kept == data[:4096] + bytes(4096) + data[8192:]
    assert set(store.objects) == {NAME, aside_name(NAME)}, "nothing staged is left"


def test_a_second_damaged_object_of_a_name_is_kept_beside_the_first() -> None:
    store = MemoryStore()
    for number, data in enumerate((b"first", b"second", b"first")):
        store.put(NAME, data)
        assert set_aside(store, NAME), number
    assert not set_aside(store, NAME), "there is none"
    assert store.objects == {aside_name(NAME): b"first", f"{aside_name(NAME)}.2": b"second"}


class Forgetful(MemoryStore):
    """Stores other bytes than it was given."""

    def put(self, name: str, data: bytes | bytearray | memoryview) -> None:
        super().put(name, data if name == NAME else bytes(len(data)))


def test_a_replacement_that_is_not_stored_as_it_is_replaces_nothing() -> None:
    store = Forgetful()
    store.put(NAME, b"damaged")
    with pytest.raises(IntegrityError, match="not stored as it is"):
        put_replacement(store, NAME, b"good")
    assert store.objects[NAME] == b"damaged"
