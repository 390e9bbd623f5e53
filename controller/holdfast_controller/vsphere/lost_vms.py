"""A VM that is not in the inventory: was it destroyed, or will it come back with what is ours in it?

Below `snapshot_removal`, `hot_add` and `disk_swap`. Whoever unregisters a VM keeps its files, and registers it again at another vCenter or in
another folder: a snapshot of ours, or a disk that we attached, is still there then. Only when its .vmx is gone as well nothing is left.
"""

from __future__ import annotations

from collections.abc import Mapping

from holdfast_common.errors import VsphereFailed
from holdfast_controller.facts import VmFacts
from holdfast_controller.ledger import LedgerEntry
from holdfast_controller.vsphere.datastore_files import read_place
from holdfast_controller.vsphere.datastore_folders import exists
from holdfast_controller.vsphere.session import VsphereSession

_FILE = "vmx"
_DATASTORE = "vmx_datastore"


def lost_vm_facts(vm: VmFacts) -> Mapping[str, str]:
    """What a ledger's entry keeps so that `check_destroyed` can tell; nothing when vSphere does not say where it lies."""
    if vm.vmx is None:
        return {}
    return {_FILE: vm.vmx.path, _DATASTORE: vm.vmx.datastore_moref}


def check_destroyed(
    session: VsphereSession, entry: LedgerEntry, *, vm_name: str, left: str
) -> None:
    """That a VM which is not in the inventory is no more. Harmless for entries of older versions, which cannot tell.

    ``left``: what of ours it has if it comes back, for people. Raises: VsphereFailed when its files are there; NotFound and others when that cannot be said.
    """
    path, datastore = entry.fact(_FILE), entry.fact(_DATASTORE)
    if not path or not datastore:
        return
    place = read_place(session, datastore)
    if exists(session, place, path):
        raise VsphereFailed(
            f"the VM is not in the inventory, but its files are there, with {left}",
            vm=vm_name,
            file=place.path(path),
            advice="register it again, and it is put right within minutes; or delete its files",
        )
