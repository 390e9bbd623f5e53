"""`holdfast init`: the first run. CA, database, first administrator, default repository and its recovery sheet."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import click
import msgspec

from holdfast_common.clock import SystemClock, utc_text
from holdfast_common.errors import Refused, UsageError
from holdfast_common.identity import new_ulid
from holdfast_common.places import Places, private_folder
from holdfast_common.trust.controller_trust import create_trust, save_credentials
from holdfast_common.trust.keys import write_private
from holdfast_common.trust.peer import Role, Subject
from holdfast_controller.commands.entry import Entry, json_option, pass_entry
from holdfast_controller.commands.init_from_repository import (
    bring_back,
    check_only_secrets,
    show_brought_back,
)
from holdfast_controller.commands.output import Output, note
from holdfast_controller.commands.repository_creation import (
    Initialised,
    ask_back,
    check_folder,
    check_sheet_file,
    default_folder,
    make_repository,
    note_repository,
    sheet_options,
    show_made,
)
from holdfast_controller.commands.unlock_options import GivenSecrets, unlock_options
from holdfast_controller.configuration import (
    ControllerConfiguration,
    check_addresses,
    configuration_text,
)
from holdfast_controller.store import settings as names
from holdfast_controller.store.schema import open_database
from holdfast_controller.store.secrets import create_key_file
from holdfast_controller.store.settings import Settings


@click.command()
@click.option(
    "--repository",
    type=Path,  # no click.Path: that would look at a mount that may hang
    metavar="DIRECTORY",
    default=None,
    help="Folder of the default repository; it must be empty or not there yet.",
)
@click.option(
    "--no-repository", is_flag=True, help="Make none yet: `holdfast repo init` does it later."
)
@click.option(
    "--from-repository",
    type=Path,
    metavar="DIRECTORY",
    default=None,
    help="Bring a lost controller back from its repository, with the recovery sheet or another secret.",
)
@click.option(
    "--session-address",
    default=None,
    show_default="0.0.0.0:9440, or as it was",
    help="Where agents dial.",
)
@click.option("--enrolment-address", default=None, show_default="0.0.0.0:9441, or as it was")
@sheet_options
@unlock_options
@json_option
@pass_entry
def init(
    entry: Entry,
    *,
    repository: Path | None,
    no_repository: bool,
    from_repository: Path | None,
    session_address: str | None,
    enrolment_address: str | None,
    secrets: GivenSecrets,
    sheet_file: Path | None,
    accept_recovery_sheet: bool,
    output: Output,
) -> None:
    """Set Holdfast up on this machine.

    With --from-repository: bring a lost controller back, its policies, agents, vCenters and points, from the copy
    that it made of itself. Give one secret that opens the repository (without any, the recovery sheet is asked for).
    """
    places = entry.places
    given = {"session_address": session_address, "enrolment_address": enrolment_address}
    addresses = {name: text for name, text in given.items() if text is not None}
    folder = (repository or default_folder(places)).absolute()
    if places.controller_configuration.exists():
        raise Refused(
            "Holdfast is set up here already; nothing was changed",
            file=str(places.controller_configuration),
        )
    configuration: ControllerConfiguration = msgspec.structs.replace(
        ControllerConfiguration(), **addresses
    )
    check_addresses(configuration)
    if from_repository is not None:
        check_only_secrets(
            given={
                "--repository": repository,
                "--no-repository": no_repository,
                "--recovery-sheet": sheet_file,
                "--accept-recovery-sheet": accept_recovery_sheet,
            }
        )
        _check_fresh(
            places,
            # that file may be what opens the repository since: its keys may have been changed before the end
            advice=f"remove {places.trust} and {places.database}, with the files whose names begin so, and run it"
            f" again; leave {places.controller_state / 'keys'}",
        )
        unlock = (secrets if secrets.count else replace(secrets, ask_recovery=True)).unlock()
        # imported here: no other set-up waits for the daemon's code
        from holdfast_controller.service.listeners import only_controller

        with only_controller(places):
            found = bring_back(places, from_repository.absolute(), unlock, addresses=addresses)
        show_brought_back(found, output)
        return
    if secrets.count:
        raise UsageError("a secret is given with --from-repository only")
    if no_repository:
        if repository is not None:
            raise UsageError("give either --repository or --no-repository")
        initialise_without_repository(places, configuration)
        if output.as_json:
            output.document("initialised", {"repository_id": "", "repository_folder": ""})
        note("next: holdfast repo init DIRECTORY, then holdfast controller run")
        return
    check_sheet_file(sheet_file)
    made = initialise(places, folder, configuration, accepted=accept_recovery_sheet)
    show_made(made, output, sheet_file=sheet_file)
    if not accept_recovery_sheet:
        ask_back(places, made.challenge)
    note("next: holdfast controller run")


def initialise(
    places: Places, folder: Path, configuration: ControllerConfiguration, *, accepted: bool
) -> Initialised:
    """Make everything; the configuration file comes last and says that all of it is there.

    Raises: Refused when there is something already; NoRepository when the folder cannot be made.
    """
    _check_fresh(places)
    check_folder(folder, default=folder == default_folder(places))
    _make_trust(places)
    made = make_repository(places, folder)
    _finish(
        places, configuration, lambda settings: note_repository(settings, made, accepted=accepted)
    )
    return made


def initialise_without_repository(places: Places, configuration: ControllerConfiguration) -> None:
    """The same but the repository, which `repo init` makes. Raises: Refused when there is something already."""
    _check_fresh(places)
    _make_trust(places)
    _finish(places, configuration, lambda _: None)


def _check_fresh(places: Places, *, advice: str = "") -> None:
    """Before anything is made: what is there already? Raises: Refused; nothing was changed."""
    for left in (places.trust, places.database):
        if left.exists():
            raise Refused(
                "an earlier set-up was never finished; nothing was changed",
                found=str(left),
                advice=advice
                or f"nothing uses it: remove {places.controller_state} and run init again",
            )


def _make_trust(places: Places) -> None:
    clock = SystemClock()
    private_folder(places.controller_state)
    trust = create_trust(places.trust, clock)
    administrator = trust.authority.issue_with_key(
        Subject(role=Role.ADMINISTRATOR, name="administrator"), now=clock.now()
    )
    private_folder(places.configuration / "operators")
    save_credentials(places.configuration / "operators" / "administrator.pem", administrator)
    create_key_file(places.controller_state / "secrets.key")


def _finish(
    places: Places,
    configuration: ControllerConfiguration,
    note_more: Callable[[Settings], None],
) -> None:
    database = open_database(places.database)
    settings = Settings(database)
    with database.transaction():
        note_more(settings)
        settings.set(names.CONTROLLER_EPOCH, "1")
        settings.set(names.CONTROLLER_ID, new_ulid())
        settings.set(names.INITIALISED_AT, utc_text(SystemClock().now()))
    database.close()
    write_private(
        places.controller_configuration, configuration_text(configuration).encode(), mode=0o644
    )
