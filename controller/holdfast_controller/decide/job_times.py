"""Where a job's time went: how long it was in each state, and what it waited for. Pure: its events in, seconds out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from holdfast_controller.decide.job_state import ENDED, JobState

WAITED: Final = (
    "waited for "  # begins an event's name; then the thing, and the seconds as its detail
)
SLOWED: Final = "slowed by "  # the same for what a running copy was slowed by
LANE: Final = (
    "lane "  # begins an event's name; then its number and disks, and the seconds as its detail
)
_STATES: Final = frozenset(str(state) for state in JobState)


@dataclass(frozen=True, slots=True, kw_only=True)
class TimedEvent:
    """An event of a job, as it was written down."""

    at: datetime
    event: str
    detail: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Span:
    """``what``: a state, or the thing that was waited for."""

    what: str
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class JobTimes:
    """``states``: each state once, in the order of the first visit, all attempts together. ``waits``: as they came.

    ``slowed``: by what its copy was slowed, the longest first. ``lanes``: how long each took, the longest first.
    """

    states: tuple[Span, ...]
    waits: tuple[Span, ...]
    slowed: tuple[Span, ...] = ()
    lanes: tuple[Span, ...] = ()

    @property
    def seconds(self) -> float:
        """From its planning to its end, or to now."""
        return sum(span.seconds for span in self.states)

    @property
    def longest(self) -> Span | None:
        """What decided how long it took: the longest state, and if that was waiting in the queue, what it waited for."""
        if not self.states:
            return None
        state = max(self.states, key=lambda span: span.seconds)
        waits = self.waits_by_thing
        if state.what == JobState.QUEUED and waits:
            return waits[0]
        return state

    @property
    def waits_by_thing(self) -> tuple[Span, ...]:
        """Each thing once, the longest first."""
        return together(self.waits)


def job_times(events: Sequence[TimedEvent], *, now: datetime) -> JobTimes:
    """``events`` in their order; ``now`` ends the state of a job that has not ended."""
    seconds: dict[str, float] = {}
    waits, slowed, lanes = [], [], []
    state, since = "", now
    for event in events:
        if event.event.startswith(WAITED):
            waits.append(
                Span(what=event.event.removeprefix(WAITED), seconds=_seconds(event.detail))
            )
        if event.event.startswith(SLOWED):
            what = event.event.removeprefix(SLOWED)
            slowed.append(Span(what=what, seconds=_seconds(event.detail)))
        if event.event.startswith(LANE):
            lanes.append(Span(what=event.event.removeprefix(LANE), seconds=_seconds(event.detail)))
        if event.event not in _STATES:
            continue
        if state:
            seconds[state] += (event.at - since).total_seconds()
        state, since = event.event, event.at
        if state not in ENDED:
            seconds.setdefault(state, 0.0)
    if state and state not in ENDED:
        seconds[state] += (now - since).total_seconds()
    spans = tuple(Span(what=what, seconds=spent) for what, spent in seconds.items())
    return JobTimes(
        states=spans, waits=tuple(waits), slowed=together(slowed), lanes=together(lanes)
    )


def together(spans: Sequence[Span]) -> tuple[Span, ...]:
    """Each thing once, the longest first."""
    found: dict[str, float] = {}
    for span in spans:
        found[span.what] = found.get(span.what, 0.0) + span.seconds
    ordered = sorted(found.items(), key=lambda item: (-item[1], item[0]))
    return tuple(Span(what=what, seconds=seconds) for what, seconds in ordered)


def _seconds(detail: str) -> float:
    number, _, unit = detail.partition(" ")
    try:
        return float(number) if unit == "s" else 0.0
    except ValueError:
        return 0.0
