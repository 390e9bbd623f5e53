"""`holdfast key test` and `holdfast key new-pair`: for recipients, on whatever machine they keep their secret."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path

import click

from holdfast_common.errors import Refused, WrongKey
from holdfast_common.repository.directory_store import DirectoryStore
from holdfast_common.repository.hang_watch import watched_files, while_it_answers
from holdfast_common.repository.key_generation import StoredGeneration, decoded_generation
from holdfast_common.repository.key_objects import newest_generation
from holdfast_common.repository.mount_probe import check_answers
from holdfast_common.repository.randomness import SYSTEM_RANDOMNESS
from holdfast_common.repository.recipients import (
    RecipientEntry,
    Unlock,
    new_private_key_text,
    private_key_of_text,
    public_key_text,
    unwrapped_root,
)
from holdfast_common.trust.keys import write_private
from holdfast_common.wire import operator_pb2
from holdfast_controller.commands.entry import Entry, json_option, pass_entry
from holdfast_controller.commands.operator_client import operators
from holdfast_controller.commands.output import Output, note
from holdfast_controller.commands.unlock_options import GivenSecrets, unlock_options


@dataclass(frozen=True, slots=True, kw_only=True)
class Opened:
    """What a secret opened."""

    recipient: RecipientEntry
    generation: int
    epochs: tuple[int, ...]


@click.command()
@unlock_options
@click.option(
    "--repository",
    type=Path,  # no click.Path: that would look at a mount that may hang
    metavar="DIRECTORY",
    help="The repository's folder, on a machine without a controller.",
)
@json_option
@pass_entry
def test(
    entry: Entry,
    *,
    secrets: GivenSecrets,
    repository: Path | None,
    output: Output,
) -> None:
    """Whether a secret really opens the repository: with it, here, all keys are opened and checked.

    Nothing of the secret leaves this machine. It shows that the keys can be read; that the backups can be
    is what `holdfast check --read-data` shows.
    """
    unlock = secrets.unlock()
    stored = _generation(entry, repository)
    found = opened_with(stored, unlock)
    if output.as_json:
        output.document(
            "key_test",
            {
                "opens": True,
                "recipient_id": found.recipient.recipient_id.hex(),
                "label": found.recipient.label,
                "kind": found.recipient.kind,
                "generation": found.generation,
                "epochs": list(found.epochs),
            },
        )
        return
    output.line(
        f"{found.recipient.label} ({found.recipient.kind}) opens key generation {found.generation},"
        f" with all {len(found.epochs)} epochs"
    )


def opened_with(stored: StoredGeneration, unlock: Unlock) -> Opened:
    """Open everything that a recipient must be able to open. Raises: WrongKey, IntegrityError."""
    head = stored.head
    for recipient in head.recipients:
        root = unwrapped_root(
            recipient,
            unlock=unlock,
            repository_id=head.repository_id,
            generation=head.generation,
        )
        if root is not None:
            secrets = stored.open(root)
            return Opened(
                recipient=recipient,
                generation=head.generation,
                epochs=tuple(epoch.epoch for epoch in secrets.epochs),
            )
    raise WrongKey("this secret does not open the repository: it is no recipient's")


@click.command("new-pair")
@click.option(
    "--private-key-file",
    type=click.Path(path_type=Path),
    required=True,
    help="Where the private key is written (0600); keep a copy where this machine is not.",
)
@json_option
def new_pair(*, private_key_file: Path, output: Output) -> None:
    """Make a key pair, on whatever machine shall keep the private key; needs no controller.

    Its public key, printed here, is what `holdfast key add public-key` takes.
    """
    if private_key_file.exists() or private_key_file.is_symlink():
        raise Refused("this file exists already; nothing was changed", file=str(private_key_file))
    text = new_private_key_text(SYSTEM_RANDOMNESS).encode()
    write_private(private_key_file, text)
    public = public_key_text(private_key_of_text(text))
    if output.as_json:
        output.document(
            "key_pair", {"public_key": public, "private_key_file": str(private_key_file)}
        )
        return
    output.line(public)
    note(f"the private key is in {private_key_file}: without it this recipient opens nothing")


def _stored(repository: Path) -> StoredGeneration:
    with DirectoryStore.open(repository, files=watched_files(repository)) as store:
        return newest_generation(store)


def _generation(entry: Entry, repository: Path | None) -> StoredGeneration:
    if repository is not None:
        check_answers(repository)
        return while_it_answers(partial(_stored, repository))
    with operators(entry.places) as client:
        reply = client.call(client.stub.ListKeys, operator_pb2.Empty())
    return decoded_generation(reply.key_object)
