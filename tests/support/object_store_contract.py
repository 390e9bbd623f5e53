"""What every object store must do."""

from __future__ import annotations

import pytest

from holdfast_common.errors import FormatError, IntegrityError, ObjectExists, ObjectMissing
from holdfast_common.repository.object_store import (
    ObjectInfo,
    ObjectStore,
    get_range,
    put_or_confirm,
)

NAME = "packs/ab/abcdef"


class ObjectStoreContract:
    """Subclasses bring the fixture ``store``: an empty one."""

    def test_what_was_put_is_read_back(self, store: ObjectStore) -> None:
        store.put(NAME, b"content")
        assert store.get(NAME, length_max=100) == b"content"
        assert store.head(NAME) == ObjectInfo(name=NAME, length=7)
        assert get_range(store, NAME, offset=3, length=4) == b"tent"

    def test_an_object_is_put_once(self, store: ObjectStore) -> None:
        store.put(NAME, b"first")
        with pytest.raises(ObjectExists):
            store.put(NAME, b"second")
        assert store.get(NAME, length_max=100) == b"first"

    def test_an_upload_is_invisible_until_it_is_committed(self, store: ObjectStore) -> None:
        upload = store.begin(bulk=True)
        upload.write(b"in ")
        upload.write(memoryview(b"pieces"))
        assert store.head(NAME) is None
        assert not list(store.list("packs/"))
        upload.commit(NAME)
        upload.abort()
        assert store.get(NAME, length_max=100) == b"in pieces"

    def test_an_upload_does_not_overwrite(self, store: ObjectStore) -> None:
        upload = store.begin()
        upload.write(b"second")
        store.put(NAME, b"first")
        with pytest.raises(ObjectExists):
            upload.commit(NAME)
        upload.abort()
        assert store.get(NAME, length_max=100) == b"first"

    def test_an_aborted_upload_leaves_nothing(self, store: ObjectStore) -> None:
        upload = store.begin()
        upload.write(b"gone")
        upload.abort()
        upload.abort()
        assert store.head(NAME) is None

    def test_listing_is_sorted_and_holds_what_lies_below_the_prefix(
        self, store: ObjectStore
    ) -> None:
        for name in ("packs/bb/2", "packs/aa/1", "index/5", "packs/aa/0"):
            store.put(name, name.encode())
        assert [info.name for info in store.list("packs/")] == [
            "packs/aa/0",
            "packs/aa/1",
            "packs/bb/2",
        ]
        assert [info.name for info in store.list("packs/bb/")] == ["packs/bb/2"]
        assert not list(store.list("proofs/"))

    def test_a_deleted_object_is_gone(self, store: ObjectStore) -> None:
        store.put(NAME, b"x")
        store.delete(NAME)
        assert store.head(NAME) is None
        with pytest.raises(ObjectMissing):
            store.delete(NAME)

    def test_what_is_there_can_be_made_durable_whoever_put_it(self, store: ObjectStore) -> None:
        store.put(NAME, b"content")
        store.put("index/5", b"more")
        store.confirm([])
        store.confirm(iter([NAME, "index/5", NAME]))
        assert store.get(NAME, length_max=100) == b"content"
        with pytest.raises(ObjectMissing):
            store.confirm([NAME, "points/ab/gone"])

    def test_what_is_put_in_any_case_stays_what_it_was(self, store: ObjectStore) -> None:
        put_or_confirm(store, NAME, b"first")
        put_or_confirm(store, NAME, b"second")
        assert store.get(NAME, length_max=100) == b"first"

    def test_a_missing_object_is_named_as_missing(self, store: ObjectStore) -> None:
        with pytest.raises(ObjectMissing):
            store.get(NAME, length_max=100)
        with pytest.raises(ObjectMissing):
            store.read_into(NAME, 0, memoryview(bytearray(1)))
        assert store.head(NAME) is None

    def test_an_object_that_ends_early_is_damage_not_a_short_answer(
        self, store: ObjectStore
    ) -> None:
        store.put(NAME, b"12345")
        with pytest.raises(IntegrityError):
            get_range(store, NAME, offset=3, length=3)

    def test_an_object_longer_than_its_kind_may_be_is_refused(self, store: ObjectStore) -> None:
        store.put(NAME, b"12345")
        with pytest.raises(IntegrityError):
            store.get(NAME, length_max=4)

    @pytest.mark.parametrize(
        "name",
        [
            "",
            "plain",
            "/absolute/name",
            "../x",
            "packs/../../etc/passwd",
            "packs/.hidden",
            "packs//x",
            "packs/x\n",
            "packs/x\0",
            "packs/" + "x" * 200,
            "a/b/c/d/e",
        ],
    )
    def test_names_outside_of_the_grammar_are_refused(self, store: ObjectStore, name: str) -> None:
        with pytest.raises(FormatError):
            store.put(name, b"x")
        with pytest.raises(FormatError):
            store.get(name, length_max=1)
        with pytest.raises(FormatError):
            store.head(name)
        with pytest.raises(FormatError):
            store.confirm([name])

    @pytest.mark.parametrize("prefix", ["", "packs", "/", "../", "packs/../"])
    def test_prefixes_outside_of_the_grammar_are_refused(
        self, store: ObjectStore, prefix: str
    ) -> None:
        with pytest.raises(FormatError):
            list(store.list(prefix))
