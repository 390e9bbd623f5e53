"""Everything at once: the guest writes while snapshots come and go, disks are exported and read."""

from __future__ import annotations

import os
import random
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from pyVmomi import vim

from holdfast_lab.inventory_plan import DiskPlan
from holdfast_lab.lab import Mode
from holdfast_lab.storage.disk import LabDisk
from holdfast_lab.storage.disk_links import LinkedDisk
from holdfast_lab.storage.stream_decoder import decode_stream
from holdfast_lab.transfer_lease import TransferLease
from support.lab_vsphere import (
    MIB,
    Client,
    attach,
    client_of,
    disks_of,
    lab_with,
    one_machine,
    reconfigure,
    removal,
    wait,
)

CYCLES = 4
GRANULE = 65536


@contextmanager
def busy_guest(disk: LabDisk) -> Iterator[None]:
    """The guest writes at random places while the block runs."""
    stop = threading.Event()
    chooser = random.Random(7)

    def write() -> None:
        while not stop.is_set():
            sectors = chooser.randint(1, 64)
            offset = chooser.randrange(disk.capacity_bytes // 512 - sectors) * 512
            disk.guest_write(offset, os.urandom(sectors * 512))
            stop.wait(0.001)

    thread = threading.Thread(target=write)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


@contextmanager
def busy_reader(client: Client) -> Iterator[list[BaseException]]:
    """Another client reads configurations while the block runs; what it raised."""
    stop = threading.Event()
    raised: list[BaseException] = []

    def read() -> None:
        try:
            with client_of(client.running) as other:
                vm: Any = other.vm()
                while not stop.is_set():
                    assert disks_of(vm.config)
                    assert vm.layoutEx.disk
        except BaseException as error:
            raised.append(error)
            raise

    thread = threading.Thread(target=read)
    thread.start()
    try:
        yield raised
    finally:
        stop.set()
        thread.join()


def exported(client: Client, snapshot: Any, to: Path) -> None:
    """Export the only disk of a snapshot into a raw file."""
    lease = snapshot.ExportSnapshot()
    assert client.running.lab.get(lease, TransferLease).prepared.wait(10)
    url = lease.info.deviceUrl[0].url.removeprefix("https://*")
    status, data, _ = client.request("GET", url)
    assert status == 200
    position = 0

    def read(length: int) -> bytes:
        nonlocal position
        piece = data[position : position + length]
        position += len(piece)
        return piece

    decode_stream(read, to)
    lease.HttpNfcLeaseComplete()


def changed(vm: Any, snapshot: Any, base: str, capacity: int) -> list[tuple[int, int]]:
    """All changed areas, asked for in a loop."""
    areas: list[tuple[int, int]] = []
    start = 0
    while start < capacity:
        answer = vm.QueryChangedDiskAreas(snapshot, 2000, start, base)
        areas += [(each.start, each.length) for each in answer.changedArea or []]
        start += answer.length
    return areas


@pytest.mark.parametrize(("mode", "datastore"), [("vcenter", "vmfs1"), ("host", "nfs1")])
def test_every_snapshot_is_true_while_the_guest_writes(
    tmp_path: Path, mode: Mode, datastore: str
) -> None:
    web = one_machine(
        datastore=datastore, disks=(DiskPlan(size_bytes=16 * MIB),), change_tracking=True
    )
    proxy = one_machine("proxy", datastore=datastore, disks=())
    with lab_with(tmp_path / "lab", web, proxy, mode=mode) as client:
        vm, disk = client.vm(), client.disk()
        with busy_guest(disk), busy_reader(client) as raised:
            kept = tmp_path / "kept.raw"
            base = ""
            for cycle in range(CYCLES):
                snapshot = client.snapshot(vm, f"cycle {cycle}")
                backing = disks_of(snapshot.config)[0].backing
                moment = disk.truth_sequence(
                    client.machine().snapshots()[0].devices.disks[2000].descriptor
                )
                whole = tmp_path / f"{cycle}.raw"
                exported(client, snapshot, whole)
                assert disk.first_difference(whole, moment) is None
                if base:
                    apply(changed(vm, snapshot, base, 16 * MIB), whole, kept)
                    assert disk.first_difference(kept, moment) is None
                else:
                    kept.write_bytes(whole.read_bytes())
                base = backing.changeId
                reconfigure(
                    client.vm("proxy"), attach(backing.fileName, mode="independent_nonpersistent")
                )
                device = client.running.state / "devices/proxy/scsi0:0/disk"
                assert disk.first_difference(device, moment) is None
                reconfigure(client.vm("proxy"), removal(2000))
                wait(snapshot.RemoveSnapshot_Task(removeChildren=False))
                assert not vm.runtime.consolidationNeeded
        assert not raised
        with disk.reader_at() as reader:
            assert disk.first_difference(reader) is None
        assert vm.snapshot is None
        assert isinstance(vm, vim.VirtualMachine)


def apply(areas: list[tuple[int, int]], source: Path, target: Path) -> None:
    """Copy the areas from one raw file to the same places of another."""
    with source.open("rb") as reading, target.open("r+b") as writing:
        for start, length in areas:
            assert start % GRANULE == 0
            reading.seek(start)
            writing.seek(start)
            writing.write(reading.read(length))


def test_a_layout_read_while_a_link_is_merged_is_of_one_moment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The chain has been read, its files have not: that is when the merge begins."""
    web = one_machine(disks=(DiskPlan(size_bytes=MIB),))
    with lab_with(tmp_path / "lab", web) as client:
        vm, disk, chain_of = client.vm(), client.disk(), LinkedDisk.chain_of
        client.snapshot(vm)
        merges: list[threading.Thread] = []

        def then_merge(asked: LinkedDisk, descriptor: Path) -> tuple[Path, ...]:
            chain = chain_of(asked, descriptor)
            if asked is disk and not merges:
                merges.append(threading.Thread(target=lambda: disk.release(chain[0])))
                merges[0].start()
                merges[0].join(0.2)  # it has to wait, or it is done
            return chain

        monkeypatch.setattr(LinkedDisk, "chain_of", then_merge)
        assert [len(each.fileKey) for each in vm.layoutEx.disk[0].chain] == [2, 2]
        merges[0].join()
        assert len(vm.layoutEx.disk[0].chain) == 1


def test_the_layout_of_a_vm_whose_disk_was_deleted_can_be_read(tmp_path: Path) -> None:
    web = one_machine(disks=(DiskPlan(size_bytes=MIB),), power="off")
    with lab_with(tmp_path / "lab", web) as client:
        file = disks_of(client.vm().config)[0].backing.fileName
        wait(
            client.content.virtualDiskManager.DeleteVirtualDisk_Task(
                file, client.content.rootFolder.childEntity[0]
            )
        )
        assert client.vm().layoutEx.disk[0].chain == []
