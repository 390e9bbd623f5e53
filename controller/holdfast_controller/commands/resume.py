"""`holdfast resume`: go on after `holdfast pause`."""

from __future__ import annotations

import click

from holdfast_common.wire import operator_pb2
from holdfast_controller.commands.entry import Entry, json_option, pass_entry
from holdfast_controller.commands.operator_client import operators
from holdfast_controller.commands.output import Output, note


@click.command()
@json_option
@pass_entry
def resume(entry: Entry, *, output: Output) -> None:
    """Go on after a pause: what waited begins, and backups that were stopped begin anew."""
    with operators(entry.places) as client:
        state = client.call(client.stub.Resume, operator_pb2.Empty())
    if output.as_json:
        output.document("pause", state)
        return
    for text in state.told:
        note(text)
    output.line("going on")
