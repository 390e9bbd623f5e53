"""`holdfast key add`: the secret stays here; the controller gets its public key."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final

import click

from holdfast_common.errors import Refused, UsageError, WrongKey
from holdfast_common.repository.randomness import SYSTEM_RANDOMNESS
from holdfast_common.repository.recipients import (
    KEY_FILE,
    KINDS,
    PASSPHRASE,
    PUBLIC_KEY,
    RECOVERY_SHEET,
    NewRecipient,
    key_file_recipient,
    new_key_file,
    passphrase_recipient,
    public_key_of_text,
    public_key_recipient,
    recovery_recipient,
)
from holdfast_common.repository.recovery_sheet import RecoverySheet, new_recovery_sheet
from holdfast_common.trust.keys import read_file, write_private
from holdfast_common.wire import operator_pb2
from holdfast_controller.commands.entry import Entry, json_option, pass_entry
from holdfast_controller.commands.key_change import ask, show_change
from holdfast_controller.commands.key_secrets import first_line
from holdfast_controller.commands.operator_client import OperatorClient, operators
from holdfast_controller.commands.output import Output, note

PASSPHRASE_LENGTH_MIN: Final = 12
TYPING_ATTEMPTS: Final = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Sources:
    """Where the new recipient's secret or public key comes from, as the options say."""

    passphrase_file: Path | None
    key_file: Path | None
    new_key_file: Path | None
    public_key: str
    sheet_file: Path | None


@click.command()
@click.argument("kind", type=click.Choice(sorted(KINDS)))
@click.option("--label", default="", help="What it is called in `holdfast key list`.")
@click.option(
    "--passphrase-file",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="passphrase: a file with it in its first line; asked for when not given.",
)
@click.option(
    "--key-file",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="key-file: one that exists.",
)
@click.option(
    "--new-key-file",
    "new_file",
    type=click.Path(path_type=Path),
    help="key-file: make this one (0600).",
)
@click.option(
    "--public-key",
    default="",
    help="public-key: `holdfast-public-1:…` (it is no secret), or a file that holds it.",
)
@click.option(
    "--recovery-sheet",
    "sheet_file",
    type=click.Path(path_type=Path),
    help="recovery-sheet: write it to this new file (0600) instead of stdout. Print it and delete the file.",
)
@click.option(
    "--accept-recovery-sheet",
    is_flag=True,
    help="For scripts: do not ask for part of the sheet to be typed back.",
)
@click.option("--dry-run", is_flag=True, help="Say what would be done.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@json_option
@pass_entry
def add(
    entry: Entry,
    *,
    kind: str,
    label: str,
    passphrase_file: Path | None,
    key_file: Path | None,
    new_file: Path | None,
    public_key: str,
    sheet_file: Path | None,
    accept_recovery_sheet: bool,
    dry_run: bool,
    yes: bool,
    output: Output,
) -> None:
    """Let one more recipient open the repository.

    \b
    passphrase      what somebody knows; as strong as the passphrase, each guess costs 64 MiB
    key-file        what lies on another machine; whoever copies the file is that recipient
    public-key      the private key stays where `holdfast key new-pair` made it, and never comes here
    recovery-sheet  on paper, for the day on which everything else is lost
    Protects: against losing the other recipients. Does not protect: a recipient reads every backup
    of the repository, old and new, and needs nobody's leave for it.
    """  # noqa: D301 - click's own mark: this paragraph is not wrapped
    sources = Sources(
        passphrase_file=passphrase_file,
        key_file=key_file,
        new_key_file=new_file,
        public_key=public_key,
        sheet_file=sheet_file,
    )
    _check(kind, sources)
    if (
        kind == RECOVERY_SHEET
        and output.as_json
        and sheet_file is None
        and not accept_recovery_sheet
    ):
        raise UsageError("with --json give --recovery-sheet FILE or --accept-recovery-sheet")
    with operators(entry.places) as client:
        known = client.call(client.stub.ListKeys, operator_pb2.Empty())
        recipient, secret = _made(kind, label, sources, repository_id=known.repository_id)
        planned = _call(client, recipient, dry_run=True)
        changed = planned
        if not dry_run:
            ask(planned, f"Add {recipient.label}?", yes=yes)
            if isinstance(secret, RecoverySheet):
                _hand_out(secret, sheet_file, output, accepted=accept_recovery_sheet)
            elif secret is not None and new_file is not None:
                write_private(new_file, secret)
            changed = _call(client, recipient, dry_run=False)
    more: dict[str, object] = {}
    if changed.done and isinstance(secret, RecoverySheet) and sheet_file is None:
        more["recovery_key"] = secret.key_text()
    show_change(changed, output, done=f"{recipient.label} was added", more=more)
    if changed.done:
        note("make sure that it opens the repository: holdfast key test")


def _check(kind: str, sources: Sources) -> None:
    """Whether the options fit the kind. Raises: UsageError, Refused."""
    given: dict[str, list[object]] = {
        PASSPHRASE: [sources.passphrase_file],
        KEY_FILE: [sources.key_file, sources.new_key_file],
        PUBLIC_KEY: [sources.public_key],
    }
    for other, options in given.items():
        if kind != other and any(options):
            raise UsageError(f"this option belongs to another kind: {other}", kind=kind)
    if kind == KEY_FILE and bool(sources.key_file) == bool(sources.new_key_file):
        raise UsageError("give either --key-file or --new-key-file")
    if kind == PUBLIC_KEY and not sources.public_key:
        raise UsageError("give --public-key", advice="its owner makes it: holdfast key new-pair")
    for new in (sources.new_key_file, sources.sheet_file):
        if new is not None and (new.exists() or new.is_symlink()):
            raise Refused("this file exists already; nothing was changed", file=str(new))


def _made(
    kind: str, label: str, sources: Sources, *, repository_id: str
) -> tuple[NewRecipient, RecoverySheet | bytes | None]:
    """The recipient, and what it must keep: its sheet or its key file. Raises: UsageError, WrongKey."""
    if kind == PASSPHRASE:
        passphrase = _passphrase(sources.passphrase_file)
        made = passphrase_recipient(
            passphrase, label=label or "passphrase", randomness=SYSTEM_RANDOMNESS
        )
        return made, None
    if kind == KEY_FILE:
        content = new_key_file(SYSTEM_RANDOMNESS)
        if sources.key_file is not None:
            content = read_file(sources.key_file)
        return key_file_recipient(content, label=label or "key file"), content
    if kind == PUBLIC_KEY:
        text = sources.public_key.encode()
        if not sources.public_key.startswith("holdfast-"):
            text = read_file(Path(sources.public_key))
        return public_key_recipient(public_key_of_text(text), label=label or "public key"), None
    sheet = new_recovery_sheet(repository_id=repository_id, randomness=SYSTEM_RANDOMNESS)
    recipient = recovery_recipient(sheet)
    return recipient if not label else _labelled(recipient, label), sheet


def _labelled(recipient: NewRecipient, label: str) -> NewRecipient:
    return NewRecipient(kind=recipient.kind, label=label, public_key=recipient.public_key)


def _passphrase(file: Path | None) -> str:
    if file is not None:
        text = first_line(file)
    else:
        text = click.prompt("Passphrase", hide_input=True, confirmation_prompt=True, err=True)
    if len(text) < PASSPHRASE_LENGTH_MIN:
        raise UsageError(
            "whoever has the repository can guess as long as he likes: the passphrase is too short",
            characters=PASSPHRASE_LENGTH_MIN,
        )
    return text


def _hand_out(
    sheet: RecoverySheet, sheet_file: Path | None, output: Output, *, accepted: bool
) -> None:
    """Before it counts: a sheet that nobody has must not be a recipient. Raises: WrongKey."""
    if sheet_file is not None:
        write_private(sheet_file, sheet.text().encode())
        note(f"the recovery sheet is in {sheet_file}: print it, keep it away from here, delete it")
    elif not output.as_json:
        output.line(sheet.text())
    if accepted:
        return
    challenge = sheet.challenge(SYSTEM_RANDOMNESS)
    note("Type back what the sheet says, so that it is known to be kept:")
    for _ in range(TYPING_ATTEMPTS):
        typed = {number: click.prompt(f"group {number}", err=True) for number in challenge.numbers}
        if challenge.accepts(typed):
            return
        note("that is not what the sheet says")
    raise WrongKey("the recovery sheet was not confirmed; nothing was changed")


def _call(
    client: OperatorClient, recipient: NewRecipient, *, dry_run: bool
) -> operator_pb2.KeyChange:
    request = operator_pb2.NewRecipient(
        kind=recipient.kind,
        label=recipient.label,
        public_key=recipient.public_key,
        argon2_salt=recipient.argon2_salt,
        dry_run=dry_run,
        sheet_kept=recipient.kind == RECOVERY_SHEET,
    )
    if recipient.argon2 is not None:
        request.argon2_memory_kib = recipient.argon2.memory_kib
        request.argon2_iterations = recipient.argon2.iterations
        request.argon2_lanes = recipient.argon2.lanes
    return client.call(client.stub.AddRecipient, request)
