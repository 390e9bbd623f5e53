"""The repair job: from an allowed copy, told line by line; what stays lost is its error."""

from __future__ import annotations

import random
import shutil
from pathlib import Path

import pytest

from holdfast_agent.pipelines.repair_repository import repair_repository
from holdfast_common.errors import HoldfastError, NoRepository, Refused
from holdfast_common.extents import Extent
from holdfast_common.identity import PointId
from holdfast_common.job_result import JobResult, Outcome
from holdfast_common.job_spec import CheckRepository, RepairRepository
from holdfast_common.units import MIB
from support.backup_jobs import LINEAGE, Site, make_site, point_of


@pytest.fixture
def site(tmp_path: Path) -> Site:
    site = make_site(tmp_path)
    site.make_disk(2000, random.Random(3).randbytes(3 * MIB))
    return site


def repaired(
    site: Site, *points: PointId, source: Path | None = None, dry_run: bool = False
) -> JobResult:
    work = RepairRepository(
        keys=(site.repository.reader_keys(LINEAGE),),
        expected_point_ids=points,
        source_folder=str(source or ""),
        dry_run=dry_run,
    )
    return repair_repository(site.spec(work), site.context())


def copied(site: Site) -> Path:
    copy = site.root / "copies" / "second"
    shutil.copytree(site.root / "repository", copy)
    return copy


def rot(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0x40
    path.chmod(0o600)
    path.write_bytes(data)


def files(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def test_a_rotten_pack_and_a_lost_manifest_come_back_from_a_copy(site: Site) -> None:
    first = point_of(site.back_up())
    second = point_of(site.incremental(first, {2000: [Extent(offset=0, length=1)]}))
    copy = copied(site)
    repository = site.root / "repository"
    for path in (repository / "packs").rglob("*"):
        if path.is_file():
            rot(path)
    (manifest,) = (repository / "points").rglob(second)
    manifest.unlink()
    before = files(copy)
    found = repaired(site, first, second, source=copy, dry_run=True)
    assert found.error is not None
    assert "nothing was changed" in found.error.message
    result = repaired(site, first, second, source=copy)
    assert (result.outcome, result.error, result.damages) == (Outcome.DONE, None, ())
    assert files(copy) == before, "a copy is only read"
    assert list((repository / "aside/packs").rglob("*"))
    again = repaired(site, first, second)
    assert again.outcome is Outcome.DONE


def test_without_a_copy_what_stays_lost_is_told(site: Site) -> None:
    point = point_of(site.back_up())
    for path in (site.root / "repository/packs").rglob("*"):
        if path.is_file():
            rot(path)
    result = repaired(site, point)
    assert result.outcome is Outcome.FAILED
    assert result.error is not None
    assert result.error.exit_status == 13
    assert {found.point_id for found in result.damages if found.device_key} == {point}


@pytest.mark.parametrize("where", ["elsewhere", "copies/../repository", "copies-not", ""])
def test_a_folder_that_the_administrator_did_not_allow_is_refused(site: Site, where: str) -> None:
    site.back_up()
    with pytest.raises(Refused, match="may not read") as caught:
        repaired(site, source=site.root / where if where else Path("relative"))
    assert "agent.toml" in caught.value.advice


def test_a_folder_without_a_repository_is_named(site: Site) -> None:
    site.back_up()
    (site.root / "copies" / "empty").mkdir(parents=True)
    with pytest.raises(NoRepository) as caught:
        repaired(site, source=site.root / "copies" / "empty")
    assert isinstance(caught.value, HoldfastError)
    assert "packs" in caught.value.advice


def test_parts_of_a_check_together_prove_everything_and_a_share_goes_on_where_the_last_one_ended(
    site: Site,
) -> None:
    from holdfast_agent.pipelines.check_repository import check_repository

    first = point_of(site.back_up())
    site.incremental(first, {2000: [Extent(offset=MIB, length=1)]})
    folder = site.root / "repository"
    packs = {path.name for path in (folder / "packs").rglob("*") if path.is_file()}
    assert len(packs) > 1
    keys = (site.repository.reader_keys(LINEAGE),)
    for _ in packs:
        work = CheckRepository(read_data=True, point_ids=(), keys=keys, subset="1%")
        assert check_repository(site.spec(work), site.context()).error is None
    assert len(list((folder / "proofs").iterdir())) == len(packs), "each time another pack"
