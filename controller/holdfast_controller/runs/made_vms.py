"""A new VM with the disks of a point, made in one of three ways; the run writes and reads back through tickets.

direct: the agent writes new files, then the VM is made with them. hotadd: the VM is made with empty disks,
which hang on the proxy while they are written. nfc: a lease makes the VM and takes its disks as streams.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from typing import Final

from holdfast_common.errors import Refused, VsphereFailed
from holdfast_common.job_spec import ChainFile, DirectTicket, DiskTicket, TransportKind
from holdfast_common.point_record import DiskRecord
from holdfast_controller.facts import VmFacts
from holdfast_controller.ledger import JobLedger, new_nonce
from holdfast_controller.runs.restore_target import RestoreTarget
from holdfast_controller.vsphere.configuration import Json
from holdfast_controller.vsphere.disk_tickets import direct_ticket
from holdfast_controller.vsphere.entity_names import file_name_of
from holdfast_controller.vsphere.hot_add import hot_added
from holdfast_controller.vsphere.import_leases import imported_vm
from holdfast_controller.vsphere.inventory import Surroundings, read_vm
from holdfast_controller.vsphere.new_folders import new_folder
from holdfast_controller.vsphere.new_vm_spec import NewDisk, NewVmSpec, new_vm_spec
from holdfast_controller.vsphere.session import VsphereSession
from holdfast_controller.vsphere.transfer_leases import vm_export
from holdfast_controller.vsphere.virtual_machines import network_names, new_vm

Tickets = Mapping[int, DiskTicket]


@dataclass(frozen=True, slots=True, kw_only=True)
class VmWish:
    """The VM to be made. ``keep`` False: it is a helper, destroyed at the end whatever happens."""

    name: str
    configuration: Mapping[str, Json]
    disks: tuple[DiskRecord, ...]
    target: RestoreTarget
    transport: TransportKind
    proxy_instance_uuid: str
    keep: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class MadeVm:
    """The VM with its disks written. ``keys``: the point's device keys -> the VM's. ``notes``: what was left out."""

    vm: VmFacts
    keys: Mapping[int, int]
    notes: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Making:
    session: VsphereSession
    ledger: JobLedger
    around: Surroundings
    wish: VmWish
    write: Callable[[Tickets], None]
    nonce: str
    folders: Mapping[str, str]  # datastore moref -> our folder there

    def file(self, number: int, disk: DiskRecord) -> str:
        """The path of a disk below its datastore: ``folder/name.vmdk``, ``folder/name_1.vmdk``."""
        suffix = f"_{number}" if number else ""
        folder = self.folders[self.wish.target.disks[disk.device_key].moref]
        return f"{folder}/{file_name_of(self.wish.name)}{suffix}.vmdk"

    def own_folders(self) -> list[str]:
        """As the ledger keeps them."""
        return [place.path(self.folders[place.moref]) for place in self.wish.target.datastores()]

    def spec(self, *, create: bool) -> NewVmSpec:
        """The VM's specification with its disks to be made, or already there."""
        target = self.wish.target
        disks = [
            NewDisk(
                device_key=disk.device_key,
                file=target.disks[disk.device_key].path(self.file(number, disk)),
                capacity_bytes=disk.capacity_bytes,
                create=create,
            )
            for number, disk in enumerate(self.wish.disks)
        ]
        home = self.folders[target.home.moref]
        return new_vm_spec(
            self.wish.configuration,
            name=self.wish.name,
            vmx_file=target.home.path(f"{home}/{file_name_of(self.wish.name)}.vmx"),
            nonce=self.nonce,
            disks=disks,
            networks=network_names(self.session, target.host.moref),
        )


@contextmanager
def made_vm(
    session: VsphereSession,
    ledger: JobLedger,
    *,
    around: Surroundings,
    wish: VmWish,
    write: Callable[[Tickets], None],
) -> Iterator[MadeVm]:
    """Make the VM and have its disks written; it stays only when the block ends well (and ``wish.keep``).

    ``write`` is called once with tickets by the point's device keys, and returns when all is written.
    Raises: Refused, VsphereFailed and its kin, and what ``write`` raises.
    """
    maker = _MAKERS.get(wish.transport)
    if maker is None:
        raise Refused("no VM can be restored by this transport", transport=wish.transport)
    with ExitStack() as kept:
        folders = {
            place.moref: kept.enter_context(
                new_folder(
                    session, ledger, place=place, wanted=file_name_of(wish.name), keep=wish.keep
                )
            )
            for place in wish.target.datastores()
        }
        making = _Making(
            session=session,
            ledger=ledger,
            around=around,
            wish=wish,
            write=write,
            nonce=new_nonce(),
            folders=folders,
        )
        yield kept.enter_context(maker(making))


@contextmanager
def read_back_tickets(
    session: VsphereSession,
    ledger: JobLedger,
    *,
    vm: VmFacts,
    keys: Mapping[int, int],
    transport: TransportKind,
    proxy_instance_uuid: str,
) -> Iterator[Tickets]:
    """Fresh tickets to read a restored VM's disks, by the point's device keys."""
    now = read_vm(session, vm.moref)
    disks = [disk for disk in now.disks if disk.device_key in set(keys.values())]
    if len(disks) != len(keys):
        raise VsphereFailed("a restored disk is not in its VM", vm=vm.name)
    with ExitStack() as lent:
        found: Tickets
        if transport is TransportKind.DIRECT:
            found = {disk.device_key: direct_ticket(disk) for disk in disks}
        elif transport is TransportKind.HOTADD:
            found = lent.enter_context(
                hot_added(
                    session,
                    ledger,
                    proxy_instance_uuid=proxy_instance_uuid,
                    disks=disks,
                    owner=now,
                )
            )
        else:
            found = lent.enter_context(vm_export(session, ledger, vm=now))
        yield {point_key: found[key] for point_key, key in keys.items()}


@contextmanager
def _made_of_files(making: _Making) -> Iterator[MadeVm]:
    wish = making.wish
    by_moref = making.around.names.by_moref
    tickets: dict[int, DiskTicket] = {}
    for number, disk in enumerate(wish.disks):
        store = by_moref[wish.target.disks[disk.device_key].moref]
        link = ChainFile(datastore_id=store.datastore_id, path=making.file(number, disk))
        tickets[disk.device_key] = DirectTicket(chain=(link,))
    making.write(tickets)
    new = making.spec(create=False)
    with _new_vm(making, new) as vm:
        yield MadeVm(vm=vm, keys=_keys(wish.disks, vm, new), notes=new.notes)


@contextmanager
def _made_and_attached(making: _Making) -> Iterator[MadeVm]:
    wish = making.wish
    new = making.spec(create=True)
    with _new_vm(making, new) as vm:
        keys = _keys(wish.disks, vm, new)
        with hot_added(
            making.session,
            making.ledger,
            proxy_instance_uuid=wish.proxy_instance_uuid,
            disks=vm.disks,
            writable=True,
            owner=vm,
        ) as tickets:
            making.write({point_key: tickets[key] for point_key, key in keys.items()})
        yield MadeVm(vm=vm, keys=keys, notes=new.notes)


@contextmanager
def _made_by_lease(making: _Making) -> Iterator[MadeVm]:
    wish = making.wish
    new = making.spec(create=True)
    target = wish.target
    with imported_vm(
        making.session,
        making.ledger,
        new=new,
        nonce=making.nonce,
        folder_moref=target.folder.moref,
        pool_moref=target.pool_moref,
        host_moref=target.host.moref,
        own_folders=making.own_folders(),
        keep=wish.keep,
    ) as imported:
        keys = _keys(wish.disks, imported.vm, new)
        making.write({point_key: imported.tickets[key] for point_key, key in keys.items()})
        imported.complete()
        yield MadeVm(vm=imported.vm, keys=keys, notes=new.notes)


_MAKERS: Final[Mapping[TransportKind, Callable[[_Making], AbstractContextManager[MadeVm]]]] = {
    TransportKind.DIRECT: _made_of_files,
    TransportKind.HOTADD: _made_and_attached,
    TransportKind.NFC: _made_by_lease,
}


def _new_vm(making: _Making, new: NewVmSpec) -> AbstractContextManager[VmFacts]:
    target = making.wish.target
    return new_vm(
        making.session,
        making.ledger,
        new=new,
        nonce=making.nonce,
        folder_moref=target.folder.moref,
        pool_moref=target.pool_moref,
        host_moref=target.host.moref,
        own_folders=making.own_folders(),
        keep=making.wish.keep,
    )


def _keys(disks: Sequence[DiskRecord], vm: VmFacts, new: NewVmSpec) -> dict[int, int]:
    """The point's device keys -> the new VM's, by where each disk is connected."""
    by_slot = {_slot(f"{d.adapter} {d.bus_number}:{d.unit_number}"): d.device_key for d in vm.disks}
    keys = {}
    for disk in disks:
        slot = new.slots.get(disk.device_key, disk.adapter)
        found = by_slot.get(_slot(slot))
        if found is None:
            raise VsphereFailed("the new VM lacks a disk", vm=vm.name, slot=slot)
        keys[disk.device_key] = found
    return keys


def _slot(adapter: str) -> tuple[str, str]:
    """``pvscsi 0:1`` -> its family and place; the kind of SCSI controller does not matter."""
    kind, _, place = adapter.partition(" ")
    family = kind if kind in ("ide", "sata", "nvme") else "scsi"
    return family, place
