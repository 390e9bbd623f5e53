"""What is left in a lab's vSphere, asked by a stock pyVmomi client: the product is not asked.

`look` is one whole picture: VMs with their snapshots, disks and needs, and every file and folder of
every datastore. Two pictures are compared in words.
"""

from __future__ import annotations

import ssl
from dataclasses import dataclass, field
from typing import Any

from pyVim.connect import SmartConnect
from pyVim.task import WaitForTask
from pyVmomi import vim, vmodl

PC = vmodl.query.PropertyCollector
PATHS = [
    "name",
    "snapshot",
    "config.hardware.device",
    "config.files.vmPathName",
    "runtime.consolidationNeeded",
    "recentTask",
]


@dataclass(frozen=True)
class VmLook:
    """One VM. ``snapshots``: (moref, name); ``disks``: (key, file, mode)."""

    moref: str
    name: str
    vmx: str
    snapshots: tuple[tuple[str, str], ...]
    disks: tuple[tuple[int, str, str], ...]
    consolidation_needed: bool

    @property
    def folder(self) -> str:
        """``[datastore] folder/`` of its configuration."""
        return self.vmx.rpartition("/")[0] + "/"

    @property
    def folders(self) -> set[str]:
        """Those of its configuration and of its disks."""
        return {self.folder} | {file.rpartition("/")[0] + "/" for _, file, _ in self.disks}


@dataclass(frozen=True)
class Look:
    """Everything at one moment. ``files``: ``[datastore] path``; folders end with a slash."""

    vms: dict[str, VmLook]
    files: frozenset[str] = field(repr=False)

    def by_name(self, name: str) -> VmLook | None:
        return next((vm for vm in self.vms.values() if vm.name == name), None)


class SoapJudge:
    """A session of the test's own at a lab's vSphere."""

    def __init__(self, facts: dict[str, Any]) -> None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        host, _, port = facts["url"].removeprefix("https://").partition("/")[0].partition(":")
        self._service = SmartConnect(
            host=host,
            port=int(port),
            user=facts["user"],
            pwd=facts["password"],
            sslContext=context,
        )
        self._content = self._service.RetrieveContent()

    def look(self) -> Look:
        return Look(vms=self._vms(), files=frozenset(self._files()))

    def machine(self, name: str) -> Any:
        """The VM of this name, to be changed as a foreign program would."""
        moref = next(vm.moref for vm in self._vms().values() if vm.name == name)
        return vim.VirtualMachine(moref, self._service._stub)

    def make_snapshot(self, vm: str, *, name: str, description: str) -> str:
        task = self.machine(vm).CreateSnapshot_Task(
            name=name, description=description, memory=False, quiesce=False
        )
        WaitForTask(task)
        return str(task.info.result._moId)

    def remove_snapshot(self, moref: str) -> None:
        snapshot = vim.vm.Snapshot(moref, self._service._stub)
        WaitForTask(snapshot.RemoveSnapshot_Task(removeChildren=False, consolidate=True))

    def attach_new_disk(self, vm: str, *, file: str, capacity_bytes: int) -> int:
        """A disk of somebody else's, made and attached; its device key."""
        machine = self.machine(vm)
        devices = machine.config.hardware.device
        controller = next(d for d in devices if isinstance(d, vim.vm.device.VirtualSCSIController))
        taken = {d.unitNumber for d in devices if d.controllerKey == controller.key}
        disk = vim.vm.device.VirtualDisk(
            key=-7,
            controllerKey=controller.key,
            unitNumber=next(n for n in range(16) if n != 7 and n not in taken),
            capacityInKB=capacity_bytes // 1024,
            backing=vim.vm.device.VirtualDisk.FlatVer2BackingInfo(
                fileName=file, diskMode="persistent", thinProvisioned=True
            ),
        )
        change = vim.vm.device.VirtualDeviceSpec(
            operation="add", fileOperation="create", device=disk
        )
        WaitForTask(machine.ReconfigVM_Task(vim.vm.ConfigSpec(deviceChange=[change])))
        found = machine.config.hardware.device
        key = next(d.key for d in found if getattr(d.backing, "fileName", "") == file and d.key > 0)
        return int(key)

    def _vms(self) -> dict[str, VmLook]:
        view = self._content.viewManager.CreateContainerView(
            self._content.rootFolder, [vim.VirtualMachine], True
        )
        try:
            step = PC.TraversalSpec(name="view", path="view", type=type(view), skip=False)
            spec = PC.FilterSpec(
                objectSet=[PC.ObjectSpec(obj=view, skip=True, selectSet=[step])],
                propSet=[PC.PropertySpec(type=vim.VirtualMachine, pathSet=PATHS)],
            )
            found = self._content.propertyCollector.RetrieveContents([spec])
        finally:
            view.Destroy()
        looks = {}
        for each in found:
            values = {prop.name: prop.val for prop in each.propSet}
            looks[str(each.obj._moId)] = _vm_look(str(each.obj._moId), values)
        return looks

    def _files(self) -> list[str]:
        found: list[str] = []
        for datacenter in self._content.rootFolder.childEntity:
            for store in datacenter.datastore:
                task = store.browser.SearchDatastoreSubFolders_Task(f"[{store.name}]")
                WaitForTask(task)
                for folder in task.info.result:
                    path = folder.folderPath
                    found.append(path if path.endswith("/") else path + " ")
                    found += [
                        f"{found[-1]}{each.path}"
                        for each in folder.file
                        if not isinstance(each, vim.host.DatastoreBrowser.FolderInfo)
                    ]
        return [name for name in found if not name.endswith("] ")]


def _vm_look(moref: str, values: dict[str, Any]) -> VmLook:
    snapshots: list[tuple[str, str]] = []
    waiting = list(values["snapshot"].rootSnapshotList) if values.get("snapshot") else []
    while waiting:
        node = waiting.pop()
        snapshots.append((str(node.snapshot._moId), str(node.name)))
        waiting += list(node.childSnapshotList or [])
    disks = []
    for each in values.get("config.hardware.device") or []:
        if isinstance(each, vim.vm.device.VirtualDisk):
            backing: Any = each.backing
            disks.append((int(each.key), str(backing.fileName), str(backing.diskMode)))
    return VmLook(
        moref=moref,
        name=str(values["name"]),
        vmx=str(values.get("config.files.vmPathName", "")),
        snapshots=tuple(sorted(snapshots)),
        disks=tuple(sorted(disks)),
        consolidation_needed=bool(values.get("runtime.consolidationNeeded")),
    )


def differences(before: Look, now: Look, *, exchanged: str = "", made: str = "") -> list[str]:
    """What is not as it was, in words.

    ``exchanged``: the VM whose disks may have been exchanged; ``made``: one that may be there now.
    """
    found = []
    for moref, vm in now.vms.items():
        if made and vm.name == made:
            continue
        old = before.vms.get(moref)
        if old is None:
            found.append(f"a VM is new: {vm.name}")
            continue
        if vm.consolidation_needed:
            found.append(f"{vm.name} needs a consolidation")
        if vm.snapshots != old.snapshots:
            found.append(f"snapshots of {vm.name}: {vm.snapshots}, were {old.snapshots}")
        if vm.disks != old.disks and vm.name != exchanged:
            found.append(f"disks of {vm.name}: {vm.disks}, were {old.disks}")
    found += [f"a VM is gone: {old.name}" for key, old in before.vms.items() if key not in now.vms]
    wanted, there = set(before.files), set(now.files)
    new = now.by_name(made) if made else None
    if new is not None:
        there = {name for name in there if not any(name.startswith(f) for f in new.folders)}
    target = now.by_name(exchanged) if exchanged else None
    if target is not None:
        wanted = {name for name in wanted if not _is_disk_of(name, target)}
        there = {name for name in there if not _is_file_of_present_disk(name, target)}
    found += [f"left on a datastore: {name}" for name in sorted(there - wanted)]
    found += [f"gone from a datastore: {name}" for name in sorted(wanted - there)]
    return found


def _is_disk_of(name: str, vm: VmLook) -> bool:
    return name.startswith(vm.folder) and name.endswith(".vmdk")


def _is_file_of_present_disk(name: str, vm: VmLook) -> bool:
    """A descriptor that the VM has now, its data, or its tracking."""
    for _, file, _ in vm.disks:
        stem = file.removesuffix(".vmdk")
        if name in {file, f"{stem}-flat.vmdk", f"{stem}-ctk.vmdk", f"{stem}-sesparse.vmdk"}:
            return True
    return False
