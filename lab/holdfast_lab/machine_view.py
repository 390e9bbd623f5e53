"""What clients read of a VM: its state put into vSphere's data objects. Nothing here changes state."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pyVmomi import vim

from holdfast_lab.device_table import DeviceTable
from holdfast_lab.lab_clock import utc_now
from holdfast_lab.lab_object import escaped_name
from holdfast_lab.wire_types import WireObject

if TYPE_CHECKING:
    from holdfast_lab.machine import Machine, MachineSettings

SECTOR_BYTES = 512
GUEST_NAMES = {
    "debian12_64Guest": "Debian GNU/Linux 12 (64-bit)",
    "otherLinux64Guest": "Other Linux (64-bit)",
    "windows2019srv_64Guest": "Microsoft Windows Server 2019 (64-bit)",
}


def guest_full_name(guest_id: str) -> str:
    """The readable name of a guest id."""
    return GUEST_NAMES.get(guest_id, guest_id)


def config_info(machine: Machine, settings: MachineSettings, devices: DeviceTable) -> WireObject:
    """``config`` of a VM, or of a snapshot with its own settings and devices."""
    lab = machine.lab

    def datastore_of(path: Path) -> WireObject:
        for each in lab.datastores():
            if path.is_relative_to(each.root):
                return each.ref
        return None

    others = copy.deepcopy(settings.others)
    others["bootOptions"].efiSecureBootEnabled = settings.secure_boot
    return vim.vm.ConfigInfo(
        changeVersion=f"{settings.modified.isoformat()}/{machine.change_version}",
        modified=settings.modified,
        name=escaped_name(machine.name),
        guestFullName=guest_full_name(settings.guest_id),
        version=settings.hardware_version,
        uuid=settings.bios_uuid,
        instanceUuid=settings.instance_uuid,
        template=settings.template,
        guestId=settings.guest_id,
        alternateGuestName="",
        annotation=settings.annotation,
        files=vim.vm.FileInfo(
            vmPathName=machine.vmx_path,
            snapshotDirectory=_folder_path(machine),
            suspendDirectory=_folder_path(machine),
            logDirectory=_folder_path(machine),
        ),
        tools=vim.vm.ToolsConfigInfo(toolsVersion=12352 if machine.tools.installed else 0),
        defaultPowerOps=vim.vm.DefaultPowerOpInfo(powerOffType="soft", suspendType="hard"),
        hardware=vim.vm.VirtualHardware(
            numCPU=settings.cpu_count,
            numCoresPerSocket=settings.cores_per_socket,
            memoryMB=settings.memory_mib,
            device=devices.wire(lab.datastore_path, datastore_of),
        ),
        extraConfig=[
            vim.option.OptionValue(key=key, value=value)
            for key, value in sorted({"nvram": machine.nvram.name, **settings.extra_config}.items())
        ],
        changeTrackingEnabled=settings.change_tracking,
        firmware=settings.firmware,
        createDate=settings.modified,
        **others,
    )


def runtime_info(machine: Machine) -> WireObject:
    """``runtime``."""
    return vim.vm.RuntimeInfo(
        host=machine.host.ref,
        connectionState="connected" if machine.connected else "disconnected",
        powerState=machine.power_state,
        faultToleranceState="notConfigured",
        toolsInstallerMounted=False,
        bootTime=machine.booted,
        suspendInterval=0,
        consolidationNeeded=machine.consolidation_needed,
        maxCpuUsage=2000,
        maxMemoryUsage=machine.settings.memory_mib,
        numMksConnections=0,
        recordReplayState="inactive",
        onlineStandby=False,
        cryptoState=None,
        snapshotInBackground=False,
    )


def guest_info(machine: Machine) -> WireObject:
    """``guest``: what Tools report; without Tools there is little to know."""
    installed = machine.tools.installed
    running = installed and machine.powered_on and machine.tools.running
    status = "toolsOk" if running else "toolsNotRunning" if installed else "toolsNotInstalled"
    return vim.vm.GuestInfo(
        toolsStatus=status,
        toolsVersionStatus2="guestToolsCurrent" if installed else "guestToolsNotInstalled",
        toolsVersionStatus="guestToolsCurrent" if installed else "guestToolsNotInstalled",
        toolsRunningStatus="guestToolsRunning" if running else "guestToolsNotRunning",
        toolsVersion="12352" if installed else "0",
        guestState="running" if running else "notRunning",
        guestId=machine.settings.guest_id if running else None,
        guestFamily="linuxGuest" if running else None,
        guestFullName=guest_full_name(machine.settings.guest_id) if running else None,
        hostName=machine.guest_host_name if running else None,
        ipAddress=machine.guest_address or None if running else None,
        guestOperationsReady=running,
        interactiveGuestOperationsReady=False,
        guestStateChangeSupported=running,
    )


def summary(machine: Machine) -> WireObject:
    """``summary``."""
    settings = machine.settings
    disks = machine.disks()
    guest = guest_info(machine)
    used = files_bytes(machine)
    return vim.vm.Summary(
        vm=machine.ref,
        runtime=runtime_info(machine),
        guest=vim.vm.Summary.GuestSummary(
            guestId=guest.guestId,
            guestFullName=guest.guestFullName,
            toolsStatus=guest.toolsStatus,
            toolsVersionStatus2=guest.toolsVersionStatus2,
            toolsRunningStatus=guest.toolsRunningStatus,
            hostName=guest.hostName,
            ipAddress=guest.ipAddress,
        ),
        config=vim.vm.Summary.ConfigSummary(
            name=escaped_name(machine.name),
            template=settings.template,
            vmPathName=machine.vmx_path,
            memorySizeMB=settings.memory_mib,
            numCpu=settings.cpu_count,
            numEthernetCards=len(machine.devices.network_cards()),
            numVirtualDisks=len(disks),
            uuid=settings.bios_uuid,
            instanceUuid=settings.instance_uuid,
            guestId=settings.guest_id,
            guestFullName=guest_full_name(settings.guest_id),
            annotation=settings.annotation,
            hwVersion=settings.hardware_version,
        ),
        storage=vim.vm.Summary.StorageSummary(
            committed=used,
            uncommitted=max(0, sum(each.disk.capacity_bytes for each in disks) - used),
            unshared=used,
            timestamp=utc_now(),
        ),
        quickStats=vim.vm.Summary.QuickStats(
            overallCpuUsage=0,
            guestMemoryUsage=0,
            hostMemoryUsage=0,
            uptimeSeconds=0,
            guestHeartbeatStatus=machine.guest_heartbeat(),
        ),
        overallStatus="green",
        customValue=[],
    )


def layout_ex(machine: Machine) -> WireObject:
    """``layoutEx``: every file of the VM, and which of them make up each disk and snapshot."""
    files: list[Any] = []
    keys: dict[Path, int] = {}

    def add(path: Path, kind: str) -> int:
        if path not in keys:
            keys[path] = len(files)
            size = stored_bytes(path)
            files.append(
                vim.vm.FileLayoutEx.FileInfo(
                    key=keys[path],
                    name=machine.lab.datastore_path(path),
                    type=kind,
                    size=size,
                    uniqueSize=size,
                    accessible=True,
                )
            )
        return keys[path]

    add(machine.vmx, "config")
    if machine.nvram.exists():
        add(machine.nvram, "nvram")
    disks = []
    for device in machine.disks():
        chain = []
        for link, paths in device.files_of_links():
            parts = [
                add(path, "diskDescriptor" if path == link else "diskExtent") for path in paths
            ]
            chain.append(vim.vm.FileLayoutEx.DiskUnit(fileKey=parts))
        disks.append(vim.vm.FileLayoutEx.DiskLayout(key=device.key, chain=chain))
    return vim.vm.FileLayoutEx(
        file=files,
        disk=disks,
        snapshot=_snapshot_layouts(machine),
        timestamp=utc_now(),
    )


def _snapshot_layouts(machine: Machine) -> list[Any]:
    return [
        vim.vm.FileLayoutEx.SnapshotLayout(key=each.ref, dataKey=-1, memoryKey=-1, disk=[])
        for each in machine.snapshots()
    ]


def storage_info(machine: Machine) -> WireObject:
    """``storage``: what the VM takes on each datastore."""
    return vim.vm.StorageInfo(
        perDatastoreUsage=[
            vim.vm.StorageInfo.UsageOnDatastore(
                datastore=each.ref,
                committed=files_bytes(machine, each.root),
                uncommitted=0,
                unshared=files_bytes(machine, each.root),
            )
            for each in machine.datastores()
        ],
        timestamp=utc_now(),
    )


def files_bytes(machine: Machine, root: Path | None = None) -> int:
    """What the VM's files take, below one root when given."""
    paths = {machine.vmx, machine.nvram}
    for device in machine.disks():
        paths.update(device.files())
    return sum(stored_bytes(path) for path in paths if root is None or path.is_relative_to(root))


def stored_bytes(path: Path) -> int:
    """What one file takes; nothing when it is gone: a merge may remove it at any moment."""
    try:
        return path.stat().st_blocks * SECTOR_BYTES
    except FileNotFoundError:
        return 0


def capability() -> WireObject:
    """``capability``: what the lab's VMs can do."""
    return vim.vm.Capability(
        snapshotOperationsSupported=True,
        multipleSnapshotsSupported=True,
        snapshotConfigSupported=True,
        poweredOffSnapshotsSupported=True,
        memorySnapshotsSupported=True,
        revertToSnapshotSupported=True,
        quiescedSnapshotsSupported=True,
        disableSnapshotsSupported=False,
        lockSnapshotsSupported=False,
        consolePreferencesSupported=False,
        cpuFeatureMaskSupported=False,
        s1AcpiManagementSupported=False,
        settingScreenResolutionSupported=False,
        toolsAutoUpdateSupported=False,
        vmNpivWwnSupported=False,
        npivWwnOnNonRdmVmSupported=False,
        changeTrackingSupported=True,
        featureRequirementSupported=False,
        diskSharesSupported=True,
    )


def _folder_path(machine: Machine) -> str:
    return machine.lab.datastore_path(machine.directory) + "/"
