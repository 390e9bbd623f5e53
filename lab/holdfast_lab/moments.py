"""Moments: what each disk of a VM held when a snapshot was made, or when somebody asked to note it.

A moment outlives its snapshot, its VM and its vCenter's memory of both: it names the guest logs, from
which the ground truth of that moment can be replayed at any time.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

from holdfast_lab.faults import LabError
from holdfast_lab.lab_clock import utc_now
from holdfast_lab.storage.guest_log import GuestLog

if TYPE_CHECKING:
    from holdfast_lab.device_table import DeviceTable
    from holdfast_lab.machine import Machine
    from holdfast_lab.storage.disk import LabDisk


@dataclass(frozen=True, slots=True, kw_only=True)
class MomentDisk:
    """One disk at a moment: its guest log, and how far it had come."""

    key: int
    name: str
    uuid: str
    guest_log: Path
    sequence: int
    disk: LabDisk

    def write_truth(self, to: Path) -> None:
        """Replay the guest's writes into a new sparse raw file. Without ``Lab.lock``."""
        if self.disk.tip_descriptor.exists():
            self.disk.settle_truth()
        log = GuestLog(self.guest_log)
        try:
            log.truth(to, self.sequence)
        finally:
            log.close()

    @contextmanager
    def truth(self) -> Iterator[Path]:
        """The ground truth as a file that is gone afterwards."""
        with tempfile.TemporaryDirectory(dir=self.guest_log) as folder:
            path = Path(folder) / "truth.raw"
            self.write_truth(path)
            yield path


@dataclass(frozen=True, slots=True, kw_only=True)
class Moment:
    """All disks of a VM at one moment. ``snapshot`` is empty when none was made."""

    number: int
    name: str
    vm: str
    instance_uuid: str
    snapshot: str
    noted: datetime
    disks: tuple[MomentDisk, ...]

    def disk(self, ordinal: int) -> MomentDisk:
        """The n-th disk by key, from 0. Raises: LabError."""
        try:
            return self.disks[ordinal]
        except IndexError:
            raise LabError(
                f"{self.vm} had {len(self.disks)} disks at {self.name}, not {ordinal + 1}"
            ) from None

    def describe(self) -> dict[str, object]:
        """The moment as plain values."""
        return {
            "number": self.number,
            "name": self.name,
            "vm": self.vm,
            "instance_uuid": self.instance_uuid,
            "snapshot": self.snapshot,
            "time": self.noted.isoformat(timespec="milliseconds"),
            "disks": [
                {
                    "key": each.key,
                    "name": each.name,
                    "uuid": each.uuid,
                    "sequence": each.sequence,
                    "guest_log": str(each.guest_log),
                }
                for each in self.disks
            ],
        }


class Moments:
    """Every moment of a lab, oldest first. Needs ``Lab.lock``."""

    def __init__(self) -> None:
        self.noted: list[Moment] = []

    def note(self, machine: Machine, *, name: str, snapshot: str, devices: DeviceTable) -> Moment:
        """Note a moment: of a snapshot's frozen disks, or of the disks as they are now."""
        disks = []
        for key in sorted(devices.disks):
            device = devices.disks[key]
            at = device.frozen_at
            disks.append(
                MomentDisk(
                    key=key,
                    name=device.disk.base_name,
                    uuid=device.disk.uuid,
                    guest_log=device.disk.guest_log_directory,
                    sequence=device.disk.sequence if at is None else at,
                    disk=device.disk,
                )
            )
        made = Moment(
            number=len(self.noted) + 1,
            name=name,
            vm=machine.name,
            instance_uuid=machine.instance_uuid,
            snapshot=snapshot,
            noted=utc_now(),
            disks=tuple(disks),
        )
        self.noted.append(made)
        return made

    def of(self, vm: str) -> Sequence[Moment]:
        """The moments of a VM, by name or by instance uuid."""
        return [each for each in self.noted if vm in (each.vm, each.instance_uuid)]

    def find(self, vm: str, at: str) -> Moment:
        """The newest moment of a VM named ``at`` (a name, a snapshot's id, a number).

        Raises: LabError.
        """
        for each in reversed(self.of(vm)):
            if at in (each.name, each.snapshot, str(each.number)):
                return each
        raise LabError(f"no moment of {vm} is named {at!r}")
