"""The repository, as a model: which points are committed, and what a restore of each would bring."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from holdfast_common.identity import RepositoryId
from holdfast_common.point_record import PointRecord

REPOSITORY: Final = RepositoryId("01REPOSITORY00000000000000")


@dataclass(eq=False)
class Manifest:
    """One committed point: the disks as the agent read them; ``allocated``: those read by what is said to be allocated."""

    record: PointRecord
    disks: Mapping[int, list[int]]
    allocated: frozenset[int]


@dataclass(eq=False)
class VirtualRepository:
    """What is committed, in order. ``full``: nothing more can be."""

    points: dict[str, Manifest] = field(default_factory=dict)
    full: bool = False

    def of_job(self, job_id: str) -> list[Manifest]:
        return [each for each in self.points.values() if each.record.job_id == job_id]
