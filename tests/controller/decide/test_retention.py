"""A retention rule: its laws, and tables that a reader can check by hand."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import fields, replace
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from holdfast_common.clock import utc_text
from holdfast_common.errors import UsageError
from holdfast_controller.decide.retention import (
    Decision,
    KnownPoint,
    RetentionRule,
    plan_retention,
)

NOW = datetime(2026, 11, 23, 12, tzinfo=UTC)
ZONES = ("UTC", "Europe/Berlin", "America/New_York", "Pacific/Apia", "Australia/Lord_Howe")
COUNTS = [item.name for item in fields(RetentionRule) if item.name.startswith("keep_")][:-1]


def point(at: datetime, *, number: int = 0, **facts: str) -> KnownPoint:
    return KnownPoint(
        **{"point_id": f"{utc_text(at)}/{number}", "lineage_id": "web", "created_at": utc_text(at)}
        | facts
    )


def kept(decisions: Sequence[Decision]) -> set[str]:
    return {each.point.point_id for each in decisions if each.kept}


def reasons(decisions: Sequence[Decision], at: datetime) -> tuple[str, ...]:
    (found,) = (each for each in decisions if each.point.created_at == utc_text(at))
    return found.reasons


def between(first: datetime, last: datetime) -> st.SearchStrategy[datetime]:
    seconds = int((last - first).total_seconds())
    return st.integers(0, seconds).map(lambda passed: first + timedelta(seconds=passed))


MOMENTS = st.one_of(
    # around the two nights in which clocks are changed, around a year's end, and anywhere
    between(datetime(2026, 3, 28, tzinfo=UTC), datetime(2026, 3, 30, tzinfo=UTC)),
    between(datetime(2026, 10, 24, tzinfo=UTC), datetime(2026, 10, 26, tzinfo=UTC)),
    between(datetime(2025, 12, 26, tzinfo=UTC), datetime(2026, 1, 6, tzinfo=UTC)),
    between(datetime(2021, 1, 1, tzinfo=UTC), NOW),
)
FAULTS = st.sampled_from(["", "", "", "it lost data"])
HOLDS = st.sampled_from(["", "", "", "held: a court asked"])
READERS = st.sampled_from(["", "", "", "a restore reads it"])


@st.composite
def some_points(draw: st.DrawFn) -> list[KnownPoint]:
    moments = draw(st.lists(MOMENTS, max_size=25))
    return [
        point(
            at,
            number=number,
            lineage_id=draw(st.sampled_from(["web", "db"])),
            fault=draw(FAULTS),
            held=draw(HOLDS),
            reader=draw(READERS),
        )
        for number, at in enumerate(moments)
    ]


@st.composite
def rules(draw: st.DrawFn) -> RetentionRule:
    counts = {name: draw(st.integers(0, 5)) for name in COUNTS}
    within = draw(st.sampled_from(["", "48h", "14d", "60w"]))
    rule = RetentionRule(**counts, keep_within=within, time_zone=draw(st.sampled_from(ZONES)))
    return replace(rule, keep_daily=1) if rule.is_empty else rule


@settings(max_examples=100)
@given(some_points(), rules(), st.sampled_from([*COUNTS, "keep_within"]), st.integers(1, 4))
def test_keeping_more_never_drops_more(
    points: list[KnownPoint], rule: RetentionRule, part: str, more: int
) -> None:
    longer = {"": "48h", "48h": "14d", "14d": "60w", "60w": "500w"}[rule.keep_within]
    grown = longer if part == "keep_within" else getattr(rule, part) + more
    larger = replace(rule, **{part: grown})  # type: ignore[arg-type]  # of the field's type
    assert kept(plan_retention(points, rule, now=NOW)) <= kept(
        plan_retention(points, larger, now=NOW)
    )


@settings(max_examples=100)
@given(some_points(), rules(), st.randoms(use_true_random=False))
def test_a_rule_applied_to_what_it_kept_drops_nothing_and_the_order_of_points_means_nothing(
    points: list[KnownPoint], rule: RetentionRule, shuffled: random.Random
) -> None:
    decisions = plan_retention(points, rule, now=NOW)
    left = [each.point for each in decisions if each.kept]
    assert kept(plan_retention(left, rule, now=NOW)) == {each.point_id for each in left}
    shuffled.shuffle(points)
    assert plan_retention(points, rule, now=NOW) == decisions


@settings(max_examples=100)
@given(some_points(), rules())
def test_what_is_dropped_is_never_held_nor_read_nor_the_last_good_one_and_everything_has_a_reason(
    points: list[KnownPoint], rule: RetentionRule
) -> None:
    decisions = plan_retention(points, rule, now=NOW)
    assert len(decisions) == len(points)
    assert all(each.reasons for each in decisions)
    assert not any(each.point.held or each.point.reader for each in decisions if not each.kept)
    for lineage in {each.lineage_id for each in points}:
        mine = [each for each in decisions if each.point.lineage_id == lineage]
        good = [each for each in mine if not each.point.fault]
        newest = (good or mine)[0]
        assert newest.kept
        assert newest.point.created_at == max(each.point.created_at for each in good or mine)
    # what has a fault takes no good one's place
    whole = [each for each in points if not each.fault]
    good_kept = {each.point.point_id for each in decisions if each.kept and not each.point.fault}
    assert good_kept == kept(plan_retention(whole, rule, now=NOW))


@given(some_points(), rules())
@settings(max_examples=30)
def test_an_empty_rule_and_a_doubtful_clock_drop_nothing(
    points: list[KnownPoint], rule: RetentionRule
) -> None:
    assert all(each.kept for each in plan_retention(points, RetentionRule(), now=NOW))
    for each in plan_retention(points, rule, now=NOW, clock_problem="the clock went back"):
        assert each.kept
        assert "nothing is dropped by a doubtful clock: the clock went back" in each.reasons


def test_400_daily_points_under_a_rule_of_a_week_of_days_four_weeks_twelve_months_and_two_years() -> (
    None
):
    # one each night at 01:00 UTC, the newest on Monday, 2026-11-23
    nights = [datetime(2026, 11, 23, 1, tzinfo=UTC) - timedelta(days=n) for n in range(400)]
    rule = RetentionRule(keep_daily=7, keep_weekly=4, keep_monthly=12, keep_yearly=2)
    decisions = plan_retention([point(at) for at in nights], rule, now=NOW)
    assert [each.point.created_at[:10] for each in decisions if each.kept] == [
        "2026-11-23",  # day 1, week 1 (W48), month 1, year 1
        "2026-11-22",  # day 2, a Sunday: week 2 (W47)
        "2026-11-21",
        "2026-11-20",
        "2026-11-19",
        "2026-11-18",
        "2026-11-17",  # day 7
        "2026-11-15",  # Sunday: week 3 (W46)
        "2026-11-08",  # Sunday: week 4 (W45)
        "2026-10-31",  # month 2
        "2026-09-30",
        "2026-08-31",
        "2026-07-31",
        "2026-06-30",
        "2026-05-31",
        "2026-04-30",
        "2026-03-31",
        "2026-02-28",
        "2026-01-31",
        "2025-12-31",  # month 12, and year 2
    ]
    assert reasons(decisions, nights[0]) == (
        "the last of 2026-11-23 (daily 1 of 7)",
        "the last of 2026-W48 (weekly 1 of 4)",
        "the last of 2026-11 (monthly 1 of 12)",
        "the last of 2026 (yearly 1 of 2)",
        "the last good point of its VM",
    )
    assert reasons(decisions, nights[1]) == (
        "the last of 2026-11-22 (daily 2 of 7)",
        "the last of 2026-W47 (weekly 2 of 4)",
    )
    assert reasons(decisions, nights[7]) == (
        "beyond 7 daily",
        "2026-W47 has a newer one (weekly)",
        "2026-11 has a newer one (monthly)",
        "2026 has a newer one (yearly)",
    )


def test_the_weeks_of_a_years_end_are_the_iso_weeks() -> None:
    days = [datetime(2026, 12, 31, 1, tzinfo=UTC) + timedelta(days=n) for n in range(6)]
    rule = RetentionRule(keep_weekly=9, keep_yearly=9)
    decisions = plan_retention([point(at) for at in days], rule, now=days[-1])
    told = {each.point.created_at[:10]: each.reasons for each in decisions if each.kept}
    # 2026-12-31 is a Thursday of week 53, which lasts until Sunday, 2027-01-03
    assert set(told) == {"2026-12-31", "2027-01-03", "2027-01-05"}
    assert told["2026-12-31"] == ("the last of 2026 (yearly 2 of 9)",)
    assert told["2027-01-03"] == ("the last of 2026-W53 (weekly 2 of 9)",)
    assert "the last of 2027-W01 (weekly 1 of 9)" in told["2027-01-05"]


def test_days_are_those_of_the_time_zone() -> None:
    evening = datetime(2026, 6, 1, 21, 30, tzinfo=UTC)  # 23:30 in Berlin
    night = datetime(2026, 6, 1, 22, 30, tzinfo=UTC)  # 00:30 of the next day there
    points = [point(evening), point(night)]
    assert len(kept(plan_retention(points, RetentionRule(keep_daily=9), now=NOW))) == 1
    berlin = RetentionRule(keep_daily=9, time_zone="Europe/Berlin")
    decisions = plan_retention(points, berlin, now=NOW)
    assert "the last of 2026-06-02 (daily 1 of 9)" in reasons(decisions, night)
    assert "the last of 2026-06-01 (daily 2 of 9)" in reasons(decisions, evening)


def test_the_hour_that_comes_twice_is_two_hours_and_the_day_of_25_hours_is_one_day() -> None:
    # in Berlin the clocks go back on 2026-10-25 at 03:00, which is 01:00 UTC
    hours = [datetime(2026, 10, 24, 22, 30, tzinfo=UTC) + timedelta(hours=n) for n in range(25)]
    points = [point(at) for at in hours]
    hourly = RetentionRule(keep_hourly=99, time_zone="Europe/Berlin")
    decisions = plan_retention(points, hourly, now=NOW)
    assert len(kept(decisions)) == 25
    assert reasons(decisions, hours[2]) == ("the last of 2026-10-25T02+02:00 (hourly 23 of 99)",)
    assert reasons(decisions, hours[3]) == ("the last of 2026-10-25T02+01:00 (hourly 22 of 99)",)
    daily = RetentionRule(keep_daily=99, time_zone="Europe/Berlin")
    assert kept(plan_retention(points, daily, now=NOW)) == {points[-1].point_id}


def test_a_point_with_a_fault_stands_for_nothing_and_stays_as_long_as_a_good_one_would() -> None:
    days = [datetime(2026, 11, 23, 1, tzinfo=UTC) - timedelta(days=n) for n in range(4)]
    points = [point(at, fault="it lost data" if n in (0, 3) else "") for n, at in enumerate(days)]
    decisions = plan_retention(points, RetentionRule(keep_last=1), now=NOW)
    assert [each.kept for each in decisions] == [True, True, False, False]
    assert reasons(decisions, days[0]) == (
        "one of the newest (last 1 of 1), if it were whole: it lost data",
    )
    assert reasons(decisions, days[1]) == (
        "one of the newest (last 1 of 1)",
        "the last good point of its VM",
    )
    assert reasons(decisions, days[3]) == ("beyond the newest 1", "it lost data")


def test_the_last_good_point_stays_under_a_rule_that_wants_nothing_and_so_does_one_of_a_vm_without_any() -> (
    None
):
    old = datetime(2024, 1, 1, tzinfo=UTC)
    points = [
        point(old),
        point(old - timedelta(days=1)),
        point(old, number=2, lineage_id="db", fault="it lost data"),
        point(old - timedelta(days=1), number=3, lineage_id="db", fault="it lost data"),
    ]
    decisions = plan_retention(points, RetentionRule(keep_within="14d"), now=NOW)
    assert [(each.point.lineage_id, each.kept) for each in decisions] == [
        ("db", True),
        ("db", False),
        ("web", True),
        ("web", False),
    ]
    assert decisions[0].reasons == ("the newest point of its VM, which has no good one",)
    assert decisions[2].reasons == ("the last good point of its VM",)
    assert decisions[3].reasons == ("older than 14d",)


def test_a_point_of_the_future_is_a_clock_in_doubt_and_one_of_an_unknown_time_stays() -> None:
    late, early = NOW + timedelta(hours=1), NOW - timedelta(days=30)
    rule = RetentionRule(keep_last=1)
    decisions = plan_retention([point(late), point(early)], rule, now=NOW)
    assert all(each.kept for each in decisions)
    assert "which is later than now" in reasons(decisions, early)[0]
    unknown = replace(point(early), created_at="yesterday")
    (_, told) = plan_retention([unknown, point(NOW)], rule, now=NOW)
    assert (told.point, told.kept) == (unknown, True)


@pytest.mark.parametrize(
    "wrong",
    [
        {"keep_last": -1},
        {"keep_daily": 10**9},
        {"keep_within": "14"},
        {"keep_within": "0d"},
        {"keep_within": "1y"},
        {"time_zone": "Mars/Olympus"},
        {"time_zone": "../etc/passwd"},
        {"time_zone": ""},
    ],
)
def test_a_rule_that_means_nothing_is_refused_with_the_field(wrong: dict[str, object]) -> None:
    with pytest.raises(UsageError) as refused:
        RetentionRule(**wrong)  # type: ignore[arg-type]  # that is the point
    assert dict(refused.value.facts)["field"] == next(iter(wrong))
