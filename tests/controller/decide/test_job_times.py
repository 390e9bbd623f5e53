from __future__ import annotations

from datetime import UTC, datetime, timedelta

from holdfast_controller.decide.job_times import JobTimes, Span, TimedEvent, job_times

TEN = datetime(2026, 11, 23, 22, 0, tzinfo=UTC)


def times(*events: tuple[float, str, str], now: float = 1000.0) -> JobTimes:
    found = [
        TimedEvent(at=TEN + timedelta(seconds=at), event=event, detail=detail)
        for at, event, detail in events
    ]
    return job_times(found, now=TEN + timedelta(seconds=now))


def test_each_state_is_told_with_its_seconds_and_the_longest_decides() -> None:
    found = times(
        (0, "planned", ""),
        (1, "queued", ""),
        (3, "preflight", ""),
        (3, "placed", "direct"),
        (8, "snapshotting", ""),
        (10, "transferring", ""),
        (100, "committing", ""),
        (101, "cleaning", ""),
        (104, "done", ""),
    )
    assert found.seconds == 104
    assert found.longest == Span(what="transferring", seconds=90)
    assert found.states[1] == Span(what="queued", seconds=2)


def test_what_was_waited_for_is_named_instead_of_the_queue() -> None:
    found = times(
        (0, "planned", ""),
        (0, "queued", ""),
        (60, "waited for host esx1", "20.0 s"),
        (60, "waited for datastore nfs1", "30.0 s"),
        (60, "waited for host esx1", "10.0 s"),
        (60, "preflight", ""),
        (61, "failed", ""),
    )
    assert found.longest == Span(what="datastore nfs1", seconds=30)
    assert [span.what for span in found.waits_by_thing] == ["datastore nfs1", "host esx1"]
    assert sum(span.seconds for span in found.waits) == 60


def test_attempts_are_counted_together_and_a_job_that_runs_counts_until_now() -> None:
    found = times(
        (0, "planned", ""),
        (0, "queued", ""),
        (1, "preflight", ""),
        (2, "cleaning", ""),
        (3, "queued", ""),
        (8, "preflight", ""),
        now=18,
    )
    assert [(span.what, span.seconds) for span in found.states] == [
        ("planned", 0),
        ("queued", 6),
        ("preflight", 11),
        ("cleaning", 1),
    ]


def test_no_events_and_a_detail_that_is_none_of_ours_are_no_error() -> None:
    assert times().longest is None
    assert times((0, "waited for x", "long")).waits == (Span(what="x", seconds=0.0),)
