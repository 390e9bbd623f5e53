"""`holdfast point list|show|hold|unhold|delete`."""

from __future__ import annotations

import json

import click

from holdfast_common.units import size_text
from holdfast_common.wire import operator_pb2
from holdfast_controller.commands.entry import Entry, json_option, pass_entry
from holdfast_controller.commands.operator_client import operators
from holdfast_controller.commands.output import Output, note, plain
from holdfast_controller.commands.repository_change import (
    forget_points,
    give_up_option,
    show_repository_change,
)
from holdfast_controller.decide.confidence import confidence_text


@click.group()
def point() -> None:
    """Restore points."""


@point.command("list")
@click.option("--vm", default="", help="Only points of this VM.")
@click.option("--vcenter", default="")
@json_option
@pass_entry
def list_points(entry: Entry, *, vm: str, vcenter: str, output: Output) -> None:
    """Restore points, newest first."""
    with operators(entry.places) as client:
        reply = client.call(client.stub.ListPoints, operator_pb2.PointQuery(vm=vm, vcenter=vcenter))
    if output.as_json:
        output.document("points", reply)
        return
    output.table(
        [
            "POINT",
            "VM",
            "TAKEN",
            "LEVEL",
            "CONSISTENCY",
            "SIZE",
            "CHANGED",
            "STORED",
            "TRANSPORT",
            "HELD",
            "DOUBT",
        ],
        [
            [
                row.point_id,
                row.vm,
                row.created_at[:19],
                row.level,
                row.consistency,
                size_text(row.capacity_bytes),
                size_text(row.changed_bytes),
                size_text(row.stored_bytes),
                row.transport,
                "?" if reply.holds_problem else "held" if row.held else "",
                "suspect" if row.doubt else "",
            ]
            for row in reply.points
        ],
    )
    if reply.holds_problem:
        note(f"it is not known which are held: {reply.holds_problem}")
    for doubt in dict.fromkeys(row.doubt for row in reply.points if row.doubt):
        note(f"suspect: {doubt}")


@point.command()
@click.argument("point_id", metavar="POINT")
@json_option
@pass_entry
def show(entry: Entry, *, point_id: str, output: Output) -> None:
    """One restore point: what it holds, what was asked and what was reached."""
    with operators(entry.places) as client:
        detail = client.call(client.stub.ShowPoint, operator_pb2.PointName(point_id=point_id))
    record = json.loads(detail.record)
    if output.as_json:
        held = {name: getattr(detail, name) for name in ("held_at", "hold_reason", "holds_problem")}
        confidence = detail.confidence if detail.HasField("confidence") else None
        proof = {"confidence": confidence, "is_proven": detail.is_proven}
        also = {**held, **proof, "left_out": list(detail.left_out)}
        output.document("point", {"point": plain(detail.point), **also, "record": record})
        return
    found = detail.point
    output.line(f"point        {found.point_id}")
    output.line(f"VM           {found.vm} ({found.instance_uuid})")
    output.line(f"taken        {found.created_at}")
    asked = f", asked {found.level_asked}: {found.level_reason}" if found.level_reason else ""
    output.line(f"level        {found.level}{asked}")
    output.line(f"consistency  {found.consistency}")
    output.line(f"transport    {found.transport}")
    output.line(f"confidence   {_confidence_text(detail)}")
    if detail.holds_problem:
        output.line(f"held         not known: {detail.holds_problem}")
    elif found.held:
        output.line(
            f"held         since {detail.held_at or '?'}: {detail.hold_reason or 'no reason given'}"
        )
    if found.doubt:
        output.line(f"doubt        {found.doubt}: it may lack some of them")
    for disk in record.get("disks", []):
        output.line(
            f"disk {disk.get('device_key')}    {size_text(int(disk.get('capacity_bytes', 0)))}"
            f"  {disk.get('label', '')}"
        )
    for text in detail.left_out:
        output.line(f"NOT in it    {text}")


def _confidence_text(detail: operator_pb2.PointDetail) -> str:
    return confidence_text(detail.confidence if detail.HasField("confidence") else None)


@point.command()
@click.argument("point_id", metavar="POINT")
@click.option("--reason", default="", help="Why; it is kept with the hold.")
@json_option
@pass_entry
def hold(entry: Entry, *, point_id: str, reason: str, output: Output) -> None:
    """Keep a restore point whatever any rule says, until `point unhold`."""
    request = operator_pb2.HoldRequest(point_id=point_id, reason=reason)
    with operators(entry.places) as client:
        show_repository_change(client.call(client.stub.HoldPoint, request), output, "held")


@point.command()
@click.argument("point_id", metavar="POINT")
@json_option
@pass_entry
def unhold(entry: Entry, *, point_id: str, output: Output) -> None:
    """Let go of a restore point that was held; POINT may be the name of its object."""
    request = operator_pb2.HoldRequest(point_id=point_id, release=True)
    with operators(entry.places) as client:
        show_repository_change(client.call(client.stub.HoldPoint, request), output, "unheld")


@point.command()
@click.argument("points", nargs=-1, required=True, metavar="POINT…")
@give_up_option
@click.option("--dry-run", is_flag=True, help="Say what would be done.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@json_option
@pass_entry
def delete(
    entry: Entry,
    *,
    points: tuple[str, ...],
    give_up: bool,
    dry_run: bool,
    yes: bool,
    output: Output,
) -> None:
    """Delete restore points; `holdfast repo prune` frees their room afterwards."""
    request = operator_pb2.ForgetRequest(point_ids=points, give_up=points if give_up else ())
    forget_points(entry, request, output, dry_run=dry_run, yes=yes)
