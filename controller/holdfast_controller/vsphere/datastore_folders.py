"""Folders and files of datastores by vSphere's own tasks: make, look, move, delete what is ours."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from pyVmomi import vim

from holdfast_common.errors import HoldfastError, VsphereFailed, VsphereUnavailable
from holdfast_controller.vsphere import faults, properties
from holdfast_controller.vsphere.datastore_files import DatastorePlace
from holdfast_controller.vsphere.effects import run_task
from holdfast_controller.vsphere.foreign import Foreign, Reference, reference
from holdfast_controller.vsphere.session import VsphereSession

FILE_TASK_TIMEOUT_SECONDS: Final = 1800.0
_EXISTS: Final = frozenset({"FileAlreadyExists", "AlreadyExists"})
_MISSING: Final = frozenset({"FileNotFound", "InvalidDatastorePath", "NotFound"})


@dataclass(frozen=True, slots=True, kw_only=True)
class FoundFile:
    """One entry of a folder; folders have their own name too and a length of 0."""

    name: str
    length: int
    is_folder: bool


def list_folder(
    session: VsphereSession, place: DatastorePlace, folder: str
) -> list[FoundFile] | None:
    """What lies in a folder of a datastore; None when there is no such folder. Raises: VsphereFailed."""
    browser = properties.read_one(session, reference(vim.Datastore, place.moref), ["browser"])
    spec = vim.host.DatastoreBrowser.SearchSpec(
        # without a pattern some servers find nothing, which would read as "there is nothing"
        matchPattern=["*"],
        details=vim.host.DatastoreBrowser.FileInfo.Details(
            fileType=True, fileSize=True, modification=False, fileOwner=False
        ),
    )

    def search() -> Foreign:
        task = session.call(
            browser["browser"],
            "SearchDatastore_Task",
            datastorePath=place.path(folder),
            searchSpec=spec,
        )
        found = session.wait_for_task(task, what=f"looking into {place.path(folder)}")
        if found is None:
            raise VsphereUnavailable("a search ended without its answer", folder=place.path(folder))
        return found

    try:
        # searching changes nothing: after a lost reply it is simply done again
        found = session.patiently(search)
    except VsphereFailed as error:
        if faults.fault_name(error) in _MISSING:
            return None
        raise
    kind = vim.host.DatastoreBrowser.FolderInfo
    return [
        FoundFile(
            name=str(each.path), length=int(each.fileSize or 0), is_folder=isinstance(each, kind)
        )
        for each in found.file or []
    ]


def make_folder(session: VsphereSession, place: DatastorePlace, folder: str) -> None:
    """Make a folder; one that exists is an error, because it is not ours. Raises: VsphereFailed.

    After a lost reply the folder is looked for; it counts as ours only while it is empty.
    """
    session.call(
        _file_manager(session),
        "MakeDirectory",
        name=place.path(folder),
        datacenter=_datacenter(place),
        createParentDirectories=False,
    )


def delete_path(session: VsphereSession, place: DatastorePlace, path: str) -> None:
    """Delete a file, or a folder with what is in it; one that is missing is done. Raises: VsphereFailed.

    Only for paths that the ledger names as ours.
    """
    if not path.strip("/ ") or ".." in path.split("/"):
        raise VsphereFailed("will not delete a whole datastore", path=place.path(path))

    def landed() -> bool | None:
        return None if exists(session, place, path) else True

    try:
        run_task(
            session,
            _file_manager(session),
            "DeleteDatastoreFile_Task",
            what=f"deleting {place.path(path)}",
            landed=landed,
            busy=reference(vim.Datastore, place.moref),
            timeout_seconds=FILE_TASK_TIMEOUT_SECONDS,
            name=place.path(path),
            datacenter=_datacenter(place),
        )
    except HoldfastError as error:
        if faults.fault_name(error) not in _MISSING:
            raise


def exists(session: VsphereSession, place: DatastorePlace, path: str) -> bool:
    """Whether a file or folder is there. Raises: VsphereFailed."""
    folder, _, name = path.rstrip("/").rpartition("/")
    found = list_folder(session, place, folder)
    return found is not None and any(each.name == name for each in found)


def already_exists(error: HoldfastError) -> bool:
    """Whether an error says that the name is taken."""
    return faults.fault_name(error) in _EXISTS


def _file_manager(session: VsphereSession) -> Reference:
    return session.content().fileManager


def _datacenter(place: DatastorePlace) -> Reference:
    return reference(vim.Datacenter, place.datacenter_moref) if place.datacenter_moref else None
