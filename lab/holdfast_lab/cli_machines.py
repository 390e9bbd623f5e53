"""Commands of ``holdfast-lab`` about VMs, their guests and their disks."""

from __future__ import annotations

import base64
import json
import sys
from pathlib import Path

import click

from holdfast_lab.cli_output import PlainValue, give, json_option, pairs, plain, state_option
from holdfast_lab.control_client import LabClient
from holdfast_lab.inventory_plan import parse_size

DIFFERENT = 13  # the exit code of a comparison that found a difference
disk_option = click.option(
    "--disk", type=int, default=0, show_default=True, help="Which disk, by key, from 0."
)


@click.group("vm")
def vm() -> None:
    """Virtual machines."""


@vm.command("list")
@state_option
@json_option
def list_machines(state: Path, *, as_json: bool) -> None:
    """Every VM with its disks and snapshots."""
    give(state, "vm-list", as_json=as_json, text=_machine_lines)


@vm.command("show")
@click.argument("name")
@state_option
@json_option
def show_machine(name: str, state: Path, *, as_json: bool) -> None:
    """One VM."""
    give(state, "vm-show", as_json=as_json, text=lambda value: _machine_lines([value]), vm=name)


def _machine_lines(machines: PlainValue) -> str:
    lines = []
    for each in machines:
        lines.append(f"{each['name']}  {each['id']}  {each['power']}  {each['vmx']}")
        lines += [
            f"  disk {disk['slot']}  {disk['capacity_bytes']} bytes  {disk['file']}"
            for disk in each["disks"]
        ]
        lines += [f"  snapshot {snap['id']}  {snap['name']}" for snap in each["snapshots"]]
    return "\n".join(lines) or "no virtual machines"


@vm.command("add")
@click.argument("name")
@click.option("--datastore", required=True)
@click.option("--disk", "disks", multiple=True, help="size[,datastore[,empty|random|ext4[,seed]]]")
@click.option("--power", type=click.Choice(["on", "off"]), default="on", show_default=True)
@click.option("--firmware", type=click.Choice(["bios", "efi"]), default="bios", show_default=True)
@state_option
@json_option
def add_machine(
    *,
    name: str,
    datastore: str,
    disks: tuple[str, ...],
    power: str,
    firmware: str,
    state: Path,
    as_json: bool,
) -> None:
    """Make a VM."""
    machine = {
        "name": name,
        "datastore": datastore,
        "power": power,
        "firmware": firmware,
        "disks": [_disk_values(each) for each in disks],
    }
    give(
        state, "vm-add", as_json=as_json, text=lambda each: _machine_lines([each]), machine=machine
    )


def _disk_values(text: str) -> dict[str, object]:
    size, *rest = text.split(",")
    values: dict[str, object] = {"size": size}
    for name, value in zip(("datastore", "content", "seed"), rest, strict=False):
        if value:
            values[name] = int(value) if name == "seed" else value
    return values


@vm.command("remove")
@click.argument("name")
@state_option
@json_option
def remove_machine(name: str, state: Path, *, as_json: bool) -> None:
    """Delete a VM with its disks."""
    give(state, "vm-remove", as_json=as_json, vm=name)


@vm.command("power")
@click.argument("name")
@click.argument("to", type=click.Choice(["on", "off", "crash", "reset", "suspend"]))
@state_option
@json_option
def power(name: str, to: str, state: Path, *, as_json: bool) -> None:
    """Power a VM on, off, off uncleanly, reset or suspend it."""
    give(state, "vm-power", as_json=as_json, vm=name, to=to)


@click.command("guest-write")
@click.argument("name")
@disk_option
@click.option("--count", type=int, default=1, show_default=True, help="How many random blocks.")
@click.option("--block-size", default="64K", show_default=True)
@click.option("--seed", type=int, default=0, show_default=True)
@click.option("--offset", type=int, help="Write --data here instead, in bytes.")
@click.option("--data", help="What to write, hexadecimal.")
@state_option
@json_option
def guest_write(
    *,
    name: str,
    disk: int,
    count: int,
    block_size: str,
    seed: int,
    offset: int | None,
    data: str | None,
    state: Path,
    as_json: bool,
) -> None:
    """Let the guest write to a disk."""
    encoded = base64.b64encode(bytes.fromhex(data)).decode() if data is not None else None
    give(
        state,
        "guest-write",
        as_json=as_json,
        vm=name,
        disk=disk,
        count=count,
        block_bytes=parse_size(block_size),
        seed=seed,
        offset=offset,
        data=encoded,
    )


@click.command("guest-ext4")
@click.argument("name")
@disk_option
@click.option("--seed", type=int, default=1, show_default=True, help="Decides the known files.")
@click.option("--layout", type=click.Choice(["bare", "mbr", "gpt"]), default="mbr")
@click.option("--write", "writes", multiple=True, metavar="PATH=TEXT", help="Change a file.")
@click.option("--delete", "deletions", multiple=True, metavar="PATH", help="Delete a file.")
@state_option
@json_option
def guest_ext4(
    *,
    name: str,
    disk: int,
    seed: int,
    layout: str,
    writes: tuple[str, ...],
    deletions: tuple[str, ...],
    state: Path,
    as_json: bool,
) -> None:
    """Make an ext4 file system with known files; with --write or --delete change its files."""
    give(
        state,
        "guest-ext4",
        as_json=as_json,
        vm=name,
        disk=disk,
        seed=seed,
        layout=layout,
        write=pairs(writes) or None,
        delete=list(deletions) or None,
    )


@click.command("truth")
@click.argument("name")
@disk_option
@click.option("--at", help="A moment: a snapshot's name or id, a mark, a number; else now.")
@click.option("--to", type=click.Path(path_type=Path), required=True, help="The raw file to write.")
@state_option
@json_option
def truth(name: str, disk: int, at: str | None, to: Path, state: Path, *, as_json: bool) -> None:
    """Write the ground truth of a disk, replayed from the log of the guest's writes."""
    give(state, "truth", as_json=as_json, vm=name, disk=disk, at=at, to=str(to.absolute()))


@click.command("mark")
@click.argument("name")
@click.argument("mark_name")
@state_option
@json_option
def mark(name: str, mark_name: str, state: Path, *, as_json: bool) -> None:
    """Note what a VM's disks hold now, to compare with later."""
    give(state, "mark", as_json=as_json, vm=name, name=mark_name)


@click.command("moments")
@click.argument("name", required=False)
@state_option
@json_option
def moments(name: str | None, state: Path, *, as_json: bool) -> None:
    """Every moment of which the ground truth is known: snapshots and marks."""
    give(state, "moments", as_json=as_json, vm=name)


@click.command("compare")
@click.argument("name")
@click.option("--original", help="The VM whose ground truth counts; default the VM itself.")
@click.option("--at", help="A moment of the original: a snapshot's name or id, a mark; else now.")
@click.option("--disk", type=int, help="Only this disk, by key, from 0.")
@click.option(
    "--file", type=click.Path(path_type=Path), help="Compare this raw file instead of VM's disk."
)
@state_option
@json_option
def compare(
    *,
    name: str,
    original: str | None,
    at: str | None,
    disk: int | None,
    file: Path | None,
    state: Path,
    as_json: bool,
) -> None:
    """Compare a VM's disks with the ground truth; exit code 13 names disk and offset."""
    value = give(
        state,
        "compare",
        as_json=as_json,
        text=_verdict_lines,
        vm=name,
        original=original,
        at=at,
        disk=disk,
        file=str(file.absolute()) if file else None,
    )
    if not value["equal"]:
        for each in value["disks"]:
            if each["offset"] is not None:
                click.echo(
                    f"integrity: {each['disk']} differs from {value['original']} at offset"
                    f" {each['offset']} ({each['file']})",
                    err=True,
                )
        sys.exit(DIFFERENT)


def _verdict_lines(value: PlainValue) -> str:
    lines = []
    for each in value["disks"]:
        verdict = "equal" if each["offset"] is None else f"DIFFERENT at offset {each['offset']}"
        judges = ", ".join(each["judged_by"])
        lines.append(
            f"{each['disk']}: {verdict} to {value['original']} at {value['moment']}"
            f" ({each['capacity_bytes']} bytes, judged by {judges})"
        )
    return "\n".join(lines)


@click.command("snapshots")
@click.argument("name")
@state_option
@json_option
def snapshots(name: str, state: Path, *, as_json: bool) -> None:
    """The snapshots of a VM."""
    give(state, "snapshots", as_json=as_json, vm=name)


@click.command("user-snapshot")
@click.argument("name")
@click.argument("snapshot")
@click.option(
    "--action",
    type=click.Choice(["create", "remove", "revert"]),
    default="create",
    show_default=True,
)
@state_option
@json_option
def user_snapshot(name: str, snapshot: str, action: str, state: Path, *, as_json: bool) -> None:
    """Make, remove or revert to a snapshot, as the VM's user does."""
    give(state, "user-snapshot", as_json=as_json, vm=name, name=snapshot, action=action)


@click.command("storage-move")
@click.argument("name")
@click.argument("datastore")
@state_option
@json_option
def storage_move(name: str, datastore: str, state: Path, *, as_json: bool) -> None:
    """Move all disks of a VM to another datastore."""
    give(state, "storage-move", as_json=as_json, vm=name, datastore=datastore)


@click.command("attached")
@state_option
@json_option
def attached(state: Path, *, as_json: bool) -> None:
    """The disks that are attached to running VMs."""
    give(state, "attached", as_json=as_json)


@click.command("command")
@click.argument("command")
@click.argument("values", nargs=-1, metavar="[NAME=VALUE]...")
@state_option
def any_command(command: str, values: tuple[str, ...], state: Path) -> None:
    """Give any command of the control socket; values are JSON, or text."""
    arguments: dict[str, object] = {}
    for name, value in pairs(values).items():
        try:
            arguments[name] = json.loads(value)
        except ValueError:
            arguments[name] = value
    answer = LabClient(state).call(command, **arguments)
    click.echo(json.dumps(answer, indent=2) if answer is not None else plain(answer))


MACHINE_COMMANDS = (
    vm,
    guest_write,
    guest_ext4,
    truth,
    mark,
    moments,
    compare,
    snapshots,
    user_snapshot,
    storage_move,
    attached,
    any_command,
)
