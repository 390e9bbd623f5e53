"""How much room a VM's datastores have now, and how much of it merging the VM's redo logs may take.

Beside `inventory`, whose figures are as old as vSphere's last look.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from pyVmomi import vim

from holdfast_common.errors import CapabilityAbsent, VsphereFailed
from holdfast_controller.vsphere.devices import split_datastore_path
from holdfast_controller.vsphere.foreign import Reference, reference
from holdfast_controller.vsphere.properties import read_many, read_one
from holdfast_controller.vsphere.session import VsphereSession


@dataclass(frozen=True, slots=True, kw_only=True)
class FreeSpace:
    """One datastore's room, in bytes. ``redo_log_bytes``: what was written there above frozen links."""

    name: str
    capacity_bytes: int
    free_bytes: int
    redo_log_bytes: int


def read_free_space(
    session: VsphereSession,
    *,
    vm_moref: str,
    datastore_morefs: Iterable[str],
    frozen_links: Mapping[int, int],
) -> list[FreeSpace]:
    """The room of the datastores that can be reached; of the others nothing is known.

    ``frozen_links``: how many links of each disk (by device key) a snapshot of ours froze. Where vSphere
    does not measure anew, the figures are those that it has.
    Raises: VsphereFailed, SourceGone, CapabilityAbsent, TimedOut.
    """
    machine = reference(vim.VirtualMachine, vm_moref)
    stores = [reference(vim.Datastore, moref) for moref in sorted(set(datastore_morefs))]
    _measure_anew(session, machine, "RefreshStorageInfo")
    for store in stores:
        _measure_anew(session, store, "RefreshDatastore")
    redo_logs = _redo_log_bytes(session, machine, frozen_links)
    paths = ("name", "summary.capacity", "summary.freeSpace", "summary.accessible")
    return [
        FreeSpace(
            name=str(found.values.get("name") or found.moref),
            capacity_bytes=int(found.values.get("summary.capacity") or 0),
            free_bytes=int(found.values.get("summary.freeSpace") or 0),
            redo_log_bytes=redo_logs.get(str(found.values.get("name")), 0),
        )
        for found in read_many(session, stores, paths)
        if found.values.get("summary.accessible")
    ]


def _measure_anew(session: VsphereSession, target: Reference, method: str) -> None:
    try:
        session.call(target, method)
    except (CapabilityAbsent, VsphereFailed):
        return  # older figures are better than none; a vSphere that is away says so when it is read


def _redo_log_bytes(
    session: VsphereSession, machine: Reference, frozen_links: Mapping[int, int]
) -> Mapping[str, int]:
    """By datastore's name, which is good within one VM."""
    layout = read_one(session, machine, ["layoutEx.file", "layoutEx.disk"])
    files = {int(each.key): each for each in layout.get("layoutEx.file") or []}
    found: dict[str, int] = {}
    for disk in layout.get("layoutEx.disk") or []:
        frozen = frozen_links.get(int(disk.key))
        above = () if frozen is None else (disk.chain or ())[frozen:]
        for file in (files.get(int(key)) for link in above for key in link.fileKey):
            if file is not None:
                name, _ = split_datastore_path(str(file.name))
                found[name] = found.get(name, 0) + int(file.size or 0)
    return found
