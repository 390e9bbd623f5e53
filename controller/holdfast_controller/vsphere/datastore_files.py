"""Small files of datastores over HTTPS (`/folder`): pinned, with the login's cookie, whole or not at all.

Whole disks never pass here. Files beside a VM are the live ones, not the snapshot's.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final
from urllib.parse import quote

from pyVmomi import vim

from holdfast_common.errors import (
    CapabilityAbsent,
    HoldfastError,
    NotFound,
    VsphereFailed,
    VsphereUnavailable,
)
from holdfast_common.units import MIB
from holdfast_controller.facts import ChainLink, VmFacts
from holdfast_controller.vsphere import faults, inventory, properties
from holdfast_controller.vsphere.foreign import reference
from holdfast_controller.vsphere.inventory import Surroundings
from holdfast_controller.vsphere.pinning import pinned_connection
from holdfast_controller.vsphere.session import VsphereSession

FILE_BYTES_MAX: Final = 64 * MIB  # .vmx some KiB, NVRAM at most a few MiB
REQUEST_TIMEOUT_SECONDS: Final = 60.0
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
    """A datastore as files are asked for: by name within a datacenter's inventory path."""

    name: str
    moref: str
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
        datacenter_moref=store.datacenter_moref,
        datacenter_path=datacenter.path.strip("/") if datacenter else "",
    )


def read_vm_files(session: VsphereSession, vm: VmFacts) -> tuple[VmFile, ...]:
    """The VM's .vmx and NVRAM as they are now (a VM that never ran has no NVRAM).

    Raises: VsphereFailed and its kin, CapabilityAbsent.
    """
    machine = reference(vim.VirtualMachine, vm.moref)
    layout = properties.read_one(session, machine, ["layoutEx.file"]).get("layoutEx.file") or []
    around = inventory.read_surroundings(session)
    names = {str(each.name): _KINDS[str(each.type)] for each in layout if str(each.type) in _KINDS}
    if vm.vmx is not None:
        names.setdefault(vm.vmx.name, "vmx")
    found = []
    for name, kind in sorted(names.items()):
        link = around.names.link(name, _datastore_of(vm, name))
        data = download(session, place_of(around, link.datastore_moref), link.path)
        found.append(VmFile(kind=kind, name=link.name, data=data))
    return tuple(found)


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
        if name.startswith(f"[{link.datastore_name}]"):
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
    return session.through_gate(
        f"{method} /folder", name, lambda: _exchange(session, method, url, name, data)
    )


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
    except faults.CONNECTION_ERRORS as error:
        raise faults.connection_error(error, what=f"{method} {name}") from error
    finally:
        connection.close()
    if answer.status not in _OK:
        raise _status_error(session, answer.status, body, what=f"{method} {name}")
    if len(body) > FILE_BYTES_MAX:
        raise VsphereFailed("a file is larger than it can be", file=name)
    if method == "GET" and wanted is not None and int(wanted) != len(body):
        raise VsphereUnavailable("a file arrived cut short", file=name)
    return body


def _status_error(session: VsphereSession, status: int, body: bytes, *, what: str) -> HoldfastError:
    text = body[:200].decode("utf-8", "replace").strip()
    if status == 401:
        # a call notices the lost login and makes a new one; then the request is made again
        session.call(reference(vim.ServiceInstance, "ServiceInstance"), "CurrentTime")
        return VsphereUnavailable(f"{what}: the login was not accepted", status=status)
    if status == 403:
        return CapabilityAbsent(
            f"{what}: the account lacks a right",
            advice="give it Datastore.Browse and Datastore.FileManagement",
            status=status,
        )
    if status == 404:
        return NotFound(f"{what}: there is no such file", status=status)
    if status in (502, 503, 504):
        return VsphereUnavailable(f"{what}: vSphere does not answer", status=status)
    return VsphereFailed(f"{what} failed: {text}" if text else f"{what} failed", status=status)
