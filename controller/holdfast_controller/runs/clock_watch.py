"""Whether this machine's clock is to be believed by what deletes: looked at beside the clock that never goes back.

A clock that jumped ahead makes every point old at once. What is found stays found, over a restart too, until a vCenter's
clock says the same as this one, or an operator does (`--accept-clock`).
"""

from __future__ import annotations

import logging
from datetime import datetime, timedelta
from typing import Final

from holdfast_common.clock import parse_utc, utc_text
from holdfast_common.errors import HoldfastError
from holdfast_common.repository.prune_plan import CLOCK_JUMP_MAX, CLOCK_TOLERANCE
from holdfast_controller.runs.world import World
from holdfast_controller.store import settings as names
from holdfast_controller.vsphere.server_clock import server_time

log = logging.getLogger(__name__)

NOTE_SECONDS: Final = 60.0


def clock_doubt(world: World) -> str:
    """Why it is not to be believed; empty: it is."""
    return world.settings.get(names.CLOCK_DOUBT)


def accept_clock(world: World) -> None:
    """An operator looked at it: it is right."""
    if clock_doubt(world):
        world.settings.set(names.CLOCK_DOUBT, "")


class ClockWatch:
    """One thread's."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._before: tuple[datetime, float] | None = None
        self._noted_at = 0.0  # monotonic

    def look(self) -> None:
        """Once. Raises: StoreFailed, Locked."""
        world = self._world
        now, monotonic = world.clock.now(), world.clock.monotonic_seconds()
        if self._before is None:
            problem = self._since_last_life(now)
        else:
            moment, seconds = self._before
            problem = _jump(now - moment, timedelta(seconds=monotonic - seconds))
        if self._before is not None and not problem and monotonic - self._noted_at < NOTE_SECONDS:
            self._before = now, monotonic
            return
        if problem:  # first: a clock that was noted is believed in the next life
            world.settings.set(names.CLOCK_DOUBT, f"{problem} (found at {utc_text(now)[:19]})")
        world.settings.set(names.CLOCK_SEEN_AT, utc_text(now))
        self._before, self._noted_at = (now, monotonic), monotonic
        if clock_doubt(world) and self._is_confirmed():
            log.warning("the clock jumped, and is right", extra={"error": clock_doubt(world)})
            accept_clock(world)
        elif problem:
            log.error("the clock is not believed; nothing is deleted", extra={"error": problem})

    def _since_last_life(self, now: datetime) -> str:
        seen = self._world.settings.get(names.CLOCK_SEEN_AT)
        passed = now - parse_utc(seen) if seen else timedelta(0)
        if passed < -CLOCK_TOLERANCE:
            return f"the clock went back by {_text(-passed)} while the controller was down"
        if passed > CLOCK_JUMP_MAX:
            return f"the controller was down for {_text(passed)}, or the clock jumped"
        return ""

    def _is_confirmed(self) -> bool:
        """Whether a vCenter's clock says the same."""
        world = self._world
        for row in world.vcenters.table.all():
            try:
                found = server_time(world.vcenters.session(row.vcenter_id))
            except HoldfastError:
                continue
            if abs(found - world.clock.now()) <= CLOCK_TOLERANCE:
                return True
        return False


def _jump(wall: timedelta, passed: timedelta) -> str:
    difference = wall - passed
    if abs(difference) <= CLOCK_TOLERANCE:
        return ""
    direction = "ahead" if difference > timedelta(0) else "back"
    return f"the clock went {direction} by {_text(abs(difference))} within {_text(passed)}"


def _text(duration: timedelta) -> str:
    return str(timedelta(seconds=round(duration.total_seconds())))
