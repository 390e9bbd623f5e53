"""The small files of a VM's snapshots: ``.vmsd`` lists the tree, one ``.vmsn`` lies beside for each."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from holdfast_lab.vmx_file import quote, values_of

if TYPE_CHECKING:
    from holdfast_lab.machine import Machine, MachineSnapshot

MEMORY_FILE_BYTES = 64 * 1024  # a .vmem stands for the memory; the lab's guests have none


def state_file(snapshot: MachineSnapshot) -> Path:
    """The ``.vmsn`` of a snapshot."""
    vmx = snapshot.machine.vmx
    return vmx.with_name(f"{vmx.stem}-Snapshot{snapshot.number}.vmsn")


def save_snapshot_files(snapshot: MachineSnapshot) -> None:
    """Write the snapshot's own file and the list. Needs ``Lab.lock``."""
    machine = snapshot.machine
    if not machine.directory.is_dir():
        return
    lines = [f'{key} = "{quote(value)}"' for key, value in values_of(machine).items()]
    state_file(snapshot).write_text("\n".join(lines) + "\n", encoding="utf-8")
    if snapshot.with_memory:
        with state_file(snapshot).with_suffix(".vmem").open("wb") as memory:
            memory.truncate(MEMORY_FILE_BYTES)
    save_snapshot_list(machine)


def remove_snapshot_files(snapshot: MachineSnapshot) -> None:
    """The snapshot is gone from the tree. Needs ``Lab.lock``."""
    state_file(snapshot).unlink(missing_ok=True)
    state_file(snapshot).with_suffix(".vmem").unlink(missing_ok=True)
    if snapshot.machine.directory.is_dir():
        save_snapshot_list(snapshot.machine)


def save_snapshot_list(machine: Machine) -> None:
    """Write the ``.vmsd``."""
    snapshots = machine.snapshots()
    values = {".encoding": "UTF-8", "snapshot.numSnapshots": str(len(snapshots))}
    if machine.current_snapshot is not None:
        values["snapshot.current"] = str(machine.current_snapshot.number)
    for place, each in enumerate(snapshots):
        values |= {
            f"snapshot{place}.uid": str(each.number),
            f"snapshot{place}.filename": state_file(each).name,
            f"snapshot{place}.displayName": each.name,
            f"snapshot{place}.description": each.description,
            f"snapshot{place}.parent": str(each.parent.number) if each.parent else "0",
        }
        frozen = [disk for disk in each.devices.disks.values() if disk.frozen_at is not None]
        values[f"snapshot{place}.numDisks"] = str(len(frozen))
        for number, disk in enumerate(frozen):
            values[f"snapshot{place}.disk{number}.fileName"] = disk.descriptor.name
    text = "\n".join(f'{key} = "{quote(value)}"' for key, value in values.items()) + "\n"
    machine.vmx.with_suffix(".vmsd").write_text(text, encoding="utf-8")
