"""Folders made for a restore: ledger first, deleted with all that is in them unless the restore succeeds."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from holdfast_common.errors import (
    CapabilityAbsent,
    HoldfastError,
    Refused,
    SourceGone,
    VsphereUnavailable,
)
from holdfast_controller.ledger import (
    EntryId,
    EntryKind,
    JobLedger,
    LedgerEntry,
    check_undo_order,
)
from holdfast_controller.vsphere.datastore_files import DatastorePlace, place_of
from holdfast_controller.vsphere.datastore_folders import (
    already_exists,
    delete_path,
    exists,
    list_folder,
    make_folder,
)
from holdfast_controller.vsphere.inventory import read_datastore, read_surroundings
from holdfast_controller.vsphere.session import VsphereSession

log = logging.getLogger(__name__)

NAMES_TRIED_MAX: Final = 50


@contextmanager
def new_folder(
    session: VsphereSession,
    ledger: JobLedger,
    *,
    place: DatastorePlace,
    wanted: str,
    keep: bool = True,
) -> Iterator[str]:
    """A new folder's name on a datastore: ``wanted``, or that with a number. Never one that exists.

    It stays when the block ends well (and ``keep``). Raises: Refused, VsphereFailed and its kin.
    """
    folder = _free_name(session, place, wanted)
    entry_id = ledger.intend(
        EntryKind.FOLDER,
        {"datastore": place.moref, "datastore_id": place.datastore_id, "path": folder},
    )
    try:
        _make(session, place, folder)
        ledger.ledger.made(entry_id, {"made": "yes"})
        yield folder
    except BaseException:
        _give_up(session, ledger, entry_id)
        raise
    if keep:
        ledger.ledger.kept(entry_id)
    else:
        _give_up(session, ledger, entry_id)


def delete_own_folder(session: VsphereSession, entry: LedgerEntry) -> None:
    """Delete the folder of a ledger entry with what is in it; harmless when it is gone.

    One that was only intended (a debt may be, too) is deleted only when it is empty: it may be
    somebody else's. A folder on a datastore that the vCenter no longer has is gone; on one that
    cannot be reached now it is not. Raises: VsphereUnavailable, CapabilityAbsent, VsphereFailed.
    """
    place = _place_today(session, entry)
    if place is None:
        log.info(
            "a folder of ours went with its datastore",
            extra={"datastore": entry.fact("datastore"), "path": entry.fact("path")},
        )
        return
    path = entry.fact("path")
    if not entry.fact("made") and list_folder(session, place, path):
        return
    if exists(session, place, path):
        delete_path(session, place, path)


def _place_today(session: VsphereSession, entry: LedgerEntry) -> DatastorePlace | None:
    """Where an entry's datastore is now, also when it was mounted anew; None: there is none any more.

    Raises: VsphereUnavailable when it is there and cannot be reached; CapabilityAbsent when it is
    hidden from us.
    """
    moref, lasting_id = entry.fact("datastore"), entry.fact("datastore_id")
    try:
        around = read_datastore(session, moref)
        store = around.names.by_moref[moref]
    except SourceGone:
        around = read_surroundings(session)
        same = [each for each in around.names.by_moref.values() if each.datastore_id == lasting_id]
        if not same or not lasting_id:
            return None
        store = same[0]
    if not store.name:
        raise CapabilityAbsent(
            "a datastore with a folder of ours is not shown to the account",
            datastore=moref,
            advice="give the account back its rights on it",
        )
    if not store.accessible:
        raise VsphereUnavailable(
            "a datastore with a folder of ours cannot be reached", datastore=store.name
        )
    return place_of(around, store.moref)


def _free_name(session: VsphereSession, place: DatastorePlace, wanted: str) -> str:
    for number in range(NAMES_TRIED_MAX):
        name = wanted if number == 0 else f"{wanted}_{number}"
        if not exists(session, place, name):
            return name
    raise Refused("no free folder name on the datastore", wanted=wanted, datastore=place.name)


def _make(session: VsphereSession, place: DatastorePlace, folder: str) -> None:
    try:
        make_folder(session, place, folder)
    except VsphereUnavailable:
        # the reply was lost: an empty folder of this name, which was free before, is ours
        if list_folder(session, place, folder) is None:
            make_folder(session, place, folder)
    except HoldfastError as error:
        if not already_exists(error) or list_folder(session, place, folder):
            raise


def _give_up(session: VsphereSession, ledger: JobLedger, entry_id: EntryId) -> None:
    entry = ledger.ledger.entry(entry_id)
    try:
        check_undo_order(ledger.ledger, entry)
        delete_own_folder(session, entry)
    except HoldfastError as error:
        log.warning("a folder of ours could not be deleted", extra={"error": str(error)})
        ledger.ledger.debt(entry_id, error.line())
    else:
        ledger.ledger.gone(entry_id)
