"""Transfer leases over SOAP: exports of VMs and snapshots, and what clients do with a lease."""

from __future__ import annotations

from pyVmomi import vim, vmodl

from holdfast_lab.faults import SoapFault
from holdfast_lab.machine import Machine, MachineSnapshot
from holdfast_lab.method_registry import Call, soap_method
from holdfast_lab.transfer_lease import (
    LeasedFile,
    TransferLease,
    files_of,
    nvram_file,
    run_lease,
)
from holdfast_lab.wire_types import WireObject


@soap_method("HttpNfcLeaseProgress")
def report_progress(call: Call) -> None:
    """Renew the lease; also when the percentage has not changed."""
    lease = call.lab.get(call.this, TransferLease)
    lease.check_usable()
    lease.transfer_percent = max(0, min(100, call.arguments.number("percent")))
    lease.renew()
    call.lab.touch(lease)


@soap_method("HttpNfcLeaseComplete", locked=False)
def complete(call: Call) -> None:
    """All is transferred."""
    with call.lab.lock:
        lease = call.lab.get(call.this, TransferLease)
    lease.complete()


@soap_method("HttpNfcLeaseAbort", locked=False)
def abort(call: Call) -> None:
    """Give up; an import's VM is removed with its disks."""
    with call.lab.lock:
        lease = call.lab.get(call.this, TransferLease)
        if lease.ended.is_set():
            raise SoapFault(vim.fault.InvalidState(), "The lease has ended already.")
    fault = call.arguments.optional("fault", vmodl.MethodFault)
    lease.fail(fault or vmodl.fault.RequestCanceled(msg="The lease was aborted."))


@soap_method("HttpNfcLeaseGetManifest")
def get_manifest(call: Call) -> list[vim.HttpNfcLease.ManifestEntry]:
    """What was transferred, with checksums of the streams."""
    lease = call.lab.get(call.this, TransferLease)
    lease.check_usable()
    return [
        vim.HttpNfcLease.ManifestEntry(
            key=each.key,
            sha1=each.sha1,
            checksum=each.sha1,
            checksumType="sha1",
            size=each.stream_bytes,
            disk=each.device is not None,
            capacity=each.device.disk.capacity_bytes if each.device else None,
            populatedSize=each.populated_bytes if each.device else None,
        )
        for each in lease.files
        if each.finished
    ]


# exports ------------------------------------------------------------------------------------


@soap_method("ExportVm")
def export_machine(call: Call) -> WireObject:
    """Lease the disks of a powered-off VM for reading."""
    machine = call.lab.get(call.this, Machine)
    if machine.powered_on:
        raise SoapFault(
            vim.fault.InvalidPowerState(requestedState="poweredOff", existingState="poweredOn"),
            "The operation cannot be performed in the current state (Powered on).",
        )
    call.lab.tasks.check_not_busy(machine)
    files = files_of(machine, machine.devices, name=machine.name)
    if machine.nvram.exists():
        files.append(nvram_file(machine, name=machine.name))
    return _start_export(call, machine, files, "VirtualMachine.exportVm")


@soap_method("ExportSnapshot")
def export_snapshot(call: Call) -> WireObject:
    """Lease the disks of a snapshot for reading; the VM may run."""
    snapshot = call.lab.get(call.this, MachineSnapshot)
    machine = snapshot.machine
    call.lab.tasks.check_not_busy(machine)
    files = [
        each
        for each in files_of(machine, snapshot.devices, name=machine.name)
        if each.device is not None and each.device.frozen_at is not None
    ]
    return _start_export(call, machine, files, "VirtualMachine.Snapshot.exportSnapshot")


def _start_export(
    call: Call, machine: Machine, files: list[LeasedFile], description: str
) -> WireObject:
    lab = call.lab
    if machine.transfer_lease is not None:
        raise SoapFault(vim.fault.InvalidState(), "The VM is covered by another lease already.")
    lease = TransferLease(lab, lab.new_id("lease"), machine=machine, direction="export")
    lab.add(lease)
    machine.transfer_lease = lease

    def prepare() -> None:
        with lab.lock:
            lease.become_ready(files, machine=machine)

    run_lease(lease, machine, description, prepare, session=call.session)
    return lease.ref
