"""`holdfast repo list`: the repositories of this controller."""

from __future__ import annotations

import click

from holdfast_common.units import size_text
from holdfast_common.wire import operator_pb2
from holdfast_controller.commands.entry import Entry, json_option, pass_entry
from holdfast_controller.commands.operator_client import operators
from holdfast_controller.commands.output import Output, note


@click.command("list")
@json_option
@pass_entry
def list_repositories(entry: Entry, *, output: Output) -> None:
    """Where backups lie, how much is there, and how it is: a controller has one repository."""
    with operators(entry.places) as client:
        reply = client.call(client.stub.ListRepositories, operator_pb2.Empty())
    if output.as_json:
        output.document("repositories", reply)
        return
    output.table(
        ["NAME", "REPOSITORY", "FOLDER", "FORMAT", "CREATED", "USED", "FREE", "POINTS", "VMS",
         "LAST PRUNE", "LAST CHECK", "PROBLEMS"],
        [
            [
                row.name,
                row.repository_id,
                row.folder,
                str(row.format),
                row.created_at[:10],
                used_text(row),
                size_text(row.free_bytes) if row.capacity_bytes else "?",
                str(row.points),
                str(row.vms),
                row.last_prune_at[:19] or "never",
                row.last_check[:19] or "never",
                str(len(row.problems)),
            ]
            for row in reply.repositories
        ],
    )  # fmt: skip
    for row in reply.repositories:
        for problem in row.problems:
            note(f"{row.name}: {problem}")
    if not reply.repositories:
        note("there is none yet: make one with `holdfast repo init DIRECTORY`")


def used_text(row: operator_pb2.Repository) -> str:
    """What it takes; with a sign when not all was counted."""
    if row.used_is_whole:
        return size_text(row.used_bytes)
    return f"over {size_text(row.used_bytes)}" if row.used_bytes else "?"
