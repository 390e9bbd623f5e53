"""The repository, as a model: which points there are, and which blocks lie in which packs.

Names of objects, leases, fences and holds are as in the real one, and read and written by the product's own code. What the
model knows by itself is what a manifest, a map and a pack hold: a manifest refers to blocks, and a pack has some.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from holdfast_common.errors import PointVoided
from holdfast_common.identity import RepositoryId
from holdfast_common.point_record import PointRecord
from holdfast_common.repository import fence
from holdfast_common.repository.fence import Fences
from holdfast_common.repository.points import Point, PointList, UnusablePoint
from simulation.virtual_disks import EMPTY
from simulation.virtual_storage import VirtualStorage, VirtualStore
from simulation.virtual_time import Kernel, Violation

REPOSITORY: Final = RepositoryId("01REPOSITORY00000000000000")


@dataclass(eq=False)
class Manifest:
    """One committed point: the disks as the agent read them; ``allocated``: those read by what is said to be allocated.

    ``name``, ``map_name``: of its objects. ``chunks``: the blocks that it refers to.
    """

    record: PointRecord
    disks: Mapping[int, list[int]]
    allocated: frozenset[int]
    name: str
    map_name: str
    digest: bytes
    writer_epoch: int
    chunks: frozenset[int]

    # As the product asks a manifest that it opened.
    @property
    def point_id(self) -> str:
        return self.record.point_id

    @property
    def lineage_id(self) -> str:
        return self.record.lineage_id


class VirtualRepository:
    """``committed``: every point that ever was, in order, by its id."""

    def __init__(self, kernel: Kernel, seed: int) -> None:
        self.storage = VirtualStorage(kernel, seed)
        self.committed: dict[str, Manifest] = {}
        self.copies: Counter[int] = Counter()  # in how many packs each block lies

    def of_job(self, job_id: str) -> list[Manifest]:
        """What a job ever committed."""
        return [each for each in self.committed.values() if each.record.job_id == job_id]

    def stored(self) -> Iterator[Manifest]:
        """All manifests that are there, whether or not they count."""
        for name in self.storage.names("points/"):
            yield self.storage.objects[name].body

    def visible(self) -> list[Manifest]:
        """The points that count now."""
        fences = self._fences()
        return [each for each in self.stored() if admitted(each, fences)]

    def is_visible(self, point_id: str) -> bool:
        return any(each.point_id == point_id for each in self.visible())

    def is_there(self, point: Manifest) -> bool:
        """Whether nothing of it is missing."""
        return point.map_name in self.storage.objects and not self.missing_of(point)

    def missing_of(self, point: Manifest) -> set[int]:
        """Blocks of it that lie nowhere."""
        return {each for each in point.chunks if not self.copies[each]}

    # -- as the storage tells ------------------------------------------------------------------------

    def was_put(self, name: str, body: Any) -> None:
        """Raises: Violation: a point counts, and something of it is missing (I2)."""
        if name.startswith("packs/"):
            self.copies.update(body)
        elif name.startswith("points/"):
            self.committed[body.point_id] = body
            if admitted(body, self._fences()) and not self.is_there(body):
                raise Violation(f"point {body.point_id} is visible and lacks blocks")

    def is_deleted(self, name: str) -> None:
        """Right before. Raises: Violation: a point that counts needs it (I3)."""
        if name.startswith("packs/"):
            values: frozenset[int] = self.storage.objects[name].body
            last = {each for each in values if self.copies[each] == 1}
            for point in self.visible() if last else ():
                if point.chunks & last:
                    raise Violation(f"live chunks of {point.point_id} are deleted with {name}")
            self.copies.subtract(values)
        elif name.startswith("maps/"):
            for point in self.visible():
                if point.map_name == name:
                    raise Violation(f"the map of {point.point_id} is deleted")

    def garbage(self) -> list[str]:
        """Packs, maps and manifests that no point needs."""
        points = self.visible()
        needed = {value for point in points for value in point.chunks}
        names = {point.name for point in points} | {point.map_name for point in points}
        objects = self.storage.objects
        return [
            *(each for each in self.storage.names("packs/") if not objects[each].body & needed),
            *(each for each in self.storage.names("maps/") if each not in names),
            *(each for each in self.storage.names("points/") if each not in names),
        ]

    def _fences(self) -> Fences:
        found = [
            fence._from_json(self.storage.objects[name].data)
            for name in self.storage.names("fences/")
        ]
        return Fences(by_epoch={each.closed_epoch: each for each in found})


def admitted(point: Manifest, fences: Fences) -> bool:
    """Whether it counts, by the product's own rule."""
    return fences.admits(name=point.name, digest=point.digest, writer_epoch=point.writer_epoch)


def listed(store: VirtualStore, fences: Fences) -> PointList:
    """In place of `points.list_points`, but for the opening of manifests."""
    points: list[Point] = []
    unusable: list[UnusablePoint] = []
    for info in store.list("points/"):
        found: Any = store.storage.objects[info.name].body
        if admitted(found, fences):
            points.append(
                Point(
                    name=found.name,
                    digest=found.digest,
                    lineage_tag=bytes.fromhex(found.name.split("/")[1]),
                    controller_epoch=1,
                    manifest=found,
                )
            )
        else:
            unusable.append(
                UnusablePoint(name=found.name, reason="it never counted", code=PointVoided.code)
            )
    return PointList(points=tuple(points), unusable=tuple(unusable))


def chunks_of(contents: Iterable[Iterable[int]]) -> frozenset[int]:
    """The blocks that are stored: those that were never written are not."""
    return frozenset(value for content in contents for value in content if value != EMPTY)
