"""What is told of keeping the repository, and that by hand policies forget the same: by the engine and the lab."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest

from holdfast_common.errors import NotFound, UsageError
from holdfast_common.wire import operator_pb2
from holdfast_controller.commands.keeping_shown import keeping_lines
from holdfast_controller.decide.notices import NoticeKind
from holdfast_controller.runs.keeping_state import keeping_failures, keeping_warnings
from holdfast_controller.runs.notice_sources import standing_notices
from holdfast_controller.runs.promises import Promises
from holdfast_controller.service.repository_actions import RepositoryActions
from holdfast_controller.service.status_actions import StatusActions
from holdfast_controller.store import settings as names
from holdfast_controller.store.keeping import KeepingSlot
from holdfast_lab.server import RunningLab
from support.kept_repositories import KeptRepository, only
from support.one_process import OneProcess, one_process


@pytest.fixture
def holdfast(tmp_path: Path, lab: RunningLab) -> Iterator[OneProcess]:
    with one_process(tmp_path / "holdfast", lab) as ready:
        yield ready


def test_by_hand_policies_forget_the_same_and_only_of_the_vm_that_is_named(
    holdfast: OneProcess,
) -> None:
    kept = KeptRepository(holdfast)
    kept.policy("web", keep_last=1)
    old = kept.points(3)
    actions = RepositoryActions(holdfast.world, holdfast.engine)
    planned = actions.forget(operator_pb2.ForgetRequest(by_policies=True, dry_run=True))
    assert set(planned.names) == set(old[:-1])
    assert {each.point_id: list(each.reasons) for each in planned.decisions}[old[0]] == [
        "gold: beyond the newest 1"
    ]
    assert kept.known() == set(old)
    with pytest.raises(NotFound):
        actions.forget(operator_pb2.ForgetRequest(by_policies=True, vm="proxy", dry_run=True))
    rule = operator_pb2.RetentionRule(keep_last=1)
    with pytest.raises(UsageError, match="rules of their own"):
        actions.forget(operator_pb2.ForgetRequest(by_policies=True, rule=rule))
    exact = operator_pb2.ForgetRequest(by_policies=True, vm="web", only=[old[0]])
    assert list(actions.forget(exact).names) == [old[0]]
    kept.look(hours=1)
    kept.job("forget")
    assert kept.known() == {old[-1]}


def test_status_tells_what_was_kept_what_comes_next_and_whose_points_no_policy_covers(
    holdfast: OneProcess, lab: RunningLab
) -> None:
    kept = KeptRepository(holdfast, f"{only('check')}check.read_days = 1\n")
    kept.points(2, lab=lab)
    kept.look(hours=1)
    check = kept.job("check")
    found = StatusActions(kept.world).status()
    (web,) = [vm for vm in found.vms if vm.name == "web"]
    assert web.read_back_at == max(row.created_at for row in holdfast.world.catalogue.points())
    keeping = found.keeping
    assert (keeping.uncovered_vms, keeping.uncovered_points) == (1, 2)
    assert (keeping.unproven_bytes, keeping.stored_bytes) == (0, kept.stored_bytes())
    tasks = {task.task: task for task in keeping.tasks}
    assert [tasks[name].next_at for name in ("forget", "prune", "scrub")] == [""] * 3
    assert (tasks["check"].last_run, tasks["check"].result, tasks["check"].well) == (
        check.run_id,
        "done",
        True,
    )
    lines = list(keeping_lines(keeping, holdfast.world.clock.now()))
    assert any(
        "2 points of 1 VMs that no policy covers: all of them stay" in line for line in lines
    )
    assert any(line.startswith("read back, 0 minutes ago: 0 B of ") for line in lines)
    assert any(line.startswith("keeping  forget  never; switched off") for line in lines)
    kept.policy("web", keep_last=1)
    assert StatusActions(kept.world).status().keeping.uncovered_points == 0


def test_what_no_job_tells_is_a_notice_and_a_warning(holdfast: OneProcess) -> None:
    kept = KeptRepository(holdfast, only("check"))
    world = kept.world
    assert keeping_failures(world) == []
    world.keeping.take(
        KeepingSlot(task="check", slot=kept.now - timedelta(days=2), told="no proxy is there")
    )
    world.settings.set(names.CLOCK_DOUBT, "it jumped")
    told = [
        notice.text
        for notice in standing_notices(world, None, Promises(world).now())
        if notice.kind is NoticeKind.KEEPING
    ]
    assert len(told) == 2
    assert "no proxy is there" in told[1]
    assert set(told) <= set(keeping_warnings(world))
