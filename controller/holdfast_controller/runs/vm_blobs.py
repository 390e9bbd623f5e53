"""What a restore point holds of a VM besides disks; what cannot be had is a warning, never silence.

After the snapshot, before the agent's job. The files are the live ones: vSphere keeps no frozen ones.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Final

from holdfast_common.errors import CapabilityAbsent, FormatError, NotFound, VsphereFailed
from holdfast_common.job_result import Warned
from holdfast_common.job_spec import Blob
from holdfast_common.units import MIB, size_text
from holdfast_controller.facts import SnapshotFacts, VmFacts
from holdfast_controller.runs.vm_ovf import KIND, ovf_blob
from holdfast_controller.vsphere import datastore_files, inventory
from holdfast_controller.vsphere.datastore_files import VmFile, VmFileName
from holdfast_controller.vsphere.inventory import Surroundings
from holdfast_controller.vsphere.session import VsphereSession

# They travel within the message that starts the agent's job, which takes 4 MiB in all.
BLOBS_BYTES_MAX: Final = 3 * MIB
NOTE: Final = "live file, read after the snapshot"
_UNREADABLE: Final = (CapabilityAbsent, FormatError, NotFound, VsphereFailed)


@dataclass(frozen=True, slots=True, kw_only=True)
class VmBlobs:
    """What was read, and a warning for each file that the point will lack."""

    blobs: tuple[Blob, ...]
    warnings: tuple[Warned, ...]


def read_blobs(session: VsphereSession, vm: VmFacts) -> VmBlobs:
    """The VM's .vmx and NVRAM. Raises: SourceGone."""
    blobs: list[Blob] = []
    warnings: list[Warned] = []
    for found in _found(session, vm):
        size = sum(len(blob.data) for blob in blobs)
        if isinstance(found, Warned):
            warnings.append(found)
        elif size + len(found.data) > BLOBS_BYTES_MAX:
            warnings.append(_lacking(found.kind, f"it is too large: {size_text(len(found.data))}"))
        else:
            blobs.append(Blob(kind=found.kind, data=found.data, note=NOTE))
    return VmBlobs(blobs=tuple(blobs), warnings=tuple(warnings))


def with_ovf(found: VmBlobs, snapshot: SnapshotFacts) -> VmBlobs:
    """The same and the VM's OVF descriptor; that a VM cannot be described is a warning."""
    try:
        blob = ovf_blob(snapshot)
    except FormatError as error:
        return replace(found, warnings=(*found.warnings, _lacking(KIND, str(error))))
    if sum(len(each.data) for each in found.blobs) + len(blob.data) > BLOBS_BYTES_MAX:
        lacking = _lacking(KIND, f"it is too large: {size_text(len(blob.data))}")
        return replace(found, warnings=(*found.warnings, lacking))
    return replace(found, blobs=(*found.blobs, blob))


def _found(session: VsphereSession, vm: VmFacts) -> Iterator[VmFile | Warned]:
    _, around = inventory.read_vm_around(session, vm.moref)
    names = datastore_files.vm_file_names(session, vm, around)
    if all(name.kind != "vmx" for name in names):
        yield _lacking("vmx", "vSphere does not say where it lies")
    nvram_known = any(name.kind == "nvram" for name in names)
    for name in names:
        found = _one(session, name, around)
        if found is not None:
            yield found
        if isinstance(found, VmFile) and found.kind == "vmx" and not nvram_known:
            yield from _nvram_beside(session, name, found.data, around)


def _nvram_beside(
    session: VsphereSession, vmx: VmFileName, data: bytes, around: Surroundings
) -> Iterator[VmFile | Warned]:
    try:
        name = datastore_files.nvram_beside(vmx, data)
    except _UNREADABLE as error:
        yield _lacking("nvram", str(error))
        return
    found = _one(session, name, around) if name is not None else None
    if found is not None:
        yield found


def _one(session: VsphereSession, name: VmFileName, around: Surroundings) -> VmFile | Warned | None:
    """A file, why it could not be read, or None: it does not exist and need not."""
    try:
        return datastore_files.read_vm_file(session, name, around)
    except _UNREADABLE as error:
        return _lacking(name.kind, f"{name.link.name}: {error}")


def _lacking(kind: str, why: str) -> Warned:
    return Warned(code="vm_file", message=f"the VM's {kind} is not in the backup: {why}")
