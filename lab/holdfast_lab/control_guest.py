"""Commands that act as the guest, and that judge a disk by what the guest wrote."""

from __future__ import annotations

import base64
import shutil
import subprocess
from pathlib import Path

from holdfast_lab.control import Control, control_command
from holdfast_lab.control_machines import disk_of, machine_of
from holdfast_lab.device_table import DiskDevice
from holdfast_lab.faults import LabError
from holdfast_lab.guest import (
    FileSystem,
    change_files,
    file_system,
    fill_from_image,
    is_clean,
    known_files,
    make_ext4,
    read_files,
    write_random_blocks,
)
from holdfast_lab.host_devices import slot_name
from holdfast_lab.machine import Machine
from holdfast_lab.moments import Moment, MomentDisk
from holdfast_lab.storage.partitions import PartitionLayout
from holdfast_lab.storage.readers import RawReader, first_difference

QEMU_SECONDS_MAX = 600


@control_command("guest-write")
def guest_write(control: Control) -> object:
    """The guest writes random blocks (``count``, ``block_bytes``, ``seed``) or ``data`` at ``offset``."""
    device = disk_of(control, machine_of(control))
    data = control.arguments.optional("data", str)
    if data is not None:
        content = base64.b64decode(data)
        device.disk.guest_write(control.arguments.number("offset"), content)
        areas = [(control.arguments.number("offset"), len(content))]
    else:
        written = write_random_blocks(
            device.disk,
            seed=control.arguments.number("seed", 0),
            count=control.arguments.number("count", 1),
            block_bytes=control.arguments.number("block_bytes", 64 * 1024),
        )
        areas = [(area.offset, area.length) for area in written]
    return {
        "sequence": device.disk.sequence,
        "bytes": sum(length for _, length in areas),
        "areas": areas,
    }


@control_command("guest-zero")
def guest_zero(control: Control) -> object:
    """The guest writes zeros, or with ``discard`` unmaps."""
    device = disk_of(control, machine_of(control))
    offset, length = control.arguments.number("offset"), control.arguments.number("length")
    if control.arguments.flag("discard"):
        return {"sequence": device.disk.guest_discard(offset, length)}
    return {"sequence": device.disk.guest_zero(offset, length)}


@control_command("guest-ext4")
def guest_ext4(control: Control) -> object:
    """Make an ext4 with known files (``seed``), or change files: ``write`` name -> text, ``delete``."""
    device = disk_of(control, machine_of(control))
    changes = control.arguments.optional("write", dict)
    deletions = control.arguments.optional("delete", list) or []
    if changes is None and not deletions:
        made = make_ext4(
            device.disk,
            known_files(control.arguments.number("seed", 1)),
            layout=PartitionLayout(control.arguments.optional("layout", str) or "mbr"),
        )
        return {
            "sequence": device.disk.sequence,
            "offset": made.partition.offset,
            "length": made.partition.length,
        }
    files: dict[str, bytes | None] = {
        str(name): str(text).encode() for name, text in (changes or {}).items()
    }
    files |= {str(name): None for name in deletions}
    areas = change_files(device.disk, files)
    return {
        "sequence": device.disk.sequence,
        "bytes": sum(area.length for area in areas),
        "areas": [(area.offset, area.length) for area in areas],
    }


@control_command("guest-fill")
def guest_fill(control: Control) -> object:
    """The guest writes a whole raw ``image``; ``layout`` says where its one ext4 lies, if it has one."""
    device = disk_of(control, machine_of(control))
    layout = control.arguments.optional("layout", str)
    fill_from_image(
        device.disk,
        Path(control.arguments.text("image")),
        layout=None if layout is None else PartitionLayout(layout),
    )
    return {"sequence": device.disk.sequence}


@control_command("guest-files")
def guest_files(control: Control) -> object:
    """Read files of the ext4 on a raw ``image`` (default: the ground truth) by the guest's layout."""
    device = disk_of(control, machine_of(control))
    system = file_system(device.disk)
    names = [str(each) for each in control.arguments.optional("names", list) or []]
    image = control.arguments.optional("image", str)
    if image is not None:
        return _contents(Path(image), system, names)
    moment = _moment_now(device)
    with moment.truth() as truth:
        return _contents(truth, system, names)


def _contents(image: Path, system: FileSystem, names: list[str]) -> dict[str, object]:
    found = read_files(image, system, names)
    return {
        "clean": is_clean(image, system),
        "files": {
            name: None if content is None else base64.b64encode(content).decode()
            for name, content in found.items()
        },
    }


def _moment_now(device: DiskDevice) -> MomentDisk:
    return MomentDisk(
        key=device.key,
        name=device.disk.base_name,
        uuid=device.disk.uuid,
        guest_log=device.disk.guest_log_directory,
        sequence=device.disk.sequence,
        disk=device.disk,
    )


# moments ----------------------------------------------------------------------------------


@control_command("moments")
def list_moments(control: Control) -> object:
    """Moments of a VM (all without ``vm``): each snapshot ever made, each mark."""
    vm = control.arguments.optional("vm", str)
    with control.lab.lock:
        chosen = control.lab.moments.noted if vm is None else control.lab.moments.of(vm)
        return [each.describe() for each in chosen]


@control_command("mark")
def mark(control: Control) -> object:
    """Note what a VM's disks hold now, under a ``name``."""
    machine = machine_of(control)
    with control.lab.lock:
        moment = control.lab.moments.note(
            machine, name=control.arguments.text("name"), snapshot="", devices=machine.devices
        )
        return moment.describe()


def moment_of(control: Control, vm: str) -> Moment:
    """The moment that ``at`` names; without it, now. Raises: LabError."""
    at = control.arguments.optional("at", str)
    with control.lab.lock:
        if at is not None:
            return control.lab.moments.find(vm, at)
        machine = machine_of(
            control, "original" if "original" in control.arguments.values else "vm"
        )
        return Moment(
            number=0,
            name="now",
            vm=machine.name,
            instance_uuid=machine.instance_uuid,
            snapshot="",
            noted=machine.settings.modified,
            disks=tuple(_moment_now(each) for each in machine.disks()),
        )


@control_command("truth")
def truth(control: Control) -> object:
    """Write the ground truth of a disk (``disk``, ``at``) as a raw file ``to``."""
    target = Path(control.arguments.text("to"))
    moment = moment_of(control, control.arguments.text("vm"))
    disk = moment.disk(control.arguments.number("disk", 0))
    disk.write_truth(target)
    return {"moment": moment.name, "sequence": disk.sequence, "bytes": target.stat().st_size}


# judging ----------------------------------------------------------------------------------


@control_command("compare")
def compare(control: Control) -> object:
    """Compare the disks of ``vm`` (or a raw ``file``) with the truth of ``original`` at ``at``."""
    original = control.arguments.optional("original", str) or control.arguments.text("vm")
    moment = moment_of(control, original)
    file = control.arguments.optional("file", str)
    if file is not None:
        disk = moment.disk(control.arguments.number("disk", 0))
        return _verdict(moment, [_compare_file(Path(file), disk)])
    machine = machine_of(control)
    ordinal = control.arguments.optional("disk", int)
    with control.lab.lock:
        devices = machine.disks()
    if ordinal is not None:
        pairs = [(devices[ordinal], moment.disk(ordinal))]
    else:
        if len(devices) != len(moment.disks):
            raise LabError(
                f"{machine.name} has {len(devices)} disks, {moment.vm} had {len(moment.disks)}"
            )
        pairs = list(zip(devices, moment.disks, strict=True))
    return _verdict(moment, [_compare_disk(machine, device, disk) for device, disk in pairs])


def _verdict(moment: Moment, disks: list[dict[str, object]]) -> dict[str, object]:
    return {
        "equal": all(each["offset"] is None for each in disks),
        "original": moment.vm,
        "moment": moment.name,
        "disks": disks,
    }


def _compare_file(path: Path, disk: MomentDisk) -> dict[str, object]:
    with disk.truth() as truth_path, RawReader(truth_path) as wanted, RawReader(path) as found:
        offset = first_difference(wanted, found)
        return {
            "disk": path.name,
            "file": str(path),
            "capacity_bytes": wanted.capacity_bytes,
            "offset": offset,
            "judged_by": ["lab"],
        }


def _compare_disk(machine: Machine, device: DiskDevice, disk: MomentDisk) -> dict[str, object]:
    lab = machine.lab
    with disk.truth() as truth_path:
        with (
            RawReader(truth_path) as wanted,
            device.disk.reader_at(device.descriptor, reason="compare") as found,
        ):
            offset = first_difference(wanted, found)
            capacity = wanted.capacity_bytes
        judges = ["lab"]
        if offset is None and shutil.which("qemu-img"):
            judges.append("qemu-img")
            offset = _qemu_difference(device.descriptor, truth_path)
    with lab.lock:
        return {
            "disk": f"{machine.name} {slot_name(machine.devices, device)}",
            "file": lab.datastore_path(device.descriptor),
            "capacity_bytes": capacity,
            "offset": offset,
            "judged_by": judges,
        }


def _qemu_difference(descriptor: Path, truth_path: Path) -> int | None:
    """What ``qemu-img compare`` says; the lab's own reader has accepted the descriptor before."""
    result = subprocess.run(
        ["qemu-img", "compare", "-U", "-f", "vmdk", "-F", "raw", str(descriptor), str(truth_path)],
        capture_output=True,
        text=True,
        check=False,
        timeout=QEMU_SECONDS_MAX,
    )
    if result.returncode == 0:
        return None
    if result.returncode == 1:
        digits = "".join(filter(str.isdigit, result.stdout.partition("offset")[2].split("!")[0]))
        return int(digits or "0")
    raise LabError(f"qemu-img cannot compare {descriptor.name}: {result.stderr.strip()}")
