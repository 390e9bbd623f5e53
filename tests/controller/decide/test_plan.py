from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

from holdfast_common.identity import AgentId
from holdfast_controller.decide.dispatch import Way
from holdfast_controller.decide.due_policies import PolicyHistory
from holdfast_controller.decide.load_limits import LoadKey, LoadKind, LoadLimits
from holdfast_controller.decide.plan import Act, Plan, PlanDecision, PlannedPolicy, PlannedVm
from holdfast_controller.decide.policy import LevelRule, Policy

NOON = datetime(2026, 11, 23, 12, 0, tzinfo=UTC)
TEN = NOON + timedelta(hours=10)
HOST = LoadKey(LoadKind.HOST, "host-1", "esx1")
EAST = Way(agent_id=AgentId("east"), loads=(LoadKey(LoadKind.PROXY, "east"),))
ONE_EACH = LoadLimits(each={LoadKind.HOST: 1})


def vm(name: str, *, seconds: float = 600.0, **fields: object) -> PlannedVm:
    values: dict[str, object] = {
        "key": ("vc", name),
        "name": name,
        "loads": (HOST,),
        "ways": (EAST,),
        "seconds": seconds,
        "full_seconds": 10 * seconds,
        "last_good": NOON - timedelta(days=1),
        "last_full": NOON - timedelta(days=1),
        **fields,
    }
    return PlannedVm(**values)  # type: ignore[arg-type]  # plain values


def policy(name: str, *vms: str, **fields: object) -> PlannedPolicy:
    values = {"start": "0 22 * * *", "window": "mon-sun 22:00-06:00", **fields}
    return PlannedPolicy(
        policy_id=name,
        policy=Policy(name=name, vms=("*",), **values),  # type: ignore[arg-type]  # plain values
        history=PolicyHistory(created_at=NOON, changed_at=NOON),
        vms=tuple(("vc", each) for each in vms),
    )


def planned(
    vms: list[PlannedVm],
    policies: list[PlannedPolicy],
    *,
    limits: LoadLimits = ONE_EACH,
    days: float = 1,
) -> list[PlanDecision]:
    plan = Plan(
        vms={each.key: each for each in vms},
        policies=policies,
        limits=limits,
        now=NOON,
        until=NOON + timedelta(days=days),
    )
    return list(plan.decisions())


def told(decisions: list[PlanDecision], *acts: Act) -> list[tuple[float, str, str]]:
    """Minutes after ten, act and VM."""
    return [
        ((each.at - TEN).total_seconds() / 60, str(each.act), each.vm)
        for each in decisions
        if not acts or each.act in acts
    ]


def test_vms_of_one_host_follow_each_other_as_its_limit_says() -> None:
    found = planned([vm("a"), vm("b"), vm("c")], [policy("gold", "a", "b", "c")])
    assert told(found) == [
        (0, "due", ""),
        (0, "begin", "a"),
        (10, "end", "a"),
        (10, "begin", "b"),
        (20, "end", "b"),
        (20, "begin", "c"),
        (30, "end", "c"),
    ]
    last = [each for each in found if each.act is Act.BEGIN][-1]
    assert last.reason == "waited 1200 s for host esx1"
    assert last.agent_id == "east"


def test_what_does_not_fit_into_the_window_is_named_with_what_it_waited_for() -> None:
    slow = 7 * 3600.0
    found = planned([vm("a", seconds=slow), vm("b", seconds=slow)], [policy("gold", "a", "b")])
    assert told(found) == [
        (0, "due", ""),
        (0, "begin", "a"),
        (420, "end", "a"),
        (420, "begin", "b"),
        (480, "stop", "b"),
    ]
    three = planned([vm(name, seconds=slow) for name in "abc"], [policy("gold", *"abc")])
    (unbegun,) = [each for each in three if each.act is Act.UNBEGUN]
    assert (unbegun.vm, unbegun.reason) == ("c", "waited for host esx1")


def test_a_vm_that_is_twice_as_slow_changes_the_decisions_and_nothing_else_does() -> None:
    vms, policies = [vm("a"), vm("b")], [policy("gold", "a", "b")]
    lines = [each.line() for each in planned(vms, policies, days=3)]
    assert lines == [each.line() for each in planned(vms, policies, days=3)]
    slower = [replace(vms[0], seconds=1200.0), vms[1]]
    assert lines != [each.line() for each in planned(slower, policies, days=3)]


def test_a_vm_of_two_policies_runs_once_at_a_time() -> None:
    found = planned([vm("a")], [policy("gold", "a"), policy("silver", "a")])
    (left_out,) = [each for each in found if each.act is Act.LEFT_OUT]
    assert (left_out.policy, left_out.reason) == ("silver", "at work in policy gold")
    assert [each.policy for each in found if each.act is Act.NOTHING] == ["silver"]


def test_a_vm_that_nothing_can_back_up_is_left_out_with_the_reason() -> None:
    found = planned([vm("a", problem="no proxy sees it"), vm("b")], [policy("gold", "a", "b")])
    assert told(found, Act.LEFT_OUT) == [(0, "left out", "a")]
    assert told(found, Act.END) == [(10, "end", "b")]


def test_a_first_backup_and_one_that_is_due_are_full_and_take_as_long() -> None:
    whole = planned([vm("a", last_good=None, last_full=None)], [policy("gold", "a")], days=2)
    assert [(each.act, each.level) for each in whole if each.vm] == [
        (Act.BEGIN, "full"),
        (Act.END, "full"),
        (Act.BEGIN, "incremental"),
        (Act.END, "incremental"),
    ]
    rule = LevelRule(full_days=3)
    nights = planned([vm("a")], [policy("gold", "a", level=rule)], days=7)
    levels = [each.level for each in nights if each.act is Act.BEGIN]
    assert [level[0] for level in levels] == list("iiciici")


def test_a_policy_that_is_due_by_day_begins_when_its_window_opens() -> None:
    found = planned([vm("a")], [policy("gold", "a", start="0 13 * * *")])
    assert told(found, Act.BEGIN) == [(0, "begin", "a")]


def test_the_oldest_goes_first_and_the_more_important_policy_before_it() -> None:
    vms = [
        vm("a"),
        vm("b", last_good=NOON - timedelta(days=9)),
        vm("c"),
    ]
    found = planned(vms, [policy("bronze", "a", "b"), policy("gold", "c", priority=90)])
    assert [each.vm for each in found if each.act is Act.BEGIN] == ["c", "b", "a"]
