"""`holdfast key recovery`: prove that the recovery sheet was kept."""

from __future__ import annotations

import click

from holdfast_common.wire import operator_pb2
from holdfast_controller.commands.entry import Entry, json_option, pass_entry
from holdfast_controller.commands.operator_client import operators
from holdfast_controller.commands.output import Output


@click.group()
def key() -> None:
    """Keys of the repository."""


@key.command()
@click.option(
    "--typed",
    prompt="The groups of the recovery sheet that `holdfast init` asked for",
    help="Typed back.",
)
@json_option
@pass_entry
def recovery(entry: Entry, *, typed: str, output: Output) -> None:
    """Type part of the recovery sheet back; needed before the first backup."""
    with operators(entry.places) as client:
        client.call(client.stub.ConfirmRecoverySheet, operator_pb2.RecoverySheetProof(typed=typed))
    if output.as_json:
        output.document("recovery", {"confirmed": True})
    output.line("the recovery sheet is confirmed")
