"""Disks of the lab for tests, and qemu-img as the referee over their chains."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from holdfast_lab.storage.disk import DatastoreKind, LabDisk, Provisioning

MIB = 1024 * 1024
QEMU_IMG = shutil.which("qemu-img")
needs_qemu = pytest.mark.skipif(
    QEMU_IMG is None, reason="qemu-img is not installed: apt-get install qemu-utils"
)


def make_disk(
    folder: Path,
    name: str = "web",
    capacity: int = 8 * MIB,
    kind: DatastoreKind = DatastoreKind.VMFS,
    provisioning: Provisioning = Provisioning.THIN,
) -> LabDisk:
    """A new disk in ``folder/files`` with its log in ``folder/guest``."""
    files = folder / "files"
    files.mkdir(parents=True, exist_ok=True)
    return LabDisk.create(
        files,
        name,
        capacity,
        guest_log=folder / "guest" / name,
        datastore_kind=kind,
        provisioning=provisioning,
    )


def assert_qemu_agrees(disk: LabDisk, descriptor: Path, folder: Path, at: int) -> None:
    """``qemu-img compare`` of a link's chain with the ground truth at a sequence."""
    assert QEMU_IMG is not None
    truth = folder / f"truth-{at}-{os.urandom(4).hex()}.raw"
    disk.truth(truth, at)
    result = subprocess.run(
        [QEMU_IMG, "compare", "-f", "vmdk", "-F", "raw", str(descriptor), str(truth)],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    truth.unlink()
    assert result.returncode == 0, f"{descriptor.name} at {at}: {result.stdout}{result.stderr}"


def assert_true_everywhere(disk: LabDisk, frozen: dict[int, Path] | None = None) -> None:
    """Tip and frozen links hold what the guest wrote up to their sequences, by our reader."""
    with disk.reader_at() as reader:
        assert disk.first_difference(reader) is None
    for sequence, descriptor in (frozen or {}).items():
        with disk.reader_at(descriptor) as reader:
            assert disk.first_difference(reader, sequence) is None
