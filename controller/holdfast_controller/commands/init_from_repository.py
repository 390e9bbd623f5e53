"""`holdfast init --from-repository`: a lost controller is brought back. Runs on the machine that shall be it."""

from __future__ import annotations

from dataclasses import asdict
from functools import partial
from pathlib import Path

import msgspec

from holdfast_common.clock import SystemClock, parse_utc
from holdfast_common.errors import UsageError
from holdfast_common.places import Places, private_folder
from holdfast_common.repository.directory_store import DirectoryStore
from holdfast_common.repository.hang_watch import watched_files, while_it_answers
from holdfast_common.repository.mount_probe import check_answers
from holdfast_common.repository.recipients import RecoveryUnlock, Unlock
from holdfast_common.trust.authority import load_authority
from holdfast_common.trust.controller_trust import save_credentials
from holdfast_common.trust.peer import Role, Subject
from holdfast_controller.commands.output import Output, note
from holdfast_controller.configuration import (
    ControllerConfiguration,
    check_addresses,
    configuration_text,
    decoded_configuration,
)
from holdfast_controller.runs.bring_back import BringingBack, BroughtBack, removed_leftovers

LISTED_MAX = 10


def bring_back(
    places: Places, folder: Path, unlock: Unlock, *, addresses: dict[str, str]
) -> BroughtBack:
    """All of it, or nothing that is left here. ``addresses``: fields of controller.toml that shall be others.

    Raises: as `BringingBack.carry_out`; TimedOut, NoRepository.
    """
    check_answers(folder)
    undo = removed_leftovers(places)
    try:
        return while_it_answers(partial(_brought_back, places, folder, unlock, addresses))
    except BaseException:
        undo()
        raise


def _brought_back(
    places: Places, folder: Path, unlock: Unlock, addresses: dict[str, str]
) -> BroughtBack:
    clock = SystemClock()
    with DirectoryStore.open(folder, files=watched_files(folder)) as store:
        bringing = BringingBack(places, folder, store, unlock=unlock, clock=clock)

        def configured(text: bytes) -> bytes:
            found = decoded_configuration(text)
            _make_administrator(places)
            if not addresses:
                return text
            changed: ControllerConfiguration = msgspec.structs.replace(found, **addresses)
            check_addresses(changed)
            return configuration_text(changed).encode()

        return bringing.carry_out(configured, sheet_was_typed=isinstance(unlock, RecoveryUnlock))


def _make_administrator(places: Places) -> None:
    """The first administrator's certificate lay in the home that is lost."""
    authority = load_authority(places.trust)
    administrator = authority.issue_with_key(
        Subject(role=Role.ADMINISTRATOR, name="administrator"), now=SystemClock().now()
    )
    private_folder(places.configuration / "operators")
    save_credentials(places.configuration / "operators" / "administrator.pem", administrator)


def check_only_secrets(*, given: dict[str, object]) -> None:
    """What belongs to making a repository does not go with one that is there. Raises: UsageError."""
    wrong = [name for name, value in given.items() if value]
    if wrong:
        raise UsageError(f"{' and '.join(wrong)} cannot be given with --from-repository")


def show_brought_back(found: BroughtBack, output: Output) -> None:
    """For people, what they have to look at; for programs all."""
    if output.as_json:
        output.document("brought_back", asdict(found))
    output.line(
        f"repository {found.repository_id}: controller epoch {found.controller_epoch},"
        f" key generation {found.key_generation}"
    )
    output.line(f"brought back from {found.copy_name}, made {found.copy_made_at[:19]} UTC")
    output.line(f"{found.points} restore points, {len(found.points_added)} of them newer")
    for text in _warnings(found):
        note(f"WARNING: {text}")
    note("the lost controller must not run any more: what it begins from now on is refused")
    note("next: holdfast controller run, then holdfast doctor")


def _warnings(found: BroughtBack) -> list[str]:
    told = [f"a newer copy cannot be used: {each}" for each in found.passed_over]
    if found.newest_point_at > found.copy_made_at:
        hours = (
            parse_utc(found.newest_point_at) - parse_utc(found.copy_made_at)
        ).total_seconds() / 3600
        told.append(
            f"the newest point is {hours:.1f} h younger than the copy: what was changed in between (policies, vCenters,"
            " accounts) has to be changed again; snapshots that the lost controller made since are not known to this one"
        )
    if found.points_missing:
        told.append(
            f"{len(found.points_missing)} points that the copy knows are not in the repository, forgotten since or lost:"
            f" {_listed(found.points_missing)}; `holdfast repo forget` takes them from the list"
        )
    if found.agents_revoked:
        told.append(f"revoked since, and revoked again: {_listed(found.agents_revoked)}")
    if found.agents_unknown:
        told.append(
            f"agents that the copy does not know must be enrolled again: {_listed(found.agents_unknown)}"
        )
    return told


def _listed(names: tuple[str, ...]) -> str:
    more = f" and {len(names) - LISTED_MAX} more" if len(names) > LISTED_MAX else ""
    return ", ".join(names[:LISTED_MAX]) + more
