"""When a VM whose backup brought no point is backed up again in the same run of its policy. Pure.

What was stopped from outside goes on at once. What failed by something that may pass by itself (a vCenter or a proxy
that is away) waits: a quarter of an hour after the first failure, twice as long after each further one. Failures of
earlier nights count, so a VM that never succeeds is tried less and less.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

from holdfast_common.errors import Interrupted, Paused
from holdfast_controller.decide.job_state import JobState

FIRST_PAUSE: Final = timedelta(minutes=15)
DOUBLED_MAX: Final = 7  # more than a day
# A backup that ends the controller itself, each time that it is begun, must not do so all night.
ENDS_MAX: Final = 3
ENDED_LOOKED_AT: Final = DOUBLED_MAX + ENDS_MAX + 2  # of a VM's backups: more change nothing

_WITH_POINT: Final = frozenset({JobState.DONE, JobState.PARTIAL})
STOPPED_CODES: Final = frozenset(
    {Interrupted.code, Paused.code}
)  # of what was stopped from outside


@dataclass(frozen=True, slots=True, kw_only=True)
class EndedBackup:
    """``code``: of its error; empty: none. ``may_pass``: whether what it failed by may pass by itself."""

    state: JobState
    finished_at: datetime
    code: str = ""
    may_pass: bool = False

    @property
    def was_stopped(self) -> bool:
        """By the controller's end, or by a pause: not by its window, nor by an operator who meant this one."""
        return self.state is JobState.INTERRUPTED and self.code in STOPPED_CODES

    @property
    def is_left(self) -> bool:
        """Whether it is to be begun again at all."""
        return self.was_stopped or (self.state is JobState.FAILED and self.may_pass)


def wait_before(newest_first: Sequence[EndedBackup], now: datetime) -> timedelta | None:
    """How long the VM waits until it is begun again; None: not any more in this run.

    ``newest_first``: its ended backups, the newest `ENDED_LOOKED_AT`. A clock that went back makes nothing wait.
    """
    newest = newest_first[0]
    if not newest.is_left:
        return None
    passed = now - newest.finished_at
    if passed < timedelta(0):
        return timedelta(0)
    return max(timedelta(0), _pause(newest_first) - passed)


def _pause(newest_first: Sequence[EndedBackup]) -> timedelta:
    misses = 0
    for each in newest_first:
        if each.state in _WITH_POINT:
            break
        # neither a pause nor a window says anything against the VM
        misses += each.state is JobState.FAILED or each.code == Interrupted.code
    if newest_first[0].was_stopped:
        misses -= ENDS_MAX
    if misses <= 0:
        return timedelta(0)
    return FIRST_PAUSE * (1 << min(misses - 1, DOUBLED_MAX))
