"""What a round of pruning may do, and what it did."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import Final

from holdfast_common.repository.prune_plan import Waiting
from holdfast_common.repository.reserve import RESERVE_BYTES

GRACE: Final = timedelta(hours=24)  # a restore that opened its index before is done by then


@dataclass(frozen=True, slots=True, kw_only=True)
class PruneLimits:
    """How much one round may do. ``seconds_max`` and ``moved_bytes_max``: what is left waits for the next."""

    grace: timedelta = GRACE
    seconds_max: float = float("inf")
    moved_bytes_max: int = 1 << 62
    dry_run: bool = False
    accept_clock: bool = False  # an operator has looked at it
    reserve_bytes: int = RESERVE_BYTES


DEFAULT_LIMITS: Final = PruneLimits()


@dataclass(frozen=True, slots=True, kw_only=True)
class PruneReport:
    """What one round did; a dry run's: what it would do."""

    deleted: int = 0
    deleted_bytes: int = 0
    doomed: int = 0  # objects that the fence calls dead for the first time
    doomed_bytes: int = 0
    repacked: int = 0  # packs
    moved_bytes: int = 0
    kept_for_later: int = 0  # packs worth repacking beyond the limit
    rewritten_indexes: int = 0
    fence: int = 0  # the epoch that was closed; 0: none
    waiting: Waiting | None = None
    out_of_time: bool = False
    was_full: bool = False  # nothing could be moved: the next round may
    missing_chunks: int = 0  # that points need and that are nowhere: run a check
    refused_indexes: tuple[str, ...] = ()  # index objects that cannot be used: see `PackSurvey`
    void_points: tuple[str, ...] = ()  # expected manifests that never counted, and are gone
    names: tuple[str, ...] = ()  # of what was deleted; a dry run's: of what is dead
