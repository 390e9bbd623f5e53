"""`holdfast job list|show|damages|follow|retry|cancel`."""

from __future__ import annotations

import click

from holdfast_common.units import size_text
from holdfast_common.wire import operator_pb2
from holdfast_controller.commands.backup import show_plan, show_started
from holdfast_controller.commands.damages import show_damages
from holdfast_controller.commands.entry import Entry, json_option, pass_entry
from holdfast_controller.commands.following import disk_line, follow, summary_line
from holdfast_controller.commands.operator_client import operators
from holdfast_controller.commands.output import Output


@click.group()
def job() -> None:
    """What runs and what ran."""


@job.command("list")
@click.option("--vm", default="", help="Only jobs of this VM.")
@click.option("--run", "run_id", default="", help="Only jobs of this run.")
@click.option("--limit", type=click.IntRange(1, 10_000), default=50, show_default=True)
@json_option
@pass_entry
def list_jobs(entry: Entry, *, vm: str, run_id: str, limit: int, output: Output) -> None:
    """The newest jobs."""
    with operators(entry.places) as client:
        request = operator_pb2.JobQuery(run_id=run_id, vm=vm, limit=limit)
        reply = client.call(client.stub.ListJobs, request)
    if output.as_json:
        output.document("jobs", reply)
        return
    output.table(
        ["JOB", "RUN", "KIND", "VM", "STATE", "LEVEL", "TRANSPORT", "STARTED", "WARNINGS", "ERROR"],
        [
            [
                row.job_id,
                row.run_id,
                row.kind,
                row.vm,
                row.state,
                row.level or row.level_asked,
                row.transport,
                row.created_at[:19],
                str(row.warnings),
                row.error_code,
            ]
            for row in reply.jobs
        ],
    )


@job.command()
@click.argument("job_id", metavar="JOB")
@json_option
@pass_entry
def show(entry: Entry, *, job_id: str, output: Output) -> None:
    """One job: its steps, its disks, its warnings."""
    with operators(entry.places) as client:
        detail = client.call(client.stub.ShowJob, operator_pb2.JobName(job_id=job_id))
    if output.as_json:
        output.document("job", detail)
        return
    output.line(summary_line(detail))
    if detail.job.error_code:
        output.line(f"{detail.job.error_code}: {detail.job.error}")
    if detail.job.advice:
        output.line(detail.job.advice)
    if detail.job.total_bytes:
        output.line(f"{size_text(detail.job.done_bytes)} of {size_text(detail.job.total_bytes)}")
    for event in detail.events:
        output.line(f"  {event.at[:19]}  {event.event}  {event.detail}".rstrip())
    for disk in detail.disks:
        output.line(f"  {disk_line(detail.job.kind, disk)}")
    for line in detail.change.plan:
        output.line(f"  {line}")
    for warning in detail.warnings:
        output.line(f"  warning: {warning.code}: {warning.message}")


@job.command()
@click.argument("job_id", metavar="JOB")
@json_option
@pass_entry
def damages(entry: Entry, *, job_id: str, output: Output) -> None:
    """Everything that a check found, or a repair left: objects, points, and byte ranges of their disks.

    Kept for the latest 20 of them that found something. With --json one line a disk (several if it has many
    ranges) and one of the totals; what was too much for the list is counted there.
    """
    with operators(entry.places) as client:
        show_damages(client, job_id, output)


@job.command("follow")
@click.argument("run_id", metavar="JOB|RUN")
@json_option
@pass_entry
@click.pass_context
def follow_run(context: click.Context, entry: Entry, *, run_id: str, output: Output) -> None:
    """Follow a job or a run to its end; exits as it ends."""
    with operators(entry.places) as client:
        context.exit(follow(client, run_id, output))


@job.command()
@click.argument("run_id", metavar="RUN")
@click.option("--failed", is_flag=True, help="VMs whose job began, and failed or was interrupted.")
@click.option("--skipped", is_flag=True, help="VMs of which something was left out, or behind.")
@click.option("--not-started", is_flag=True, help="VMs whose job never began.")
@click.option("--wait/--detach", default=True, help="Wait for the end, or return at once.")
@click.option("--dry-run", is_flag=True, help="Show what would be done, and why.")
@json_option
@pass_entry
@click.pass_context
def retry(
    context: click.Context,
    entry: Entry,
    *,
    run_id: str,
    failed: bool,
    skipped: bool,
    not_started: bool,
    wait: bool,
    dry_run: bool,
    output: Output,
) -> None:
    """Back up again what a run did not: those that failed or never began, unless said otherwise.

    A new run, asked for as that one was: level, consistency, transport, proxy.
    """
    nothing_said = not (failed or skipped or not_started)
    request = operator_pb2.RetryRequest(
        run_id=run_id,
        failed=failed or nothing_said,
        skipped=skipped,
        not_started=not_started or nothing_said,
        dry_run=dry_run,
    )
    with operators(entry.places) as client:
        started = client.call(client.stub.RetryRun, request)
        if dry_run:
            show_plan(started, output)
        elif wait:
            context.exit(follow(client, started.run_id, output))
        else:
            show_started(started, output)


@job.command()
@click.argument("job_id", metavar="JOB")
@json_option
@pass_entry
def cancel(entry: Entry, *, job_id: str, output: Output) -> None:
    """Stop a job cleanly: its snapshot and disks are given back; what a prune has not done waits for the next."""
    with operators(entry.places) as client:
        detail = client.call(client.stub.CancelJob, operator_pb2.JobName(job_id=job_id))
    if output.as_json:
        output.document("job", detail)
        return
    output.line(f"{detail.job.vm}: asked to stop; follow it with: holdfast job follow {job_id}")
