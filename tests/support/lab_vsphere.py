"""A running lab, and stock pyVmomi and http.client clients of it, for tests."""

from __future__ import annotations

import http.client
import shutil
import ssl
import subprocess
import urllib.parse
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pyVim import connect
from pyVim import task as vim_task
from pyVmomi import vim

from holdfast_lab.inventory_plan import DiskPlan, InventoryPlan, MachinePlan
from holdfast_lab.lab import Mode
from holdfast_lab.machine import Machine
from holdfast_lab.server import RunningLab, running_lab
from holdfast_lab.storage.disk import LabDisk

MIB = 1 << 20
# pyVim has no types
_wait_for_task: Any = vim_task.WaitForTask
_connect: Any = connect.SmartConnect
_disconnect: Any = connect.Disconnect
Spec = vim.vm.device.VirtualDeviceSpec


def one_machine(
    name: str = "web",
    *,
    datastore: str = "vmfs1",
    power: Any = "on",
    disks: tuple[DiskPlan, ...] = (DiskPlan(size_bytes=8 * MIB),),
    **more: Any,
) -> MachinePlan:
    """A VM's plan with small disks."""
    return MachinePlan(name=name, datastore=datastore, power=power, disks=disks, **more)


@dataclass(frozen=True)
class Client:
    """One logged-in pyVmomi client, and the lab behind it for a look inside."""

    running: RunningLab
    instance: Any
    context: ssl.SSLContext

    @property
    def content(self) -> Any:
        return self.instance.content

    def entity(self, kind: Any, name: str) -> Any:
        """The entity of a kind with this name."""
        manager = self.content.viewManager
        view = manager.CreateContainerView(self.content.rootFolder, [kind], True)
        try:
            return next(each for each in view.view if each.name == name)
        finally:
            view.Destroy()

    def vm(self, name: str = "web") -> Any:
        return self.entity(vim.VirtualMachine, name)

    def machine(self, name: str = "web") -> Machine:
        """The lab's own VM behind it."""
        return self.running.lab.machine(name)

    def disk(self, name: str = "web", number: int = 0) -> LabDisk:
        """The lab's own disk, to write as the guest and to know the truth."""
        return self.machine(name).disks()[number].disk

    def snapshot(self, vm: Any, name: str = "s", **options: Any) -> Any:
        """Make a snapshot and wait for it."""
        asked = {"memory": False, "quiesce": False, **options}
        return wait(vm.CreateSnapshot_Task(name=name, description="", **asked))

    def request(
        self, method: str, path: str, *, body: Any = None, headers: dict[str, str] | None = None
    ) -> tuple[int, bytes, http.client.HTTPMessage]:
        """One HTTPS request with the session's cookie."""
        connection = http.client.HTTPSConnection(
            self.running.address, context=self.context, timeout=30
        )
        try:
            sent = {"Cookie": self.instance._stub.cookie, **(headers or {})}
            connection.request(method, path, body=body, headers=sent)
            answer = connection.getresponse()
            return answer.status, answer.read(), answer.headers
        finally:
            connection.close()

    def folder(
        self, method: str, path: str, datastore: str, **options: Any
    ) -> tuple[int, bytes, http.client.HTTPMessage]:
        """One request to ``/folder``."""
        query = urllib.parse.urlencode({"dcPath": "dc1", "dsName": datastore})
        return self.request(method, f"/folder/{urllib.parse.quote(path)}?{query}", **options)


def wait(task: Any) -> Any:
    """Wait for a task; its result. Raises the task's fault."""
    _wait_for_task(task)
    return task.info.result


@contextmanager
def lab_with(
    state: Path, *machines: MachinePlan, mode: Mode = "vcenter", **plan: Any
) -> Iterator[Client]:
    """A running lab with these VMs, and a client logged in."""
    inventory = InventoryPlan(machines=machines, **plan)
    with running_lab(state, mode=mode, inventory=inventory) as running, client_of(running) as found:
        yield found
        bugs = running.lab.calls.events(event="lab_bug")
        assert not bugs, bugs[0]["trace"]


@contextmanager
def client_of(running: RunningLab) -> Iterator[Client]:
    """Another client of the same lab."""
    context = ssl.create_default_context(cafile=str(running.state / "certificate.pem"))
    context.check_hostname = False
    instance = _connect(
        host="127.0.0.1",
        port=running.port,
        user=running.user,
        pwd=running.password,
        sslContext=context,
    )
    try:
        yield Client(running, instance, context)
    finally:
        _disconnect(instance)


def disks_of(config: Any) -> list[Any]:
    """The disks in a configuration, by key."""
    return [each for each in config.hardware.device if isinstance(each, vim.vm.device.VirtualDisk)]


def attach(
    file_name: str, *, mode: str = "persistent", unit: int | None = None, controller: int = 1000
) -> Any:
    """The change that attaches an existing disk."""
    return Spec(
        operation="add",
        device=vim.vm.device.VirtualDisk(
            key=-1,
            controllerKey=controller,
            unitNumber=unit,
            backing=vim.vm.device.VirtualDisk.FlatVer2BackingInfo(
                fileName=file_name, diskMode=mode
            ),
        ),
    )


def new_disk(
    capacity: int,
    *,
    key: int = -1,
    controller: int = 1000,
    unit: int | None = None,
    file_name: str = "",
    thin: bool = True,
) -> Any:
    """The change that makes a disk."""
    return Spec(
        operation="add",
        fileOperation="create",
        device=vim.vm.device.VirtualDisk(
            key=key,
            controllerKey=controller,
            unitNumber=unit,
            capacityInKB=capacity // 1024,
            backing=vim.vm.device.VirtualDisk.FlatVer2BackingInfo(
                fileName=file_name, diskMode="persistent", thinProvisioned=thin
            ),
        ),
    )


def removal(key: int, *, destroy: bool = False) -> Any:
    """The change that takes a device away."""
    return Spec(
        operation="remove",
        fileOperation="destroy" if destroy else None,
        device=vim.vm.device.VirtualDisk(key=key),
    )


def reconfigure(vm: Any, *changes: Any, **settings: Any) -> None:
    """Reconfigure and wait."""
    wait(vm.ReconfigVM_Task(vim.vm.ConfigSpec(deviceChange=list(changes), **settings)))


def same_by_qemu(first: Path, first_format: str, second: Path) -> bool:
    """Does qemu-img find the same content in an image and in a raw file?"""
    qemu_img = shutil.which("qemu-img")
    assert qemu_img is not None
    command = [qemu_img, "compare", "-f", first_format, "-F", "raw", str(first), str(second)]
    return subprocess.run(command, capture_output=True, timeout=60, check=False).returncode == 0
