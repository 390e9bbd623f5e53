"""What people are told, when, and when again."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from holdfast_controller.decide.notices import (
    GATHERING,
    LINE_LENGTH_MAX,
    LINES_MAX,
    TRIES,
    Notice,
    NoticeKind,
    may_be_told,
    message_of,
    next_try,
    standing_changes,
)

NOON = datetime(2026, 3, 2, 12, tzinfo=UTC)
DAY = timedelta(days=1)
HOUR = timedelta(hours=1)


def debt(key: str) -> Notice:
    return Notice(key=key, kind=NoticeKind.DEBT, text=f"debt {key}")


def due(standing: list[str], told: dict[str, datetime], *, now: datetime = NOON) -> set[str]:
    changes = standing_changes(map(debt, standing), told, now=now, repeat=DAY)
    return {notice.key for notice in changes.due}


def test_what_begins_is_told_at_once_and_again_after_the_repeat_time() -> None:
    assert due(["a"], {}) == {"a"}
    assert due(["a"], {"a": NOON - HOUR}) == set()
    assert due(["a"], {"a": NOON - DAY}) == {"a"}


def test_what_goes_and_comes_back_within_the_repeat_time_is_not_told_twice() -> None:
    told = {"a": NOON - HOUR}
    gone = standing_changes([], told, now=NOON, repeat=DAY)
    assert gone.over == ()
    assert due(["a"], told) == set()
    later = standing_changes([], told, now=NOON + DAY, repeat=DAY)
    assert later.over == ("a",)


def test_a_clock_that_was_set_back_silences_nothing() -> None:
    assert due(["a"], {"a": NOON + 30 * DAY}) == {"a"}
    assert may_be_told(NOON + DAY, NOON)


@given(st.lists(st.tuples(st.integers(0, 5), st.sampled_from("abc"), st.booleans()), max_size=60))
def test_no_notice_is_told_twice_within_the_repeat_time(
    steps: list[tuple[int, str, bool]],
) -> None:
    standing: set[str] = set()
    told: dict[str, datetime] = {}
    history: list[tuple[str, datetime]] = []
    now = NOON
    for hours, key, stands in steps:
        now += hours * HOUR
        (standing.add if stands else standing.discard)(key)
        changes = standing_changes(map(debt, sorted(standing)), told, now=now, repeat=DAY)
        for over in changes.over:
            del told[over]
        for notice in changes.due:
            assert all(now - at >= DAY for other, at in history if other == notice.key), (
                "told too often"
            )
            told[notice.key] = now
            history.append((notice.key, now))
        assert standing <= set(told), "what is so was told"


def test_the_first_of_a_kind_is_told_at_once_and_those_after_it_together() -> None:
    assert may_be_told(None, NOON)
    assert not may_be_told(NOON - GATHERING + timedelta(seconds=1), NOON)
    assert may_be_told(NOON - GATHERING, NOON)


def test_what_cannot_be_sent_is_tried_for_hours_and_then_given_up() -> None:
    now, tries = NOON, 0
    while True:
        tries += 1
        again = next_try(tries, now)
        if again is None:
            break
        assert again > now
        now = again
    assert tries == len(TRIES) + 1
    assert HOUR < now - NOON < 6 * HOUR


@pytest.mark.parametrize("kind", NoticeKind)
def test_a_message_says_how_many_and_shows_the_first(kind: NoticeKind) -> None:
    one = message_of(kind, ["web"], sender="here")
    many = message_of(kind, [f"vm{number}" for number in range(500)], sender="here")
    assert one.title.startswith("Holdfast on here: ")
    assert "500" in many.title
    assert "vm19" in many.body and "vm20" not in many.body
    assert f"… and {500 - LINES_MAX} more" in many.body


def test_a_name_breaks_no_line_and_fills_no_screen() -> None:
    hostile = "web\n\x1b[31mall is well\x00" + "x" * 10_000
    body = message_of(NoticeKind.FAILURE, [hostile], sender="here").body
    first = body.splitlines()[0]
    assert first.startswith("web [31mall is well")
    assert len(first) <= LINE_LENGTH_MAX
    assert first.isprintable()
