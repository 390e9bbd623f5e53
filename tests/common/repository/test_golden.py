"""Repositories of format 1 that lie here for ever: whoever wrote one can still read it."""

from __future__ import annotations

from pathlib import Path

import pytest

from holdfast_common.errors import WrongKey
from holdfast_common.identity import JobId, PointId
from holdfast_common.repository import layout
from holdfast_common.repository.check import check_data
from holdfast_common.repository.key_objects import newest_generation
from holdfast_common.repository.keys import open_repository
from holdfast_common.repository.points import list_points
from holdfast_common.repository.reader import RepositoryReader
from holdfast_common.repository.recipients import (
    KeyFileUnlock,
    PassphraseUnlock,
    PrivateKeyUnlock,
    RecoveryUnlock,
    Unlock,
)
from holdfast_common.repository.recovery_sheet import RecoverySheet
from support.golden_repository import (
    GOLDEN,
    KEY_FILE,
    KINDS,
    PASSPHRASE,
    ROTATED,
    VAULT_PRIVATE,
    built,
    images,
    lineage_of,
    load,
    noise,
    text,
)
from support.independent_reader import IndependentReader
from support.repositories import BLOCK, DEVICE_KEY


def recovery_key(name: str) -> str:
    return (GOLDEN / f"{name}.recovery").read_text()


@pytest.mark.parametrize("name", KINDS)
def test_a_golden_repository_is_read_by_every_recipient(name: str) -> None:
    store = load(GOLDEN / name)
    unlocks: list[Unlock] = [
        PassphraseUnlock(PASSPHRASE),
        KeyFileUnlock(KEY_FILE),
        RecoveryUnlock(RecoverySheet.parse(recovery_key(name))),
    ]
    for unlock in unlocks:
        keys = open_repository(store, unlock)
        listed = list_points(store, keys)
        assert not listed.unusable
        assert [point.manifest.job_id for point in listed.points] == list(
            images(compressible=False)
        )
        for point in listed.points:
            reader_keys = keys.reader_keys(point.manifest.lineage_id)
            with RepositoryReader(store, reader_keys, segment_keys=keys, workers=0) as reader:
                source = reader.open_disk(point, DEVICE_KEY)
                image = bytearray(source.capacity_bytes)
                source.read_into(0, memoryview(image))
                assert image == images(compressible=KINDS[name])[point.manifest.job_id]
                make = text if KINDS[name] else noise
                if point.manifest.job_id == "JOB00001":
                    assert reader.blob(point, "vmx") == make(900, "vmx")
                    assert reader.blob(point, "nvram") == make(8684, "nvram")
    assert check_data(store, keys, segment_keys=keys).is_clean


@pytest.mark.parametrize("name", ["format-1-used", ROTATED])
def test_the_same_work_writes_the_same_bytes(name: str) -> None:
    """A byte that differs means another format: then it needs another number, and readers of both."""
    store, repository, _ = built(compressible=False, rotated=name == ROTATED)
    golden = load(GOLDEN / name)
    about = "about/"  # texts for people may be worded better
    made = {name: data for name, data in store.objects.items() if not name.startswith(about)}
    kept = {name: data for name, data in golden.objects.items() if not name.startswith(about)}
    assert sorted(made) == sorted(kept)
    for object_name, data in made.items():
        assert data == kept[object_name], object_name
    assert repository.sheet.key_text() == recovery_key(name).strip()


def test_the_rotated_golden_repository_has_what_a_rotation_leaves() -> None:
    store = load(GOLDEN / ROTATED)
    head = newest_generation(store).head
    assert (head.generation, sorted(head.content_public), len(head.earlier)) == (3, [1, 2], 1)
    assert sorted(store.objects)[-2:] == ["writers/0000000002", "writers/0000000002-copy"]
    assert "keys/0000000002" in store.objects  # as after a crash; who was shut out reads until then
    with pytest.raises(WrongKey):
        open_repository(store, PrivateKeyUnlock(VAULT_PRIVATE))


def test_a_point_of_before_manifests_said_what_they_use_is_built_on() -> None:
    store, repository, _ = built(compressible=False)
    store.objects = load(GOLDEN / "format-1-plain").objects
    with repository.reader() as reader:
        last = reader.load_point(PointId("JOB00003"))
    assert last.manifest.used is None
    image = bytearray(images(compressible=False)["JOB00003"])
    image[:BLOCK] = noise(BLOCK, "fifth")
    point = repository.backup(
        image, ranges=[(0, BLOCK)], previous=last.disks[0], job_id=JobId("JOB00005")
    )
    assert repository.restored(point) == image
    assert point.manifest.used is not None
    assert point.manifest.used.indexes is not None
    assert len(point.manifest.used.indexes) > 1
    assert check_data(store, repository.keys, segment_keys=repository.keys).is_clean


@pytest.mark.parametrize("name", KINDS)
def test_a_reader_written_from_the_description_alone_agrees(name: str) -> None:
    reader = IndependentReader(load(GOLDEN / name).objects, recovery_key(name))
    for job_id, image in images(compressible=KINDS[name]).items():
        assert reader.disk(lineage_of(job_id), job_id) == image
    make = text if KINDS[name] else noise
    assert reader.blob(lineage_of("JOB00001"), "JOB00001", "nvram") == make(8684, "nvram")


def test_the_description_names_the_numbers_of_the_layout() -> None:
    page = (Path(layout.__file__).parent / "FORMAT.md").read_text()
    for magic in ("HFKEYS", "HFOBJECT", "HFSEGMNT", "HFPACKFT", "HFPACKEN", "HFINDEX1"):
        assert magic in page
    for kind in layout.ObjectKind:
        assert f"| {kind.value} |" in page
