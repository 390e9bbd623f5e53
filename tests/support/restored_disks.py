"""What a restore needs around it: a folder of ours, a stream for a lease, a disk with known bytes."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from urllib.parse import urlsplit

from pyVmomi import vim

from holdfast_common.formats.vmdk_stream_writer import StreamOptimizedWriter
from holdfast_common.job_spec import NfcTicket
from holdfast_controller.facts import ChainLink, VmFacts
from holdfast_controller.ledger import JobLedger, new_nonce
from holdfast_controller.vsphere import configuration, inventory
from holdfast_controller.vsphere.datastore_files import DatastorePlace, place_of
from holdfast_controller.vsphere.effects import run_task
from holdfast_controller.vsphere.new_folders import new_folder
from holdfast_controller.vsphere.new_vm_spec import NewDisk, NewVmSpec, new_vm_spec
from holdfast_controller.vsphere.pinning import pinned_connection
from holdfast_controller.vsphere.session import VsphereSession
from holdfast_controller.vsphere.snapshot import read_config
from holdfast_controller.vsphere.virtual_machines import network_names
from holdfast_lab.server import RunningLab


def place_named(session: VsphereSession, name: str) -> DatastorePlace:
    around = inventory.read_surroundings(session)
    (moref,) = [moref for moref, store in around.names.by_moref.items() if store.name == name]
    return place_of(around, moref)


@dataclass(frozen=True, slots=True)
class PlannedVm:
    """A new VM like another one, in a folder of ours."""

    new: NewVmSpec
    nonce: str
    own_folders: tuple[str, ...]


@contextmanager
def planned_copy(
    session: VsphereSession, ledger: JobLedger, source: VmFacts, *, name: str, snapshot: str
) -> Iterator[PlannedVm]:
    """The specification of a copy; its folder is gone when the block fails."""
    place = place_named(session, "nfs2")
    with new_folder(session, ledger, place=place, wanted=name) as folder:
        nonce = new_nonce()
        text = configuration.configuration_json(read_config(session, snapshot))
        made = new_vm_spec(
            configuration.parse_configuration(text),
            name=name,
            vmx_file=place.path(f"{folder}/{name}.vmx"),
            nonce=nonce,
            disks=[
                NewDisk(
                    device_key=disk.device_key,
                    file=place.path(f"{folder}/{name}_{number}.vmdk"),
                    capacity_bytes=disk.capacity_bytes,
                    create=True,
                )
                for number, disk in enumerate(source.disks)
            ],
            networks=network_names(session, source.host_moref),
        )
        yield PlannedVm(made, nonce, (place.path(folder),))


def stream_of(content: bytes) -> bytes:
    """Content as a stream that a lease takes."""
    stream = io.BytesIO()
    writer = StreamOptimizedWriter(stream, len(content))
    writer.write(0, memoryview(content))
    writer.finish()
    return stream.getvalue()


def upload(ticket: NfcTicket, content: bytes) -> None:
    parts = urlsplit(ticket.url)
    connection = pinned_connection(
        parts.hostname or "",
        parts.port or 443,
        certificate_sha256=ticket.certificate_sha256,
        timeout_seconds=20,
    )
    try:
        kind = {"Content-Type": "application/x-vnd.vmware-streamVmdk"}
        connection.request("POST", parts.path, body=stream_of(content), headers=kind)
        assert connection.getresponse().status in (200, 201)
    finally:
        connection.close()


def make_disk(
    session: VsphereSession, place: DatastorePlace, path: str, capacity_bytes: int
) -> ChainLink:
    """An empty thin disk that nobody has."""
    run_task(
        session,
        session.content().virtualDiskManager,
        "CreateVirtualDisk_Task",
        what="making a disk",
        landed=lambda: True,
        busy=vim.Datastore(place.moref, None),
        name=place.path(path),
        datacenter=vim.Datacenter(place.datacenter_moref, None),
        spec=vim.VirtualDiskManager.FileBackedVirtualDiskSpec(
            diskType="thin", adapterType="lsiLogic", capacityKb=capacity_bytes // 1024
        ),
    )
    return inventory.read_surroundings(session).names.link(place.path(path), place.moref)


def disk_start(lab: RunningLab, vm_name: str, key: int, length: int) -> bytes:
    """The first bytes of a VM's disk as the lab itself reads them."""
    with lab.lab.lock:
        device = next(each for each in lab.lab.machine(vm_name).disks() if each.key == key)
    reader = device.disk.reader_at(device.descriptor)
    try:
        buffer = bytearray(length)
        reader.read_into(0, memoryview(buffer))
        return bytes(buffer)
    finally:
        reader.close()
