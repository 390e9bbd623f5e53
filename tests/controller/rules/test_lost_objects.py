"""One object of the repository that is lost costs a VM one full backup, never its protection."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from holdfast_common.errors import NotFound, Refused, RepositoryFailed
from holdfast_common.identity import PointId
from holdfast_common.job_spec import JobSpec
from holdfast_common.logs import Secret
from holdfast_common.repository.directory_store import DirectoryStore
from holdfast_common.repository.points import list_points
from holdfast_common.repository.randomness import SYSTEM_RANDOMNESS
from holdfast_common.repository.recovery_sheet import new_recovery_sheet
from holdfast_common.repository.writers import ROLE_VERIFY, ROLE_WRITE
from holdfast_common.wire import operator_pb2
from holdfast_controller.runs.requests import CheckRequest, RepairRequest
from holdfast_controller.service import check_actions
from holdfast_controller.service.check_actions import CheckActions
from holdfast_controller.service.follower import RunFollower
from holdfast_controller.store.jobs import JobRow
from holdfast_lab.server import RunningLab
from support.one_process import OneProcess, disk_content, disk_truth, guest_writes
from support.repositories import new_repository

UNIT = 64 * 1024


def objects(holdfast: OneProcess, kind: str) -> set[Path]:
    folder = holdfast.folder / "repository" / kind
    return {path for path in folder.glob("*/*") if path.is_file()}


def largest(paths: set[Path]) -> Path:
    """Of the packs of one backup the one with the disk's data: there may be others, of its small blobs."""
    return max(paths, key=lambda path: path.stat().st_size)


def damage(path: Path, how: str) -> None:
    data = bytearray(path.read_bytes())
    path.chmod(0o600)
    if how == "gone":
        path.unlink()
    elif how == "shorter":
        path.write_bytes(data[:-1])
    else:
        data[len(data) // 2] ^= 1
        path.write_bytes(data)


@pytest.mark.parametrize(
    ("kind", "how"),
    [
        ("points", "gone"),
        ("points", "a byte differs"),
        ("maps", "gone"),
        ("maps", "shorter"),
        ("packs", "gone"),
        ("packs", "shorter"),
    ],
)
def test_after_a_loss_the_next_backup_is_a_full_and_then_all_goes_on(
    holdfast: OneProcess, lab: RunningLab, kind: str, how: str
) -> None:
    holdfast.back_up("web")
    guest_writes(lab, "web", 3 * UNIT)
    damage(largest(objects(holdfast, kind)), how)
    failed = holdfast.back_up("web")
    assert failed.error is not None
    assert (failed.error.code, failed.error.retryable) == ("previous_lost", True)
    full = holdfast.back_up("web")
    assert (str(full.state), full.level) == ("done", "full")
    assert "no longer whole" in full.level_reason
    assert holdfast.record(full).previous_point_id == ""
    assert disk_content(holdfast, full) == disk_truth(lab, "web")
    guest_writes(lab, "web", 9 * UNIT)
    after = holdfast.back_up("web")
    assert (str(after.state), after.level) == ("done", "incremental")
    assert disk_content(holdfast, after) == disk_truth(lab, "web")
    assert not holdfast.world.ledger.open_entries()


@pytest.mark.parametrize("kind", ["points", "maps", "packs"])
def test_a_full_that_is_asked_for_needs_no_earlier_point(
    holdfast: OneProcess, lab: RunningLab, kind: str
) -> None:
    holdfast.back_up("web")
    damage(largest(objects(holdfast, kind)), "gone")
    full = holdfast.back_up("web", level="full")
    assert (str(full.state), full.level) == ("done", "full")
    assert disk_content(holdfast, full) == disk_truth(lab, "web")


def checked(holdfast: OneProcess, *points: str, read_data: bool = False) -> JobRow:
    request = CheckRequest(read_data=read_data, point_ids=tuple(PointId(point) for point in points))
    return holdfast.ended(holdfast.engine.start_check(request))


def told(holdfast: OneProcess) -> tuple[str, str]:
    """What the doctor says of the repository's data."""
    (line,) = [line for line in holdfast.doctor() if line.name == "repository: data"]
    return line.state, line.detail


@pytest.mark.parametrize("kind", ["points", "maps", "packs"])
def test_what_the_last_check_found_stays_on_the_screen_until_another_one(
    holdfast: OneProcess, kind: str
) -> None:
    assert told(holdfast)[0] == "ok"
    first = holdfast.back_up("web")
    of_first = objects(holdfast, kind)
    other = holdfast.back_up("db")
    assert str(checked(holdfast).state) == "done"
    assert told(holdfast)[0] == "ok"
    lost = largest(objects(holdfast, kind) - of_first)
    kept = lost.read_bytes()
    damage(lost, "gone")
    assert holdfast.back_up("db").error is not None
    assert told(holdfast)[0] == "warning", "a backup has met the loss"
    found = checked(holdfast)
    assert found.error is not None
    assert found.error.code == "integrity"
    assert any(other.point_id in warning.message for warning in found.warnings)
    assert told(holdfast)[0] == "failed"
    checked(holdfast, first.point_id)
    assert told(holdfast)[0] == "failed", "a check of other points says nothing of this one"
    lost.write_bytes(kept)
    assert str(checked(holdfast).state) == "done"
    assert told(holdfast)[0] == "ok"


@pytest.mark.parametrize(
    ("name", "level"), [("points/a/b", "full"), ("maps/a/b", "full"), ("leases/a", "incremental")]
)
def test_a_point_or_map_that_can_never_be_read_counts_as_lost(
    holdfast: OneProcess, name: str, level: str
) -> None:
    holdfast.back_up("web")

    def failing(_: JobSpec) -> None:
        raise RepositoryFailed("the repository's storage failed", name=name)

    before, holdfast.agent.before = holdfast.agent.before, failing
    assert str(holdfast.back_up("web").state) == "failed"
    holdfast.agent.before = before
    assert holdfast.back_up("web").level == level


def test_nothing_is_built_on_a_pack_that_a_check_found_rotten(
    holdfast: OneProcess, lab: RunningLab
) -> None:
    """Its length is right, so no listing tells; a check that reads the data does."""
    holdfast.back_up("web")
    damage(largest(objects(holdfast, "packs")), "a byte differs")
    assert checked(holdfast, read_data=True).error is not None
    assert checked(holdfast).error is None, "the structure is as it was"
    assert told(holdfast)[0] == "failed", "it did not look at the data"
    failed = holdfast.back_up("web")
    assert failed.error is not None
    assert failed.error.code == "previous_lost"
    full = holdfast.back_up("web")
    assert (str(full.state), full.level) == ("done", "full")
    assert disk_content(holdfast, full) == disk_truth(lab, "web")
    after = holdfast.back_up("web")
    assert (str(after.state), after.level) == ("done", "incremental")
    assert disk_content(holdfast, after) == disk_truth(lab, "web")
    found = checked(holdfast, read_data=True)
    assert found.error is not None
    assert not [each for each in found.warnings if full.point_id in each.message]
    assert not [each for each in found.warnings if after.point_id in each.message]


def test_a_repair_from_a_copy_makes_the_repository_whole_again(
    holdfast: OneProcess, lab: RunningLab
) -> None:
    point = holdfast.back_up("web")
    copy = holdfast.folder / "copies" / "second"
    shutil.copytree(holdfast.folder / "repository", copy)
    damage(largest(objects(holdfast, "packs")), "a byte differs")
    assert checked(holdfast, read_data=True).error is not None
    assert told(holdfast)[0] == "failed"

    def repaired(*, dry_run: bool, source: Path = copy) -> JobRow:
        request = RepairRequest(source_folder=str(source), dry_run=dry_run)
        return holdfast.ended(holdfast.engine.start_repair(request))

    with pytest.raises(Refused, match=r"proxy lists .*copies"):
        repaired(dry_run=False, source=holdfast.folder)
    assert repaired(dry_run=True).error is not None
    assert told(holdfast)[0] == "failed"
    assert repaired(dry_run=False).error is None
    assert told(holdfast)[0] == "ok"
    assert disk_content(holdfast, point) == disk_truth(lab, "web")
    guest_writes(lab, "web", 5 * UNIT)
    after = holdfast.back_up("web")
    assert (str(after.state), after.level) == ("done", "incremental")
    assert disk_content(holdfast, after) == disk_truth(lab, "web")


def listed_damages(holdfast: OneProcess, job: JobRow) -> operator_pb2.DamagePage:
    """All pages in one, as an operator asks for them."""
    actions = CheckActions(holdfast.world, holdfast.engine)
    query = operator_pb2.DamageQuery(job_id=job.job_id)
    whole = actions.list_damages(query)
    while whole.next:
        query.start = whole.next
        whole.next = 0
        whole.MergeFrom(actions.list_damages(query))
    return whole


def test_a_check_and_a_repair_list_every_point_disk_and_range_that_is_lost(
    holdfast: OneProcess, lab: RunningLab, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(check_actions, "PAGE_ROWS_MAX", 2)
    first = holdfast.back_up("web")
    guest_writes(lab, "web", 3 * UNIT)
    second = holdfast.back_up("web")
    whole = checked(holdfast, read_data=True)
    with pytest.raises(NotFound, match="no list of damages"):
        listed_damages(holdfast, whole)
    for path in objects(holdfast, "packs"):
        damage(path, "gone")
    repair = holdfast.ended(holdfast.engine.start_repair(RepairRequest()))
    for job in (checked(holdfast, read_data=True), repair):
        assert job.error is not None
        assert f"holdfast job damages {job.job_id}" in job.error.advice
        page = listed_damages(holdfast, job)
        assert page.next == 0
        for point in (first.point_id, second.point_id):
            lost = [
                extent
                for found in page.damages
                if found.point_id == point and found.device_key
                for extent in found.lost
            ]
            assert sum(extent.length for extent in lost) >= 1 << 20, "the disk's random bytes"
        objects_told = [found.object_name for found in page.damages if not found.point_id]
        assert page.summary.objects == len(objects_told)
        assert page.summary.points == 2
        assert page.summary.ranges == sum(len(found.lost) for found in page.damages)
        detail = next(
            event.finished
            for event in RunFollower(holdfast.world, job.run_id).next_events()
            if event.WhichOneof("event") == "finished"
        )
        assert detail.damages == page.summary


def test_a_repair_by_a_proxy_that_never_wrote_lists_it_as_a_writer_first(
    holdfast: OneProcess, lab: RunningLab
) -> None:
    """What it puts in place it signs, which only a listed key can; a dry run signs nothing."""
    point = holdfast.back_up("web")
    copy = holdfast.folder / "copies" / "second"
    shutil.copytree(holdfast.folder / "repository", copy)
    damage(largest(objects(holdfast, "packs")), "gone")
    world = holdfast.world
    agent_id = holdfast.agent.agent.agent_id
    public = world.agents.get(agent_id).signing_public_key

    def roles(*given: str) -> set[str]:
        with DirectoryStore.open(world.keeper.folder) as store:
            if given:
                world.keeper.keys().authorise_writer(
                    store, public, agent_id=agent_id, clock=world.clock, roles=given
                )
            listed = world.keeper.keys().writers(store).of(public)
        return set() if listed is None else set(listed.roles)

    assert roles(ROLE_VERIFY) == {ROLE_VERIFY}
    request = RepairRequest(source_folder=str(copy), dry_run=True)
    assert holdfast.ended(holdfast.engine.start_repair(request)).error is not None
    assert roles() == {ROLE_VERIFY}
    repaired = holdfast.ended(holdfast.engine.start_repair(replace(request, dry_run=False)))
    assert repaired.error is None
    assert ROLE_WRITE in roles()
    assert disk_content(holdfast, point) == disk_truth(lab, "web")


def test_a_repair_from_another_repository_of_the_same_vm_takes_its_true_bytes(
    holdfast: OneProcess, lab: RunningLab
) -> None:
    """Another repository with keys of its own; its recovery sheet goes to the controller and no further."""
    point = holdfast.back_up("web")
    with DirectoryStore.open(holdfast.folder / "repository") as store:
        ours = list_points(store, holdfast.world.keeper.keys()).points[0]
    folder = holdfast.folder / "copies" / "other"
    folder.parent.mkdir(exist_ok=True)
    lab.lab.machine("web").disks()[0].disk.truth(holdfast.folder / "truth", None)
    with DirectoryStore.create(folder) as store:
        other = new_repository(store)
        image = (holdfast.folder / "truth").read_bytes()
        other.backup(image, lineage=ours.manifest.lineage_id)
    damage(largest(objects(holdfast, "packs")), "a byte differs")
    assert checked(holdfast, read_data=True).error is not None

    def repaired(key: str, *, dry_run: bool = False) -> JobRow:
        request = RepairRequest(
            source_folder=str(folder), dry_run=dry_run, other_key=Secret(key.encode())
        )
        return holdfast.ended(holdfast.engine.start_repair(request))

    refused = repaired(
        new_recovery_sheet(repository_id="", randomness=SYSTEM_RANDOMNESS).key_text()
    )
    assert refused.error is not None
    assert refused.error.code == "wrong_key"
    assert repaired(other.sheet.key_text(), dry_run=True).error is not None
    assert told(holdfast)[0] == "failed"
    assert repaired(other.sheet.key_text()).error is None
    assert told(holdfast)[0] == "ok"
    assert disk_content(holdfast, point) == disk_truth(lab, "web")
    done = [(row.action, row.object) for row in holdfast.world.audit.entries()]
    assert ("open another repository", str(folder)) in done
    assert ("open segment keys", other.keys.repository_id) in done
