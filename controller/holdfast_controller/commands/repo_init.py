"""`holdfast repo init`: the repository of a controller that has none yet. Runs on the controller's machine."""

from __future__ import annotations

from pathlib import Path

import click

from holdfast_common.clock import SystemClock
from holdfast_common.errors import Refused
from holdfast_common.places import Places
from holdfast_common.trust.peer import Role
from holdfast_controller.commands.controller import check_database
from holdfast_controller.commands.entry import Entry, json_option, pass_entry
from holdfast_controller.commands.output import Output, note
from holdfast_controller.commands.repository_creation import (
    Initialised,
    ask_back,
    check_folder,
    check_sheet_file,
    make_repository,
    note_repository,
    sheet_options,
    show_made,
)
from holdfast_controller.configuration import read_configuration
from holdfast_controller.store import settings as names
from holdfast_controller.store.audit import AuditTrail
from holdfast_controller.store.schema import open_database
from holdfast_controller.store.settings import Settings


@click.command("init")
@click.argument(
    "folder", type=Path, metavar="DIRECTORY"
)  # click.Path would look at a hanging mount
@sheet_options
@click.option("--dry-run", is_flag=True, help="Look whether it can be made, and make nothing.")
@json_option
@pass_entry
def init_repository(
    entry: Entry,
    *,
    folder: Path,
    sheet_file: Path | None,
    accept_recovery_sheet: bool,
    dry_run: bool,
    output: Output,
) -> None:
    """Make the repository in DIRECTORY, which must be empty or not there yet.

    `holdfast init` does it too; this is for a controller that was set up with --no-repository. A controller has
    one repository. The recovery sheet is shown this once: it opens the repository when all else is lost.
    """
    places = entry.places
    folder = folder.absolute()
    read_configuration(places.controller_configuration)
    check_database(places.database)
    _check_none_yet(places, folder)
    check_folder(folder, default=False)
    check_sheet_file(sheet_file)
    if dry_run:
        _show_plan(folder, output, sheet_file=sheet_file, accepted=accept_recovery_sheet)
        return
    made = make_repository(places, folder)
    _note(places, made, accepted=accept_recovery_sheet)
    show_made(made, output, sheet_file=sheet_file)
    if not accept_recovery_sheet:
        ask_back(places, made.challenge)
    note(
        f"next: on each proxy, holdfast-agent configure --repository {made.repository_id}=FOLDER"
        " (where it sees this folder)"
    )


def _check_none_yet(places: Places, folder: Path) -> None:
    """Raises: Refused when the controller has one, ConfigurationError when it cannot be known."""
    database = open_database(places.database)
    try:
        settings = Settings(database)
        found = settings.get(names.REPOSITORY_ID)
        there = settings.get(names.REPOSITORY_FOLDER)
    finally:
        database.close()
    if found:
        raise Refused(
            "this repository exists already; nothing was changed"
            if there == str(folder)
            else "this controller has its repository, and can have only one; nothing was changed",
            repository=found,
            folder=there,
            advice="see `holdfast repo list`; for another one set up a controller of its own with --home",
        )


def _show_plan(folder: Path, output: Output, *, sheet_file: Path | None, accepted: bool) -> None:
    sheet = f"written to {sheet_file}" if sheet_file else "shown once"
    asked = "" if accepted else ", and part of it asked back"
    plan = [f"make a repository in {folder}", f"the recovery sheet would be {sheet}{asked}"]
    if output.as_json:
        output.document("plan", {"plan": plan, "repository_folder": str(folder), "done": False})
    for line in plan:
        output.line(line)
    output.line("nothing was changed: this was a dry run")


def _note(places: Places, made: Initialised, *, accepted: bool) -> None:
    database = open_database(places.database)
    try:
        with database.transaction():
            note_repository(Settings(database), made, accepted=accepted)
        AuditTrail(database, SystemClock()).append(
            actor=str(Role.LOCAL_OPERATOR),
            action="make the repository",
            object=made.repository_id,
            result=str(made.folder),
        )
    finally:
        database.close()
