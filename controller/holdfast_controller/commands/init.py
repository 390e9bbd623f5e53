"""`holdfast init`: the first run. CA, database, first administrator, default repository and its recovery sheet."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import click

from holdfast_common.clock import SystemClock, utc_text
from holdfast_common.errors import Refused, UsageError, WrongKey
from holdfast_common.identity import new_ulid
from holdfast_common.places import Places, private_folder
from holdfast_common.repository.directory_store import DirectoryStore
from holdfast_common.repository.keys import create_repository
from holdfast_common.repository.mount_probe import check_answers
from holdfast_common.repository.randomness import SYSTEM_RANDOMNESS
from holdfast_common.repository.recipients import key_file_recipient, new_key_file
from holdfast_common.repository.recovery_sheet import RecoverySheet, SheetChallenge
from holdfast_common.trust.controller_trust import create_trust, save_credentials
from holdfast_common.trust.keys import write_private
from holdfast_common.trust.peer import Role, Subject
from holdfast_controller.commands.entry import Entry, json_option, pass_entry
from holdfast_controller.commands.output import Output, note
from holdfast_controller.configuration import (
    ControllerConfiguration,
    check_addresses,
    configuration_text,
)
from holdfast_controller.runs.recovery_proof import challenge_text
from holdfast_controller.store import settings as names
from holdfast_controller.store.schema import open_database
from holdfast_controller.store.secrets import create_key_file
from holdfast_controller.store.settings import Settings

TYPING_ATTEMPTS = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Initialised:
    """What `init` made. The sheet is shown once and kept nowhere."""

    repository_id: str
    sheet: RecoverySheet
    challenge: SheetChallenge


@click.command()
@click.option(
    "--repository",
    type=Path,  # no click.Path: that would look at a mount that may hang
    metavar="DIRECTORY",
    default=None,
    help="Folder of the default repository; it must be empty or not there yet.",
)
@click.option(
    "--session-address", default="0.0.0.0:9440", show_default=True, help="Where agents dial."
)
@click.option("--enrolment-address", default="0.0.0.0:9441", show_default=True)
@click.option(
    "--recovery-sheet",
    "sheet_file",
    type=click.Path(path_type=Path),
    default=None,
    help="Write the sheet to this new file (0600) instead of stdout. Print it and delete the file.",
)
@click.option(
    "--accept-recovery-sheet",
    is_flag=True,
    help="For scripts: do not ask for part of the sheet to be typed back.",
)
@json_option
@pass_entry
def init(
    entry: Entry,
    *,
    repository: Path | None,
    session_address: str,
    enrolment_address: str,
    sheet_file: Path | None,
    accept_recovery_sheet: bool,
    output: Output,
) -> None:
    """Set Holdfast up on this machine."""
    places = entry.places
    folder = (repository or default_folder(places)).absolute()
    if places.controller_configuration.exists():
        raise Refused(
            "Holdfast is set up here already; nothing was changed",
            file=str(places.controller_configuration),
        )
    configuration = ControllerConfiguration(
        session_address=session_address, enrolment_address=enrolment_address
    )
    check_addresses(configuration)
    _check_new_file(sheet_file)
    made = initialise(places, folder, configuration, accepted=accept_recovery_sheet)
    if sheet_file is not None:
        write_private(sheet_file, made.sheet.text().encode())
        note(f"the recovery sheet is in {sheet_file}: print it, keep it away from here, delete it")
    if output.as_json:
        content: dict[str, object] = {
            "repository_id": made.repository_id,
            "repository_folder": str(folder),
        }
        if sheet_file is None:
            content["recovery_key"] = made.sheet.key_text()
        output.document("initialised", content)
    elif sheet_file is None:
        output.line(made.sheet.text())
    output.line(f"repository {made.repository_id} in {folder}")
    note(
        "its folder about/ holds FORMAT.md and rescue.py: with them and the recovery sheet all can be restored "
        "without Holdfast (python3 -I rescue.py --help)"
    )
    if not accept_recovery_sheet:
        _ask_back(places, made.challenge)
    note("next: holdfast controller run")


def default_folder(places: Places) -> Path:
    """Where the default repository lies when nobody says where."""
    return (places.state / "repository").absolute()


def initialise(
    places: Places, folder: Path, configuration: ControllerConfiguration, *, accepted: bool
) -> Initialised:
    """Make everything; the configuration file comes last and says that all of it is there.

    Raises: Refused when there is something already; NoRepository when the folder cannot be made.
    """
    _check_fresh(places, folder)
    clock = SystemClock()
    private_folder(places.controller_state)
    trust = create_trust(places.trust, clock)
    administrator = trust.authority.issue_with_key(
        Subject(role=Role.ADMINISTRATOR, name="administrator"), now=clock.now()
    )
    private_folder(places.configuration / "operators")
    save_credentials(places.configuration / "operators" / "administrator.pem", administrator)
    create_key_file(places.controller_state / "secrets.key")
    key_file = new_key_file(SYSTEM_RANDOMNESS)
    with DirectoryStore.create(folder) as store:
        keys, sheet = create_repository(
            store,
            recipients=[key_file_recipient(key_file, label="controller")],
            clock=clock,
        )
    private_folder(places.controller_state / "keys")
    write_private(places.controller_state / "keys" / f"{keys.repository_id}.key", key_file)
    challenge = sheet.challenge(SYSTEM_RANDOMNESS)
    _write_settings(places, keys.repository_id, folder, challenge, accepted=accepted)
    write_private(
        places.controller_configuration, configuration_text(configuration).encode(), mode=0o644
    )
    return Initialised(repository_id=keys.repository_id, sheet=sheet, challenge=challenge)


def _check_fresh(places: Places, folder: Path) -> None:
    """Before anything is made: what is there already? Raises: Refused, TimedOut; nothing was changed."""
    check_answers(folder)
    for left in (places.trust, places.database):
        if left.exists():
            raise Refused(
                "an earlier set-up was never finished; nothing was changed",
                found=str(left),
                advice=f"nothing uses it: remove {places.controller_state} and run init again",
            )
    _check_folder(folder, default=folder == default_folder(places))


def _check_folder(folder: Path, *, default: bool) -> None:
    """Whether the repository can be made there. Raises: Refused, UsageError; nothing was changed."""
    try:
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise Refused(
                "the folder for the repository is not empty; nothing was changed",
                folder=str(folder),
                advice="choose an empty folder with --repository",
            )
        above = folder if folder.is_dir() else folder.parent
        problem = "" if default or above.is_dir() else "the folder above it does not exist"
        if above.is_dir() and not os.access(above, os.W_OK | os.X_OK):
            problem = "this user may not write there"
    except OSError as error:
        problem = str(error.strerror)
    if problem:
        raise UsageError(
            f"the repository cannot be made: {problem}; nothing was changed",
            folder=str(folder),
            advice="mount or make the folder that it shall lie in, or choose another with --repository",
        )


def _check_new_file(sheet_file: Path | None) -> None:
    """Whether the recovery sheet can be written. Raises: Refused, UsageError; nothing was changed."""
    if sheet_file is None:
        return
    if sheet_file.exists() or sheet_file.is_symlink():
        raise Refused("the file for the recovery sheet exists", file=str(sheet_file))
    if not os.access(sheet_file.absolute().parent, os.W_OK | os.X_OK):
        raise UsageError(
            "the recovery sheet cannot be written there; nothing was changed", file=str(sheet_file)
        )


def _write_settings(
    places: Places, repository_id: str, folder: Path, challenge: SheetChallenge, *, accepted: bool
) -> None:
    now = utc_text(SystemClock().now())
    database = open_database(places.database)
    settings = Settings(database)
    with database.transaction():
        settings.set(names.REPOSITORY_ID, repository_id)
        settings.set(names.REPOSITORY_FOLDER, str(folder))
        settings.set(names.REPOSITORY_GENERATION, "1")
        settings.set(names.SHEET_CHALLENGE, challenge_text(challenge))
        settings.set(names.SHEET_CONFIRMED_AT, now if accepted else "")
        settings.set(names.CONTROLLER_EPOCH, "1")
        settings.set(names.CONTROLLER_ID, new_ulid())
        settings.set(names.INITIALISED_AT, now)
    database.close()


def _ask_back(places: Places, challenge: SheetChallenge) -> None:
    note("Type back what the sheet says, so that it is known to be kept:")
    for _ in range(TYPING_ATTEMPTS):
        typed = {number: click.prompt(f"group {number}", err=True) for number in challenge.numbers}
        if challenge.accepts(typed):
            database = open_database(places.database)
            Settings(database).set(names.SHEET_CONFIRMED_AT, utc_text(SystemClock().now()))
            database.close()
            return
        note("that is not what the sheet says")
    raise WrongKey(
        "the recovery sheet was not confirmed; no backup will start before it is",
        advice="type it back later with `holdfast key recovery`",
    )
