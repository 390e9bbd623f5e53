"""A VM and a host as vSphere might show them; tests replace what they are about."""

from __future__ import annotations

from typing import Final

from holdfast_controller.facts import DiskFacts, HostFacts, VmFacts

VM: Final = VmFacts(
    moref="vm-1",
    name="web1",
    instance_uuid="50aa",
    bios_uuid="42aa",
    place="/dc1/Berlin/web",
    folder_moref="group-v1",
    host_moref="host-1",
    host_name="esx1.lab",
    pool_moref="resgroup-1",
    datacenter_moref="datacenter-1",
    datastore_names=("nfs1",),
    power_state="poweredOn",
    connection_state="connected",
    template=False,
    hardware_version=19,
    guest_id="debian12_64Guest",
    guest_name="Debian",
    firmware="bios",
    tools_running="guestToolsRunning",
    tools_version_status="",
    change_tracking_supported=True,
    change_tracking_enabled=False,
    consolidation_needed=False,
    encrypted=False,
    has_vtpm=False,
    fault_tolerant=False,
    memory_mb=512,
    cpu_count=1,
    vmx=None,
    snapshots=(),
    current_snapshot_moref="",
    disks=(),
)
HOST: Final = HostFacts(
    moref="host-1",
    name="esx1.lab",
    connection_state="connected",
    in_maintenance=False,
    version="8.0.1",
    build="21495797",
    compute_moref="compute-1",
    hardware_uuid="",
    certificate_sha256="",
    datastore_morefs=("ds-1",),
)


def disk_of(device_key: int, label: str, *, unprotected_reason: str = "") -> DiskFacts:
    """A disk of 1 GiB."""
    return DiskFacts(
        device_key=device_key,
        backing_uuid=f"6000C29{device_key}",
        label=label,
        capacity_bytes=1 << 30,
        sector_bytes=512,
        chain=(),
        change_id="",
        mode="persistent",
        sharing="",
        thin=True,
        raw_mapping="",
        encrypted=False,
        controller_key=1000,
        bus_number=0,
        unit_number=device_key - 2000,
        adapter="pvscsi",
        bus_sharing="noSharing",
        unprotected_reason=unprotected_reason,
    )
