"""Finding restore points: which manifests there are, which of them count, and why the others do not.

Without any key one sees per lineage (by its tag, not its name) how many points there are, their sizes and
file times, and who signed them; with the lineage's keys everything.
"""

from __future__ import annotations

from dataclasses import dataclass

from holdfast_common.errors import (
    FormatError,
    IntegrityError,
    NotFound,
    PointVoided,
    RepositoryFailed,
)
from holdfast_common.identity import PointId
from holdfast_common.repository.derivation import lineage_tag
from holdfast_common.repository.fence import Fences, load_fences
from holdfast_common.repository.key_sets import GRANT_BYTES, KeyRing, LineageKeyRing, ReaderKeys
from holdfast_common.repository.layout import ObjectKind, manifest_name, manifest_tag
from holdfast_common.repository.manifest import (
    MANIFEST_BYTES_MAX,
    BlobRecord,
    Manifest,
    PointDisk,
)
from holdfast_common.repository.object_store import ObjectStore
from holdfast_common.repository.writers import ROLE_WRITE, WriterList, load_writers


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """A restore point that counts: signed by a listed writer, granted, not fenced off."""

    name: str  # of its object
    digest: bytes  # of its manifest, as granted
    lineage_tag: bytes
    controller_epoch: int
    manifest: Manifest

    @property
    def point_id(self) -> PointId:
        """The id that copies keep."""
        return self.manifest.point_id

    @property
    def disks(self) -> tuple[PointDisk, ...]:
        """Its disks."""
        return tuple(
            PointDisk(
                point_id=self.manifest.point_id,
                lineage_id=self.manifest.lineage_id,
                summary=summary,
                used=self.manifest.used,
            )
            for summary in self.manifest.disks
        )

    def disk(self, device_key: int) -> PointDisk:
        """One disk. Raises: NotFound."""
        for disk in self.disks:
            if disk.header.device_key == device_key:
                return disk
        raise NotFound("the point has no such disk", point=self.point_id, device_key=device_key)

    def blob(self, kind: str) -> BlobRecord:
        """One blob's record. Raises: NotFound."""
        for blob in self.manifest.blobs:
            if blob.kind == kind:
                return blob
        raise NotFound("the point has no such blob", point=self.point_id, kind=kind)


@dataclass(frozen=True, slots=True, kw_only=True)
class UnusablePoint:
    """A manifest that does not count, and why."""

    name: str
    reason: str
    code: str  # of the error


@dataclass(frozen=True, slots=True, kw_only=True)
class PointList:
    """All manifests of a repository or lineage."""

    points: tuple[Point, ...]  # by order number, then time
    unusable: tuple[UnusablePoint, ...]
    unopened: tuple[str, ...] = ()  # names of manifests of lineages whose keys are not in the ring
    strays: tuple[str, ...] = ()  # other files that lie there: no manifest has such a name


@dataclass(frozen=True, slots=True)
class PointJudge:
    """What decides whether a manifest counts."""

    writers: WriterList
    fences: Fences

    @classmethod
    def load(
        cls, store: ObjectStore, keys: ReaderKeys, *, fences: Fences | None = None
    ) -> PointJudge:
        """``fences``: known already. Raises: IntegrityError, FormatError, RepositoryFailed."""
        writers = load_writers(store, keys)
        return cls(writers, fences if fences is not None else load_fences(store, keys, writers))

    def point(self, data: bytes, name: str, keys: ReaderKeys) -> Point:
        """Check one manifest. Raises: FormatError, IntegrityError."""
        if len(data) <= GRANT_BYTES:
            raise IntegrityError("a manifest is too short", name=name)
        found = keys.open(ObjectKind.MANIFEST, memoryview(data)[:-GRANT_BYTES])
        self.writers.check(found, role=ROLE_WRITE)
        manifest = Manifest.decode(found.body)
        controller_epoch = keys.check_grant(
            data[-GRANT_BYTES:],
            job_id=manifest.job_id,
            attempt=manifest.attempt,
            manifest_digest=found.digest,
        )
        tag = lineage_tag(keys.id_key, manifest.lineage_id)
        if tag != keys.lineage_tag or manifest_name(tag, manifest.job_id) != name:
            raise IntegrityError("a manifest stands under another name", name=name)
        if not self.fences.admits(
            name=name, digest=found.digest, writer_epoch=manifest.writer_epoch
        ):
            raise PointVoided(
                "the point was published after its epoch had been closed; it never counted",
                name=name,
                epoch=manifest.writer_epoch,
            )
        return Point(
            name=name,
            digest=found.digest,
            lineage_tag=tag,
            controller_epoch=controller_epoch,
            manifest=manifest,
        )


def list_points(
    store: ObjectStore, keys: ReaderKeys | KeyRing, *, fences: Fences | None = None
) -> PointList:
    """All points: of one lineage, or with a key ring (the controller's `RepositoryKeys`) of all.

    A damaged manifest does not hide the others: it is listed as unusable. A file that somebody left there, or that
    a file system did, is none. ``fences``: known already.
    Raises: IntegrityError (list of writers), RepositoryFailed.
    """
    ring: KeyRing = LineageKeyRing((keys,)) if isinstance(keys, ReaderKeys) else keys
    prefix = "points/"
    if isinstance(keys, ReaderKeys):
        prefix += f"{keys.lineage_tag.hex()}/"
    judge = PointJudge.load(store, ring.common, fences=fences)
    points: list[Point] = []
    unusable: list[UnusablePoint] = []
    unopened: list[str] = []
    strays: list[str] = []
    for info in store.list(prefix):
        name, tag = info.name, manifest_tag(info.name)
        if tag is None:
            strays.append(name)
            continue
        try:
            member = ring.of_tag(tag)
            if member is None:
                unopened.append(name)
                continue
            data = store.get(name, length_max=MANIFEST_BYTES_MAX)
            points.append(judge.point(data, name, member))
        except (IntegrityError, FormatError, RepositoryFailed) as error:
            unusable.append(UnusablePoint(name=name, reason=str(error), code=error.code))
    points.sort(
        key=lambda point: (point.manifest.facts.order, point.manifest.created_at, point.name)
    )
    return PointList(
        points=tuple(points),
        unusable=tuple(unusable),
        unopened=tuple(unopened),
        strays=tuple(strays),
    )


def find_job_point(store: ObjectStore, keys: ReaderKeys, job_id: str) -> Point | None:
    """The point that a job made, if it made one: asked after a crash, before a new attempt.

    It counts; who acknowledges it makes it durable first (`confirm_point`).
    Raises: IntegrityError, FormatError, RepositoryFailed.
    """
    name = manifest_name(keys.lineage_tag, job_id)
    if store.head(name) is None:
        return None
    data = store.get(name, length_max=MANIFEST_BYTES_MAX)
    return PointJudge.load(store, keys).point(data, name, keys)


def confirm_point(store: ObjectStore, point: Point) -> None:
    """Make a point durable that was found: its writer may have died before he could, and before he told of it.

    What it consists of is: its manifest was put last. Raises: ObjectMissing, RepositoryFailed.
    """
    store.confirm([point.name])
