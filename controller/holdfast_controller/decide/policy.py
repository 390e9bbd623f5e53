"""What a policy promises and asks for: which VMs, when, at which level, and what is kept. Pure.

A policy is checked when it is made: each text of it can be read, its calendar comes due, its windows open. What only
the inventory can tell (a selector that names nothing) is asked of the inventory.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Final

from holdfast_common.errors import UsageError
from holdfast_controller.decide.calendar import Calendar, last_due, parse_calendar
from holdfast_controller.decide.disk_choice import WantedDisks, check_disk_selector
from holdfast_controller.decide.lanes import LANES_MAX
from holdfast_controller.decide.level import DIFFERENTIAL, FULL, INCREMENTAL
from holdfast_controller.decide.retention import RetentionRule
from holdfast_controller.decide.selection import check_selector
from holdfast_controller.decide.windows import WindowSet, parse_windows

METHODS: Final = ("image",)
CONSISTENCIES: Final = ("crash", "filesystem", "cold")
TRANSPORTS: Final = ("direct", "hotadd", "nfc")
PRIORITY_MAX: Final = 100
FULL_DAYS_MAX: Final = 3650
ATTEMPTS_MAX: Final = 10
TEXT_LENGTH_MAX: Final = 256
SELECTORS_MAX: Final = 1000
# A point is some time younger than the moment at which its run was due: without this each full would come a day later.
_FULL_TOLERANCE: Final = timedelta(hours=12)
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_PROMISE: Final = re.compile(r"([1-9]\d{0,4})([hd])")
_RESUME: Final = re.compile(r"([1-9]\d{0,3})([sm])")
RESUME_SECONDS_MAX: Final = 3600.0  # a snapshot grows all the time
_PROMISE_UNITS: Final = {"h": timedelta(hours=1), "d": timedelta(days=1)}


class WhenNotReached(StrEnum):
    """What becomes of a backup whose consistency is lower than was asked."""

    LOWER = "lower"  # it is kept, with a warning
    FAIL = "fail"  # no point
    RETRY = "retry"  # another attempt, then no point


@dataclass(frozen=True, slots=True, kw_only=True)
class LevelRule:
    """Incremental, unless one of these says full or differential.

    ``full_days``: when the VM was last read whole so many days ago; 0: never for that reason. ``full``,
    ``differential``: calendars of five fields, "": none; a run is of that level when it was due since the policy's
    run before it, full before differential.
    """

    full_days: int = 30
    full: str = ""
    differential: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """One policy. Raises: UsageError naming the field.

    ``vms``, ``exclude``: selectors as `selection` reads them. ``start``: a calendar, in ``time_zone``. ``window``: as
    `windows` reads it; "": always open. ``promise``: the oldest that the last good point of a VM may be, as ``26h``
    or ``2d``; "": nothing is promised. ``resume_within``: how long a backup's snapshot waits for an agent that lost its
    connection and reads on meanwhile, as ``90s`` or ``10m``; "": as the controller is configured. ``transport`` "": the best that can. ``priority``: the higher begins first.
    ``lanes``: how many streams a VM may have at once, if its disks are on as many storages of their own.
    ``disks``, ``exclude_disks``: as `disk_choice` reads them; no ``disks``: all.
    """

    name: str
    vms: tuple[str, ...]
    start: str
    exclude: tuple[str, ...] = ()
    description: str = ""
    enabled: bool = True
    method: str = "image"
    level: LevelRule = field(default_factory=LevelRule)
    consistency: str = "crash"
    when_not_reached: WhenNotReached = WhenNotReached.LOWER
    time_zone: str = "UTC"
    window: str = ""
    promise: str = ""
    resume_within: str = ""
    retention: RetentionRule = field(default_factory=RetentionRule)
    transport: str = ""
    priority: int = 50
    attempts_max: int = 2
    lanes: int = 1
    disks: tuple[str, ...] = ()
    exclude_disks: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.name):
            raise UsageError(
                "not a policy's name",
                field="name",
                value=self.name[:TEXT_LENGTH_MAX],
                advice="letters, digits, dot, dash and underscore; at most 64",
            )
        self._check_texts()
        self._check_numbers()
        _ = (self.calendar, self.windows, self.level_calendars, self.promised, self.resume_seconds)

    @property
    def calendar(self) -> Calendar:
        """When it is due."""
        return parse_calendar(self.start, self.time_zone, field="start")

    @property
    def level_calendars(self) -> Mapping[str, Calendar]:
        """When a full and a differential are due, the first that counts first; incremental otherwise."""
        written = {FULL: self.level.full, DIFFERENTIAL: self.level.differential}
        return {
            level: parse_calendar(text, self.time_zone, field=f"level.{level}")
            for level, text in written.items()
            if text
        }

    @property
    def windows(self) -> WindowSet:
        """When its backups may work."""
        return parse_windows(self.window, self.time_zone, field="window")

    @property
    def wanted_disks(self) -> WantedDisks:
        """Which disks of its VMs it backs up."""
        return WantedDisks(selectors=self.disks, excludes=self.exclude_disks)

    @property
    def promised(self) -> timedelta | None:
        """How old the last good point of each of its VMs may be; None: it promises nothing."""
        if not self.promise:
            return None
        match = _PROMISE.fullmatch(self.promise)
        if match is None:
            raise UsageError(
                "not a promise", field="promise", value=self.promise, advice="write 26h or 2d"
            )
        return int(match[1]) * _PROMISE_UNITS[match[2]]

    @property
    def resume_seconds(self) -> float:
        """`resume_within`; 0: as the controller is configured."""
        if not self.resume_within:
            return 0.0
        match = _RESUME.fullmatch(self.resume_within)
        seconds = int(match[1]) * (60.0 if match[2] == "m" else 1.0) if match else 0.0
        if not 0 < seconds <= RESUME_SECONDS_MAX:
            raise UsageError(
                "not a time that a snapshot may wait",
                field="resume_within",
                value=self.resume_within,
                advice="write 90s or 10m; at most 60m",
            )
        return seconds

    def level_due(self, *, slot: datetime, slot_before: datetime | None) -> str:
        """What its calendars ask for at ``slot``. ``full_days`` is for each VM: `full_is_due`.

        ``slot_before``: of the policy's run before; None when there was none.
        """
        for level, calendar in self.level_calendars.items():
            newest = last_due(calendar, slot)
            if newest is not None and (slot_before is None or newest > slot_before):
                return level
        return INCREMENTAL

    def full_is_due(self, *, last_full: datetime | None, slot: datetime) -> bool:
        """Whether a VM that was last read whole then is to be read whole again. None: it never was."""
        if last_full is None or not self.level.full_days:
            return False  # a first backup reads everything by itself
        return slot - last_full >= timedelta(days=self.level.full_days) - _FULL_TOLERANCE

    def _check_texts(self) -> None:
        if not self.vms:
            raise UsageError(
                "a policy selects VMs", field="vms", advice='for example vms = ["folder:/prod"]'
            )
        for name in ("vms", "exclude"):
            selectors = getattr(self, name)
            if len(selectors) > SELECTORS_MAX:
                raise UsageError("too many selectors", field=name, selectors=len(selectors))
            for selector in selectors:
                try:
                    check_selector(selector)
                except UsageError as error:
                    facts = {**error.facts, "field": name}
                    raise UsageError(error.message, advice=error.advice, **facts) from error
        self._check_disks()
        if len(self.description) > TEXT_LENGTH_MAX:
            raise UsageError("too long", field="description", length=len(self.description))
        _check_one_of("method", self.method, METHODS)
        _check_one_of("consistency", self.consistency, CONSISTENCIES)
        _check_one_of("when_not_reached", self.when_not_reached, tuple(WhenNotReached))
        if self.transport:
            _check_one_of("transport", self.transport, TRANSPORTS)

    def _check_disks(self) -> None:
        for name in ("disks", "exclude_disks"):
            selectors = getattr(self, name)
            if len(selectors) > SELECTORS_MAX:
                raise UsageError("too many selectors", field=name, selectors=len(selectors))
            for selector in selectors:
                try:
                    check_disk_selector(selector)
                except UsageError as error:
                    facts = {**error.facts, "field": name}
                    raise UsageError(error.message, advice=error.advice, **facts) from error

    def _check_numbers(self) -> None:
        _check_between("priority", self.priority, 0, PRIORITY_MAX)
        _check_between("attempts_max", self.attempts_max, 1, ATTEMPTS_MAX)
        _check_between("lanes", self.lanes, 1, LANES_MAX)
        _check_between("level.full_days", self.level.full_days, 0, FULL_DAYS_MAX)


def _check_one_of(name: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise UsageError("unknown value", field=name, value=value, expected=", ".join(allowed))


def _check_between(name: str, value: int, lowest: int, highest: int) -> None:
    if not lowest <= value <= highest:
        raise UsageError("out of range", field=name, value=value, expected=f"{lowest} to {highest}")
