from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from holdfast_agent.pipelines.check_repository import check_repository
from holdfast_agent.pipelines.list_points import list_points
from holdfast_agent.pipelines.pipeline_table import PIPELINES
from holdfast_common.clock import SystemClock
from holdfast_common.errors import Cancelled, UsageError
from holdfast_common.extents import Extent, total_length
from holdfast_common.identity import AgentId, JobId, LineageId, PointId, new_ulid
from holdfast_common.job_result import JobResult, Outcome
from holdfast_common.job_spec import CheckRepository, ListPoints, Work
from holdfast_common.point_record import PointRecord
from holdfast_common.repository.directory_store import DirectoryStore
from holdfast_common.repository.proof import load_proof_times
from holdfast_common.repository.writers import load_writers
from holdfast_common.units import MIB
from support.backup_jobs import LINEAGE, Site, make_site, point_of


@pytest.fixture
def site(tmp_path: Path) -> Site:
    site = make_site(tmp_path)
    site.make_disk(2000, random.Random(3).randbytes(3 * MIB))
    return site


def check(
    site: Site,
    *,
    read_data: bool,
    points: tuple[PointId, ...] = (),
    lineage: LineageId = LINEAGE,
    subset: str = "",
) -> JobResult:
    keys = (site.repository.reader_keys(lineage),)
    work = CheckRepository(read_data=read_data, point_ids=points, keys=keys, subset=subset)
    return check_repository(site.spec(work), site.context())


def damage(folder: Path) -> None:
    for path in folder.rglob("*"):
        if path.is_file():
            data = bytearray(path.read_bytes())
            data[len(data) // 2] ^= 0x40
            path.chmod(0o600)
            path.write_bytes(data)


@pytest.mark.parametrize("read_data", [False, True])
def test_a_whole_repository_has_no_damage(site: Site, read_data: bool) -> None:
    site.back_up()
    result = check(site, read_data=read_data)
    assert (result.outcome, result.error, result.damages) == (Outcome.DONE, None, ())
    assert result.objects_checked > 3


def test_every_check_of_the_data_proves_it_anew_with_its_own_time(site: Site) -> None:
    site.back_up()
    check(site, read_data=True)
    check(site, read_data=True)
    proofs = [path for path in (site.root / "repository/proofs").rglob("*") if path.is_file()]
    assert len(proofs) == 2


def second_proxy(site: Site) -> Site:
    """The same repository and VM, by another proxy with a key of its own."""
    key = Ed25519PrivateKey.generate()
    agent_id = AgentId(new_ulid())
    with DirectoryStore.open(site.repository.folder) as store:
        site.repository.keys.authorise_writer(
            store, key.public_key().public_bytes_raw(), agent_id=agent_id, clock=SystemClock()
        )
    return replace(site, repository=replace(site.repository, signing_key=key, agent_id=agent_id))


def packs_in(site: Site) -> set[bytes]:
    folder = site.root / "repository/packs"
    return {bytes.fromhex(path.name) for path in folder.rglob("*") if path.is_file()}


def packs_of_a_backup(site: Site) -> int:
    """How many packs a backup of everything stores."""
    folder = site.root / "repository/packs"
    before = sum(path.is_file() for path in folder.rglob("*"))
    assert site.back_up().outcome is Outcome.DONE
    return sum(path.is_file() for path in folder.rglob("*")) - before


def test_a_proxy_builds_on_what_another_stored_once_it_verified_it_itself(site: Site) -> None:
    """What it proved of its own is no help to the other one, until that one verifies."""
    other = second_proxy(site)
    assert packs_of_a_backup(site)
    check(site, read_data=True)
    assert packs_of_a_backup(other)  # now both have stored it
    site.flat_file(2000).write_bytes(random.Random(4).randbytes(3 * MIB))
    assert packs_of_a_backup(site)
    check(other, read_data=True)
    assert packs_of_a_backup(other) == 0


def test_a_third_proxy_builds_on_what_another_verified_that_did_not_write_it(site: Site) -> None:
    verifier, third = second_proxy(site), second_proxy(site)
    assert packs_of_a_backup(site)
    check(verifier, read_data=True)
    assert packs_of_a_backup(third) == 0


def test_a_share_of_the_data_takes_what_no_other_proxy_has_proven_yet(site: Site) -> None:
    """What the writer says of its own packs does not count, however new it is."""
    other = second_proxy(site)
    site.back_up()
    first = packs_in(site)
    check(other, read_data=True)
    site.flat_file(2000).write_bytes(random.Random(5).randbytes(3 * MIB))
    site.back_up()
    second = packs_in(site) - first
    assert second
    for _ in second:  # what nobody proved yet, not even a proxy that did not write it, comes first
        assert check(site, read_data=True, subset="1%").error is None
    keys = site.repository.keys.common
    with DirectoryStore.open(site.repository.folder) as store:

        def proven_by(proxy: Site) -> set[bytes]:
            times = load_proof_times(store, keys, load_writers(store, keys)).of_prover
            return set(times.get(proxy.repository.signing_key.public_key().public_bytes_raw(), ()))

        for count in range(1, len(second) + 1):
            check(other, read_data=True, subset="1%")
            assert len(proven_by(other) & second) == count


def test_a_damaged_pack_is_named_with_what_is_lost_of_which_point(site: Site) -> None:
    point = point_of(site.back_up())
    damage(site.root / "repository/packs")
    result = check(site, read_data=True)
    assert result.outcome is Outcome.FAILED
    assert result.error is not None
    assert result.error.exit_status == 13
    lost = [found for found in result.damages if found.device_key == 2000]
    assert {found.point_id for found in lost} == {point}
    assert total_length(lost[0].lost) >= MIB
    assert any(found.object_name.startswith("packs/") for found in result.damages)


def test_only_the_points_named_are_reported(site: Site) -> None:
    first = point_of(site.back_up())
    second = point_of(site.incremental(first, {2000: [Extent(offset=0, length=1)]}))
    damage(site.root / "repository/packs")
    result = check(site, read_data=True, points=(second,))
    assert {found.point_id for found in result.damages if found.point_id} == {second}


def test_points_of_lineages_without_keys_are_no_damage_but_a_warning(site: Site) -> None:
    site.back_up()
    context = site.context()
    keys = (site.repository.reader_keys(LineageId("vc-1/another")),)
    work = CheckRepository(read_data=False, point_ids=(), keys=keys)
    result = check_repository(site.spec(work), context)
    assert result.outcome is Outcome.DONE
    assert [code for code, _ in context.warnings] == ["not_checked"]


def test_a_check_of_named_points_tells_nothing_of_others(site: Site) -> None:
    point = point_of(site.back_up())
    (other,) = (path for path in (site.root / "repository/points").iterdir() if path.is_dir())
    strange = other.parent / ("0" * len(other.name))
    strange.mkdir()
    for manifest in other.iterdir():
        (strange / manifest.name).write_bytes(manifest.read_bytes())
    context = site.context()
    keys = (site.repository.reader_keys(LINEAGE),)
    work = CheckRepository(read_data=False, point_ids=(point,), keys=keys)
    check_repository(site.spec(work), context)
    assert context.warnings == []


def test_a_named_point_that_is_gone_is_damage(site: Site) -> None:
    first = point_of(site.back_up())
    second = point_of(site.back_up())
    newest = max(
        (site.root / "repository/points").rglob("*"),
        key=lambda path: path.stat().st_mtime_ns * path.is_file(),
    )
    newest.unlink()
    assert check(site, read_data=False, points=(first,)).outcome is Outcome.DONE
    result = check(site, read_data=False, points=(first, second))
    assert result.outcome is Outcome.FAILED
    assert [found.point_id for found in result.damages] == [second]
    assert "not in the repository" in result.damages[0].problem


def test_a_check_can_be_cancelled(site: Site) -> None:
    site.back_up()
    keys = (site.repository.reader_keys(LINEAGE),)
    work = CheckRepository(read_data=True, point_ids=(), keys=keys)
    for number in range(0, 60, 7):
        context = site.context(stop_with=Cancelled("cancelled"), stop_at_check=number)
        try:
            check_repository(site.spec(work), context)
        except Cancelled:
            continue
        assert context.checks <= number


def listed(site: Site, job_id: JobId | None = None) -> JobResult:
    work = ListPoints(keys=(site.repository.reader_keys(LINEAGE),), job_id=job_id)
    return list_points(site.spec(work), site.context())


def test_points_are_listed_as_the_records_that_their_jobs_returned(site: Site) -> None:
    first = site.back_up()
    second = site.incremental(point_of(first), {2000: [Extent(offset=0, length=512)]})
    found = listed(site).points
    assert [PointRecord.decode(point.record) for point in found] == [
        PointRecord.decode(first.record),
        PointRecord.decode(second.record),
    ]
    assert found[1].lineage_id == LINEAGE


def test_a_jobs_own_point_is_found_or_not(site: Site) -> None:
    context = site.context()
    result = site.back_up(context=context)
    site.back_up()
    (found,) = listed(site, context.attempt.job_id).points
    assert found.point_id == result.point_id
    assert listed(site, JobId("01J0000000000000000000000Z")).points == ()


def test_a_damaged_manifest_is_a_warning_and_hides_no_other(site: Site) -> None:
    site.back_up()
    damage(site.root / "repository/points")
    second = site.back_up()
    context = site.context()
    work = ListPoints(keys=(site.repository.reader_keys(LINEAGE),))
    result = list_points(site.spec(work), context)
    assert [point.point_id for point in result.points] == [second.point_id]
    assert len(context.warnings) == 1


def test_a_job_without_keys_is_refused(site: Site) -> None:
    with pytest.raises(UsageError):
        list_points(site.spec(ListPoints(keys=())), site.context())


def test_every_kind_of_work_has_a_pipeline() -> None:
    assert set(PIPELINES) == set(Work.__args__)
