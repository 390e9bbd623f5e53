"""How a job reaches the repository: the folder, its keys, and the controller that opens old data."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from holdfast_agent.pipelines.context import JobContext
from holdfast_common.errors import IntegrityError, NotFound
from holdfast_common.identity import LineageId, PointId, RepositoryId
from holdfast_common.job_spec import DiskToRestore
from holdfast_common.logs import Secret
from holdfast_common.repository.directory_store import DirectoryStore
from holdfast_common.repository.hang_watch import watched_files
from holdfast_common.repository.key_sets import ReaderKeys, SegmentKeyRequest
from holdfast_common.repository.manifest import PointDisk
from holdfast_common.repository.mount_probe import check_answers
from holdfast_common.repository.points import Point
from holdfast_common.repository.reader import RepositoryReader

# One more than cores: somebody always waits for a disk. Each takes 10 MiB, and a stream has 100.
WORKERS = min((os.cpu_count() or 1) + 1, 8)


class ControllerOpensKeys:
    """Segment keys from the controller, which alone holds the private content key."""

    def __init__(self, context: JobContext) -> None:
        self._context = context

    def open_segment_keys(self, requests: list[SegmentKeyRequest]) -> list[bytes]:
        """In the requests' order. Raises: Refused, LeaseExpired, ControllerUnreachable."""
        return self._context.open_segment_keys([request.to_bytes() for request in requests])


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenedPoint:
    """A point of which disks can be opened."""

    reader: RepositoryReader
    point: Point


@contextmanager
def opened_store(context: JobContext, repository_id: RepositoryId) -> Iterator[DirectoryStore]:
    """The repository's folder. Raises: NoRepository, TimedOut (its mount hangs)."""
    folder = context.repository_path(repository_id)
    check_answers(folder)
    with DirectoryStore.open(folder, files=watched_files(folder)) as store:
        yield store


@contextmanager
def opened_point(
    context: JobContext,
    repository_id: RepositoryId,
    *,
    keys: Secret,
    lineage_id: LineageId,
    point_id: PointId,
) -> Iterator[OpenedPoint]:
    """A point to read from. Raises: NoRepository, NotFound, IntegrityError, WrongKey."""
    reader_keys = ReaderKeys.from_bytes(keys.reveal())
    check_lineage(reader_keys, lineage_id)
    with (
        opened_store(context, repository_id) as store,
        RepositoryReader(
            store,
            reader_keys,
            segment_keys=ControllerOpensKeys(context),
            workers=WORKERS,
            cache=context.repositories.cache,
        ) as reader,
    ):
        yield OpenedPoint(reader=reader, point=reader.load_point(point_id))


def check_lineage(keys: ReaderKeys, lineage_id: LineageId) -> None:
    """Raises: IntegrityError, when the keys are another VM's."""
    if keys.lineage_id != lineage_id:
        raise IntegrityError(
            "the job's keys belong to another lineage", lineage=lineage_id, found=keys.lineage_id
        )


def same_disk(disks: Sequence[PointDisk], *, device_key: int, uuid: str) -> PointDisk | None:
    """The disk with that key and uuid; None: there is none. Names are no identity, nor is an empty uuid."""
    for disk in disks if uuid else ():
        if disk.header.device_key == device_key and disk.header.uuid == uuid:
            return disk
    return None


def point_disk(point: Point, disk: DiskToRestore) -> PointDisk:
    """The disk that a job names; within one point its key and uuid, be it empty, are enough. Raises: NotFound."""
    for found in point.disks:
        header = found.header
        if (header.device_key, header.uuid) == (disk.device_key, disk.backing_uuid):
            return found
    raise NotFound(
        "the point has no such disk",
        point=point.point_id,
        device_key=disk.device_key,
        disk_uuid=disk.backing_uuid,
    )
