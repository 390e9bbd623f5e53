"""`holdfast backup VM…`: an ad-hoc backup."""

from __future__ import annotations

import click

from holdfast_common.wire import operator_pb2
from holdfast_controller.commands.entry import Entry, json_option, pass_entry
from holdfast_controller.commands.following import follow
from holdfast_controller.commands.operator_client import operators
from holdfast_controller.commands.output import Output, note
from holdfast_controller.decide.lanes import LANES_MAX
from holdfast_controller.decide.level import LEVELS


@click.command()
@click.argument("vms", nargs=-1, required=True, metavar="VM…")
@click.option("--vcenter", default="", help="Only VMs of this vCenter.")
@click.option(
    "--exclude",
    "excludes",
    multiple=True,
    metavar="SELECTOR",
    help="Not these, though they are named otherwise; may be given more than once.",
)
@click.option("--method", type=click.Choice(["image"]), default="image", show_default=True)
@click.option(
    "--level",
    type=click.Choice(LEVELS),
    default="incremental",
    show_default=True,
    help="compare: read everything, and find what change tracking kept back since the newest point.",
)
@click.option(
    "--consistency",
    type=click.Choice(["filesystem", "crash", "cold"]),
    default="crash",
    show_default=True,
    help="What is asked; the level reached is recorded with its evidence.",
)
@click.option("--transport", type=click.Choice(["direct", "hotadd", "nfc"]), default=None)
@click.option(
    "--disks",
    multiple=True,
    metavar="SELECTOR",
    help="Only these disks of each VM, as disk:2000 (device key) or 'disk:Hard disk 2' (label); all if none is given.",
)
@click.option(
    "--exclude-disks",
    multiple=True,
    metavar="SELECTOR",
    help="But not these disks; may be given more than once.",
)
@click.option(
    "--lanes",
    type=click.IntRange(1, LANES_MAX),
    default=1,
    show_default=True,
    help="How many streams a VM may have at once, if its disks are on as many storages of their own.",
)
@click.option("--agent", default="", help="Id or host name of a proxy; any that can by default.")
@click.option("--wait/--detach", default=True, help="Wait for the end, or return at once.")
@click.option("--dry-run", is_flag=True, help="Show what would be done, and why.")
@json_option
@pass_entry
@click.pass_context
def backup(
    context: click.Context,
    entry: Entry,
    *,
    vms: tuple[str, ...],
    vcenter: str,
    excludes: tuple[str, ...],
    method: str,
    level: str,
    consistency: str,
    transport: str | None,
    disks: tuple[str, ...],
    exclude_disks: tuple[str, ...],
    lanes: int,
    agent: str,
    wait: bool,
    dry_run: bool,
    output: Output,
) -> None:
    """Back up VMs now: names, globs, folder:, host:, cluster:, pool:, datastore:, tag:, power: selectors."""
    request = operator_pb2.StartBackupRequest(
        vms=vms,
        vcenter=vcenter,
        excludes=excludes,
        method=method,
        level=level,
        consistency=consistency,
        transport=transport or "",
        disks=disks,
        exclude_disks=exclude_disks,
        lanes=lanes,
        agent=agent,
        dry_run=dry_run,
    )
    with operators(entry.places) as client:
        started = client.call(client.stub.StartBackup, request)
        if dry_run:
            show_plan(started, output)
            return
        if wait:
            context.exit(follow(client, started.run_id, output))
        show_started(started, output)


def show_plan(started: operator_pb2.RunStarted, output: Output) -> None:
    """What would be done."""
    if output.as_json:
        output.document("plan", started)
    for line in started.plan:
        output.line(line)


def show_started(started: operator_pb2.RunStarted, output: Output) -> None:
    """A run that goes on in the background."""
    if output.as_json:
        output.document("started", started)
        return
    for job in started.jobs:
        output.line(job.job_id)
    note(f"follow it with: holdfast job follow {started.run_id}")
