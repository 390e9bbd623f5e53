"""What `rescue.py` makes of revoked writers and of fences: what FORMAT.md says, as the engine does."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from holdfast_common.identity import JobId
from holdfast_common.repository import rescue
from holdfast_common.repository.check import CheckReport, check_structure
from holdfast_common.repository.directory_store import DirectoryStore
from holdfast_common.repository.fence import Fence, store_fence
from holdfast_common.repository.index import IndexBuilder
from holdfast_common.repository.layout import (
    ObjectKind,
    fence_name,
    index_name,
    lease_name,
    manifest_name,
)
from holdfast_common.repository.points import list_points
from holdfast_common.repository.randomness import SYSTEM_RANDOMNESS
from holdfast_common.repository.sealed_object import ObjectHeader
from holdfast_common.repository.writers import load_writers, revoked, store_writers
from support.repositories import BLOCK, LINEAGE, Repository, authorise, new_repository, patterned

IMAGE = patterned(BLOCK, "it")
AT = "2026-03-01T12:00:00.000000Z"


@dataclass
class Told:
    """What `rescue.py` said."""

    status: int
    out: str
    err: str

    @property
    def document(self) -> dict[str, object]:
        document: dict[str, object] = json.loads(self.out)
        return document

    @property
    def damaged(self) -> set[str]:
        rows = self.document["damage"]
        assert isinstance(rows, list)
        return {row["object"] for row in rows}


@dataclass
class Site:
    """A repository in a folder, with a second writer whose key is stolen."""

    folder: Path
    repository: Repository
    thief: Ed25519PrivateKey
    captured: pytest.CaptureFixture[str]

    @property
    def store(self) -> DirectoryStore:
        assert isinstance(self.repository.store, DirectoryStore)
        return self.repository.store

    def rescue(self, *arguments: str) -> Told:
        sheet = self.folder.parent / "sheet"
        sheet.write_text(self.repository.sheet.key_text())
        self.captured.readouterr()
        status = rescue.main([str(self.folder), *arguments, "--recovery-sheet-file", str(sheet)])
        return Told(status, *self.captured.readouterr())

    def engine(self) -> CheckReport:
        return check_structure(self.store, self.repository.keys)

    def revoke_thief(self) -> None:
        self.repository.keys.revoke_writer(
            self.store,
            self.thief.public_key().public_bytes_raw(),
            clock=self.repository.clock,
            keep_existing=True,
        )

    def revoke_own(self, *, accepted: frozenset[bytes], is_settled: bool) -> None:
        """The list that a revocation of the first writer puts: not settled, the first of two before a crash."""
        keys = self.repository.keys
        listed = load_writers(self.store, keys.common)
        entries = revoked(
            listed,
            self.repository.signing_key.public_key().public_bytes_raw(),
            at=AT,
            accepted=accepted,
            is_settled=is_settled,
        )
        store_writers(
            self.store,
            entries,
            number=listed.number + 1,
            keys=keys.common,
            authority=keys._authority(),  # what a crash leaves is made no other way
            randomness=SYSTEM_RANDOMNESS,
        )

    def put_fence(self, fence: Fence) -> None:
        store_fence(
            self.store,
            fence,
            keys=self.repository.keys.common,
            signing_key=self.repository.signing_key,
        )

    def put_sealed(self, kind: ObjectKind, body: bytes, *, name: str = "") -> str:
        """An object of the thief's, with a wrong grant if it is a manifest. ``name``: an index's tells itself."""
        reader = self.repository.keys.writer_keys(LINEAGE).reader
        data = reader.seal(kind, body, signing_key=self.thief, randomness=SYSTEM_RANDOMNESS)
        name = name or index_name(ObjectHeader.decode(data).object_id)
        self.store.put(name, data + bytes(72) * (kind is ObjectKind.MANIFEST))
        return name


@pytest.fixture
def site(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Site:
    repository = new_repository(DirectoryStore.create(tmp_path / "r"))
    thief = Ed25519PrivateKey.generate()
    authorise(repository, thief, agent_id="stolen")
    repository.backup(IMAGE)
    return Site(tmp_path / "r", repository, thief, capsys)


def _index(site: Site) -> str:
    body = IndexBuilder().encode(writer=site.thief.public_key().public_bytes_raw())
    return site.put_sealed(ObjectKind.INDEX, body)


def _manifest(site: Site) -> str:
    """Right in all but its grant: the thief has no controller to give one."""
    keys = site.repository.keys
    reader = keys.writer_keys(LINEAGE).reader
    (point,) = list_points(site.store, keys).points
    body = replace(point.manifest, job_id=JobId("STOLEN1"), indexes=()).encode()
    return site.put_sealed(
        ObjectKind.MANIFEST, body, name=manifest_name(reader.lineage_tag, "STOLEN1")
    )


def _nonsense_manifest(site: Site) -> str:
    tag = site.repository.keys.writer_keys(LINEAGE).reader.lineage_tag
    return site.put_sealed(ObjectKind.MANIFEST, b"{]", name=manifest_name(tag, "STOLEN2"))


def _nonsense_lease(site: Site) -> str:
    return site.put_sealed(ObjectKind.LEASE, b"{]", name=lease_name(bytes(16), 0))


PUT = [_index, _manifest, _nonsense_manifest, _nonsense_lease]


@pytest.mark.parametrize("put", PUT)
def test_what_a_revoked_writer_goes_on_putting_is_no_damage(
    put: Callable[[Site], str], site: Site
) -> None:
    site.revoke_thief()
    name = put(site)
    report = site.engine()
    assert report.is_clean, (name, report.damaged, report.lost_points)
    told = site.rescue("check", "--json")
    assert told.status == 0, told.out
    assert told.document["clean"] is True
    assert site.rescue("list", "--json").status == 0


@pytest.mark.parametrize("put", PUT)
def test_the_same_of_a_key_that_nobody_listed_is_damage(
    put: Callable[[Site], str], site: Site
) -> None:
    site.thief = Ed25519PrivateKey.generate()
    name = put(site)
    assert name in {item.name for item in site.engine().damaged}
    told = site.rescue("check", "--json")
    assert told.status == 1
    assert name in told.damaged


def test_a_point_of_a_revoked_writer_that_a_catalogue_knows_is_lost(site: Site) -> None:
    site.revoke_thief()
    name = _manifest(site)
    assert check_structure(site.store, site.repository.keys).is_clean
    report = check_structure(site.store, site.repository.keys, expected_points=[name])
    assert report.lost_points == (name,)
    assert name in {item.name for item in report.damaged}


def test_a_refused_index_that_a_point_names_is_missed(site: Site) -> None:
    """Its writer was revoked and the point accepted, but not the index."""
    repository = site.repository
    (point,) = list_points(site.store, repository.keys).points
    site.revoke_own(accepted=frozenset({point.digest}), is_settled=True)
    (index,) = (index_name(item.object_id) for item in point.manifest.indexes)
    assert index in {item.name for item in site.engine().damaged}
    told = site.rescue("check", "--json")
    assert (told.status, told.damaged) == (1, {index})
    (row,) = _points(told)
    assert row["lost"] == {}


def test_a_point_is_in_doubt_while_its_writers_revocation_is_not_finished(
    site: Site, tmp_path: Path
) -> None:
    (point,) = list_points(site.store, site.repository.keys).points
    site.revoke_own(accepted=frozenset(), is_settled=False)
    assert site.engine().lost_points == (point.name,)
    (row,) = _points(site.rescue("list", "--json"))
    assert (row["counts"], row["in_doubt"]) == (False, True)
    assert "IN DOUBT: nobody knows whether it counts" in site.rescue("list").out
    told = site.rescue("check", "--json")
    assert told.status == 1
    assert point.name in told.damaged
    restore = ["restore", "JOB00001", "--to", str(tmp_path / "disk"), "--format", "raw"]
    refused = site.rescue(*restore)
    assert refused.status == 2
    assert "is in doubt" in refused.err
    assert "revoke that agent again" in refused.err
    assert site.rescue(*restore, "--accept-unverified").status == 0
    assert (tmp_path / "disk").read_bytes() == IMAGE


def test_a_finished_revocation_says_flatly_what_does_not_count(site: Site) -> None:
    site.revoke_own(accepted=frozenset(), is_settled=True)
    (row,) = _points(site.rescue("list", "--json"))
    assert (row["counts"], row["in_doubt"]) == (False, False)
    assert "DOES NOT COUNT: its signer was revoked" in site.rescue("list").out


def test_what_an_unfinished_revocation_accepts_counts(site: Site) -> None:
    (point,) = list_points(site.store, site.repository.keys).points
    site.revoke_own(accepted=frozenset({point.digest}), is_settled=False)
    (row,) = _points(site.rescue("list", "--json"))
    assert (row["counts"], row["in_doubt"], row["refusal"]) == (True, False, None)


def test_fences_that_were_lost_are_told_when_a_point_belongs_to_a_later_epoch(site: Site) -> None:
    for epoch in (1, 2):
        site.put_fence(Fence(closed_epoch=epoch, closed_at=AT, census={}, decided_epoch=0))
    site.repository.backup(IMAGE)
    lost = fence_name(2)
    (site.folder / lost).unlink()
    assert lost in {item.name for item in site.engine().damaged}
    told = site.rescue("check", "--json")
    assert (told.status, told.damaged) == (1, {lost})


def test_a_fence_that_decides_more_than_it_closes_is_no_fence(site: Site) -> None:
    site.put_fence(Fence(closed_epoch=1, closed_at=AT, census={}, decided_epoch=5))
    report = site.engine()
    assert {item.name for item in report.damaged} == {fence_name(1)}
    assert report.points == 1
    told = site.rescue("check", "--json")
    assert (told.status, told.damaged) == (1, {fence_name(1)})


def _points(told: Told) -> list[dict[str, object]]:
    rows = told.document["points"]
    assert isinstance(rows, list)
    return rows
