"""Small files of datastores over HTTPS (`/folder`): pinned, with the login's cookie, whole or not at all.

Whole disks never pass here. Files beside a VM are the live ones, not the snapshot's.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Final
from urllib.parse import quote

from pyVmomi import vim

from holdfast_common.errors import (
    CapabilityAbsent,
    HoldfastError,
    NotFound,
    SourceGone,
    VsphereFailed,
    VsphereUnavailable,
)
from holdfast_common.formats.vmx import parse_vmx
from holdfast_common.identity import DatastoreId
from holdfast_common.units import MIB
from holdfast_controller.facts import ChainLink, VmFacts
from holdfast_controller.vsphere import faults, inventory, properties
from holdfast_controller.vsphere.foreign import reference
from holdfast_controller.vsphere.inventory import Surroundings
from holdfast_controller.vsphere.pinning import pinned_connection
from holdfast_controller.vsphere.session import VsphereSession

FILE_BYTES_MAX: Final = 4 * MIB  # .vmx some KiB, NVRAM at most some hundred KiB
REQUEST_TIMEOUT_SECONDS: Final = 60.0
LOGINS_OF_ONE_REQUEST_MAX: Final = 2
RIGHTS: Final = "give the account Datastore.Browse and Datastore.FileManagement"
_KINDS: Final[Mapping[str, str]] = {"config": "vmx", "nvram": "nvram"}
_OK: Final = frozenset({200, 201, 204})


@dataclass(frozen=True, slots=True, kw_only=True)
class VmFile:
    """A file of a VM that is no disk; ``kind`` is vmx or nvram."""

    kind: str
    name: str
    data: bytes = field(repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class DatastorePlace:
    """A datastore as files are asked for: by name within a datacenter's inventory path.

    ``datastore_id`` stays the same when it is mounted anew; ``moref`` may not.
    """

    name: str
    moref: str
    datastore_id: DatastoreId
    datacenter_moref: str
    datacenter_path: str

    def path(self, path: str) -> str:
        """``[name] path``."""
        return f"[{self.name}] {path}".rstrip()


def place_of(around: Surroundings, datastore_moref: str) -> DatastorePlace:
    """Where a datastore is. Raises: NotFound."""
    store = around.names.by_moref.get(datastore_moref)
    if store is None:
        raise NotFound("there is no such datastore", moref=datastore_moref)
    datacenter = around.places.get(store.datacenter_moref)
    return DatastorePlace(
        name=store.name,
        moref=store.moref,
        datastore_id=store.datastore_id,
        datacenter_moref=store.datacenter_moref,
        datacenter_path=datacenter.inventory_path if datacenter else "",
    )


def read_place(session: VsphereSession, datastore_moref: str) -> DatastorePlace:
    """Where a datastore is now, asked of vSphere. Raises: NotFound."""
    try:
        around = inventory.read_datastore(session, datastore_moref)
    except SourceGone as error:
        raise NotFound("there is no such datastore", moref=datastore_moref) from error
    return place_of(around, datastore_moref)


@dataclass(frozen=True, slots=True, kw_only=True)
class VmFileName:
    """Where a file of a VM lies. ``required``: a missing one is a problem, not just absent."""

    kind: str
    link: ChainLink
    required: bool


def vm_file_names(
    session: VsphereSession, vm: VmFacts, around: Surroundings
) -> tuple[VmFileName, ...]:
    """The VM's .vmx and NVRAM as vSphere knows them: the .vmx first. Raises: SourceGone."""
    machine = reference(vim.VirtualMachine, vm.moref)
    layout = properties.read_one(session, machine, ["layoutEx.file"]).get("layoutEx.file") or []
    found = {str(each.name): _KINDS[str(each.type)] for each in layout if str(each.type) in _KINDS}
    if vm.vmx is not None:
        found.setdefault(vm.vmx.name, "vmx")
    return tuple(
        VmFileName(kind=kind, link=around.names.link(name, _datastore_of(vm, name)), required=True)
        for name, kind in sorted(found.items(), key=lambda item: (item[1] != "vmx", item[0]))
    )


def nvram_beside(vmx: VmFileName, data: bytes) -> VmFileName | None:
    """The NVRAM that a .vmx names; None: it names none. Raises: FormatError, VsphereFailed."""
    name = parse_vmx(data).nvram_name
    if not name:
        return None
    if "/" in name or name == "..":
        raise VsphereFailed("the .vmx names an NVRAM outside of its folder", nvram=name[:200])
    folder = vmx.link.path.rpartition("/")[0]
    path = f"{folder}/{name}" if folder else name
    # a VM that never ran names a file that is not there yet
    return VmFileName(kind="nvram", link=replace(vmx.link, path=path), required=False)


def read_vm_file(session: VsphereSession, name: VmFileName, around: Surroundings) -> VmFile | None:
    """One file of a VM, whole; None: it is absent and need not be there.

    Raises: NotFound, CapabilityAbsent, VsphereFailed and its kin.
    """
    if ".." in name.link.path.split("/"):
        raise VsphereFailed("a VM's file is named outside of its datastore", file=name.link.name)
    place = place_of(around, name.link.datastore_moref)
    try:
        data = download(session, place, name.link.path)
    except NotFound:
        if name.required:
            raise
        return None
    return VmFile(kind=name.kind, name=name.link.name, data=data)


def read_vm_files(session: VsphereSession, vm: VmFacts) -> tuple[VmFile, ...]:
    """All files of `vm_file_names`, or none. Raises: what `read_vm_file` raises."""
    _, around = inventory.read_vm_around(session, vm.moref)
    names = vm_file_names(session, vm, around)
    found = [read_vm_file(session, name, around) for name in names]
    return tuple(file for file in found if file is not None)


def download(session: VsphereSession, place: DatastorePlace, path: str) -> bytes:
    """A small file, whole. Raises: NotFound, CapabilityAbsent, VsphereFailed, VsphereUnavailable."""
    return session.patiently(lambda: _request(session, "GET", place, path, None))


def upload(session: VsphereSession, place: DatastorePlace, path: str, data: bytes) -> None:
    """Write a small file, replacing one of that name; doing it twice is harmless.

    Raises: CapabilityAbsent, VsphereFailed, VsphereUnavailable.
    """
    if len(data) > FILE_BYTES_MAX:
        raise VsphereFailed("a file is too large for this way", file=path, length=len(data))
    session.patiently(lambda: _request(session, "PUT", place, path, data))


def _datastore_of(vm: VmFacts, name: str) -> str:
    """The datastore's moref where a name of the VM's own files says it without doubt."""
    links: list[ChainLink] = [link for disk in vm.disks for link in disk.chain]
    if vm.vmx is not None:
        links.insert(0, vm.vmx)
    for link in links:
        if link.datastore_moref and name.startswith(f"[{link.datastore_name}]"):
            return link.datastore_moref
    return ""


def _request(
    session: VsphereSession, method: str, place: DatastorePlace, path: str, data: bytes | None
) -> bytes:
    url = (
        f"/folder/{quote(path)}?dcPath={quote(place.datacenter_path, safe='')}"
        f"&dsName={quote(place.name, safe='')}"
    )
    name = place.path(path)
    for _ in range(LOGINS_OF_ONE_REQUEST_MAX):
        try:
            return session.through_gate(
                f"{method} /folder", name, lambda: _exchange(session, method, url, name, data)
            )
        except faults.SessionLost as error:
            lost = error
            # a call notices the lost login and makes a new one
            session.call(reference(vim.ServiceInstance, "ServiceInstance"), "CurrentTime")
    raise CapabilityAbsent(
        f"{method} {name}: the login is not accepted for files of datastores", advice=RIGHTS
    ) from lost


def _exchange(
    session: VsphereSession, method: str, url: str, name: str, data: bytes | None
) -> bytes:
    address = session.address
    headers = {"Cookie": session.cookie()}
    if data is not None:
        headers["Content-Type"] = "application/octet-stream"
    connection = pinned_connection(
        address.host,
        address.port,
        certificate_sha256=address.certificate_sha256,
        timeout_seconds=REQUEST_TIMEOUT_SECONDS,
    )
    try:
        connection.request(method, url, body=data, headers=headers)
        answer = connection.getresponse()
        body = answer.read(FILE_BYTES_MAX + 1)
        wanted = answer.getheader("Content-Length")
        chunked = bool(answer.getheader("Transfer-Encoding"))  # its end is marked
    except faults.CONNECTION_ERRORS as error:
        raise faults.connection_error(error, what=f"{method} {name}") from error
    finally:
        connection.close()
    if answer.status not in _OK:
        raise _status_error(answer.status, body, what=f"{method} {name}")
    if len(body) > FILE_BYTES_MAX:
        raise VsphereFailed("a file is larger than it can be", file=name)
    if method == "GET" and not chunked and wanted != str(len(body)):
        raise VsphereUnavailable("a file did not arrive whole", file=name, wanted=wanted)
    return body


def _status_error(status: int, body: bytes, *, what: str) -> HoldfastError:
    text = body[:200].decode("utf-8", "replace").strip()
    if status == 401:
        return faults.SessionLost(f"{what}: the login was not accepted", status=status)
    if status == 403:
        return CapabilityAbsent(f"{what}: the account lacks a right", advice=RIGHTS, status=status)
    if status == 404:
        return NotFound(f"{what}: there is no such file", status=status)
    if status in (502, 503, 504):
        return VsphereUnavailable(f"{what}: vSphere does not answer", status=status)
    return VsphereFailed(f"{what} failed: {text}" if text else f"{what} failed", status=status)
