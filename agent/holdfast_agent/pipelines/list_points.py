"""What is committed in the repository, for the controller's catalogue."""

from __future__ import annotations

from collections.abc import Sequence

from holdfast_agent.pipelines.context import JobContext
from holdfast_agent.pipelines.repository_access import opened_store
from holdfast_common.errors import UsageError
from holdfast_common.identity import JobId, LineageId, PointId
from holdfast_common.job_result import JobResult, Outcome, PointFound
from holdfast_common.job_spec import JobSpec, ListPoints
from holdfast_common.logs import Secret
from holdfast_common.repository import points
from holdfast_common.repository.key_sets import ReaderKeys
from holdfast_common.repository.manifest_record import point_record
from holdfast_common.repository.object_store import ObjectStore


def list_points(spec: JobSpec, context: JobContext) -> JobResult:
    """All usable points of the lineages whose keys came, oldest first; of one job when it is named.

    A manifest that cannot be used is a warning, and hides no other.
    Raises: NoRepository, RepositoryFailed, IntegrityError.
    """
    work = spec.work
    assert isinstance(work, ListPoints)
    keys = reader_keys(work.keys)
    with opened_store(context, spec.repository_id) as store:
        found = (
            _all_points(store, keys, context)
            if work.job_id is None
            else _points_of_job(store, keys, work.job_id)
        )
    return JobResult(outcome=Outcome.DONE, points=tuple(_found(point) for point in found))


def reader_keys(secrets: Sequence[Secret]) -> tuple[ReaderKeys, ...]:
    """The keys of a job over several lineages. Raises: UsageError (none), FormatError."""
    if not secrets:
        raise UsageError("the job brought no keys")
    return tuple(ReaderKeys.from_bytes(secret.reveal()) for secret in secrets)


def _all_points(
    store: ObjectStore, keys: tuple[ReaderKeys, ...], context: JobContext
) -> list[points.Point]:
    found: list[points.Point] = []
    for lineage_keys in keys:
        context.check()
        listed = points.list_points(store, lineage_keys)
        found += listed.points
        for unusable in listed.unusable:
            context.warn(unusable.code, f"{unusable.name}: {unusable.reason}")
    return found


def _points_of_job(
    store: ObjectStore, keys: tuple[ReaderKeys, ...], job_id: JobId
) -> list[points.Point]:
    candidates = (points.find_job_point(store, each, job_id) for each in keys)
    found = [point for point in candidates if point is not None]
    for point in found:
        points.confirm_point(store, point)  # the controller acknowledges it
    return found


def _found(point: points.Point) -> PointFound:
    manifest = point.manifest
    return PointFound(
        point_id=PointId(manifest.point_id),
        job_id=JobId(manifest.job_id),
        lineage_id=LineageId(manifest.lineage_id),
        record=point_record(manifest).encode(),
    )
