"""`holdfast doctor`: every precondition and every debt, with what to do."""

from __future__ import annotations

import click

from holdfast_common.wire import operator_pb2
from holdfast_controller.commands.checks import show_checks
from holdfast_controller.commands.entry import Entry, json_option, pass_entry
from holdfast_controller.commands.operator_client import LOOK_TIMEOUT_SECONDS, operators
from holdfast_controller.commands.output import Output


@click.command()
@json_option
@pass_entry
@click.pass_context
def doctor(context: click.Context, entry: Entry, *, output: Output) -> None:
    """Check every precondition; exits with 1 when one fails."""
    with operators(entry.places) as client:
        reply = client.call(
            client.stub.RunDoctor, operator_pb2.Empty(), timeout_seconds=LOOK_TIMEOUT_SECONDS
        )
    if output.as_json:
        output.document("checks", reply)
    context.exit(show_checks(list(reply.checks), output))
