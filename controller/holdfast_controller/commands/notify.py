"""`holdfast notify`: whether notifications arrive."""

from __future__ import annotations

import click

from holdfast_common.wire import operator_pb2
from holdfast_controller.commands.entry import Entry, json_option, pass_entry
from holdfast_controller.commands.operator_client import operators
from holdfast_controller.commands.output import Output


@click.group()
def notify() -> None:
    """Notifications: who is told of failures, debts and the like."""


@notify.command()
@json_option
@pass_entry
@click.pass_context
def test(context: click.Context, entry: Entry, *, output: Output) -> None:
    """Send a message to every address now; exits with 1 when one does not take it.

    The controller sends it, with its own addresses, name server and proxy, as it would send any other.
    """
    with operators(entry.places) as client:
        reply = client.call(client.stub.TestNotification, operator_pb2.Empty())
    if output.as_json:
        output.document("notifications", reply)
    for sent in reply.sent:
        output.line(
            f"failed   {sent.name}: {sent.error}" if sent.error else f"taken    {sent.name}"
        )
    context.exit(1 if any(sent.error for sent in reply.sent) else 0)
