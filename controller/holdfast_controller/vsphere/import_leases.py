"""A new VM whose disks are filled through a transfer lease: ledger first, gone unless the restore succeeds.

A lease cannot write into a VM that exists. It makes the VM and its empty disks, takes one
stream for each, and when it is aborted vSphere removes the VM again.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from pyVmomi import vim

from holdfast_common.errors import HoldfastError, LeaseExpired, SourceGone, VsphereFailed
from holdfast_common.job_spec import NfcTicket
from holdfast_controller.facts import VmFacts
from holdfast_controller.ledger import EntryId, EntryKind, JobLedger
from holdfast_controller.vsphere import inventory, transfer_leases
from holdfast_controller.vsphere.foreign import Reference, moref_of, reference
from holdfast_controller.vsphere.new_vm_spec import NewVmSpec
from holdfast_controller.vsphere.session import VsphereSession
from holdfast_controller.vsphere.virtual_machines import give_up_vm, keep_vm

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class ImportedVm:
    """The VM with its empty disks. ``tickets`` by the device keys of ``vm``.

    Call ``complete`` when every disk is written: from then on the VM can be read back and changed.
    """

    vm: VmFacts
    tickets: Mapping[int, NfcTicket]
    complete: Callable[[], None]


@contextmanager
def imported_vm(
    session: VsphereSession,
    ledger: JobLedger,
    *,
    new: NewVmSpec,
    nonce: str,
    folder_moref: str,
    pool_moref: str,
    host_moref: str,
    own_folders: Sequence[str],
    keep: bool = True,
) -> Iterator[ImportedVm]:
    """A VM to be filled by the agent; it stays when the block ends well after ``complete`` (and ``keep``).

    Every disk of ``new`` is one to be created. Raises: LeaseExpired, VsphereFailed and its kin.
    """
    vm_entry = ledger.intend(
        EntryKind.NEW_VM,
        {
            "vm_name": new.name,
            "nonce": nonce,
            "folder": folder_moref,
            "own_folders": json.dumps(list(own_folders)),
        },
    )
    lease_entry = ledger.intend(EntryKind.TRANSFER_LEASE, {"vm_name": new.name})
    try:
        lease = transfer_leases.lend(
            session,
            lambda: _import(session, new, folder_moref, pool_moref, host_moref),
            repeatable=False,  # a second import would find the name taken
        )
        ledger.ledger.made(lease_entry, {"lease": moref_of(lease)})
        info = transfer_leases.wait_until_ready(session, lease)
        moref = moref_of(info.entity)
        ledger.ledger.made(vm_entry, {"vm": moref})
        vm = inventory.read_vm(session, moref)
        tickets = transfer_leases.tickets_of(session, info, vm.disks, vm_moref=moref, create=False)
        completed: list[bool] = []

        def complete() -> None:
            _complete(session, lease)
            ledger.ledger.gone(lease_entry)
            completed.append(True)

        with transfer_leases.renewed(session, lease, info):
            yield ImportedVm(vm=vm, tickets=tickets, complete=complete)
        if not completed:
            raise VsphereFailed("the import of a VM was never completed", vm=vm.name)
    except BaseException:
        _give_up(session, ledger, lease_entry, vm_entry)
        raise
    if keep:
        keep_vm(ledger, vm_entry)
    else:
        give_up_vm(session, ledger, vm_entry)


def _import(
    session: VsphereSession, new: NewVmSpec, folder: str, pool: str, host: str
) -> Reference:
    where = {"host": reference(vim.HostSystem, host)} if host else {}
    return session.call(
        reference(vim.ResourcePool, pool),
        "ImportVApp",
        spec=vim.vm.VmImportSpec(configSpec=new.spec),
        folder=reference(vim.Folder, folder),
        **where,
    )


def _complete(session: VsphereSession, lease: Reference) -> None:
    """End the lease well. Raises: LeaseExpired when it ended otherwise: the VM is gone then."""
    try:
        session.patiently(lambda: session.call(lease, "HttpNfcLeaseComplete"))
    except (VsphereFailed, SourceGone) as error:
        # after a lost reply the lease is complete already; anything else is a loss
        if transfer_leases.state_of(session, lease) != "done":
            raise LeaseExpired(
                "the transfer lease ended before the VM was complete", cause=str(error)
            ) from error


def _give_up(
    session: VsphereSession, ledger: JobLedger, lease_entry: EntryId, vm_entry: EntryId
) -> None:
    """The lease first: aborting it removes its VM; then whatever of the VM is left."""
    try:
        transfer_leases.give_back(session, ledger, lease_entry)
    except HoldfastError as error:
        log.warning("giving a transfer lease back failed", extra={"error": str(error)})
    give_up_vm(session, ledger, vm_entry)
