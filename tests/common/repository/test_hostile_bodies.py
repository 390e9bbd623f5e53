"""What a listed writer signs need not make sense: a body of any shape is refused, and hides nothing else.

The forger holds the keys of a proxy that was taken over. The objects of others must stay readable beside his.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from holdfast_common.errors import FormatError, IntegrityError
from holdfast_common.repository import rescue
from holdfast_common.repository.fence import Fence, load_fences, store_fence
from holdfast_common.repository.holds import hold_point
from holdfast_common.repository.key_sets import ReaderKeys
from holdfast_common.repository.layout import ObjectKind
from holdfast_common.repository.lease_survey import survey_leases
from holdfast_common.repository.manifest_record import point_record
from holdfast_common.repository.metadata_check import check_metadata
from holdfast_common.repository.points import Point, list_points
from holdfast_common.repository.proof import load_provers, store_proof
from holdfast_common.repository.sealed_object import ObjectHeader
from holdfast_common.repository.writers import ROLE_PRUNE, ROLE_VERIFY, ROLE_WRITE, load_writers
from support.memory_store import MemoryStore
from support.repositories import (
    BLOCK,
    LINEAGE,
    Repository,
    disk_header,
    new_repository,
    patterned,
)

NOW = "2026-03-01T13:00:00.000000Z"
SHARES = {"points/": 11, "writers/": 3}  # one in so many: theirs are long
NESTED = b"[" * 200_000
VALUES: list[Any] = [
    None, True, [], {}, "", "zz", "\ud800", -1, 1 << 70, float("inf"), float("nan"), 1e300,
    [None], [[]], [1], ["zz"], {"x": None}, {"zz": "zz"}, [{}],
]  # fmt: skip
WHOLE = [b"", b"{", b"null", b"7", b"[]", b"{}", b'"x"', b"\xff", NESTED, b'{"a":' * 200_000]


@dataclass
class Scene:
    """A repository with one object of each kind; the forger has every role."""

    repository: Repository
    store: MemoryStore
    key: Ed25519PrivateKey
    point: Point

    @property
    def common(self) -> ReaderKeys:
        return self.repository.keys.common


@pytest.fixture(scope="module")
def scene() -> Scene:
    store = MemoryStore()
    repository = new_repository(store, seed="hostile")
    point = repository.backup(patterned(2 * BLOCK, "a"), blobs={"vmx": b"x"})
    key = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
    repository.keys.authorise_writer(
        store,
        key.public_key().public_bytes_raw(),
        agent_id="forger",
        clock=repository.clock,
        roles=(ROLE_WRITE, ROLE_PRUNE, ROLE_VERIFY),
    )
    common = repository.keys.common
    writer = repository.writer(signing_key=key)
    writer.begin_disk(disk_header(BLOCK))  # it stays announced
    fence = Fence(closed_epoch=1, closed_at=NOW, census={point.name: point.digest})
    store_fence(store, fence, keys=common, signing_key=key)
    hold_point(store, point, held_at=NOW, reason="law", keys=common, signing_key=key)
    store_proof(store, point.manifest.packs, proven_at=NOW, keys=common, signing_key=key)
    return Scene(repository, store, key, point)


KINDS = {
    "leases/": ObjectKind.LEASE,
    "fences/": ObjectKind.FENCE,
    "holds/": ObjectKind.HOLD,
    "proofs/": ObjectKind.PROOF,
    "points/": ObjectKind.MANIFEST,
    "writers/": ObjectKind.WRITERS,
}


def changed(document: dict[str, Any]) -> Iterator[bytes]:
    """Every field at every depth left out, and replaced by every value."""
    for holder, key in list(_places(document)):
        original = holder[key]
        for value in VALUES:
            holder[key] = value
            yield json.dumps(document).encode()
        if isinstance(holder, dict):
            del holder[key]
            yield json.dumps(document).encode()
        holder[key] = original


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    if isinstance(value, dict):
        for key in sorted(value):
            yield value, key
            yield from _places(value[key])
    elif isinstance(value, list) and value:
        yield value, 0
        yield from _places(value[0])


def forged(scene: Scene, prefix: str, *, one_of: int = 1) -> Iterator[tuple[str, str, MemoryStore]]:
    """What it is, its name, and a store in which one object is of the forger's making. A point's is granted, as a good one would be."""
    name = max(
        each for each in scene.store.objects if each.startswith(prefix) and "-copy" not in each
    )
    kind = KINDS[prefix]
    keys = scene.repository.keys.reader_keys(LINEAGE) if prefix == "points/" else scene.common
    key = scene.repository.keys._authority() if prefix == "writers/" else scene.key
    stored = scene.store.objects[name]
    body = keys.open(kind, stored[:-72] if prefix == "points/" else stored).body
    chosen = islice(changed(json.loads(body)), None, None, one_of * SHARES.get(prefix, 1))
    for attempt in chain(WHOLE, chosen):
        store = scene.store.copy()
        data = keys.seal(kind, attempt, signing_key=key, randomness=scene.repository.randomness)
        if prefix == "points/":
            digest = keys.open(kind, data).digest
            manifest = scene.point.manifest
            data += scene.repository.keys.commit_grant(
                job_id=manifest.job_id,
                attempt=manifest.attempt,
                manifest_digest=digest,
                controller_epoch=1,
            )
        placed = name
        if prefix == "proofs/":
            placed = f"proofs/{ObjectHeader.decode(data).object_id.hex()}"
            del store.objects[name]
        store.objects[placed] = data
        yield str(attempt[:200]), placed, store


def surveyed(scene: Scene, store: MemoryStore) -> None:
    """It is waited for as long as any, and no longer."""
    writers = load_writers(store, scene.common)
    now = scene.repository.clock.now()
    for lease in survey_leases(store, scene.common, writers):
        lease.is_at_work(now=now, storage_now=None)
        assert lease.record is None or lease.record.valid_seconds <= 86_400


def listed(scene: Scene, store: MemoryStore) -> None:
    found = list_points(store, scene.repository.keys)
    assert len(found.points) + len(found.unusable) == 1
    for point in found.points:
        point_record(point.manifest)


@pytest.mark.parametrize("prefix", KINDS)
def test_a_body_of_any_shape_is_passed_over(scene: Scene, prefix: str) -> None:
    """By all that reads more than that one object."""
    writers = load_writers(scene.store, scene.common)
    for told, _, store in forged(scene, prefix):
        try:
            surveyed(scene, store)
            assert (
                load_fences(store, scene.common, writers).current_epoch == 2
            )  # closed all the same
            load_provers(store, scene.common, writers)
            found = check_metadata(store, scene.common, writers, epochs=[1])
            if told in map(str, WHOLE) and prefix != "points/":
                assert any(name.startswith(prefix) for name in found.damaged)
            if (
                prefix != "writers/"
            ):  # a right signature of the authority: the only list that counts
                listed(scene, store)
        except Exception as error:
            raise AssertionError(f"{prefix} {told}: {type(error).__name__}: {error}") from error


def test_a_list_of_writers_of_any_shape_is_refused_or_one(scene: Scene) -> None:
    for told, name, store in forged(scene, "writers/"):
        del store.objects[f"{name}-copy"]
        try:
            assert load_writers(store, scene.common).number
        except (IntegrityError, FormatError):
            continue
        except Exception as error:
            raise AssertionError(f"{told}: {type(error).__name__}: {error}") from error


@pytest.mark.parametrize("prefix", KINDS)
def test_rescue_lists_beside_a_body_of_any_shape(
    scene: Scene, prefix: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "r"
    (tmp_path / "r-sheet").write_text(scene.repository.sheet.key_text())
    for name, data in scene.store.objects.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    arguments = [str(folder), "check", "--recovery-sheet-file", f"{folder}-sheet"]
    for told, name, store in forged(scene, prefix, one_of=3):
        (folder / name).write_bytes(store.objects[name])
        try:
            assert rescue.main(arguments) in (0, 1)
        except Exception as error:
            raise AssertionError(f"{prefix} {told}: {type(error).__name__}: {error}") from error
        if prefix == "proofs/":
            (folder / name).unlink()
        capsys.readouterr()
