"""Is the repository whole? Its structure, or every byte of it, and what is lost where it is not."""

from __future__ import annotations

from collections.abc import Sequence

from holdfast_agent.pipelines.context import JobContext
from holdfast_agent.pipelines.damage_list import DamageList, damage_list, missing_points
from holdfast_agent.pipelines.list_points import reader_keys
from holdfast_agent.pipelines.repository_access import WORKERS, ControllerOpensKeys, opened_store
from holdfast_agent.pipelines.stoppable_store import StoppableStore
from holdfast_common.clock import SystemClock, utc_text
from holdfast_common.errors import IntegrityError
from holdfast_common.job_result import ErrorReport, JobResult, Outcome
from holdfast_common.job_spec import CheckRepository, JobSpec
from holdfast_common.repository.check import CheckReport, check_data, check_structure
from holdfast_common.repository.key_sets import LineageKeyRing, ReaderKeys
from holdfast_common.repository.object_store import ObjectStore
from holdfast_common.repository.proof import store_proof
from holdfast_common.repository.subset import parsed_subset


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
                points=work.point_ids,
                workers=WORKERS,
                proven=lambda packs: _prove(store, ring.common, packs, context),
            )
        else:
            report = check_structure(store, ring, points=work.point_ids)
        missing = missing_points(store, ring, {*work.point_ids, *work.expected_point_ids})
    if not work.point_ids:  # with points named, the keys of all others are left out on purpose
        for name in report.unopened:
            context.warn("not_checked", f"{name}: the job brought no keys of its lineage")
    return _result(report, damage_list(report, missing, points=work.point_ids))


def _result(report: CheckReport, found: DamageList) -> JobResult:
    error = None
    damages = found.damages
    if damages:
        error = IntegrityError(
            "the repository is damaged",
            advice="`holdfast repo repair --dry-run` tells what can be mended; back the VMs named up in full",
            damages=found.total,
            points=len({damage.point_id for damage in damages if damage.point_id}),
            first=f"{damages[0].object_name}: {damages[0].problem}"[:500],
        )
    return JobResult(
        outcome=Outcome.DONE if error is None else Outcome.FAILED,
        error=None if error is None else ErrorReport.of(error),
        damages=damages,
        objects_left_out=found.objects_left_out,
        losses_left_out=found.losses_left_out,
        objects_checked=report.objects_checked,
    )


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
