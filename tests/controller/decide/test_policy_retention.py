"""What becomes of points by the rules of policies: what any of them wants stays, and so does what none is responsible for."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from hypothesis import given, settings
from hypothesis import strategies as st

from holdfast_common.clock import utc_text
from holdfast_controller.decide.policy_retention import PolicyRule, plan_by_policies
from holdfast_controller.decide.retention import KnownPoint, RetentionRule, plan_retention

NOW = datetime(2026, 3, 2, 12, 0, tzinfo=UTC)


def point(vm: str, days: int, **facts: str) -> KnownPoint:
    at = utc_text(NOW - timedelta(days=days))
    return KnownPoint(point_id=f"{vm}{days}", lineage_id=vm, created_at=at, **facts)


def last(count: int, policy: str = "gold", *, enabled: bool = True) -> PolicyRule:
    return PolicyRule(policy=policy, rule=RetentionRule(keep_last=count), enabled=enabled)


def kept(points: list[KnownPoint], *rules: PolicyRule, clock_problem: str = "") -> dict[str, str]:
    """By point that stays: why."""
    found = plan_by_policies(points, {"a": rules}, now=NOW, clock_problem=clock_problem)
    assert len(found) == len(points)
    return {each.point.point_id: "; ".join(each.reasons) for each in found if each.kept}


def test_of_two_policies_a_point_stays_that_either_wants_also_when_that_one_is_switched_off() -> (
    None
):
    points = [point("a", days) for days in range(5)]
    weekly = PolicyRule(policy="silver", rule=RetentionRule(keep_within="4d"), enabled=False)
    assert set(kept(points, last(1))) == {"a0"}
    found = kept(points, last(1), weekly)
    assert set(found) == {"a0", "a1", "a2", "a3", "a4"}
    assert found["a3"] == "silver: taken within 4d"


def test_a_vm_that_no_policy_covers_or_none_that_is_switched_on_keeps_everything() -> None:
    points = [point("a", days) for days in range(3)]
    assert set(kept(points).values()) == {
        "no policy covers its VM",
        "no policy covers its VM; the last good point of its VM",
    }
    off = kept(points, last(1, enabled=False))
    assert len(off) == 3
    assert off["a2"] == "only policies that are switched off cover its VM"
    empty = PolicyRule(policy="bronze", rule=RetentionRule())
    assert kept(points, last(1), empty)["a2"] == "bronze: the rule is empty"


def test_the_last_good_point_what_is_held_and_read_and_everything_by_a_doubtful_clock_stays() -> (
    None
):
    points = [
        point("a", 0, fault="it lost data"),
        point("a", 1),
        point("a", 2, held="held: a court"),
        point("a", 3, reader="a restore reads it"),
        point("a", 4),
    ]
    never = PolicyRule(policy="gold", rule=RetentionRule(keep_within="1h"))
    found = kept(points, never)
    assert set(found) == {"a0", "a1", "a2", "a3"}, "the newest stays as if it were whole"
    assert "the last good point of its VM" in found["a1"]
    assert "held: a court" in found["a2"]
    assert len(kept(points, never, clock_problem="it jumped")) == 5


RULES = st.builds(
    RetentionRule,
    keep_last=st.integers(0, 3),
    keep_daily=st.integers(0, 3),
    keep_weekly=st.integers(0, 2),
    keep_within=st.sampled_from(["", "2d", "1w"]),
)


@settings(max_examples=100, deadline=None)
@given(
    rules=st.lists(st.tuples(RULES, st.booleans()), max_size=3),
    days=st.sets(st.integers(0, 30), min_size=1, max_size=8),
)
def test_nothing_goes_that_a_policy_keeps_by_itself(
    rules: list[tuple[RetentionRule, bool]], days: set[int]
) -> None:
    points = [point("a", each) for each in days]
    wanted = [
        PolicyRule(policy=f"p{number}", rule=rule, enabled=on)
        for number, (rule, on) in enumerate(rules)
    ]
    stays = set(kept(points, *wanted))
    for rule, _ in rules:
        alone = plan_retention(points, rule, now=NOW)
        assert {each.point.point_id for each in alone if each.kept} <= stays
    assert stays, "the last good point at the least"
    if not any(on for _, on in rules):
        assert len(stays) == len(points)
