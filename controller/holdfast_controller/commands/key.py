"""`holdfast key list|add|remove|rotate|test|new-pair|recovery`: who can open the repository."""

from __future__ import annotations

from pathlib import Path

import click

from holdfast_common.wire import operator_pb2
from holdfast_controller.commands.entry import Entry, json_option, pass_entry
from holdfast_controller.commands.key_add import add
from holdfast_controller.commands.key_change import ask, show_change
from holdfast_controller.commands.key_secrets import first_line
from holdfast_controller.commands.key_test import new_pair, test
from holdfast_controller.commands.operator_client import operators
from holdfast_controller.commands.output import Output, plain


@click.group()
def key() -> None:
    """Keys of the repository: who can open it, and what new backups are sealed with.

    \b
    Every recipient opens everything: passphrase, key file, public key, recovery sheet.
    Whoever owns the controller, too. A proxy that only backs up cannot read old backups.
    Nothing here takes back what somebody copied, and nothing seals old backups anew.
    """  # noqa: D301 - click's own mark: this paragraph is not wrapped


key.add_command(add)
key.add_command(test)
key.add_command(new_pair)


@key.command("list")
@json_option
@pass_entry
def list_recipients(entry: Entry, *, output: Output) -> None:
    """Who can open the repository, and which keys are in force."""
    with operators(entry.places) as client:
        reply = client.call(client.stub.ListKeys, operator_pb2.Empty())
    if output.as_json:
        facts = plain(reply)
        del facts[
            "key_object"
        ]  # what a machine with the folder reads anyway, and nobody else needs
        output.document("keys", facts)
        return
    output.line(
        f"repository {reply.repository_id}, key generation {reply.generation}, epoch {reply.epoch}"
    )
    output.table(
        ["RECIPIENT", "KIND", "LABEL", "SINCE", ""],
        [
            [
                row.recipient_id,
                row.kind,
                row.label,
                row.created_at[:19],
                "the controller itself" if row.controller else "",
            ]
            for row in reply.recipients
        ],
    )


@key.command()
@click.argument("recipient")
@click.option(
    "--leave-no-recovery-sheet",
    is_flag=True,
    help="Remove even the last recovery sheet. Then only the other recipients can ever open the repository.",
)
@click.option("--dry-run", is_flag=True, help="Say what would be done.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@json_option
@pass_entry
def remove(
    entry: Entry,
    *,
    recipient: str,
    leave_no_recovery_sheet: bool,
    dry_run: bool,
    yes: bool,
    output: Output,
) -> None:
    """Shut a recipient (id or label) out, and rotate the keys.

    \b
    Protects: who is removed cannot open the repository as it lies there from now on, and what is
    written from now on stays closed even to who kept a copy of the old keys.
    Does not protect: backups of before, if the recipient copied the repository or its keys. Nobody
    can take that back. Jobs that are running end with the old keys.
    The last recovery sheet stays unless --leave-no-recovery-sheet says so; the last recipient and
    the controller's own key stay always.
    """  # noqa: D301 - click's own mark: this paragraph is not wrapped
    with operators(entry.places) as client:

        def call(*, only_plan: bool) -> operator_pb2.KeyChange:
            return client.call(
                client.stub.RemoveRecipient,
                operator_pb2.RecipientRemoval(
                    recipient=recipient, leave_no_sheet=leave_no_recovery_sheet, dry_run=only_plan
                ),
            )

        planned = call(only_plan=True)
        if not dry_run:
            ask(planned, f"Remove {planned.recipient.label}?", yes=yes)
        changed = planned if dry_run else call(only_plan=False)
    show_change(changed, output, done=f"{changed.recipient.label} was removed")


@key.command()
@click.option(
    "--renew-controller-key",
    is_flag=True,
    help="Also give the controller a new key file: its old one may have been copied.",
)
@click.option("--dry-run", is_flag=True, help="Say what would be done.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@json_option
@pass_entry
def rotate(
    entry: Entry, *, renew_controller_key: bool, dry_run: bool, yes: bool, output: Output
) -> None:
    """New keys for everything that is written from now on; all recipients stay.

    \b
    Protects: new backups, from whoever has a copy of the keys of before.
    Does not protect: old backups, which stay sealed with the old keys, nor new backups from a
    recipient whose own secret is known to others: remove that one. Jobs that are running end with
    the old keys. Nothing is written anew, so it takes a second whatever the repository's size.
    """  # noqa: D301 - click's own mark: this paragraph is not wrapped
    with operators(entry.places) as client:
        request = operator_pb2.KeyRotation(renew_controller_key=renew_controller_key, dry_run=True)
        planned = client.call(client.stub.RotateKeys, request)
        if not dry_run:
            ask(planned, "Rotate the keys?", yes=yes)
            request.dry_run = False
            planned = client.call(client.stub.RotateKeys, request)
    show_change(planned, output, done="the keys were rotated")


@key.command()
@click.option(
    "--groups-file",
    type=click.Path(exists=True, dir_okay=False, allow_dash=True, path_type=Path),
    metavar="FILE",
    help="For scripts: the groups in the first line of this file, or of standard input (-).",
)
@json_option
@pass_entry
def recovery(entry: Entry, *, groups_file: Path | None, output: Output) -> None:
    """Type part of the recovery sheet back; needed before the first backup.

    `holdfast doctor` tells which groups. They are asked for and not shown, and never taken from the command line.
    """
    if groups_file is None:
        typed = click.prompt("Groups of the recovery sheet", hide_input=True, err=True)
    else:
        typed = first_line(groups_file)
    with operators(entry.places) as client:
        client.call(client.stub.ConfirmRecoverySheet, operator_pb2.RecoverySheetProof(typed=typed))
    if output.as_json:
        output.document("recovery", {"confirmed": True})
    output.line("the recovery sheet is confirmed")
