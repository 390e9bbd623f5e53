"""What people are told, when, and when again. Pure.

A *standing* notice holds for as long as something is so (a debt, a full repository): it is told when it begins,
and again after the repeat time while it lasts. What goes and comes back within that time is not told twice. A *passing* one
(a job failed, a run ended) is told once. Notices of one kind that come close together become one message.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Final

LINES_MAX: Final = 20  # of one message; `holdfast status` and `job list` have all
LINE_LENGTH_MAX: Final = 180
GATHERING: Final = timedelta(
    minutes=10
)  # the first of a kind is told at once, those after it together
PASSING_AGE_MAX: Final = timedelta(days=1)  # what ended while nobody was to be told is no news then
TRIES: Final = tuple(timedelta(minutes=minutes) for minutes in (1, 2, 5, 15, 30, 60, 60))


class NoticeKind(StrEnum):
    """What it is about; the names stand in ``controller.toml``."""

    FAILURE = "failure"
    MISSING_SUCCESS = "missing_success"
    DEBT = "debt"
    SUSPECT = "suspect"
    REPOSITORY_FULL = "repository_full"
    KEEPING = "keeping"
    DIGEST = "digest"


STANDING: Final = frozenset(
    {
        NoticeKind.MISSING_SUCCESS,
        NoticeKind.DEBT,
        NoticeKind.SUSPECT,
        NoticeKind.REPOSITORY_FULL,
        NoticeKind.KEEPING,
    }
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Notice:
    """``key`` is the same for the same thing at any time. ``text`` is one line."""

    key: str
    kind: NoticeKind
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    """What is sent."""

    kind: NoticeKind
    title: str
    body: str


@dataclass(frozen=True, slots=True, kw_only=True)
class StandingChanges:
    """``due``: to be told (again). ``over``: no longer so, for long enough to be news when they come back."""

    due: tuple[Notice, ...]
    over: tuple[str, ...]


def standing_changes(
    standing: Iterable[Notice],
    told: Mapping[str, datetime],
    *,
    now: datetime,
    repeat: timedelta,
) -> StandingChanges:
    """What follows from what is so now. ``told``: when each standing notice was told last, by key."""
    found = {notice.key: notice for notice in standing}

    def is_old(key: str) -> bool:
        # told in the future: the clock was set back, and nobody waits until it is that late again
        return not timedelta(0) <= now - told[key] < repeat

    return StandingChanges(
        due=tuple(notice for key, notice in found.items() if key not in told or is_old(key)),
        over=tuple(key for key in told if key not in found and is_old(key)),
    )


def may_be_told(last_told: datetime | None, now: datetime) -> bool:
    """Whether a message of a kind may be made now. None: there was none of this kind."""
    return last_told is None or not timedelta(0) <= now - last_told < GATHERING


def next_try(tries: int, now: datetime) -> datetime | None:
    """When to send again what could not be sent ``tries`` times; None: it is given up."""
    return now + TRIES[tries - 1] if tries <= len(TRIES) else None


def message_of(kind: NoticeKind, texts: Sequence[str], *, sender: str) -> Message:
    """One message of all notices of a kind. ``sender``: which controller it is."""
    assert texts, "a message says something"
    shown = [_line(text) for text in texts[:LINES_MAX]]
    if len(texts) > LINES_MAX:
        shown.append(f"… and {len(texts) - LINES_MAX} more")
    advice = _ADVICE[kind]
    body = "\n".join([*shown, *(["", advice] if advice else [])])
    return Message(kind=kind, title=f"Holdfast on {sender}: {_TITLES[kind](len(texts))}", body=body)


def _line(text: str) -> str:
    """Names of VMs and errors of servers are data: they break no line, and fill no screen."""
    line = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    return line if len(line) <= LINE_LENGTH_MAX else line[: LINE_LENGTH_MAX - 1].rstrip() + "…"


def _counted(one: str, many: str) -> Callable[[int], str]:
    return lambda count: one if count == 1 else f"{count} {many}"


_TITLES: Final[Mapping[NoticeKind, Callable[[int], str]]] = {
    NoticeKind.FAILURE: _counted("a job or run did not end well", "jobs or runs did not end well"),
    NoticeKind.MISSING_SUCCESS: _counted(
        "a VM has no recent good point", "VMs have no recent good point"
    ),
    NoticeKind.DEBT: _counted("something could not be undone", "things could not be undone"),
    NoticeKind.SUSPECT: _counted("change tracking lied", "VMs whose change tracking lied"),
    NoticeKind.REPOSITORY_FULL: _counted("the repository is nearly full", "full repositories"),
    NoticeKind.KEEPING: _counted(
        "the repository is not kept as it should be", "things keep the repository from being kept"
    ),
    NoticeKind.DIGEST: _counted("a run has ended", "runs have ended"),
}
_ADVICE: Final[Mapping[NoticeKind, str]] = {
    NoticeKind.FAILURE: "`holdfast job show JOB` tells more, `holdfast job retry RUN` tries again."
    " A policy's run that cannot begin is tried as long as its window is open: `holdfast doctor` tells what is missing,"
    " `holdfast policy run NAME` begins one by hand.",
    NoticeKind.MISSING_SUCCESS: "`holdfast status` shows all VMs.",
    NoticeKind.DEBT: "It is tried again by itself; `holdfast status` shows what is left.",
    NoticeKind.SUSPECT: "Earlier points of these VMs may lack something: `holdfast point list`. The next backup reads everything.",
    NoticeKind.REPOSITORY_FULL: "`holdfast repo forget` and `holdfast repo prune` make room.",
    NoticeKind.KEEPING: "`holdfast status` tells what holds it up.",
    NoticeKind.DIGEST: "",
}
