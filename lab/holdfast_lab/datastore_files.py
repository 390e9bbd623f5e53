"""FileManager: folders made, files moved, copied and deleted on datastores, as files.

A disk's descriptor moved as a plain file leaves its data behind, as with ESXi; whole disks are the
business of ``virtual_disks``.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from pyVmomi import vim

from holdfast_lab.datastore_paths import parse_datastore_path
from holdfast_lab.disk_locks import locked, uses_of
from holdfast_lab.faults import SoapFault, file_not_found, invalid_datastore_path
from holdfast_lab.method_registry import Call, soap_method
from holdfast_lab.storage.flat import copy_data

if TYPE_CHECKING:
    from holdfast_lab.lab import Lab


@soap_method("MakeDirectory")
def make_directory(call: Call) -> None:
    """Make a folder. Raises: SoapFault (FileAlreadyExists, FileNotFound)."""
    name = call.arguments.text("name")
    _datastore, local = call.lab.resolve(name)
    if local.exists():
        raise exists_already(name)
    if not local.parent.is_dir():
        if not call.arguments.flag("createParentDirectories", default=False):
            raise file_not_found(_parent_name(name))
        local.parent.mkdir(parents=True)
    local.mkdir()


@soap_method("DeleteDatastoreFile_Task")
def delete_file(call: Call) -> vim.Task:
    """Delete a file, or a folder with all that is in it."""
    name = call.arguments.text("name")
    datastore, local = call.lab.resolve(name)

    def body(_task: object) -> None:
        with call.lab.lock:
            if not local.exists():
                raise file_not_found(name)
            if local == datastore.root:
                raise invalid_datastore_path(name)
            check_files_unused(call.lab, local)
        if local.is_dir():
            shutil.rmtree(local)
        else:
            local.unlink()

    return call.lab.tasks.start(
        datastore, "FileManager.deleteFile", body, session=call.session, exclusive=False
    )


@soap_method("MoveDatastoreFile_Task")
def move_file(call: Call) -> vim.Task:
    """Move or rename a file or a folder."""
    return _transfer(call, moves=True)


@soap_method("CopyDatastoreFile_Task")
def copy_file(call: Call) -> vim.Task:
    """Copy a file or a folder."""
    return _transfer(call, moves=False)


def _transfer(call: Call, *, moves: bool) -> vim.Task:
    source_name = call.arguments.text("sourceName")
    target_name = call.arguments.text("destinationName")
    force = call.arguments.flag("force", default=False)
    source_store, source = call.lab.resolve(source_name)
    target_store, target = call.lab.resolve(target_name)

    def body(_task: object) -> None:
        with call.lab.lock:
            if not source.exists():
                raise file_not_found(source_name)
            if target.exists() and not (force and target.is_file()):
                raise exists_already(target_name)
            if not target.parent.is_dir():
                raise file_not_found(_parent_name(target_name))
            if moves:
                check_files_unused(call.lab, source)
            if target.exists():
                check_files_unused(call.lab, target)
        if not moves or source.stat().st_dev != target.parent.stat().st_dev:
            target_store.check_space(stored_bytes(source))
        if moves and source_store is target_store:
            source.replace(target)
            return
        copy_tree(source, target)
        if moves:
            shutil.rmtree(source) if source.is_dir() else source.unlink()

    name = "FileManager.moveFile" if moves else "FileManager.copyFile"
    return call.lab.tasks.start(target_store, name, body, session=call.session, exclusive=False)


def _parent_name(name: str) -> str:
    return str(parse_datastore_path(name).parent)


def exists_already(name: str) -> SoapFault:
    """The fault for a name that is taken."""
    return SoapFault(vim.fault.FileAlreadyExists(file=name), f"File {name} already exists")


def check_files_unused(lab: Lab, local: Path) -> None:
    """Is no file below open by a running VM or a transfer? Needs the lock. Raises: SoapFault."""
    wanted = set(files_below(local))
    for disk in lab.disks.known():
        for link in disk.all_links:
            if wanted.isdisjoint(file.resolve() for file in disk.files(link)):
                continue
            if uses_of(lab, disk, link):
                raise locked(lab, link, "it is in use by a running VM")
    for file in lab.file_locks.held():
        if file in wanted:
            raise locked(lab, file, "it is being transferred")
    for machine in lab.machines():
        if machine.powered_on and machine.vmx.resolve() in wanted:
            raise locked(lab, machine.vmx, f"{machine.name} runs")


def files_below(local: Path) -> Iterator[Path]:
    """The file, or all files in the folder, with symbolic links followed."""
    if local.is_dir():
        yield from (path.resolve() for path in local.rglob("*") if path.is_file())
    else:
        yield local.resolve()


def stored_bytes(local: Path) -> int:
    """What the file or folder takes, holes not counted."""
    return sum(file.stat().st_blocks * 512 for file in files_below(local))


def copy_tree(source: Path, target: Path) -> None:
    """Copy a file or folder; holes stay holes."""
    if source.is_dir():
        target.mkdir()
        for entry in sorted(source.iterdir()):
            copy_tree(entry, target / entry.name)
        return
    with source.open("rb") as reading, target.open("wb") as writing:
        size = os.fstat(reading.fileno()).st_size
        os.ftruncate(writing.fileno(), size)
        copy_data(reading.fileno(), writing.fileno(), size)
