"""Is the repository whole? Its structure, or every byte of it, and what is lost where it is not."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence

from holdfast_agent.pipelines.context import JobContext
from holdfast_agent.pipelines.list_points import reader_keys
from holdfast_agent.pipelines.repository_access import WORKERS, ControllerOpensKeys, opened_store
from holdfast_agent.pipelines.stoppable_store import StoppableStore
from holdfast_common.clock import SystemClock, utc_text
from holdfast_common.errors import IntegrityError
from holdfast_common.extents import Extent, merged
from holdfast_common.identity import PointId
from holdfast_common.job_result import DamageFound, ErrorReport, JobResult, Outcome
from holdfast_common.job_spec import CheckRepository, JobSpec
from holdfast_common.repository.check import CheckReport, check_data, check_structure
from holdfast_common.repository.key_sets import LineageKeyRing, ReaderKeys
from holdfast_common.repository.object_store import ObjectStore
from holdfast_common.repository.points import list_points
from holdfast_common.repository.proof import store_proof
from holdfast_common.repository.subset import parsed_subset

DAMAGES_MAX = 1000  # a result is one message; all damages are counted in its error


def check_repository(spec: JobSpec, context: JobContext) -> JobResult:
    """Check structure, or all data too. What was decoded and found true is signed as proven.

    Damage is the result's error (`IntegrityError`), with what is lost of which point.
    Raises: errors of ours, when the check itself cannot be done.
    """
    work = spec.work
    assert isinstance(work, CheckRepository)
    ring = LineageKeyRing(reader_keys(work.keys))
    with opened_store(context, spec.repository_id) as directory:
        store = StoppableStore(directory, check=context.check)
        if work.read_data:
            report = check_data(
                store,
                ring,
                segment_keys=ControllerOpensKeys(context),
                subset=parsed_subset(work.subset),
                reader=context.signing_key.public_key().public_bytes_raw(),
                workers=WORKERS,
                proven=lambda packs: _prove(store, ring.common, packs, context),
            )
        else:
            report = check_structure(store, ring)
        missing = missing_points(store, ring, {*work.point_ids, *work.expected_point_ids})
    if not work.point_ids:  # with points named, the keys of all others are left out on purpose
        for name in report.unopened:
            context.warn("not_checked", f"{name}: the job brought no keys of its lineage")
    damages = [*damages_of(report, points=work.point_ids), *missing]
    return _result(report, damages)


def _result(report: CheckReport, damages: list[DamageFound]) -> JobResult:
    error = None
    if damages:
        error = IntegrityError(
            "the repository is damaged",
            advice="`holdfast repo repair --dry-run` tells what can be mended; back the VMs named up in full",
            damages=len(damages),
            points=len({damage.point_id for damage in damages if damage.point_id}),
            first=f"{damages[0].object_name}: {damages[0].problem}"[:500],
        )
    return JobResult(
        outcome=Outcome.DONE if error is None else Outcome.FAILED,
        error=None if error is None else ErrorReport.of(error),
        damages=tuple(damages[:DAMAGES_MAX]),
        objects_checked=report.objects_checked,
    )


def damages_of(report: CheckReport, *, points: Collection[PointId] = ()) -> Iterator[DamageFound]:
    """Damaged objects first, then what is lost, point by point and disk by disk."""
    for damaged in report.damaged:
        yield DamageFound(object_name=damaged.name, problem=damaged.reason)
    ranges: dict[tuple[PointId, str, int], list[Extent]] = {}
    for lost in report.lost_ranges:
        if not points or lost.point_id in points:
            key = (lost.point_id, lost.point_name, lost.device_key)
            ranges.setdefault(key, []).append(lost.extent)
    for (point_id, name, device_key), extents in ranges.items():
        yield DamageFound(
            object_name=name,
            problem="ranges of a disk are lost",
            point_id=point_id,
            device_key=device_key,
            lost=tuple(merged(extents)),
        )
    for blob in report.lost_blobs:
        if not points or blob.point_id in points:
            yield DamageFound(
                object_name=blob.point_name,
                problem=f"its {blob.kind} is lost",
                point_id=blob.point_id,
            )


def missing_points(
    store: ObjectStore, ring: LineageKeyRing, points: Collection[PointId]
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


def _prove(
    store: ObjectStore, keys: ReaderKeys, packs: Sequence[bytes], context: JobContext
) -> None:
    """Sign what was decoded and is true: others may take its chunks as known, and it is known when."""
    store_proof(
        store,
        packs,
        proven_at=utc_text(SystemClock().now()),
        keys=keys,
        signing_key=context.signing_key,
    )
