"""Transfer leases: the right to read a VM's disks, or to fill those of a new VM, over HTTPS.

A lease is initializing, ready, done or in error. It must be renewed by HttpNfcLeaseProgress, which
transfers do not do by themselves; when it runs out it is in error, its transfers are cut, and the
VM of an import is gone. A lease outlives the session that made it, until then.
"""

from __future__ import annotations

import secrets
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pyVmomi import vim, vmodl

from holdfast_lab.device_table import Device, DeviceTable, DiskDevice
from holdfast_lab.disk_backings import datastore_of
from holdfast_lab.disk_locks import take_for_transfer
from holdfast_lab.faults import SoapFault
from holdfast_lab.file_locks import HeldFiles
from holdfast_lab.host_devices import flip_if_told
from holdfast_lab.lab_clock import monotonic_seconds
from holdfast_lab.lab_object import LabObject, ManagedEntity, wire_property
from holdfast_lab.machine import Machine
from holdfast_lab.storage.disk import Hold
from holdfast_lab.tasks import LabTask

if TYPE_CHECKING:
    from holdfast_lab.lab import Lab
    from holdfast_lab.sessions import Session

KIB = 1024
CONTROLLER_NAMES = (
    (Device.ParaVirtualSCSIController, "ParaVirtualSCSIController"),
    (Device.VirtualLsiLogicSASController, "VirtualLsiLogicSASController"),
    (Device.VirtualLsiLogicController, "VirtualLsiLogicController"),
    (Device.VirtualBusLogicController, "VirtualBusLogicController"),
    (Device.VirtualAHCIController, "VirtualAHCIController"),
    (Device.VirtualNVMEController, "VirtualNVMEController"),
    (Device.VirtualIDEController, "VirtualIDEController"),
)
Direction = Literal["export", "import"]


@dataclass(slots=True, kw_only=True)
class LeasedFile:
    """One file to be sent or received; ``device`` None: the NVRAM.

    ``started`` but not ``finished``: a transfer was interrupted, or goes on.
    """

    name: str
    key: str
    import_key: str
    device: DiskDevice | None
    started: bool = False
    finished: bool = False
    stream_bytes: int = 0
    populated_bytes: int = 0
    sha1: str = ""


@dataclass(slots=True)
class _Claims:
    """What a lease keeps from others while it lives."""

    files: list[HeldFiles] = field(default_factory=list)
    holds: list[tuple[DiskDevice, Hold]] = field(default_factory=list)

    def release(self) -> None:
        """Give everything back; harmless when done twice."""
        for held in self.files:
            held.release()
        for device, hold in self.holds:
            device.disk.let_go(hold)
        self.files, self.holds = [], []


class TransferLease(LabObject):
    """See the module. ``token`` stands in the URLs: who knows it may transfer."""

    kind = vim.HttpNfcLease

    def __init__(
        self, lab: Lab, moid: str, *, machine: Machine | None, direction: Direction
    ) -> None:
        super().__init__(lab, moid)
        self.machine = machine
        self.direction = direction
        self.token = secrets.token_hex(16)
        self.state = "initializing"
        self.fault: vmodl.MethodFault | None = None
        self.files: list[LeasedFile] = []
        self.transfer_percent = 0
        self.timeout_seconds = lab.lease_timeout_seconds
        self.deadline = monotonic_seconds() + self.timeout_seconds
        self.prepared = threading.Event()  # it is not initializing any more
        self.ended = threading.Event()
        self.finished = threading.Event()  # for the task that shows the lease's work
        self._claims = _Claims()

    # what clients read ----------------------------------------------------------

    @wire_property("state")
    def state_on_the_wire(self) -> object:
        return self.state

    @wire_property("initializeProgress")
    def initialize_progress(self) -> object:
        return 0 if self.state == "initializing" else 100

    @wire_property("transferProgress")
    def transfer_progress(self) -> object:
        return self.transfer_percent

    @wire_property("mode")
    def mode(self) -> object:
        return "pushOrGet"

    @wire_property("capabilities")
    def capabilities(self) -> object:
        return vim.HttpNfcLease.Capabilities(pullModeSupported=False, corsSupported=False)

    @wire_property("error")
    def error(self) -> object:
        return self.fault

    @wire_property("info")
    def info(self) -> object:
        if self.state != "ready" or self.machine is None:
            return None
        disks = [each.device for each in self.files if each.device is not None]
        return vim.HttpNfcLease.Info(
            lease=self.ref,
            entity=self.machine.ref,
            deviceUrl=[self._device_url(each) for each in self.files],
            totalDiskCapacityInKB=sum(each.disk.capacity_bytes for each in disks) // KIB,
            leaseTimeout=max(1, int(self.timeout_seconds)),
        )

    def _device_url(self, file: LeasedFile) -> vim.HttpNfcLease.DeviceUrl:
        size = None
        if file.device is None and self.machine is not None and self.machine.nvram.exists():
            size = self.machine.nvram.stat().st_size
        # The host is "*": the client puts in the name under which it reached the server.
        return vim.HttpNfcLease.DeviceUrl(
            key=file.key,
            importKey=file.import_key,
            url=f"https://*/nfc/{self.token}/{file.name}",
            sslThumbprint=self.lab.certificate_sha1,
            disk=file.device is not None,
            targetId=file.name,
            datastoreKey=(
                datastore_of(self.lab, file.device.descriptor).url if file.device else None
            ),
            fileSize=size,
        )

    # the life of a lease --------------------------------------------------------

    def become_ready(self, files: Sequence[LeasedFile], *, machine: Machine) -> None:
        """Claim the files and open for transfers. Needs ``Lab.lock``. Raises: SoapFault."""
        if self.ended.is_set():
            raise SoapFault(vim.fault.InvalidState(), "The lease was aborted.")
        claims = _Claims()
        try:
            for file in files:
                if file.device is None:
                    continue
                claims.files.append(
                    take_for_transfer(
                        self.lab,
                        file.device.disk,
                        file.device.descriptor,
                        holder=self.moid,
                        kind="nfc",
                        writes=self.direction == "import",
                    )
                )
                hold = file.device.disk.hold(file.device.descriptor, f"lease {self.moid}")
                claims.holds.append((file.device, hold))
        except BaseException:
            claims.release()
            raise
        self._claims = claims
        self.machine, self.files = machine, list(files)
        machine.transfer_lease = self
        self.state = "ready"
        self.prepared.set()
        self.renew()
        self.lab.touch(self, machine)

    def renew(self) -> None:
        """Count the timeout from now. Needs ``Lab.lock``."""
        self.deadline = monotonic_seconds() + self.timeout_seconds

    def check_usable(self) -> None:
        """Needs ``Lab.lock``. Raises: SoapFault (InvalidState, Timedout) when it is not ready."""
        if self.state == "ready" and not self.ended.is_set():
            return
        if isinstance(self.fault, vim.fault.Timedout):
            raise SoapFault(vim.fault.Timedout(), "The lease has timed out.")
        raise SoapFault(vim.fault.InvalidState(), f"The lease is {self.state}.")

    def end(self, state: Literal["done", "error"], fault: vmodl.MethodFault | None) -> bool:
        """Leave the ready state and give everything back; False when it had ended before."""
        with self.lab.lock:
            if self.ended.is_set():
                return False
            self.ended.set()
            self.prepared.set()
            self.state, self.fault = state, fault
            if self.machine is not None and self.machine.transfer_lease is self:
                self.machine.transfer_lease = None
            self._claims.release()
            self.lab.touch(self, *([self.machine] if self.machine else []))
        self.lab.calls.event("lease_end", lease=self.moid, direction=self.direction, state=state)
        return True

    def fail(self, fault: vmodl.MethodFault) -> None:
        """Aborted, timed out or failed: an import's VM goes. Without ``Lab.lock``."""
        if self.end("error", fault):
            self._discard_import()
            self.finished.set()

    def complete(self) -> None:
        """The client says that all is transferred. Without ``Lab.lock``. Raises: SoapFault."""
        with self.lab.lock:
            self.check_usable()
            unfinished = [each.name for each in self.files if each.started and not each.finished]
            if unfinished and self.direction == "import":
                raise SoapFault(
                    vim.fault.InvalidState(), f"Not uploaded whole: {', '.join(unfinished)}"
                )
            machine, files = self.machine, list(self.files)
        if not self.end("done", None):
            return
        if self.direction == "import" and machine is not None:
            for file in files:
                if file.device is not None:
                    self._flip_if_told(machine, file.device)
            with self.lab.lock:
                machine.config_changed()
        self.finished.set()

    def _flip_if_told(self, machine: Machine, device: DiskDevice) -> None:
        facts = {
            "vm": machine.name,
            "disk": device.disk.base_name,
            "datastore": datastore_of(self.lab, device.descriptor).name,
            "direction": "upload",
        }
        flip_if_told(self.lab, device, facts)

    def _discard_import(self) -> None:
        from holdfast_lab.machine_life import destroy_machine

        if self.direction == "import" and self.machine is not None:
            destroy_machine(self.machine)

    def watch(self, task: LabTask) -> None:
        """Wait for the end, the timeout, or a failure of the task. Without ``Lab.lock``."""
        while not self.finished.wait(0.05 if self.state == "initializing" else 0.5):
            if self.lab.stopping.is_set():
                return
            if task.finished.is_set():
                fault = task.fault.fault if task.fault else vmodl.fault.SystemError(reason="")
                self.fail(fault)
            elif self.deadline <= monotonic_seconds():
                self.fail(vim.fault.Timedout(msg="The lease has timed out."))

    def wait(self) -> None:
        """The rest of the lease's task: it ends with the lease. Raises: SoapFault."""
        while not self.finished.wait(0.5):
            if self.lab.stopping.is_set():
                return
        if self.fault is not None:
            raise SoapFault(self.fault)

    def forget(self) -> None:  # noqa: D102 - said by the base class
        self._claims.release()


def files_of(machine: Machine, table: DeviceTable, *, name: str) -> list[LeasedFile]:
    """The disks of a device table as files of a lease; ``name`` stands in the import keys."""
    files = []
    for number, key in enumerate(sorted(table.disks)):
        device = table.disks[key]
        if device.raw_mapping is not None:
            continue
        slot = slot_key(table, device)
        files.append(
            LeasedFile(
                name=f"disk-{number}.vmdk",
                key=f"/{machine.moid}/{slot}",
                import_key=f"/{name}/{slot}",
                device=device,
            )
        )
    return files


def slot_key(table: DeviceTable, device: DiskDevice) -> str:
    """A disk's place in the words of leases, such as ``VirtualLsiLogicController0:0``."""
    controller = table.plain[device.controller_key]
    name = next(name for kind, name in CONTROLLER_NAMES if isinstance(controller, kind))
    return f"{name}{controller.busNumber}:{device.unit_number}"


def nvram_file(machine: Machine, *, name: str) -> LeasedFile:
    """The NVRAM as a file of a lease."""
    return LeasedFile(
        name=f"{machine.vmx.stem}.nvram",
        key=f"/{machine.moid}/nvram",
        import_key=f"/{name}/nvram",
        device=None,
    )


def run_lease(
    lease: TransferLease,
    entity: ManagedEntity,
    description: str,
    prepare: Callable[[], None],
    *,
    session: Session,
) -> None:
    """Start the lease's task, which ends with the lease, and its watch. Needs ``Lab.lock``."""
    lab = lease.lab

    def body(_task: object) -> None:
        try:
            prepare()
        except SoapFault as refused:
            refused.fault.msg = refused.message
            lease.fail(refused.fault)
            raise
        lease.wait()

    reference = lab.tasks.start(entity, description, body, session=session, exclusive=False)
    task = lab.get(reference, LabTask)
    threading.Thread(
        target=lease.watch, args=(task,), name=f"watch {lease.moid}", daemon=True
    ).start()


def lease_with(lab: Lab, token: str) -> TransferLease | None:
    """The lease whose URLs hold this token. Needs ``Lab.lock``."""
    for lease in lab.every(TransferLease):
        if secrets.compare_digest(lease.token.encode(), token.encode()):
            return lease
    return None


def flat_file(device: DiskDevice) -> Path:
    """The flat file that an upload fills."""
    disk = device.disk
    return next(each for each in disk.files(device.descriptor) if each.name.endswith("-flat.vmdk"))
