"""Every repository has its description and `rescue.py`: from the start, or from the next write on."""

from __future__ import annotations

import re

import pytest

from holdfast_common.errors import RepositoryFailed
from holdfast_common.repository.about import damaged_about, store_about
from holdfast_common.repository.about_renewal import about_files, renew_description
from support.memory_store import MemoryStore
from support.repositories import new_repository

RESCUE = "about/rescue.py"
DESCRIPTION = "about/FORMAT.md"


def whole() -> dict[str, bytes]:
    """What `about/` holds of this release."""
    store = MemoryStore()
    for name, data in about_files().items():
        store_about(store, name, data)
    return store.objects


class Interrupted(MemoryStore):
    """A store that fails from the n-th change on, and has a whole rescue.py after each one."""

    def __init__(self, changes: int) -> None:
        super().__init__()
        self.changes_left = changes

    def _changed(self) -> None:
        if self.changes_left == 0:
            raise RepositoryFailed("interrupted")
        self.changes_left -= 1

    def put(self, name: str, data: bytes | bytearray | memoryview) -> None:
        self._changed()
        super().put(name, data)

    def delete(self, name: str) -> None:
        self._changed()
        super().delete(name)


def test_a_new_repository_has_them() -> None:
    store = MemoryStore()
    new_repository(store)
    for name, data in about_files().items():
        assert store.objects[name] == data
    assert not list(damaged_about(store))


def test_a_repository_of_before_gets_what_is_missing() -> None:
    store = MemoryStore()
    renew_description(store)
    assert store.objects == whole()
    before = dict(store.objects)
    renew_description(store)
    assert store.objects == before


@pytest.mark.parametrize("changes", range(0, 20, 2))
def test_an_older_one_is_replaced_and_a_whole_one_lies_there_at_every_moment(changes: int) -> None:
    store = Interrupted(changes)
    older = about_files()[RESCUE].replace(b"\nRESCUE_RELEASE = ", b"\nRESCUE_RELEASE = 0")
    older += b"# of an older release\n"
    earlier = MemoryStore()
    store_about(earlier, RESCUE, older)
    store_about(earlier, DESCRIPTION, b"# Repository format 1, older\n")
    store.objects = earlier.objects
    renew_description(store)
    lying = [data for name, data in store.objects.items() if name.endswith("rescue.py")]
    assert lying
    assert all(data in (older, about_files()[RESCUE]) for data in lying)
    store.changes_left = 100
    renew_description(store)
    assert store.objects == whole()


def test_those_of_a_newer_release_stay() -> None:
    newer = b"#!/usr/bin/env python3\nRESCUE_RELEASE = 999999\n"
    store = MemoryStore()
    store.objects = {RESCUE: newer, "about/FORMAT.md": b"newer"}
    renew_description(store)
    assert store.objects == {RESCUE: newer, "about/FORMAT.md": b"newer"}


def test_the_release_that_is_shipped_can_be_read_and_is_kept_by_an_older_one() -> None:
    line = re.search(rb"^RESCUE_RELEASE = ([0-9]+)$", about_files()[RESCUE], re.MULTILINE)
    assert line is not None
    release = int(line[1])
    assert release > 0
    newer = about_files()[RESCUE].replace(line[0], b"RESCUE_RELEASE = %d" % (release + 1))
    store = MemoryStore()
    store.objects = {RESCUE: newer, "about/FORMAT.md": b"newer"}
    renew_description(store)
    assert store.objects == {RESCUE: newer, "about/FORMAT.md": b"newer"}


def test_a_damaged_one_is_replaced() -> None:
    store = MemoryStore()
    for damaged in (RESCUE, RESCUE + ".sha256", DESCRIPTION + ".sha256"):
        store.objects = {**whole(), damaged: whole()[damaged][:30]}
        renew_description(store)
        assert store.objects == whole()


def test_what_cannot_be_renewed_fails_no_backup(caplog: pytest.LogCaptureFixture) -> None:
    store = Interrupted(0)
    renew_description(store)
    assert not store.objects
    assert "could not be renewed" in caplog.text
