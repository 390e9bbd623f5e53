"""What a check found, as a result tells it: bounded, and what was too much is counted. After `check` and `repair`."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from typing import Final

from holdfast_common.extents import Extent
from holdfast_common.identity import PointId
from holdfast_common.job_result import DamageFound
from holdfast_common.repository.check import CheckReport
from holdfast_common.repository.key_sets import KeyRing
from holdfast_common.repository.object_store import ObjectStore
from holdfast_common.repository.points import list_points
from holdfast_common.units import MIB

# Together with the ranges that a check lists (250,000, some 6 MiB) well below the 64 MiB of a result.
OBJECTS_MAX: Final = 20_000  # as many as one job can be told not to build on
LOSSES_MAX: Final = 50_000  # 10,000 points of five disks
TEXT_BYTES_MAX: Final = 16 * MIB  # of names and problems, of each of the two
PROBLEM_CHARACTERS_MAX: Final = 500


@dataclass(frozen=True, slots=True, kw_only=True)
class DamageList:
    """Damaged objects first, then what is lost, point by point and disk by disk."""

    damages: tuple[DamageFound, ...]
    objects_left_out: int = 0
    losses_left_out: int = 0

    @property
    def total(self) -> int:
        """Damages, those left out too."""
        return len(self.damages) + self.objects_left_out + self.losses_left_out


def damage_list(
    report: CheckReport, missing: Iterable[DamageFound] = (), *, points: Collection[PointId] = ()
) -> DamageList:
    """``missing``: of `missing_points`. ``points``: only of these it tells what is lost; none: of all."""
    objects, objects_left_out = _bounded(
        (
            DamageFound(object_name=item.name, problem=item.reason[:PROBLEM_CHARACTERS_MAX])
            for item in report.damaged
        ),
        entries_max=OBJECTS_MAX,
    )
    losses, losses_left_out = _bounded(
        _missing_first(missing, _losses(report, points)), entries_max=LOSSES_MAX
    )
    return DamageList(
        damages=(*objects, *losses),
        objects_left_out=objects_left_out,
        losses_left_out=losses_left_out,
    )


def missing_points(
    store: ObjectStore, ring: KeyRing, points: Collection[PointId]
) -> list[DamageFound]:
    """Points known by name that are not there, or cannot be used: nothing of them was checked."""
    if not points:
        return []
    found = {point.point_id for point in list_points(store, ring).points}
    return [
        DamageFound(
            object_name="points/",
            problem="the point is not in the repository, or cannot be used",
            point_id=point_id,
        )
        for point_id in sorted(points)
        if point_id not in found
    ]


def _missing_first(
    missing: Iterable[DamageFound], losses: Iterable[DamageFound]
) -> Iterator[DamageFound]:
    yield from missing  # all of such a point is lost
    yield from losses


def _losses(report: CheckReport, points: Collection[PointId]) -> Iterator[DamageFound]:
    ranges: dict[tuple[PointId, str, int], list[Extent]] = {}
    for lost in report.lost_ranges:
        if not points or lost.point_id in points:
            key = (lost.point_id, lost.point_name, lost.device_key)
            ranges.setdefault(key, []).append(lost.extent)
    unlisted = {(each.point_id, each.point_name, each.device_key): each for each in report.unlisted}
    for key in unlisted:
        ranges.setdefault(key, [])
    for (point_id, name, device_key), extents in ranges.items():
        more = unlisted.get((point_id, name, device_key))
        yield DamageFound(
            object_name=name,
            problem="ranges of a disk are lost",
            point_id=point_id,
            device_key=device_key,
            lost=tuple(extents),
            ranges_left_out=0 if more is None else more.ranges,
            bytes_left_out=0 if more is None else more.length,
        )
    for blob in report.lost_blobs:
        if not points or blob.point_id in points:
            yield DamageFound(
                object_name=blob.point_name,
                problem=f"its {blob.kind} is lost",
                point_id=blob.point_id,
            )


def _bounded(damages: Iterable[DamageFound], *, entries_max: int) -> tuple[list[DamageFound], int]:
    """The first ones, and how many more there are."""
    told: list[DamageFound] = []
    text_bytes = left_out = 0
    for damage in damages:
        text_bytes += len(damage.object_name.encode()) + len(damage.problem.encode())
        if len(told) >= entries_max or text_bytes > TEXT_BYTES_MAX:
            left_out += 1
            continue
        told.append(damage)
    return told, left_out
