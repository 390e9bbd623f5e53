"""`holdfast pause`: nothing that loads hosts or storage goes on until `holdfast resume`."""

from __future__ import annotations

import click

from holdfast_common.wire import operator_pb2
from holdfast_controller.commands.entry import Entry, json_option, pass_entry
from holdfast_controller.commands.operator_client import operators
from holdfast_controller.commands.output import Output


@click.command()
@click.option("--reason", default="", help="Why, for those who find it paused.")
@json_option
@pass_entry
def pause(entry: Entry, *, reason: str, output: Output) -> None:
    """Stop backups, checks, repairs and prunes cleanly, and begin none until `holdfast resume`.

    What is at work gives its snapshots and disks back. Restores go on. It outlives a restart of the controller.
    """
    with operators(entry.places) as client:
        state = client.call(client.stub.Pause, operator_pb2.PauseRequest(reason=reason))
    if output.as_json:
        output.document("pause", state)
        return
    output.line(f"paused; {state.stopping} jobs stop and give everything back")
    output.line("go on with: holdfast resume")
