"""`holdfast repo show`: one repository in detail."""

from __future__ import annotations

import click

from holdfast_common.units import size_text
from holdfast_common.wire import operator_pb2
from holdfast_controller.commands.entry import Entry, json_option, pass_entry
from holdfast_controller.commands.operator_client import operators
from holdfast_controller.commands.output import Output
from holdfast_controller.commands.repo_list import used_text


@click.command()
@click.argument("repository", default="", metavar="[REPOSITORY]")
@json_option
@pass_entry
def show(entry: Entry, *, repository: str, output: Output) -> None:
    """One repository: its keys, writers, fences, objects, holds, and the points of each VM."""
    with operators(entry.places) as client:
        request = operator_pb2.RepositoryName(repository=repository)
        detail = client.call(client.stub.ShowRepository, request)
    if output.as_json:
        output.document("repository", detail)
        return
    _show_summary(detail, output)
    _show_keys(detail, output)
    _show_writing(detail, output)
    _show_content(detail, output)


def _show_summary(detail: operator_pb2.RepositoryDetail, output: Output) -> None:
    row = detail.repository
    output.line(f"repository   {row.repository_id} ({row.name})")
    output.line(f"folder       {row.folder}")
    output.line(f"format       {row.format}, created {row.created_at[:19]}")
    room = f"{size_text(row.free_bytes)} free of {size_text(row.capacity_bytes)}"
    output.line(
        f"size         {used_text(row)}, {room if row.capacity_bytes else 'room not known'}"
    )
    output.line(f"points       {row.points} of {row.vms} VMs")
    prune = f"{row.last_prune_at[:19]}: {row.last_prune}" if row.last_prune_at else "never"
    output.line(f"last prune   {prune}")
    output.line(f"last check   {row.last_check or 'never'}")
    if detail.damaged_packs:
        output.line(f"damaged      {detail.damaged_packs} packs: no new point is built on them")
    for problem in row.problems:
        output.line(f"problem      {problem}")


def _show_keys(detail: operator_pb2.RepositoryDetail, output: Output) -> None:
    output.line(f"keys         generation {detail.key_generation}, epoch {detail.key_epoch}")
    for recipient in detail.recipients:
        own = ", the controller itself" if recipient.controller else ""
        output.line(
            f"  {recipient.kind}: {recipient.label}, since {recipient.created_at[:19]}{own}"
        )
    confirmed = detail.sheet_confirmed_at
    output.line(
        f"  recovery sheet {f'confirmed {confirmed[:19]}' if confirmed else 'NOT confirmed'}"
    )


def _show_writing(detail: operator_pb2.RepositoryDetail, output: Output) -> None:
    for writer in detail.writers:
        who = writer.host_name or writer.agent_id
        state = f"revoked {writer.revoked_at[:19]}" if writer.revoked_at else "may sign"
        output.line(f"writer       {who}: {', '.join(writer.roles)}, {state}")
    output.line(
        f"epoch        {detail.writer_epoch}, decided up to {detail.decided_epoch}"
        + (
            f", last fence {detail.last_fence_at[:19]}"
            if detail.last_fence_at
            else ", no fence yet"
        )
    )
    if detail.doomed:
        output.line(
            f"called dead  {detail.doomed} objects, by the last fence: they go when the next one agrees"
        )
    for lease in detail.announced:
        if lease.at_work:
            output.line(f"at work      job {lease.job_id or '?'}, since epoch {lease.epoch}")
    kept = size_text(detail.reserve_bytes)
    output.line(
        f"reserve      {f'{kept} for a prune when it is full' if detail.reserve_bytes else 'none yet'}"
    )


def _show_content(detail: operator_pb2.RepositoryDetail, output: Output) -> None:
    for kind in detail.objects:
        if kind.objects:
            output.line(f"objects      {kind.kind}: {kind.objects}, {size_text(kind.stored_bytes)}")
    for held in detail.held:
        reason = held.reason or "no reason given"
        output.line(f"held         {held.point_id} {held.vm} since {held.held_at[:19]}: {reason}")
    if detail.vms:
        output.table(
            ["VM", "POINTS", "OLDEST", "NEWEST", "SIZE", "STORED"],
            [
                [
                    vm.vm,
                    str(vm.points),
                    vm.oldest_at[:19],
                    vm.newest_at[:19],
                    size_text(vm.capacity_bytes),
                    size_text(vm.stored_bytes),
                ]
                for vm in detail.vms
            ],
        )
