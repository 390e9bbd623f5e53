"""The datastore browser: what lies in a folder, and in the folders below."""

from __future__ import annotations

import fnmatch
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pyVmomi import VmomiSupport, vim

from holdfast_lab.datastore_files import check_files_unused
from holdfast_lab.datastores import DatastoreBrowser
from holdfast_lab.faults import file_not_found, invalid_argument
from holdfast_lab.hosts import HostBrowser
from holdfast_lab.method_registry import Call, soap_method
from holdfast_lab.storage.descriptor import Descriptor, load
from holdfast_lab.storage.errors import DescriptorError
from holdfast_lab.wire_types import WireObject

if TYPE_CHECKING:
    from holdfast_lab.datastores import Datastore

Browser = vim.host.DatastoreBrowser
KIB = 1024
EXTENT_ENDINGS = ("-flat.vmdk", "-delta.vmdk", "-sesparse.vmdk", "-ctk.vmdk", "-rdmp.vmdk")
INFO_BY_ENDING: Sequence[tuple[str, Any]] = (
    (".vmx", Browser.VmConfigInfo),
    (".vmtx", Browser.TemplateVmConfigInfo),
    (".vmsn", Browser.VmSnapshotInfo),
    (".nvram", Browser.VmNvramInfo),
    (".log", Browser.VmLogInfo),
    (".iso", Browser.IsoImageInfo),
    (".flp", Browser.FloppyImageInfo),
)
QUERY_BY_INFO: Sequence[tuple[Any, Any]] = (
    (Browser.VmDiskInfo, Browser.VmDiskQuery),
    (Browser.VmConfigInfo, Browser.VmConfigQuery),
    (Browser.TemplateVmConfigInfo, Browser.TemplateVmConfigQuery),
    (Browser.VmSnapshotInfo, Browser.VmSnapshotQuery),
    (Browser.VmNvramInfo, Browser.VmNvramQuery),
    (Browser.VmLogInfo, Browser.VmLogQuery),
    (Browser.IsoImageInfo, Browser.IsoImageQuery),
    (Browser.FloppyImageInfo, Browser.FloppyImageQuery),
    (Browser.FolderInfo, Browser.FolderQuery),
)


@soap_method("SearchDatastore_Task")
def search_folder(call: Call) -> vim.Task:
    """List one folder."""
    return _search(call, below=False)


@soap_method("SearchDatastoreSubFolders_Task")
def search_folders(call: Call) -> vim.Task:
    """List a folder and all folders below it."""
    return _search(call, below=True)


@soap_method("DeleteFile")
def delete_file(call: Call) -> None:
    """The old way to delete one file."""
    name = call.arguments.text("datastorePath")
    _datastore, local = call.lab.resolve(name)
    if not local.is_file():
        raise file_not_found(name)
    check_files_unused(call.lab, local)
    local.unlink()


def _search(call: Call, *, below: bool) -> vim.Task:
    name = call.arguments.text("datastorePath")
    spec = call.arguments.optional("searchSpec", Browser.SearchSpec) or Browser.SearchSpec()
    datastore, folder = call.lab.resolve(name)
    browser = call.lab.find(call.this)
    if isinstance(browser, DatastoreBrowser) and browser.datastore is not datastore:
        raise invalid_argument("datastorePath", f"{name} is on another datastore")
    if isinstance(browser, HostBrowser) and datastore not in browser.host.datastores():
        raise invalid_argument("datastorePath", f"{name} is not mounted on the host")

    def body(_task: object) -> object:
        if not folder.is_dir():
            raise file_not_found(name)
        if not below:
            return _found_in(datastore, folder, spec)
        folders = [folder, *sorted(path for path in folder.rglob("*") if path.is_dir())]
        results = [_found_in(datastore, each, spec) for each in folders]
        return VmomiSupport.CreateArrayType(Browser.SearchResults)(results)

    what = "SearchDatastoreSubFolders" if below else "SearchDatastore"
    return call.lab.tasks.start(
        datastore,
        f"host.DatastoreBrowser.{what[0].lower()}{what[1:]}",
        body,
        session=call.session,
        exclusive=False,
    )


def _found_in(datastore: Datastore, folder: Path, spec: Browser.SearchSpec) -> WireObject:
    entries = []
    for path in folder.iterdir():
        try:
            described = _described(path, spec)
        except FileNotFoundError:
            continue  # gone in the meantime
        if described is not None:
            entries.append(described)
    entries.sort(
        key=lambda each: (
            not (spec.sortFoldersFirst and isinstance(each, Browser.FolderInfo)),
            each.path,
        )
    )
    folder_path = datastore.path_of(folder)
    if not folder_path.endswith("]"):
        folder_path += "/"
    return Browser.SearchResults(datastore=datastore.ref, folderPath=folder_path, file=entries)


def _described(path: Path, spec: Browser.SearchSpec) -> WireObject | None:
    if spec.matchPattern and not any(
        _matches(path.name, pattern, ignore_case=bool(spec.searchCaseInsensitive))
        for pattern in spec.matchPattern
    ):
        return None
    descriptor = _descriptor_of(path)
    kind = _kind_of(path, descriptor)
    query = None
    if spec.query:
        wanted = next((query for info, query in QUERY_BY_INFO if info is kind), None)
        query = next((each for each in spec.query if type(each) in (wanted, Browser.Query)), None)
        if query is None:
            return None
    found = kind(path=path.name)
    details = spec.details
    if details is not None and details.fileSize:
        found.fileSize = _size(path, descriptor)
    if details is not None and details.modification:
        found.modification = datetime.fromtimestamp(path.stat().st_mtime, UTC)
    if details is not None and details.fileOwner:
        found.owner = "root"
    if descriptor is not None and isinstance(query, Browser.VmDiskQuery):
        _add_disk_details(found, path, descriptor, query)
    return found


def _matches(name: str, pattern: str, *, ignore_case: bool) -> bool:
    if ignore_case:
        name, pattern = name.lower(), pattern.lower()
    return fnmatch.fnmatchcase(name, pattern)


def _kind_of(path: Path, descriptor: Descriptor | None) -> WireObject:
    if path.is_dir():
        return Browser.FolderInfo
    if descriptor is not None:
        return Browser.VmDiskInfo
    return next(
        (kind for ending, kind in INFO_BY_ENDING if path.name.endswith(ending)), Browser.FileInfo
    )


def _descriptor_of(path: Path) -> Descriptor | None:
    if not path.name.endswith(".vmdk") or path.name.endswith(EXTENT_ENDINGS) or path.is_dir():
        return None
    try:
        return load(path)
    except (DescriptorError, OSError):
        return None


def _size(path: Path, descriptor: Descriptor | None) -> int:
    """A disk's size is what its data takes; any other file's its length."""
    if descriptor is None:
        return path.stat().st_size
    data = path.with_name(descriptor.extent_name)
    return data.stat().st_blocks * 512 if data.exists() else path.stat().st_size


def _add_disk_details(
    found: WireObject, path: Path, descriptor: Descriptor, query: Browser.VmDiskQuery
) -> None:
    wanted = query.details
    if wanted is None:
        return
    if wanted.diskType:
        found.diskType = vim.vm.device.VirtualDisk.FlatVer2BackingInfo
    if wanted.capacityKb:
        found.capacityKb = descriptor.capacity_bytes // KIB
    if wanted.hardwareVersion:
        found.hardwareVersion = 19
    if wanted.controllerType:
        found.controllerType = (
            vim.vm.device.VirtualIDEController
            if descriptor.adapter == "ide"
            else vim.vm.device.VirtualLsiLogicController
        )
    if wanted.diskExtents:
        found.diskExtents = [descriptor.extent_name]
    if wanted.thin:
        found.thin = descriptor.thin
