import io
import json
import random
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st

from holdfast_common.clock import utc_text
from holdfast_common.errors import HoldfastError, IntegrityError, ObjectExists
from holdfast_common.repository.check import check_structure
from holdfast_common.repository.controller_copy import (
    DAILY_KEPT,
    HOURLY_KEPT,
    CopyHead,
    CopyPlace,
    check_copy,
    copies_to_drop,
    copy_keys,
    extract_copy,
    read_copy_head,
    stored_copies,
)
from holdfast_common.repository.key_changes import rotate, settle
from holdfast_common.repository.key_sets import ReaderKeys
from holdfast_common.repository.keys import open_repository
from holdfast_common.repository.layout import ObjectKind
from holdfast_common.repository.randomness import SYSTEM_RANDOMNESS
from holdfast_common.repository.recipients import RecoveryUnlock
from holdfast_common.repository.sealed_object import HEADER, SEGMENT_BYTES, ObjectHeader
from support.controller_copies import FILES, MADE_AT, put_controller_copy
from support.memory_store import MemoryStore
from support.repositories import LINEAGE, Repository, new_repository

SECRET = b"the password of a vCenter account"


@pytest.fixture
def store() -> MemoryStore:
    return MemoryStore()


@pytest.fixture
def repository(store: MemoryStore) -> Repository:
    return new_repository(store)


def test_a_copy_comes_back_by_the_recovery_sheet(
    store: MemoryStore, repository: Repository
) -> None:
    database = random.Random(1).randbytes(3 * SEGMENT_BYTES + 17)
    place = put_controller_copy(store, repository.keys, number=7, epoch=2, database=database)
    assert place.name == "controller/0000000002/0000000007"
    opened = open_repository(store, RecoveryUnlock(repository.sheet))
    (found,) = stored_copies(store)
    target = io.BytesIO()
    head = extract_copy(store, found, opened, target.write)
    assert target.getvalue() == database
    assert head == read_copy_head(store, found, opened)
    assert (head.files, head.made_at, head.place) == (FILES, MADE_AT, place)


def test_an_empty_database_is_one(store: MemoryStore, repository: Repository) -> None:
    place = put_controller_copy(store, repository.keys, database=b"")
    assert extract_copy(store, place, repository.keys, io.BytesIO().write).database_bytes == 0


def test_nobody_who_has_a_jobs_keys_reads_it(store: MemoryStore, repository: Repository) -> None:
    """A writer, a reader and a pruner have id_key, index_key and meta_key; none has the copy key."""
    place = put_controller_copy(store, repository.keys, files={"secret": SECRET})
    data = store.objects[place.name]
    assert SECRET not in data
    common = repository.keys.common
    for keys in (
        common,
        ReaderKeys.from_bytes(repository.keys.reader_keys(LINEAGE).to_bytes()),
        ReaderKeys.from_bytes(copy_keys(repository.keys).to_bytes()),  # nor does it ever travel
    ):
        with pytest.raises(IntegrityError, match="keys that are not known"):
            keys.open(ObjectKind.CONTROLLER_COPY, data)
    epochs = tuple(replace(each, copy_key=each.index_key) for each in common.epochs)
    with pytest.raises(IntegrityError, match="damaged or forged"):
        replace(common, epochs=epochs).open(ObjectKind.CONTROLLER_COPY, data)
    check_copy(store, place, common)  # that it is whole everybody can tell


def test_a_place_is_taken_once(store: MemoryStore, repository: Repository) -> None:
    place = put_controller_copy(store, repository.keys, database=b"first")
    before = store.objects[place.name]
    with pytest.raises(ObjectExists):
        put_controller_copy(store, repository.keys, database=b"second")
    assert store.objects[place.name] == before


def test_a_copy_stands_under_its_own_name_only(store: MemoryStore, repository: Repository) -> None:
    """Who can write to the storage cannot make an old one the last one."""
    put_controller_copy(store, repository.keys, number=1)
    later = CopyPlace(controller_epoch=1, number=99)
    store.objects[later.name] = store.objects[CopyPlace(controller_epoch=1, number=1).name]
    for read in (
        lambda: check_copy(store, later, repository.keys.common),
        lambda: read_copy_head(store, later, repository.keys),
        lambda: extract_copy(store, later, repository.keys, io.BytesIO().write),
    ):
        with pytest.raises(IntegrityError, match="where another belongs"):
            read()


def test_a_listed_writer_cannot_make_one(store: MemoryStore, repository: Repository) -> None:
    """Not even with the copy key, which he does not have: it takes the authority's signature."""
    place = CopyPlace(controller_epoch=9, number=1)
    keys = copy_keys(repository.keys)
    kind = ObjectKind.CONTROLLER_COPY
    forger = Ed25519PrivateKey.from_private_bytes(bytes(32))
    data = keys.seal(kind, b"x", signing_key=forger, randomness=SYSTEM_RANDOMNESS)
    moved = replace(ObjectHeader.decode(data), object_id=place.object_id).encode()
    store.objects[place.name] = data
    with pytest.raises(IntegrityError, match="another belongs"):
        check_copy(store, place, repository.keys.common)
    store.objects[place.name] = moved + data[HEADER.size :]
    with pytest.raises(IntegrityError, match="signature"):
        check_copy(store, place, repository.keys.common)


def test_after_a_rotation_older_copies_count_and_newer_ones_are_of_the_new_keys(
    store: MemoryStore, repository: Repository
) -> None:
    old = put_controller_copy(store, repository.keys, number=1, database=b"before")
    keys = rotate(store, repository.keys)
    settle(store, keys)
    new = put_controller_copy(store, keys, number=2, database=b"after")
    opened = open_repository(store, RecoveryUnlock(repository.sheet))
    assert read_copy_head(store, old, opened).key_epoch == 1
    assert read_copy_head(store, new, opened).key_epoch == 2
    with pytest.raises(IntegrityError):
        read_copy_head(store, new, repository.keys)


def test_check_counts_copies_and_names_damaged_ones(
    store: MemoryStore, repository: Repository
) -> None:
    place = put_controller_copy(store, repository.keys)
    before = check_structure(store, repository.keys)
    assert before.is_clean
    data = bytearray(store.objects[place.name])
    data[200] ^= 1
    store.objects[place.name] = bytes(data)
    assert [item.name for item in check_structure(store, repository.keys).damaged] == [place.name]


def test_every_flipped_bit_and_every_truncation_is_found(
    store: MemoryStore, repository: Repository
) -> None:
    place = put_controller_copy(store, repository.keys)
    data = store.objects[place.name]
    damaged = [data[:length] for length in range(len(data))]
    for position in range(len(data)):
        flipped = bytearray(data)
        flipped[position] ^= 1 << position % 8
        damaged.append(bytes(flipped))
    for each in damaged:
        store.objects[place.name] = each
        with pytest.raises(HoldfastError):
            extract_copy(store, place, repository.keys, io.BytesIO().write)


@pytest.mark.parametrize(
    "head",
    [b"", b"{", b"[]", b"null", b"7", json.dumps({"controller_epoch": 1}).encode(), b"\xff" * 40],
)
def test_a_head_of_any_shape_is_refused(
    store: MemoryStore, repository: Repository, head: bytes
) -> None:
    """The authority signed it: a release with a mistake, or a later one."""
    place = CopyPlace(controller_epoch=1, number=1)
    keys = copy_keys(repository.keys)
    for length in (len(head), 1 << 31, 3):
        body = length.to_bytes(4, "little") + head
        header = replace(
            keys.new_header(ObjectKind.CONTROLLER_COPY, SYSTEM_RANDOMNESS),
            object_id=place.object_id,
        )
        store.objects.pop(place.name, None)
        store.objects[place.name] = _sealed(keys, header, body, repository)
        check_copy(store, place, repository.keys.common)
        with pytest.raises(IntegrityError):
            read_copy_head(store, place, repository.keys)


def _sealed(keys: ReaderKeys, header: ObjectHeader, body: bytes, repository: Repository) -> bytes:
    from holdfast_common.repository.sealed_object import SealedStream

    pieces: list[bytes] = []
    stream = SealedStream(
        header,
        class_key=keys.class_key(header.kind, header.key_epoch),
        signing_key=Ed25519PrivateKey.from_private_bytes(repository.keys.secrets.authority_private),
        write=pieces.append,
    )
    stream.write(body)
    stream.finish()
    return b"".join(pieces)


def head_of(number: int, made_at: datetime, epoch: int = 1) -> CopyHead:
    return CopyHead(
        place=CopyPlace(controller_epoch=epoch, number=number),
        controller_id="01C",
        made_at=utc_text(made_at),
        release="0",
        key_epoch=1,
        database_bytes=0,
        database_digest=b"",
        files={},
    )


NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)


def test_a_month_of_hourly_copies_keeps_a_day_and_a_week() -> None:
    """As the controller does it: after each copy what is beyond is dropped."""
    kept: list[CopyHead] = []
    for hour in range(30 * 24):
        kept.append(head_of(hour + 1, NOON + timedelta(hours=hour)))
        dropped = set(copies_to_drop(kept))
        kept = [head for head in kept if head.place not in dropped]
    last = kept[-1]
    assert [head.place.number for head in kept[-24:]] == list(range(697, 721))
    days = {head.made_at[:10] for head in kept}
    assert len(days) == DAILY_KEPT
    assert len(kept) == HOURLY_KEPT + DAILY_KEPT - 2  # the last day and a half is hourly
    assert last.place.number == 720


@given(st.lists(st.integers(min_value=-(10**6), max_value=10**6), min_size=1, max_size=60))
def test_the_last_copies_stay_whatever_the_clock_says(minutes: list[int]) -> None:
    heads = [head_of(n, NOON + timedelta(minutes=each)) for n, each in enumerate(minutes)]
    dropped = set(copies_to_drop(heads))
    kept = [head for head in heads if head.place not in dropped]
    assert kept[-HOURLY_KEPT:] == heads[-HOURLY_KEPT:]
    assert len(kept) <= HOURLY_KEPT + DAILY_KEPT
