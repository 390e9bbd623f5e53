"""`holdfast repo check|repair|scrub`: is the repository whole, and what can be done when it is not?"""

from __future__ import annotations

from pathlib import Path

import click

from holdfast_common.errors import IntegrityError
from holdfast_common.repository.directory_store import DirectoryStore
from holdfast_common.repository.mount_probe import check_answers
from holdfast_common.repository.scrub import scrub as scrubbed
from holdfast_common.wire import operator_pb2
from holdfast_controller.commands.check import check
from holdfast_controller.commands.entry import Entry, json_option, pass_entry
from holdfast_controller.commands.following import follow
from holdfast_controller.commands.operator_client import operators
from holdfast_controller.commands.output import Output


@click.group()
def repo() -> None:
    """The repository."""


repo.add_command(check)  # the same as `holdfast check`


@repo.command()
@click.option(
    "--from",
    "source_folder",
    default="",
    metavar="FOLDER",
    help="A copy of this repository, as the proxy sees it; it is only read.",
)
@click.option("--dry-run", is_flag=True, help="Tell what could be mended, and change nothing.")
@json_option
@pass_entry
@click.pass_context
def repair(
    context: click.Context, entry: Entry, *, source_folder: str, dry_run: bool, output: Output
) -> None:
    """Mend what can be, and say exactly what stays lost; exits with 13 when something does.

    Nothing damaged leaves its place before its replacement was stored and proven, and it is kept under aside/.
    """
    request = operator_pb2.StartRepairRequest(source_folder=source_folder, dry_run=dry_run)
    with operators(entry.places) as client:
        started = client.call(client.stub.StartRepair, request)
        context.exit(follow(client, started.run_id, output))


@repo.command()
@click.argument("folder", type=Path)  # click.Path would look at a mount that may hang
@json_option
def scrub(folder: Path, *, output: Output) -> None:
    """Compare every pack in FOLDER with its own digest: no key, no controller, only leave to read.

    Finds every changed byte of the data, but not what of which restore point is lost by it, nor packs that
    are missing: `holdfast repo check --read-data` does.
    """
    check_answers(folder.absolute())
    with DirectoryStore.open(folder.absolute()) as store:
        damaged = scrubbed(store)
    if output.as_json:
        output.document(
            "scrubbed", {"damaged": [{"name": i.name, "reason": i.reason} for i in damaged]}
        )
    for item in damaged:
        output.line(f"{item.name}: {item.reason}")
    if damaged:
        raise IntegrityError(
            "packs are damaged",
            packs=len(damaged),
            advice="`holdfast repo check --read-data` tells which points are concerned,"
            " `holdfast repo repair --from COPY` mends them from a copy",
        )
    output.line("every pack is what its name says")
