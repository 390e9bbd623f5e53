from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

from holdfast_controller.decide.due_policies import (
    PolicyHistory,
    calendar_text,
    due_policy,
    may_go_on,
)
from holdfast_controller.decide.policy import LevelRule, Policy

POLICY = Policy(name="gold", vms=("*",), start="0 22 * * *", window="mon-sun 22:00-06:00")
MADE = datetime(2026, 11, 20, 12, 0, tzinfo=UTC)
NEW = PolicyHistory(created_at=MADE, changed_at=MADE)
TEN = datetime(2026, 11, 20, 22, 0, tzinfo=UTC)
RAN = replace(NEW, last_slot=TEN, last_calendar=calendar_text(POLICY))


def test_a_policy_is_due_once_at_each_of_its_moments() -> None:
    assert due_policy(POLICY, NEW, TEN - timedelta(seconds=1)) is None
    found = due_policy(POLICY, NEW, TEN + timedelta(seconds=9))
    assert found is not None
    assert (found.due.due_at, found.due.missed, found.level) == (TEN, 0, "incremental")
    assert due_policy(POLICY, RAN, TEN + timedelta(hours=1)) is None


def test_what_was_missed_is_one_run_in_the_next_window() -> None:
    # the controller was down for two nights and comes back at noon
    noon = TEN + timedelta(days=2, hours=14)
    assert due_policy(POLICY, RAN, noon) is None
    night = due_policy(POLICY, RAN, TEN + timedelta(days=2, hours=3))
    assert night is not None
    assert (night.due.due_at, night.due.missed) == (TEN + timedelta(days=2), 1)


def test_a_moment_outside_of_the_window_is_due_when_it_opens() -> None:
    early = replace(POLICY, start="0 20 * * *")
    assert due_policy(early, NEW, TEN - timedelta(hours=1)) is None
    found = due_policy(early, NEW, TEN)
    assert found is not None
    assert found.due.due_at == TEN - timedelta(hours=2)


def test_a_calendar_counts_from_when_it_was_given() -> None:
    moved = replace(POLICY, start="0 6 * * *", window="")
    noon = TEN + timedelta(hours=14)
    changed = replace(RAN, changed_at=noon)
    assert due_policy(moved, changed, noon + timedelta(minutes=1)) is None
    assert due_policy(moved, changed, TEN + timedelta(days=1, hours=8)) is not None
    # another change of the same calendar forgets no moment that was due before it
    described = replace(RAN, changed_at=TEN + timedelta(days=1, seconds=5))
    assert due_policy(POLICY, described, TEN + timedelta(days=1, seconds=9)) is not None


def test_a_policy_that_is_switched_off_lets_its_moments_pass() -> None:
    off = replace(POLICY, enabled=False)
    found = due_policy(off, NEW, TEN + timedelta(hours=12))
    assert found is not None
    assert found.skipped == "the policy is switched off"


def test_a_full_is_due_when_its_calendar_was_since_the_run_before() -> None:
    weekly = replace(POLICY, level=LevelRule(full="0 22 * * sat"))
    found = due_policy(weekly, RAN, TEN + timedelta(days=1))  # Saturday
    assert found is not None
    assert found.level == "full"


def test_what_is_left_of_a_run_is_gone_on_with_in_its_own_opening() -> None:
    assert may_go_on(POLICY, TEN, TEN + timedelta(hours=7))
    assert not may_go_on(POLICY, TEN, TEN + timedelta(hours=8))
    assert not may_go_on(replace(POLICY, enabled=False), TEN, TEN + timedelta(hours=1))
    early = replace(POLICY, start="0 20 * * *")
    assert may_go_on(early, TEN - timedelta(hours=2), TEN + timedelta(hours=1))
    assert may_go_on(replace(POLICY, window=""), TEN, TEN + timedelta(days=9))


def test_a_later_opening_goes_on_only_when_no_run_of_its_own_is_to_come() -> None:
    late = replace(POLICY, start="0 23 * * *")
    yesterday, opens = TEN + timedelta(hours=1), TEN + timedelta(days=1)
    assert not may_go_on(late, yesterday, opens)
    weekly = replace(POLICY, start="0 23 * * fri")  # TEN is a Friday
    assert may_go_on(weekly, yesterday, opens)
