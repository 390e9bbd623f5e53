"""Making a repository: of `holdfast init` and `holdfast repo init`. Checked first, and never over anything.

The controller's own key file lies in its state folder before the settings say that there is a repository. What
an end in between leaves is a folder that no controller uses; nothing is lost by it, and nobody has its keys.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import click

from holdfast_common.clock import SystemClock, utc_text
from holdfast_common.errors import HoldfastError, NoRepository, Refused, UsageError, WrongKey
from holdfast_common.places import Places, private_folder
from holdfast_common.repository.directory_store import DirectoryStore
from holdfast_common.repository.key_objects import newest_generation
from holdfast_common.repository.keys import create_repository
from holdfast_common.repository.mount_probe import check_answers
from holdfast_common.repository.randomness import SYSTEM_RANDOMNESS
from holdfast_common.repository.recipients import key_file_recipient, new_key_file
from holdfast_common.repository.recovery_sheet import RecoverySheet, SheetChallenge
from holdfast_common.trust.keys import write_private
from holdfast_controller.commands.output import Output, note
from holdfast_controller.runs.recovery_proof import challenge_text
from holdfast_controller.store import settings as names
from holdfast_controller.store.schema import open_database
from holdfast_controller.store.settings import Settings

Command = TypeVar("Command", bound=Callable[..., Any])

TYPING_ATTEMPTS = 3
# What a set-up leaves that was cut off before anybody had the keys.
_UNUSED = (
    "nothing was ever stored in it; if an interrupted set-up left it and no other controller uses it, "
    "empty the folder and begin again, or choose an empty one"
)
_STORED = ("writers/", "leases/", "packs/", "points/")  # what whoever may write there begins with


@dataclass(frozen=True, slots=True, kw_only=True)
class Initialised:
    """A repository that was made. The sheet is shown once and kept nowhere."""

    repository_id: str
    folder: Path
    sheet: RecoverySheet
    challenge: SheetChallenge


def sheet_options(command: Command) -> Command:
    """``--recovery-sheet FILE`` as ``sheet_file``, and ``--accept-recovery-sheet``."""
    accepted = click.option(
        "--accept-recovery-sheet",
        is_flag=True,
        help="For scripts: do not ask for part of the sheet to be typed back.",
    )
    sheet_file = click.option(
        "--recovery-sheet",
        "sheet_file",
        type=click.Path(path_type=Path),
        default=None,
        help="Write the sheet to this new file (0600) instead of stdout. Print it and delete the file.",
    )
    return sheet_file(accepted(command))


def default_folder(places: Places) -> Path:
    """Where the repository lies when nobody says where."""
    return (places.state / "repository").absolute()


def check_folder(folder: Path, *, default: bool) -> None:
    """Whether a repository can be made there. Raises: Refused, UsageError, TimedOut; nothing was changed."""
    check_answers(folder)
    try:
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            found = _found(folder)
            raise Refused(
                f"the folder holds a repository already, {found}; nothing was changed"
                if found
                else "the folder for the repository is not empty; nothing was changed",
                folder=str(folder),
                advice=_UNUSED if found and _is_unused(folder) else "choose an empty folder",
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
            advice="mount or make the folder that it shall lie in, or choose another one",
        )


def check_sheet_file(sheet_file: Path | None) -> None:
    """Whether the recovery sheet can be written; None: it goes to stdout. Raises: Refused, UsageError."""
    if sheet_file is None:
        return
    if sheet_file.exists() or sheet_file.is_symlink():
        raise Refused("the file for the recovery sheet exists", file=str(sheet_file))
    if not os.access(sheet_file.absolute().parent, os.W_OK | os.X_OK):
        raise UsageError(
            "the recovery sheet cannot be written there; nothing was changed", file=str(sheet_file)
        )


def make_repository(places: Places, folder: Path) -> Initialised:
    """The folder, its first keys, and the controller's key file; no setting names it yet.

    Raises: Refused when there is something already; RepositoryFull, RepositoryFailed.
    """
    key_file = new_key_file(SYSTEM_RANDOMNESS)
    with DirectoryStore.create(folder) as store:
        keys, sheet = create_repository(
            store,
            recipients=[key_file_recipient(key_file, label="controller")],
            clock=SystemClock(),
        )
    private_folder(places.controller_state / "keys")
    write_private(places.controller_state / "keys" / f"{keys.repository_id}.key", key_file)
    return Initialised(
        repository_id=keys.repository_id,
        folder=folder,
        sheet=sheet,
        challenge=sheet.challenge(SYSTEM_RANDOMNESS),
    )


def note_repository(settings: Settings, made: Initialised, *, accepted: bool) -> None:
    """From here on it is the controller's, within the caller's transaction. Raises: Refused when it has one."""
    if found := settings.get(names.REPOSITORY_ID):
        raise Refused(
            "this controller has got its repository meanwhile",
            repository=found,
            advice=f"nothing uses what was made in {made.folder}: remove it",
        )
    now = utc_text(SystemClock().now())
    settings.set(names.REPOSITORY_ID, made.repository_id)
    settings.set(names.REPOSITORY_FOLDER, str(made.folder))
    settings.set(names.REPOSITORY_GENERATION, "1")
    settings.set(names.REPOSITORY_CREATED_AT, now)
    settings.set(names.SHEET_CHALLENGE, challenge_text(made.challenge))
    settings.set(names.SHEET_CONFIRMED_AT, now if accepted else "")


def show_made(made: Initialised, output: Output, *, sheet_file: Path | None) -> None:
    """The sheet goes to its file, or to stdout: it is shown this once."""
    if sheet_file is not None:
        write_private(sheet_file, made.sheet.text().encode())
        note(f"the recovery sheet is in {sheet_file}: print it, keep it away from here, delete it")
    if output.as_json:
        content: dict[str, object] = {
            "repository_id": made.repository_id,
            "repository_folder": str(made.folder),
        }
        if sheet_file is None:
            content["recovery_key"] = made.sheet.key_text()
        output.document("initialised", content)
    elif sheet_file is None:
        output.line(made.sheet.text())
    output.line(f"repository {made.repository_id} in {made.folder}")
    note(
        "its folder about/ holds FORMAT.md and rescue.py: with them and the recovery sheet all can be restored "
        "without Holdfast (python3 -I rescue.py --help)"
    )


def ask_back(places: Places, challenge: SheetChallenge) -> None:
    """Part of the sheet is typed back, so that it is known to be kept. Raises: WrongKey, click.Abort."""
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


def _found(folder: Path) -> str:
    """The id of the repository that lies there; empty: none does."""
    try:
        with DirectoryStore.open(folder) as store:
            return newest_generation(store).head.repository_id.hex()
    except NoRepository:
        return ""
    except HoldfastError:
        return "a damaged one"


def _is_unused(folder: Path) -> bool:
    """Whether no writer was ever listed there, and nothing written."""
    try:
        with DirectoryStore.open(folder) as store:
            return not any(info for prefix in _STORED for info in store.list(prefix))
    except HoldfastError:
        return False
