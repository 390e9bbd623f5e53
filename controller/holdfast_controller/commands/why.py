"""`holdfast why VM|RUN|JOB`: what was decided, what it waited for, and where its time went."""

from __future__ import annotations

import click

from holdfast_common.wire import operator_pb2
from holdfast_controller.commands.entry import Entry, json_option, pass_entry
from holdfast_controller.commands.operator_client import operators
from holdfast_controller.commands.output import Output


@click.command()
@click.argument("name", metavar="VM|RUN|JOB")
@json_option
@pass_entry
def why(entry: Entry, *, name: str, output: Output) -> None:
    """Why a backup is full, slow, skipped, waiting, or done by this proxy and transport."""
    with operators(entry.places) as client:
        found = client.call(client.stub.Explain, operator_pb2.ExplainRequest(name=name))
    if output.as_json:
        output.document("explanation", found)
        return
    width = max((len(each.question) for each in found.reasons), default=0)
    for each in found.reasons:
        seconds = f" ({each.seconds:.1f} s)" if each.seconds else ""
        output.line(f"{each.question:<{width}}  {each.answer}{seconds}")
