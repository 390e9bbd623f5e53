"""A new VM at a lab's vSphere with empty disks like those of another one, in a folder of its own."""

from __future__ import annotations

from contextlib import ExitStack

from holdfast_controller.facts import VmFacts
from holdfast_controller.ledger import JobLedger, new_nonce
from holdfast_controller.vsphere import configuration, inventory
from holdfast_controller.vsphere.datastore_files import place_of
from holdfast_controller.vsphere.new_folders import new_folder
from holdfast_controller.vsphere.new_vm_spec import NewDisk, new_vm_spec
from holdfast_controller.vsphere.session import VsphereSession
from holdfast_controller.vsphere.snapshot import temporary_snapshot
from holdfast_controller.vsphere.virtual_machines import network_names, new_vm
from support.vms import CRASH, vm_named


def copied(
    session: VsphereSession, ledger: JobLedger, of: str = "web", *, stop: bool = False
) -> VmFacts:
    """A new VM with empty disks like those of another one."""
    source = vm_named(session, of)
    with temporary_snapshot(session, ledger, vm=source, wish=CRASH) as snapshot:
        text = snapshot.configuration
    around = inventory.read_surroundings(session)
    with ExitStack() as kept:
        place = place_of(
            around, next(m for m, s in around.names.by_moref.items() if s.name == "nfs1")
        )
        folder = kept.enter_context(new_folder(session, ledger, place=place, wanted="copy"))
        nonce = new_nonce()
        made = new_vm_spec(
            configuration.parse_configuration(text),
            name="copy",
            vmx_file=place.path(f"{folder}/copy.vmx"),
            nonce=nonce,
            disks=[
                NewDisk(
                    device_key=disk.device_key,
                    file=place.path(f"{folder}/copy_{number}.vmdk"),
                    capacity_bytes=disk.capacity_bytes,
                    create=True,
                )
                for number, disk in enumerate(source.disks)
            ],
            networks=network_names(session, source.host_moref),
        )
        vm = kept.enter_context(
            new_vm(
                session,
                ledger,
                new=made,
                nonce=nonce,
                folder_moref=source.folder_moref,
                pool_moref=source.pool_moref,
                host_moref=source.host_moref,
                own_folders=[place.path(folder)],
            )
        )
        if stop:
            raise RuntimeError("stop")
    return vm
