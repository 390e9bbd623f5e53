"""How far a round of pruning is, as it tells whoever waits for it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

MARKING: Final = "reading what points need"  # in points
SURVEYING: Final = "reading what packs hold"
MOVING: Final = "moving what is needed"  # in bytes
DELETING: Final = "deleting what is dead"  # in objects


@dataclass(frozen=True, slots=True, kw_only=True)
class PruneProgress:
    """One of the steps, and how much of it is done. ``total`` 0: not known."""

    step: str
    done: int = 0
    total: int = 0


Tell = Callable[[PruneProgress], None]
