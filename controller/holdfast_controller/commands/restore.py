"""`holdfast restore POINT vm|disk …`: whole VMs and single disks."""

from __future__ import annotations

import click

from holdfast_common.errors import UsageError
from holdfast_common.wire import operator_pb2
from holdfast_controller.commands.backup import show_plan, show_started
from holdfast_controller.commands.entry import Entry, json_option, pass_entry
from holdfast_controller.commands.following import follow
from holdfast_controller.commands.operator_client import operators
from holdfast_controller.commands.output import Output, note

DEVICE_KEY_MAX = 2**31 - 1  # as vSphere has them


@click.group()
@click.argument("point", metavar="POINT")
@click.pass_context
def restore(context: click.Context, *, point: str) -> None:
    """Restore from a restore point (see `holdfast point list`); every restore is read back and compared."""
    context.meta["point"] = point


@restore.command()
@click.option("--name", default="", help="Name of the new VM; needed unless --in-place.")
@click.option("--vcenter", default="", help="Another vCenter than the one it came from.")
@click.option("--host", default="")
@click.option("--folder", default="", help="Folder path, e.g. Datacenter/vm/restored.")
@click.option(
    "--datastore", default="", help="For the configuration, and disks not named by --disk."
)
@click.option(
    "--disk", "disks", multiple=True, metavar="KEY=DATASTORE", help="Place of one disk; repeatable."
)
@click.option("--in-place", is_flag=True, help="Replace the disks of the VM that it came from.")
@click.option(
    "--replace-disk",
    "replaced_files",
    multiple=True,
    metavar="FILE",
    help="In place, a disk that no restore point holds is deleted only when its file is named here; repeatable.",
)
@click.option(
    "--power-on", is_flag=True, help="Start it afterwards; networks of a new VM stay off."
)
@click.option("--transport", type=click.Choice(["direct", "hotadd", "nfc"]), default=None)
@click.option("--agent", default="")
@click.option("--wait/--detach", default=True)
@click.option("--dry-run", is_flag=True)
@click.option("--yes", is_flag=True, help="Do not ask before --in-place.")
@json_option
@pass_entry
@click.pass_context
def vm(
    context: click.Context,
    entry: Entry,
    *,
    name: str,
    vcenter: str,
    host: str,
    folder: str,
    datastore: str,
    disks: tuple[str, ...],
    in_place: bool,
    replaced_files: tuple[str, ...],
    power_on: bool,
    transport: str | None,
    agent: str,
    wait: bool,
    dry_run: bool,
    yes: bool,
    output: Output,
) -> None:
    """Restore a whole VM: to a new name, or in place."""
    if bool(name) == in_place:
        raise UsageError("give either --name or --in-place")
    request = operator_pb2.StartRestoreRequest(
        point_id=context.meta["point"],
        vm=operator_pb2.RestoreVm(
            name=name,
            vcenter=vcenter,
            host=host,
            folder=folder,
            datastore=datastore,
            disks=[_placement(text) for text in disks],
            in_place=in_place,
            replaced_files=replaced_files,
            power_on=power_on,
        ),
        transport=transport or "",
        agent=agent,
    )
    context.exit(
        _start(entry, request, output, wait=wait, dry_run=dry_run, ask=in_place and not yes)
    )


@restore.command()
@click.argument("number", type=click.IntRange(0, DEVICE_KEY_MAX), metavar="N")
@click.option("--to", "path", required=True, metavar="FILE.vmdk", help="A path on the proxy.")
@click.option(
    "--format",
    "file_format",
    type=click.Choice(["sparse", "flat", "stream-optimized"]),
    default="sparse",
    show_default=True,
)
@click.option("--agent", default="")
@click.option("--wait/--detach", default=True)
@click.option("--dry-run", is_flag=True)
@json_option
@pass_entry
@click.pass_context
def disk(
    context: click.Context,
    entry: Entry,
    *,
    number: int,
    path: str,
    file_format: str,
    agent: str,
    wait: bool,
    dry_run: bool,
    output: Output,
) -> None:
    """Restore disk N (0, 1, 2 … in the order of `holdfast point show`, or its device key) to a VMDK file.

    Needs no vSphere.
    """
    request = operator_pb2.StartRestoreRequest(
        point_id=context.meta["point"],
        disk=operator_pb2.RestoreDisk(device_key=number, path=path, format=file_format),
        agent=agent,
    )
    context.exit(_start(entry, request, output, wait=wait, dry_run=dry_run, ask=False))


def _placement(text: str) -> operator_pb2.DiskPlacement:
    key, separator, datastore = text.partition("=")
    if not separator or not _is_key(key) or not datastore:
        raise UsageError(
            "not a placement of a disk", value=text, advice="write --disk 2000=DATASTORE"
        )
    return operator_pb2.DiskPlacement(device_key=int(key), datastore=datastore)


def _is_key(text: str) -> bool:
    return text.isascii() and text.isdecimal() and len(text) <= 10 and int(text) <= DEVICE_KEY_MAX


def _start(
    entry: Entry,
    request: operator_pb2.StartRestoreRequest,
    output: Output,
    *,
    wait: bool,
    dry_run: bool,
    ask: bool,
) -> int:
    with operators(entry.places) as client:
        if dry_run or ask:
            request.dry_run = True
            plan = client.call(client.stub.StartRestore, request)
            if dry_run:
                show_plan(plan, output)
                return 0
            for line in plan.plan:
                note(line)
            click.confirm("Go on?", abort=True, err=True)
            request.dry_run = False
        started = client.call(client.stub.StartRestore, request)
        if wait:
            return follow(client, started.run_id, output)
        show_started(started, output)
        return 0
