"""Follow a run to its end: progress for people once a second, JSON lines for programs, the exit code of the run."""

from __future__ import annotations

import sys
import time

from holdfast_common.units import size_text
from holdfast_common.wire import job_pb2, operator_pb2
from holdfast_controller.commands.damages import show_damages
from holdfast_controller.commands.operator_client import OperatorClient
from holdfast_controller.commands.output import Output, note

INTERRUPTED_STATUS = 130
QUIET_SECONDS = 60.0  # how often progress is told where stderr is no terminal


def follow(client: OperatorClient, run_id: str, output: Output) -> int:
    """Print events until the run ends; returns the exit status.

    Interrupted, it tells that only the following ends: the run goes on without it.
    """
    try:
        return _followed(client, run_id, output)
    except KeyboardInterrupt:
        note(f"the run goes on; follow it with: holdfast job follow {run_id}")
        note("stop its jobs with: holdfast job cancel JOB")
        return INTERRUPTED_STATUS


def _followed(client: OperatorClient, run_id: str, output: Output) -> int:
    shown_at: dict[str, float] = {}
    stream = client.stream(client.stub.FollowRun, operator_pb2.RunName(run_id=run_id))
    for event in stream:
        kind = event.WhichOneof("event")
        if output.as_json:
            names = {"progress": "progress", "log": "log", "finished": "result", "run": "run"}
            output.document(names.get(str(kind), "log"), getattr(event, str(kind)))
            if kind == "finished" and event.finished.HasField("damages"):
                show_damages(client, event.finished.job.job_id, output)
        elif kind == "progress":
            _show_progress(event.progress, shown_at)
        elif kind == "log":
            note(f"{event.log.at[11:19]}  {event.log.event}  {event.log.detail}".rstrip())
        elif kind == "finished":
            show_finished(event.finished, output)
        if kind == "run":
            return int(event.run.exit_status)
    return 1


def _show_progress(job: operator_pb2.Job, shown_at: dict[str, float]) -> None:
    now = time.monotonic()
    interval = 1.0 if sys.stderr.isatty() else QUIET_SECONDS
    if now - shown_at.get(job.job_id, -QUIET_SECONDS) < interval or not job.total_bytes:
        return
    shown_at[job.job_id] = now
    percent = 100 * job.done_bytes // job.total_bytes
    done, total = size_text(job.done_bytes), size_text(job.total_bytes)
    note(f"{job.vm}: {job.state} {done} of {total} ({percent} %)")


def show_finished(detail: operator_pb2.JobDetail, output: Output) -> None:
    """The end of one job, for people."""
    job = detail.job
    output.line(summary_line(detail))
    for disk in detail.disks:
        output.line(f"  {disk_line(job.kind, disk)}")
    for line in detail.change.plan:
        output.line(f"  {line}")
    for warning in detail.warnings:
        output.line(f"  warning: {warning.code}: {warning.message}")
    if job.error_code:
        note(f"{job.error_code}: {job.error}")
        if job.advice:
            note(job.advice)


def summary_line(detail: operator_pb2.JobDetail) -> str:
    """``web: backup done, incremental, point …``."""
    job = detail.job
    parts = [f"{job.vm}: {job.kind} {job.state}"]
    if job.level:
        asked = (
            f" (asked {job.level_asked}: {job.level_reason})"
            if job.level_asked != job.level
            else ""
        )
        parts.append(job.level + asked)
    if job.transport:
        parts.append(f"by {job.transport}")
    if job.point_id:
        parts.append(f"point {job.point_id}")
    if job.warnings:
        parts.append(f"{job.warnings} warning{'s' if job.warnings > 1 else ''}")
    return ", ".join(parts)


def disk_line(kind: str, disk: job_pb2.DiskResult) -> str:
    """What happened to one disk."""
    parts = [f"disk {disk.device_key}:"]
    if kind == "backup":
        parts.append(
            f"read {size_text(disk.read_bytes)}, changed {size_text(disk.changed_bytes)},"
            f" stored {size_text(disk.stored_bytes)}"
        )
        if disk.level_reason:
            parts.append(f"({disk.level_reason})")
    else:
        parts.append(f"written {size_text(disk.written_bytes)}")
        if disk.compared_bytes or disk.differing:
            verdict = "read back and equal" if not disk.differing else "DIFFERS"
            parts.append(f", compared {size_text(disk.compared_bytes)}: {verdict}")
        parts.extend(
            f"at offset {extent.offset}, {extent.length} bytes" for extent in disk.differing
        )
    parts.append(f"in {disk.duration_seconds:.1f} s by {disk.transport}")
    return " ".join(parts)
