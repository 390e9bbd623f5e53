"""How changes of the repository are planned, asked for and shown."""

from __future__ import annotations

import click

from holdfast_common.wire import operator_pb2
from holdfast_controller.commands.entry import Entry
from holdfast_controller.commands.operator_client import operators
from holdfast_controller.commands.output import Output, note


def forget_points(
    entry: Entry,
    request: operator_pb2.ForgetRequest,
    output: Output,
    *,
    dry_run: bool,
    yes: bool,
) -> None:
    """Plan, ask, do exactly what was planned. Raises: click.Abort."""
    with operators(entry.places) as client:
        request.dry_run = True
        planned = client.call(client.stub.ForgetPoints, request)
        if not dry_run and planned.names:
            if not yes:
                for line in planned.plan:
                    note(line)
                question = f"forget {len(planned.names)} restore points for ever?"
                click.confirm(question, abort=True, err=True)
            exact = operator_pb2.ForgetRequest(point_ids=planned.names)
            planned = client.call(client.stub.ForgetPoints, exact)
        show_repository_change(planned, output, "forgotten")


def show_repository_change(
    changed: operator_pb2.RepositoryChange, output: Output, document: str
) -> None:
    """What was done, or would be."""
    if output.as_json:
        output.document(document, changed)
        return
    for line in changed.plan:
        output.line(line)
    if not changed.done:
        output.line("nothing was changed: this was a dry run")
