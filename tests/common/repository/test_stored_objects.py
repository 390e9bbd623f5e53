"""Files that somebody left among a repository's objects: nothing stumbles over them, and nothing deletes them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from holdfast_common.repository.check import check_structure
from holdfast_common.repository.directory_store import DirectoryStore
from holdfast_common.repository.fence import Fence, load_fences, newest_number
from holdfast_common.repository.holds import held_points
from holdfast_common.repository.key_objects import next_generation, remove_older_generations
from holdfast_common.repository.lease import load_leases
from holdfast_common.repository.prune_report import PruneLimits
from holdfast_common.repository.prune_writing import publish_fence
from holdfast_common.repository.repair import RepairReport, repair_repository
from holdfast_common.repository.reserve import give_back_reserve
from holdfast_common.repository.stored_objects import STRAY
from support.memory_store import MemoryStore
from support.pruning import GRACE_SECONDS, Pruner, forget
from support.repositories import BLOCK, Repository, authorise, new_repository, patterned

IMAGE = patterned(8 * BLOCK, "kept")
DIGEST = "ab" * 32


@pytest.fixture
def store() -> MemoryStore:
    return MemoryStore()


@pytest.fixture
def repository(store: MemoryStore) -> Repository:
    made = new_repository(store)
    store.now = made.clock.now
    return made


def repaired(repository: Repository) -> RepairReport:
    return repair_repository(
        repository.store,
        repository.keys,
        segment_keys=repository.keys,
        signing_key=repository.signing_key,
        clock=repository.clock,
        workers=1,
    )


@pytest.mark.parametrize(
    "stray",
    ["packs/.DS_Store", "packs/ab/.nfs0001", "packs/ab/Thumbs.db", f"packs/cd/{DIGEST}"],
)
def test_a_stray_file_among_the_packs_stops_no_check_no_repair_and_no_restore_without_an_index(
    repository: Repository, store: MemoryStore, stray: str
) -> None:
    point = repository.backup(IMAGE)
    store.objects[stray] = b"x"
    assert not check_structure(store, repository.keys).lost_ranges
    for name in [each for each in store.objects if each.startswith("index/")]:
        del store.objects[name]
    assert repository.restored(point) == IMAGE
    assert not repaired(repository).after.lost_ranges
    assert any(name.startswith("index/") for name in store.objects)
    assert store.objects[stray] == b"x"
    assert repository.restored(point) == IMAGE


@pytest.mark.parametrize(
    "stray",
    [
        "keys/notes.txt",
        "keys/.nfs0001",
        "writers/notes.txt",
        "writers/.nfs0001",
        "packs/notes.txt",
        "packs/.snapshot/.nfs0001",
        "index/notes.txt",
        "index/.nfs0001",
        "maps/notes.txt",
        f"maps/{'0' * 32}/.nfs0001",
        "points/notes.txt",
        "fences/notes",
        "fences/.nfs0001",
        "fences/0000000009-copy",
        "leases/notes",
        f"leases/{'0' * 32}/.nfs0001",
        "proofs/.nfs0001",
        "holds/notes",
        "reserve/notes",
        "reserve/.nfs0001",
        "about/.nfs0001",
    ],
)
def test_a_stray_file_in_any_folder_changes_nothing_but_that_check_tells_of_it(
    tmp_path: Path, stray: str
) -> None:
    root = tmp_path / "repository"
    with DirectoryStore.create(root) as store:
        repository = new_repository(store)
        pruner = Pruner.of(repository)
        stays, goes = repository.backup(IMAGE), repository.backup(patterned(8 * BLOCK, "goes"))
        file = root / stray
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(b"x" * 9)
        forget(repository, goes)
        limits = PruneLimits(accept_clock=True, grace=timedelta(0))
        planned = pruner.round(limits=limits, dry_run=True)
        first = pruner.round(limits=limits, expected=[stays.name])
        second = pruner.round(limits=limits, expected=[stays.name])
        assert (first.waiting, first.refused_indexes, first.fence) == (None, (), 1)
        assert any(name.startswith("packs/") for name in second.names)
        assert stray not in {*planned.names, *first.names, *second.names}
        found = check_structure(store, repository.keys)
        assert [(item.name, item.reason) for item in found.damaged] == [(stray, STRAY)]
        mended = repaired(repository)
        assert (mended.replaced, mended.set_aside, mended.left) == ((), (), (stray,))
        authorise(repository, Ed25519PrivateKey.generate(), agent_id="proxy-2")
        assert repository.restored(repository.backup(IMAGE)) == IMAGE
        assert repository.restored(stays) == IMAGE
        assert file.read_bytes() == b"x" * 9


@pytest.mark.parametrize("stray", ["maps/.nfs0001", "maps/notes.txt", "index/notes.txt"])
def test_a_stray_that_a_fence_calls_dead_already_is_not_deleted_and_stops_no_prune(
    repository: Repository,
    store: MemoryStore,
    stray: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pruner = Pruner.of(repository)
    repository.backup(IMAGE)
    gone = repository.backup(patterned(8 * BLOCK, "goes"))
    forget(repository, gone)
    publish = "holdfast_common.repository.prune.publish_fence"
    with monkeypatch.context() as patched:
        patched.setattr(publish, _naming(stray))
        assert pruner.round().doomed
    store.objects[stray] = b"x"
    newest = load_fences(store, repository.keys.common, repository.keys.writers(store)).newest
    assert newest is not None
    assert stray in newest.tombstones
    with monkeypatch.context() as patched:
        patched.setattr(publish, _naming(stray))
        repository.clock.advance(GRACE_SECONDS + 60)
        assert any(name.startswith("packs/") for name in pruner.round().names)
    assert pruner.round().names == ()
    assert store.objects[stray] == b"x"


def _naming(stray: str) -> Callable[..., bool]:
    """Publishes fences as an earlier release did, which took any file for an object."""

    def publish(store: MemoryStore, fence: Fence, **rest: Any) -> bool:
        changed = replace(fence, tombstones=sorted({*fence.tombstones, stray}))
        return publish_fence(store, changed, **rest)

    return publish


def test_strays_are_no_fence_no_hold_no_lease_no_generation_and_no_reserve(
    repository: Repository, store: MemoryStore
) -> None:
    keys = repository.keys
    strays = ["fences/0000000009-copy", "holds/notes", "leases/notes/x", "keys/notes"]
    strays += ["keys/0000000009.bak", "reserve/notes"]
    number = next_generation(store)
    store.objects |= dict.fromkeys(strays, b"x")
    writers = keys.writers(store)
    fences = load_fences(store, keys.common, writers)
    assert (newest_number(store), fences.current_epoch, fences.newest_problem) == (0, 1, "")
    assert not held_points(store)
    assert load_leases(store, keys.common, writers) == []
    assert next_generation(store) == number
    assert remove_older_generations(store, number - 1) == []
    while give_back_reserve(store):
        pass
    assert all(store.objects[name] == b"x" for name in strays)
