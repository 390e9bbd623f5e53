from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import msgspec
import pytest

from holdfast_common.errors import UsageError
from holdfast_common.wire import operator_pb2
from holdfast_controller.configuration import KeepingSettings
from holdfast_controller.decide.policy import Policy
from holdfast_controller.service import plan_pages
from holdfast_controller.service.plan_pages import PlanPages
from holdfast_lab.inventory_plan import DiskPlan, InventoryPlan, MachinePlan
from holdfast_lab.server import RunningLab, running_lab
from support.kept_repositories import only
from support.one_process import OneProcess, one_process


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningLab]:
    machines = [
        MachinePlan(name=name, datastore="nfs1", disks=(DiskPlan(size_bytes=1 << 16),))
        for name in ("web", "db", "mail")
    ]
    machines.append(MachinePlan(name="proxy", datastore="vmfs1", disks=()))
    with running_lab(
        tmp_path_factory.mktemp("lab"), inventory=InventoryPlan(machines=tuple(machines))
    ) as running:
        yield running


@pytest.fixture(scope="module")
def holdfast(tmp_path_factory: pytest.TempPathFactory, lab: RunningLab) -> Iterator[OneProcess]:
    with one_process(tmp_path_factory.mktemp("holdfast"), lab) as ready:
        policy = Policy(name="gold", vms=("web", "db"), start="0 22 * * *")
        ready.world.policies.create(policy, actor="anna")
        yield ready


def pages_of(holdfast: OneProcess, days: float) -> list[operator_pb2.PlanPage]:
    request = operator_pb2.PlanRequest(days=days)
    pages = PlanPages(holdfast.world, request)
    found = []
    while (page := pages.next_page(request)) is not None:
        found.append(page)
    return found


def test_a_plan_tells_each_backup_what_it_comes_to_and_what_no_policy_covers(
    holdfast: OneProcess,
) -> None:
    (page,) = pages_of(holdfast, 3)
    assert [each.act for each in page.decisions[:3]] == ["due", "begin", "begin"]
    first = page.decisions[1]
    assert (first.policy, first.level, first.vm) == ("gold", "full", "db")
    assert first.agent
    summary = page.summary
    assert (summary.policies, summary.vms, summary.guessed) == (1, 2, 2)
    assert (summary.runs, summary.backups, summary.misses) == (3, 6, 0)
    assert list(summary.uncovered) == ["mail"], "a proxy needs no policy"


def test_how_long_the_last_backups_took_is_what_the_next_ones_are_planned_with(
    holdfast: OneProcess,
) -> None:
    assert str(holdfast.back_up("web").state) == "done"
    assert str(holdfast.back_up("web").state) == "done"
    (page,) = pages_of(holdfast, 1)
    assert page.summary.guessed == 1
    levels = {each.vm: each.level for each in page.decisions if each.act == "begin"}
    assert levels == {"web": "incremental", "db": "full"}


def test_a_long_plan_comes_in_pages(holdfast: OneProcess, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = [each for page in pages_of(holdfast, 10) for each in page.decisions]
    monkeypatch.setattr(plan_pages, "PAGE_LENGTH", 7)
    pages = pages_of(holdfast, 10)
    assert {len(page.decisions) for page in pages[:-1]} == {7}
    assert [page.HasField("summary") for page in pages] == [False] * (len(pages) - 1) + [True]
    again = [each for page in pages for each in page.decisions]
    assert [(each.act, each.vm) for each in again] == [(each.act, each.vm) for each in whole]


@pytest.mark.parametrize("days", [0, -1, 93, float("nan")])
def test_a_plan_of_no_days_or_of_too_many_is_refused(holdfast: OneProcess, days: float) -> None:
    with pytest.raises(UsageError):
        pages_of(holdfast, days)


def test_a_policy_that_cannot_say_what_it_selects_backs_up_nothing_and_says_why(
    holdfast: OneProcess,
) -> None:
    world = holdfast.world
    policy = Policy(name="tagged", vms=("tag:gold",), start="0 23 * * *")
    stored = world.policies.create(policy, actor="anna")
    world.vcenters.inventory.tags.forget(holdfast.vcenter_id)
    try:
        (page,) = pages_of(holdfast, 1)
    finally:
        world.policies.delete(stored.policy_id, revision=stored.revision, actor="anna")
        holdfast.refresh()
    (nothing,) = [each for each in page.decisions if each.act == "nothing"]
    assert nothing.policy == "tagged"
    assert "tag" in nothing.reason
    assert page.summary.misses == 1


def test_a_plan_tells_when_the_repository_is_kept(holdfast: OneProcess) -> None:
    kept = msgspec.toml.decode(only("prune").encode(), type=KeepingSettings)
    configuration = msgspec.structs.replace(holdfast.world.configuration, keeping=kept)
    world = replace(holdfast.world, configuration=configuration)
    pages = PlanPages(world, operator_pb2.PlanRequest(days=3))
    page = pages.next_page(operator_pb2.PlanRequest())
    assert page is not None
    (told,) = page.summary.told
    assert told.startswith("keeping: prune begins ")
    assert told.endswith(" 07:00 UTC and stops by 12:00, and 2 more times")
