from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

from holdfast_controller.decide.coverage import KnownPolicy, Selection, VmCover, cover, select
from holdfast_controller.decide.policy import Policy
from holdfast_controller.decide.selection import SelectableVm
from support.policies import policy
from support.vm_facts import VM

NOW = datetime(2026, 11, 23, 12, 0, tzinfo=UTC)
HOUR = timedelta(hours=1)
NAMES = ("db1", "db2", "web1", "web2")
VMS = [SelectableVm(vcenter_name="vc1", vm=replace(VM, name=name)) for name in NAMES]
WEB1 = [VMS[2]]


def known(made: Policy, age: timedelta = timedelta(days=100)) -> KnownPolicy:
    return KnownPolicy(policy=made, created_at=NOW - age)


def of_web1(*made: KnownPolicy, good: timedelta | None = None) -> VmCover:
    (found,) = cover(made, WEB1, [None if good is None else NOW - good], now=NOW)
    return found


def test_a_policy_selects_what_its_selectors_name_but_for_what_it_excludes() -> None:
    made = policy(vms=("web*", "db1", "web1"), exclude=("*1",))
    assert select(made, VMS) == Selection(chosen=(3,), excluded=(0, 2), unmatched=())


def test_selectors_that_name_nothing_are_told_by_their_places() -> None:
    made = policy(vms=("web*", "mail"), exclude=("vc2/*", "db1"))
    found = select(made, VMS)
    assert found.unmatched == (("vms", 1), ("exclude", 0))
    assert found.chosen == (2, 3)


def test_what_is_excluded_but_was_never_selected_is_not_left_out() -> None:
    assert select(policy(vms=("web*",), exclude=("db*",)), VMS).excluded == ()


def test_a_vm_that_no_policy_selects_is_covered_by_none() -> None:
    covers = cover([known(policy(vms=("web*",)))], VMS, [None] * 4, now=NOW)
    assert [each.policies for each in covers] == [(), (), ("gold",), ("gold",)]


def test_a_policy_that_is_switched_off_covers_nothing() -> None:
    off = policy(vms=("*",), promise="1h", enabled=False)
    assert of_web1(known(off)) == VmCover()


def test_the_least_of_what_is_promised_counts_and_the_longest_breach_is_told() -> None:
    daily = known(policy("daily", vms=("*",), promise="26h"))
    hourly = known(policy("hourly", vms=("web1",), promise="2h"))
    assert of_web1(daily, hourly, good=HOUR) == VmCover(
        policies=("daily", "hourly"), promised=2 * HOUR
    )
    found = of_web1(daily, hourly, good=30 * HOUR)
    assert (found.promised, found.late, found.broken) == (2 * HOUR, 28 * HOUR, "hourly")


def test_a_promise_is_kept_to_its_last_second() -> None:
    made = known(policy(vms=("*",), promise="26h"))
    assert of_web1(made, good=26 * HOUR).late is None
    assert of_web1(made, good=26 * HOUR + timedelta(seconds=1)).late == timedelta(seconds=1)


def test_a_vm_without_a_point_is_late_when_its_policy_is_older_than_its_promise() -> None:
    made = policy(vms=("*",), promise="26h")
    assert of_web1(known(made, 25 * HOUR)).late is None
    assert of_web1(known(made, 27 * HOUR)).late == HOUR


def test_without_a_promise_nothing_is_late() -> None:
    found = of_web1(known(policy(vms=("*",))))
    assert found == VmCover(policies=("gold",))


def test_a_vm_that_came_later_than_its_policy_is_late_only_when_its_own_time_is_over() -> None:
    made = known(policy(vms=("*",), promise="26h"))
    for age, late in ((25 * HOUR, None), (27 * HOUR, HOUR)):
        (found,) = cover([made], WEB1, [None], now=NOW, first_seen=[NOW - age])
        assert found.late == late
    (found,) = cover([made], WEB1, [NOW - 30 * HOUR], now=NOW, first_seen=[NOW - HOUR])
    assert found.late == 4 * HOUR, "it has a point: that counts"
