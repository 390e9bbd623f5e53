"""A home and a repository that the first release left are opened, migrated, and gone on with."""

from __future__ import annotations

import hashlib
import tarfile
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from holdfast_common.clock import SystemClock
from holdfast_common.identity import JobId
from holdfast_common.repository.about_renewal import about_files, renew_description
from holdfast_common.repository.check import check_data
from holdfast_common.repository.directory_store import DirectoryStore
from holdfast_common.repository.keys import RepositoryKeys, open_repository
from holdfast_common.repository.manifest import ManifestFacts
from holdfast_common.repository.points import Point, list_points
from holdfast_common.repository.reader import RepositoryReader
from holdfast_common.repository.recipients import KeyFileUnlock
from holdfast_common.repository.writer import PointWriter
from holdfast_controller.store.catalogue import Catalogue
from holdfast_controller.store.schema import open_database
from support.rescue_runs import run_rescue

RELEASES = Path(__file__).parents[1] / "support" / "releases"
CHANGED = 5 * 64 * 1024


@pytest.fixture
def left(tmp_path: Path) -> Path:
    with tarfile.open(RELEASES / "main-job.tar.gz") as archive:
        archive.extractall(tmp_path, filter="data")
    return tmp_path


def key_file(left: Path) -> bytes:
    (path,) = (left / "home" / "lib" / "controller" / "keys").glob("*.key")
    return path.read_bytes()


def restored(store: DirectoryStore, keys: RepositoryKeys, point: Point) -> bytearray:
    reader_keys = keys.reader_keys(point.manifest.lineage_id)
    with RepositoryReader(store, reader_keys, segment_keys=keys, workers=0) as reader:
        source = reader.open_disk(point, point.disks[0].header.device_key)
        image = bytearray(source.capacity_bytes)
        for offset in range(0, len(image), 1 << 20):
            source.read_into(offset, memoryview(image)[offset : offset + (1 << 20)])
        return image


def written(store: DirectoryStore, keys: RepositoryKeys, before: Point, data: bytes) -> None:
    """An incremental by today's writer, of an agent that was enrolled today."""
    signing_key = Ed25519PrivateKey.generate()
    public = signing_key.public_key().public_bytes_raw()
    keys.authorise_writer(store, public, agent_id="proxy-2", clock=SystemClock())
    with PointWriter(
        store,
        keys.writer_keys(before.manifest.lineage_id),
        signing_key=signing_key,
        agent_id="proxy-2",
        job_id=JobId("TODAY"),
        attempt=1,
        clock=SystemClock(),
        workers=1,
    ) as writer:
        disk = writer.begin_disk(before.disks[0].header, previous=before.disks[0])
        disk.write(CHANGED, memoryview(data))
        disk.finish()
        prepared = writer.prepare(
            ManifestFacts(order=2, level_done="incremental", previous_point=before.point_id)
        )
        grant = keys.commit_grant(
            job_id=prepared.manifest.job_id,
            attempt=1,
            manifest_digest=prepared.manifest_digest,
            controller_epoch=2,
        )
        writer.publish(prepared, grant)


def test_the_first_releases_database_is_migrated_and_knows_its_point(left: Path) -> None:
    database = open_database(left / "home" / "lib" / "controller" / "controller.sqlite")
    (row,) = Catalogue(database).points()
    assert row.vm_name == "small"


def test_the_first_releases_repository_goes_on_with_an_incremental_and_both_are_restored(
    left: Path, tmp_path: Path
) -> None:
    with DirectoryStore.open(left / "repository") as store:
        keys = open_repository(store, KeyFileUnlock(key_file(left)))
        (first,) = list_points(store, keys).points
        old = restored(store, keys, first)
        changed = hashlib.shake_256(b"today").digest(64 * 1024)
        new = bytearray(old)
        new[CHANGED : CHANGED + len(changed)] = changed
        renew_description(store)
        written(store, keys, first, changed)
        points = list_points(store, keys).points
        assert [restored(store, keys, point) for point in points] == [old, new]
        assert check_data(store, keys, segment_keys=keys).is_clean
    assert (left / "repository" / "about" / "rescue.py").read_bytes() in about_files().values()
    (tmp_path / "key").write_bytes(key_file(left))
    to = tmp_path / "today.raw"
    ran = run_rescue(
        left / "repository", "restore", "TODAY", "--to", str(to), "--key-file", f"{tmp_path}/key"
    )
    assert ran.status == 0, ran.err
    assert to.read_bytes() == new
