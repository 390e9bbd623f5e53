"""When the tasks of keeping are due, and that what a check reads at a time leaves nothing unread for its days."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from holdfast_common.errors import UsageError
from holdfast_common.repository.subset import chosen_packs, parsed_subset
from holdfast_controller.configuration import KeepingSettings
from holdfast_controller.decide.calendar import parse_calendar
from holdfast_controller.decide.keeping import (
    DataFacts,
    KeepingTask,
    TaskHistory,
    TaskTimes,
    begins_ahead,
    bytes_to_read,
    due_task,
    goes_on_at,
    keeping_times,
    next_task,
    runs_within,
    share_text,
)
from holdfast_controller.decide.windows import parse_windows

NOON = datetime(2026, 3, 2, 12, 0, tzinfo=UTC)  # a Monday
DAY = timedelta(days=1)


def times_of(text: str, task: KeepingTask = KeepingTask.PRUNE) -> TaskTimes:
    return keeping_times(msgspec.toml.decode(text.encode(), type=KeepingSettings), NOON)[task]


def test_what_is_due_while_its_window_is_shut_begins_when_it_opens_and_once() -> None:
    times = times_of('[prune]\nstart = "0 3 * * *"\nwindow = "mon-sun 08:00-10:00"\n')
    history = TaskHistory(since=NOON - 3 * DAY)
    assert due_task(times, history, NOON) is None
    morning = NOON + timedelta(hours=20, minutes=30)
    due = due_task(times, history, morning)
    assert due is not None
    assert (due.due_at, due.missed) == (NOON + timedelta(hours=15), 3)
    taken = TaskHistory(since=history.since, last_slot=due.due_at)
    assert due_task(times, taken, morning) is None
    assert next_task(times, history, NOON) == NOON + timedelta(hours=20), "when it opens"
    assert next_task(times, taken, morning) == NOON + timedelta(hours=44)


def test_what_is_due_several_times_while_its_window_is_shut_begins_once_in_each_opening() -> None:
    times = times_of('[prune]\nstart = "0 */6 * * *"\nwindow = "mon-sun 07:00-12:30"\n')
    found = begins_ahead(times, NOON, NOON + timedelta(hours=46))
    begins = [(NOON + timedelta(hours=hours)) for hours in (19, 24, 43)]
    assert [each.opens_at for each in found] == begins
    closes = [NOON + timedelta(hours=hours, minutes=30) for hours in (24, 24, 48)]
    assert [each.closes_at for each in found] == closes
    always = times_of('[prune]\nstart = "0 3 * * *"\nwindow = ""\n')
    (only,) = begins_ahead(always, NOON, NOON + DAY)
    assert (only.opens_at, only.closes_at) == (NOON + timedelta(hours=15), None)


def test_a_moment_that_a_wrong_clock_took_in_the_future_holds_nothing_up() -> None:
    times = times_of('[prune]\nstart = "0 3 * * *"\nwindow = ""\n')
    due = due_task(times, TaskHistory(since=NOON + 400 * DAY), NOON + DAY)
    assert due is None, "it counts from now"
    assert due_task(times, TaskHistory(since=NOON), NOON + DAY) is not None


def test_each_task_has_the_zone_of_keeping_and_one_without_a_start_is_not_done() -> None:
    content = 'time_zone = "Europe/Berlin"\n[scrub]\nstart = ""\n[check]\nstart = "0 4 * * *"\n'
    found = keeping_times(msgspec.toml.decode(content.encode(), type=KeepingSettings), NOON)
    assert set(found) == set(KeepingTask) - {KeepingTask.SCRUB}
    berlin = found[KeepingTask.CHECK]
    later = TaskHistory(since=NOON)
    assert next_task(berlin, later, NOON) == datetime(2026, 3, 3, 7, tzinfo=UTC), "when it opens"


@pytest.mark.parametrize(
    ("content", "field"),
    [
        ('[prune]\nstart = "0 25 * * *"\n', "keeping.prune.start"),
        ('[check]\nstart = "0 3 30 2 *"\n', "keeping.check.start"),
        ('[forget]\nwindow = "mon 10-11"\n', "keeping.forget.window"),
        ('[scrub]\nwindow = "mon 10:00-10:05"\n', "keeping.scrub.window"),
        ('time_zone = "Europe/Nowhere"\n', "time_zone"),
    ],
)
def test_what_cannot_be_read_or_never_comes_is_told_by_its_field(content: str, field: str) -> None:
    found = msgspec.toml.decode(content.encode(), type=KeepingSettings)
    with pytest.raises(UsageError) as refused:
        keeping_times(found, NOON)
    assert refused.value.facts["field"] == field


def test_a_share_is_rounded_up_and_is_read_as_a_check_reads_it() -> None:
    assert share_text(5, 0) == "100%"
    assert share_text(1, 3) == "33.3334%"
    assert share_text(0, 10**15) == "0.0001%", "never nothing"
    assert parsed_subset(share_text(10**15 - 1, 10**15)) is not None
    weekly = times_of('[check]\nstart = "0 12 * * sun"\n', KeepingTask.CHECK)
    assert runs_within(weekly.calendar, days=30, now=NOON) == 4
    assert runs_within(weekly.calendar, days=1, now=NOON) == 1


@settings(max_examples=25, deadline=None)
@given(
    written=st.lists(st.integers(0, 12), min_size=40, max_size=40),
    first=st.integers(0, 120),
    lifetime=st.integers(5, 200),
    days=st.integers(2, 20),
)
def test_whatever_is_written_and_deleted_every_pack_is_read_within_its_days(
    written: list[int], first: int, lifetime: int, days: int
) -> None:
    """Day by day: packs come and go, and a check reads its share of those that are there."""
    born: dict[bytes, int] = {number.to_bytes(8, "big"): 0 for number in range(first)}
    proven: dict[bytes, str] = {}
    unproven_before = first
    checked = 0
    for day, count in enumerate(written):
        born |= {(1000 * (day + 1) + n).to_bytes(8, "big"): day for n in range(count)}
        born = {pack: at for pack, at in born.items() if day - at < lifetime}
        proven = {pack: at for pack, at in proven.items() if pack in born}
        present = dict.fromkeys(born, 10)
        old_before = day - days + 2
        facts = DataFacts(
            total=10 * len(born),
            unproven=10 * (len(born) - len(proven)),
            unproven_before=10 * unproven_before,
            old=10 * sum(int(at) < old_before for at in proven.values()),
        )
        share = share_text(bytes_to_read(facts, runs=days), facts.total)
        for pack in chosen_packs(present, parsed_subset(share), proven_at=proven):
            proven[pack] = f"{day:04}"
            checked += 1
        unproven_before = len(born) - len(proven)
        for pack, at in born.items():
            assert day - int(proven.get(pack, at)) <= days, (day, at, proven.get(pack))
    assert checked or not (first or any(written))


def test_what_a_windows_end_stopped_goes_on_in_the_next_one_unless_the_task_is_due_by_then() -> (
    None
):
    def at(day: int, hour: int) -> datetime:
        return datetime(2026, 6, day, hour, tzinfo=UTC)

    def goes_on(start: str, window: str, *, now: datetime) -> datetime | None:
        times = TaskTimes(
            calendar=parse_calendar(start, "UTC", field="start"),
            windows=parse_windows(window, "UTC", field="window"),
        )
        history = TaskHistory(since=at(1, 0), last_slot=at(7, 10))
        return goes_on_at(times, history, now)

    days = "mon-sun 08:00-20:00"
    # 7 June 2026 is a Sunday
    assert goes_on("0 10 * * sun", days, now=at(7, 21)) == at(8, 8)
    assert goes_on("0 10 * * sun", days, now=at(8, 9)) == at(8, 9), "at once"
    assert goes_on("0 10 * * *", days, now=at(7, 21)) is None, "it is due in that window"
    assert goes_on("0 2 * * *", days, now=at(7, 21)) is None, "it is due when that opens"
    assert goes_on("0 10 * * sun", "", now=at(7, 21)) is None
