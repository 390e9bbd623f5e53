"""`holdfast inventory list|show`."""

from __future__ import annotations

import click

from holdfast_common.clock import SystemClock
from holdfast_common.units import size_text
from holdfast_common.wire import operator_pb2
from holdfast_controller.commands.entry import Entry, json_option, pass_entry
from holdfast_controller.commands.operator_client import operators
from holdfast_controller.commands.output import Output, note
from holdfast_controller.commands.status import inventory_age_text


@click.group()
def inventory() -> None:
    """What the vCenters hold."""


@inventory.command("list")
@click.argument("selector", default="")
@click.option("--vcenter", default="")
@json_option
@pass_entry
def list_vms(entry: Entry, *, selector: str, vcenter: str, output: Output) -> None:
    """VMs: by name or glob (web*, vc1/web*), instance uuid, or a kind and a pattern.

    folder:/Berlin/web and pool:gold name all that is below them; host:esx1*, cluster:prod*,
    datastore:nfs1 and power:on, power:off, power:suspended name what is there or is so;
    tag:gold and tag:Backup/gold name what carries the tag. Where a vCenter's tags cannot be read,
    tag: is refused.
    """
    with operators(entry.places) as client:
        reply = client.call(
            client.stub.ListInventory,
            operator_pb2.InventoryQuery(vcenter=vcenter, selector=selector),
        )
        vcenters = client.call(client.stub.ListVcenters, operator_pb2.Empty()).vcenters
    if output.as_json:
        output.document("vms", reply)
        return
    for row in vcenters:
        if vcenter in ("", row.name):
            note(f"{row.name}: {inventory_age_text(row, SystemClock().now())}")
    output.table(
        ["VM", "VCENTER", "POWER", "DISKS", "SIZE", "TRACKING", "SNAPSHOTS", "DATASTORES"],
        [
            [
                row.name,
                row.vcenter,
                row.power_state,
                str(len(row.disks)),
                size_text(sum(disk.capacity_bytes for disk in row.disks)),
                "on" if row.change_tracking else "off",
                str(row.snapshots),
                ", ".join(row.datastores),
            ]
            for row in reply.vms
        ],
    )


@inventory.command()
@click.argument("vm")
@click.option("--vcenter", default="")
@json_option
@pass_entry
def show(entry: Entry, *, vm: str, vcenter: str, output: Output) -> None:
    """One VM with its disks, and what of it no backup can hold."""
    with operators(entry.places) as client:
        found = client.call(client.stub.ShowVm, operator_pb2.VmQuery(vcenter=vcenter, vm=vm))
    if output.as_json:
        output.document("vm", found)
        return
    output.line(f"{found.name} ({found.instance_uuid}) in {found.vcenter}, {found.moref}")
    output.line(
        f"{found.power_state} on {found.host}, folder {found.folder}, {found.hardware_version}"
    )
    tags = ", ".join(found.tags) or ("none" if found.tags_known else "not known")
    output.line(f"tags {tags}")
    tracking = "on" if found.change_tracking else "off"
    output.line(f"tools {found.tools}, change tracking {tracking}, {found.snapshots} snapshots")
    for disk in found.disks:
        text = (
            f"disk {disk.device_key}  {size_text(disk.capacity_bytes)}  {disk.adapter}  {disk.file}"
        )
        output.line(
            text
            + (f"  NOT PROTECTED: {disk.unprotected_reason}" if disk.unprotected_reason else "")
        )
