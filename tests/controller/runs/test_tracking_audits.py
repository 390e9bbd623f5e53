"""Change tracking lies: the next audit finds it, the point is right, the earlier ones are in doubt."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from holdfast_common.identity import LineageId, PointId
from holdfast_common.job_spec import BackUpDisks
from holdfast_common.wire import operator_pb2
from holdfast_controller.runs.requests import BackupRequest, RestoreVmRequest
from holdfast_controller.runs.tracking_audits import confidence_of
from holdfast_controller.runs.why import Reason, explain
from holdfast_controller.service.operator_actions import OperatorActions
from holdfast_controller.store.jobs import JobRow
from holdfast_lab.inventory_plan import DiskPlan, InventoryPlan, MachinePlan
from holdfast_lab.server import RunningLab, running_lab
from support.one_process import OneProcess, disk_content, disk_truth, guest_writes

MIB = 1 << 20


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[RunningLab]:
    disk = DiskPlan(size_bytes=12 * MIB)
    plan = InventoryPlan(
        machines=(
            MachinePlan(name="web", datastore="nfs1", change_tracking=True, disks=(disk, disk)),
            MachinePlan(name="proxy", datastore="vmfs1", disks=()),
        )
    )
    with running_lab(tmp_path / "lab", inventory=plan) as running:
        yield running


@pytest.fixture
def audited(holdfast: OneProcess) -> OneProcess:
    """Everything that change tracking calls unchanged is read again."""
    return with_share(holdfast, 1.0)


def with_share(holdfast: OneProcess, share: float) -> OneProcess:
    configuration = msgspec.structs.replace(holdfast.world.configuration, audit_share=share)
    object.__setattr__(holdfast.world, "configuration", configuration)
    return holdfast


def lineage(job: JobRow) -> LineageId:
    return LineageId(job.lineage_id)


def shown(holdfast: OneProcess, job: JobRow) -> float | None:
    """As `point show` tells it."""
    return confidence_of(holdfast.world, holdfast.world.catalogue.point(job.point_id))


def warned(job: JobRow, code: str) -> list[str]:
    return [each.message for each in job.warnings if each.code == code]


def test_an_honest_vm_is_audited_and_nothing_happens(audited: OneProcess, lab: RunningLab) -> None:
    audited.back_up("web")
    guest_writes(lab, "web", 5 * MIB)
    job = audited.back_up("web")
    assert job.level == "incremental"
    assert not warned(job, "tracking_lied")
    disks = audited.record(job).disks
    assert [disk.audited_bytes > 11 * MIB for disk in disks] == [True, True]
    assert [disk.untold_bytes for disk in disks] == [0, 0]
    catalogue = audited.world.catalogue
    assert catalogue.tracking_doubt(lineage(job)) == ""
    assert catalogue.suspects() == {}


def explained(holdfast: OneProcess, job: JobRow) -> list[Reason]:
    return explain(holdfast.world, holdfast.engine.dispatcher, job.job_id)


def test_the_confidence_of_a_point_is_what_was_read_of_its_disks(
    holdfast: OneProcess, lab: RunningLab
) -> None:
    with_share(holdfast, 0.0)
    numbers = [shown(holdfast, holdfast.back_up("web"))]
    guest_writes(lab, "web", 5 * MIB)
    numbers.append(shown(holdfast, holdfast.back_up("web")))
    with_share(holdfast, 1.0)
    last = holdfast.back_up("web")
    numbers.append(shown(holdfast, last))
    assert numbers == [1.0, 0.0, 1.0]
    told = {each.question: each.answer for each in explained(holdfast, last)}
    assert told["confidence of the point"].startswith("1: ")
    # what is forgotten takes no evidence with it
    with_share(holdfast, 0.0)
    holdfast.world.catalogue.remove(PointId(last.point_id))
    again = holdfast.back_up("web")
    assert shown(holdfast, again) is not None


def test_a_suspect_has_no_confidence(holdfast: OneProcess, lab: RunningLab) -> None:
    with_share(holdfast, 1.0).back_up("web")
    guest_writes(lab, "web", 5 * MIB)
    job = holdfast.back_up("web")
    assert shown(holdfast, job) == 1.0
    catalogue = holdfast.world.catalogue
    catalogue.doubt_tracking(lineage(job), "told by a test", suspects=[job.point_id])
    assert shown(holdfast, job) == 0.0


def test_rule_38_after_a_lie_the_point_is_right_and_the_earlier_ones_are_in_doubt(
    audited: OneProcess, lab: RunningLab
) -> None:
    full = audited.back_up("web")
    with_share(audited, 0.0)
    lab.lab.misbehaviour.arm("lying_changed_blocks", match={"vm": "web"}, times=None)
    for offset in (MIB, 7 * MIB):
        guest_writes(lab, "web", offset)
    wrong = audited.back_up("web")
    assert disk_content(audited, wrong) != disk_truth(lab, "web"), "the lie works"
    with_share(audited, 1.0)
    job = audited.back_up("web")
    assert disk_content(audited, job) == disk_truth(lab, "web")
    (told,) = warned(job, "tracking_lied")
    assert "change tracking had not told" in told
    catalogue = audited.world.catalogue
    assert set(catalogue.suspects()) == {wrong.point_id}, "the full is proven, the newest is right"
    assert full.point_id != wrong.point_id
    assert "Hard disk 1" in catalogue.tracking_doubt(lineage(job))


def test_rule_38_a_compare_finds_whatever_was_kept_back_and_proves_an_honest_vm(
    holdfast: OneProcess, lab: RunningLab
) -> None:
    with_share(holdfast, 0.0)
    holdfast.back_up("web")
    guest_writes(lab, "web", 5 * MIB)
    holdfast.back_up("web")
    honest = holdfast.back_up("web", level="compare")
    assert (honest.level, honest.level_asked) == ("full", "compare")
    assert shown(holdfast, honest) == 1.0
    assert not warned(honest, "tracking_lied")
    assert all(disk.seen_bytes == 12 * MIB for disk in holdfast.record(honest).disks)
    read_whole_at = holdfast.world.catalogue.point(honest.point_id).created_at
    assert holdfast.world.catalogue.last_full_at(lineage(honest)) == read_whole_at
    lab.lab.misbehaviour.arm("lying_changed_blocks", match={"vm": "web"}, times=None)
    for offset in (MIB, 7 * MIB):
        guest_writes(lab, "web", offset)
    wrong = holdfast.back_up("web")
    assert shown(holdfast, wrong) == 0.0
    job = holdfast.back_up("web", level="compare")
    assert disk_content(holdfast, job) == disk_truth(lab, "web")
    assert warned(job, "tracking_lied")
    assert set(holdfast.world.catalogue.suspects()) == {wrong.point_id}, (
        "the compared one is proven"
    )
    assert "Hard disk 1" in holdfast.world.catalogue.tracking_doubt(lineage(job))
    assert str(job.state) == "done"


def test_rule_38_tracking_that_lied_is_begun_anew_and_believed_again(
    audited: OneProcess, lab: RunningLab
) -> None:
    audited.back_up("web")
    guest_writes(lab, "web", MIB)
    guest_writes(lab, "web", 7 * MIB)
    lab.lab.misbehaviour.arm("lying_changed_blocks", match={"vm": "web"}, times=None)
    assert warned(audited.back_up("web"), "tracking_lied")
    request = BackupRequest(selectors=("web",))
    (line, *_) = audited.engine.start_backup(request, dry_run=True).plan
    assert "reads everything, because" in line
    off = audited.back_up("web")
    (told,) = warned(off, "change_tracking")
    assert "switched off once" in told
    assert not any(disk.change_id for disk in audited.record(off).disks)
    assert audited.world.catalogue.tracking_doubt(lineage(off)) == ""
    lab.lab.misbehaviour.disarm()
    on = audited.back_up("web")
    assert all(disk.change_id for disk in audited.record(on).disks)
    assert all("had no change id" in disk.level_reason for disk in audited.record(on).disks)
    guest_writes(lab, "web", 9 * MIB)
    last = audited.back_up("web")
    assert last.level == "incremental"
    assert sum(disk.read_bytes for disk in audited.record(last).disks) < MIB
    assert disk_content(audited, last) == disk_truth(lab, "web")


def test_as_long_as_tracking_cannot_be_begun_anew_everything_is_read(
    audited: OneProcess, lab: RunningLab
) -> None:
    audited.back_up("web")
    guest_writes(lab, "web", MIB)
    guest_writes(lab, "web", 7 * MIB)
    lab.lab.misbehaviour.arm("lying_changed_blocks", match={"vm": "web"}, times=None)
    audited.back_up("web")
    lab.lab.misbehaviour.arm("fail_call", match={"method": "ReconfigVM_Task"}, times=None)
    for _ in range(2):
        guest_writes(lab, "web", 3 * MIB)
        job = audited.back_up("web")
        (told,) = warned(job, "change_tracking")
        assert told.startswith("everything is read until")
        assert disk_content(audited, job) == disk_truth(lab, "web")
    assert audited.world.catalogue.tracking_doubt(lineage(job))


def test_audits_take_turns(holdfast: OneProcess, lab: RunningLab) -> None:
    with_share(holdfast, 0.25)
    holdfast.back_up("web")
    turns = []
    for _ in range(3):
        guest_writes(lab, "web", 0)
        holdfast.back_up("web")
        work = holdfast.agent.specs[-1].work
        assert isinstance(work, BackUpDisks)
        assert work.audit.share_millionths == 250_000
        turns.append(work.audit.turn)
    assert turns == [0, 1, 2], "a turn that has nothing to read on a small disk passes as well"


def test_whoever_lists_or_restores_a_suspect_point_is_told(
    audited: OneProcess, lab: RunningLab
) -> None:
    audited.back_up("web")
    with_share(audited, 0.0)
    wrong = audited.back_up("web")
    guest_writes(lab, "web", MIB)
    guest_writes(lab, "web", 7 * MIB)
    lab.lab.misbehaviour.arm("lying_changed_blocks", match={"vm": "web"}, times=None)
    with_share(audited, 1.0)
    audited.back_up("web")
    lab.lab.misbehaviour.disarm()
    request = RestoreVmRequest(point_id=PointId(wrong.point_id), name="web2")
    plan = audited.engine.start_restore_vm(request, dry_run=True).plan
    assert any("is in doubt" in line for line in plan)
    administration = object()  # not asked
    actions = OperatorActions(audited.world, audited.engine, administration)  # type: ignore[arg-type]  # of agents
    (warning,) = (text for text in actions.status(operator_pb2.Empty()).warnings if "doubt" in text)
    assert warning.startswith("restore points in doubt: 1, ")
    points = actions.points.list_points(operator_pb2.PointQuery(vm="web")).points
    assert {point.point_id for point in points if point.doubt} == {wrong.point_id}
