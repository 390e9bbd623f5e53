"""Which packs a check reads when it shall not read all: one of some equal parts, or those proven longest ago.

Which proofs count for that says `proof.ProofTimes`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from holdfast_common.errors import UsageError

_PART: Final = re.compile(r"^([0-9]{1,6})/([0-9]{1,6})$")
_SHARE: Final = re.compile(r"^([0-9]{1,3}(?:\.[0-9]{1,4})?)%$")


@dataclass(frozen=True, slots=True, kw_only=True)
class Subset:
    """Part ``number`` of ``of`` equal parts, by the packs' names: over ``of`` checks each is read once."""

    number: int
    of: int

    def __post_init__(self) -> None:
        if not 1 <= self.number <= self.of:
            raise UsageError("not a subset", number=self.number, of=self.of)

    def takes(self, pack: bytes) -> bool:
        """Whether that pack belongs to it."""
        return int.from_bytes(pack[:8], "big") % self.of == self.number - 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Share:
    """So many percent of the bytes, of the packs that were never proven or proven longest ago."""

    percent: float

    def __post_init__(self) -> None:
        if not 0 < self.percent <= 100:
            raise UsageError("not a share of the data", percent=self.percent)


def parsed_subset(text: str) -> Subset | Share | None:
    """``N/M``, ``P%``; empty: everything. Raises: UsageError."""
    if not text:
        return None
    part = _PART.fullmatch(text)
    if part is not None:
        return Subset(number=int(part[1]), of=int(part[2]))
    share = _SHARE.fullmatch(text)
    if share is not None:
        return Share(percent=float(share[1]))
    raise UsageError(
        "not a subset", subset=text[:40], advice="say a part, like 3/30, or a share, like 5%"
    )


def chosen_packs(
    present: Mapping[bytes, int],
    subset: Subset | Share | None,
    *,
    proven_at: Mapping[bytes, str],
) -> list[bytes]:
    """The packs to read, in that order. ``present``: with lengths; ``proven_at``: of packs that were proven."""
    if subset is None:
        return list(present)
    if isinstance(subset, Subset):
        return [pack for pack in present if subset.takes(pack)]
    wanted = sum(present.values()) * subset.percent / 100
    chosen = []
    taken = 0
    for pack in sorted(present, key=lambda pack: (proven_at.get(pack, ""), pack)):
        if taken >= wanted:
            break
        chosen.append(pack)
        taken += present[pack]
    return chosen
