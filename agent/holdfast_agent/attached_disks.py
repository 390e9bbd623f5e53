"""Disks attached to the proxy's own VM, as its system shows them: where they are, and whose.

Under the transport `hotadd`. A clone has its original's uuid, so a disk is found by controller and
unit; a slot may have been filled with another disk meanwhile, so the uuid proves it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol

from holdfast_common.errors import FormatError, SourceFailed

_UUID_CHARACTERS_MAX: Final = 128
_PAGE_BYTES_MAX: Final = 4096
_DESIGNATOR_TYPE_NAA: Final = 3
_DISK_UUID_BYTES: Final = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class AttachedDisk:
    """One disk. ``uuid``: 32 lower-case hex digits; empty when the system does not tell it."""

    path: Path
    uuid: str


class AttachedDisks(Protocol):
    """The disks that are attached now."""

    def find(self, *, bus_number: int, unit_number: int) -> AttachedDisk | None:
        """The disk in one slot; None while there is none. Raises: SourceFailed, FormatError."""
        ...


class DeviceFolder:
    """Disks under names: ``<folder>/scsi<bus>:<unit>/disk``, and ``uuid`` beside it."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def find(self, *, bus_number: int, unit_number: int) -> AttachedDisk | None:
        """The disk in one slot; None while there is none. Raises: SourceFailed, FormatError."""
        slot = self._folder / f"scsi{bus_number}:{unit_number}"
        try:
            with (slot / "uuid").open("rb") as file:
                text = file.read(_UUID_CHARACTERS_MAX).decode("ascii", "replace")
            if not (slot / "disk").exists():
                return None
        except FileNotFoundError:
            return None
        except OSError as error:
            raise SourceFailed(
                "attached disk cannot be looked at", slot=str(slot), reason=str(error)
            ) from error
        return AttachedDisk(path=slot / "disk", uuid=uuid_digits(text))


class LinuxScsiDevices:
    """SCSI disks of this Linux system, from sysfs.

    The firmware labels each virtual controller's PCI device ``SCSI<bus number>``; below it a
    disk's target is its unit number. ``vpd_pg83`` holds the uuid if the VM has disk.EnableUUID.
    """

    def __init__(self, *, sysfs: Path = Path("/sys"), devices: Path = Path("/dev")) -> None:
        self._sysfs = sysfs
        self._devices = devices

    def find(self, *, bus_number: int, unit_number: int) -> AttachedDisk | None:
        """The disk in one slot; None while there is none. Raises: SourceFailed, FormatError."""
        folder = self._sysfs / "class" / "scsi_device"
        try:
            for entry in sorted(folder.glob(f"*:*:{unit_number}:0")):
                device = (entry / "device").resolve()
                if self._controller_label(device) == f"SCSI{bus_number}":
                    return self._disk_of(device)
        except OSError as error:
            raise SourceFailed(
                "SCSI devices cannot be looked at", path=str(folder), reason=str(error)
            ) from error
        return None

    def _controller_label(self, device: Path) -> str:
        """The firmware's name of the nearest PCI device above; empty: it has none."""
        for above in device.parents:
            if above == self._sysfs:
                break
            label = above / "label"
            if label.is_file():
                return label.read_text(encoding="ascii", errors="replace").strip()
        return ""

    def _disk_of(self, device: Path) -> AttachedDisk | None:
        names = sorted(entry.name for entry in (device / "block").glob("*"))
        if not names:
            return None  # the SCSI device is there, its disk driver is not ready yet
        try:
            with (device / "vpd_pg83").open("rb") as file:
                page = file.read(_PAGE_BYTES_MAX)
        except FileNotFoundError:
            page = b""
        return AttachedDisk(path=self._devices / names[0], uuid=uuid_from_page_83(page))


def uuid_digits(text: str) -> str:
    """A disk's uuid, however it is written, as 32 lower-case digits. Raises: FormatError."""
    digits = re.sub(r"[\s-]", "", text).lower()
    if not re.fullmatch(r"[0-9a-f]{32}", digits):
        raise FormatError("not a disk's uuid", uuid=text[:64])
    return digits


def uuid_from_page_83(page: bytes) -> str:
    """The 16-byte NAA designator of a device identification page; empty: none is there.

    byte 0 device type · 1 page code 0x83 · 2-3 length · then designators: byte 1 low nibble type,
    byte 3 length, then as many bytes. Raises: FormatError.
    """
    if not page:
        return ""
    if len(page) < 4 or page[1] != 0x83:
        raise FormatError("a disk's device identification page is malformed", length=len(page))
    end = min(4 + int.from_bytes(page[2:4], "big"), len(page))
    at = 4
    while at + 4 <= end:
        length = page[at + 3]
        designator = page[at + 4 : at + 4 + length]
        if page[at + 1] & 0x0F == _DESIGNATOR_TYPE_NAA and len(designator) == _DISK_UUID_BYTES:
            return designator.hex()
        at += 4 + length
    return ""
