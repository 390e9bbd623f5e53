"""Mend the repository from a copy of it, or from its own second copies; tell what stays lost."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from holdfast_agent.pipelines.context import JobContext
from holdfast_agent.pipelines.damage_list import damage_list, missing_points
from holdfast_agent.pipelines.list_points import reader_keys
from holdfast_agent.pipelines.repository_access import WORKERS, ControllerOpensKeys, opened_store
from holdfast_agent.pipelines.stoppable_store import StoppableStore
from holdfast_common.clock import SystemClock
from holdfast_common.errors import IntegrityError, NoRepository, Refused, UsageError
from holdfast_common.identity import PointId
from holdfast_common.job_result import ErrorReport, JobResult, Outcome
from holdfast_common.job_spec import JobSpec, RepairRepository
from holdfast_common.listed_folders import is_listed
from holdfast_common.repository import repair
from holdfast_common.repository.directory_store import DirectoryStore
from holdfast_common.repository.hang_watch import watched_files
from holdfast_common.repository.key_sets import LineageKeyRing, WriterKeys
from holdfast_common.repository.layout import manifest_tag
from holdfast_common.repository.mount_probe import check_answers
from holdfast_common.repository.object_store import ObjectStore
from holdfast_common.repository.repair_content import OtherRepository

LINES_MAX = 200  # of what was done; each of them a warning


def repair_repository(spec: JobSpec, context: JobContext) -> JobResult:
    """What was done is told as warnings; what stays lost is the result's error (`IntegrityError`).

    Raises: Refused (the folder is not allowed, or no copy), and errors of ours when it cannot be done.
    """
    work = spec.work
    assert isinstance(work, RepairRepository)
    ring = LineageKeyRing(reader_keys(work.keys))
    with (
        opened_store(context, spec.repository_id) as directory,
        _opened_source(work.source_folder, context) as sources,
    ):
        others, content_keys = _others(work, sources, context)
        report = repair.repair_repository(
            StoppableStore(directory, check=context.check),
            ring,
            segment_keys=ControllerOpensKeys(context),
            signing_key=context.signing_key,
            clock=SystemClock(),
            job_id=context.attempt.job_id,
            sources=() if others else sources,
            others=others,
            content_keys=content_keys,
            expected_points=_names(() if others else sources, work.expected_point_ids),
            dry_run=work.dry_run,
            workers=WORKERS,
        )
        missing = missing_points(directory, ring, set(work.expected_point_ids))
    tell_done(report, context)
    found = damage_list(report.after, missing)
    error = None
    if found.total:
        message = (
            "the repository is damaged; nothing was changed"
            if work.dry_run
            else ("not everything could be mended")
        )
        error = IntegrityError(
            message,
            advice="name another copy with --from, or back the VMs concerned up in full and repair again",
            damages=found.total,
        )
    return JobResult(
        outcome=Outcome.DONE if error is None else Outcome.FAILED,
        error=None if error is None else ErrorReport.of(error),
        damages=found.damages,
        objects_left_out=found.objects_left_out,
        losses_left_out=found.losses_left_out,
        objects_checked=report.after.objects_checked,
    )


def tell_done(report: repair.RepairReport, context: JobContext) -> None:
    """As warnings: what was put back and set aside, or with a dry run would be."""
    lines = repair.describe_done(report)
    for line in lines[:LINES_MAX]:
        context.warn("repair", line)
    if len(lines) > LINES_MAX:
        context.warn(
            "repair",
            f"and {len(lines) - LINES_MAX} more objects: in all {len(report.replaced)} put back and"
            f" {len(report.set_aside)} set aside, which lie under aside/ in the repository",
        )


def _others(
    work: RepairRepository, sources: Sequence[ObjectStore], context: JobContext
) -> tuple[list[OtherRepository], WriterKeys | None]:
    """The folder as another repository, if the job has keys of it. Raises: UsageError, FormatError."""
    if not work.other_keys:
        return [], None
    if work.content_keys is None:
        raise UsageError("a repair from another repository needs keys to seal what it finds")
    ring = LineageKeyRing(reader_keys(work.other_keys))
    opener = ControllerOpensKeys(context)
    others = [OtherRepository(store=source, ring=ring, segment_keys=opener) for source in sources]
    return others, WriterKeys.from_bytes(work.content_keys.reveal())


def _names(sources: Sequence[ObjectStore], points: Collection[PointId]) -> list[str]:
    """Under which names a source has manifests of points that the catalogue knows."""
    return [
        info.name
        for source in sources
        for info in source.list("points/")
        if manifest_tag(info.name) is not None and info.name.rpartition("/")[2] in points
    ]


@contextmanager
def _opened_source(folder: str, context: JobContext) -> Iterator[list[ObjectStore]]:
    """The copy to take from; nothing is ever written to it. Raises: Refused, NoRepository."""
    if not folder:
        yield []
        return
    if not is_listed(folder, context.configuration.repair.folders):
        raise Refused(
            "this proxy may not read a copy of a repository there; nothing was changed",
            path=folder[:300],
            advice="name the folder under [repair] folders in the proxy's agent.toml; it takes that up by itself",
        )
    check_answers(Path(folder))
    try:
        store = DirectoryStore.open(Path(folder), files=watched_files(Path(folder)))
    except NoRepository as error:
        raise NoRepository(
            "there is no copy of a repository in that folder; nothing was changed",
            path=folder[:300],
            advice="name the folder that has `keys`, `packs` and `points` in it",
        ) from error
    with store:
        yield [StoppableStore(store, check=context.check)]
