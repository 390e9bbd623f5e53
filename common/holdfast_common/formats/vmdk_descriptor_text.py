"""Writing a VMDK's descriptor: what a restored disk's properties are, in VMware's words."""

from __future__ import annotations

import re
import secrets
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from holdfast_common.errors import FormatError
from holdfast_common.formats.vmdk_descriptor import (
    EXTENT_KINDS,
    NEW_DISK_CONTENT_ID,
    NO_PARENT,
    CreateType,
    ExtentKind,
    ExtentLine,
    bare_file_name,
    parse_descriptor,
)
from holdfast_common.units import GIB, SECTOR_BYTES

_UNSAFE: Final = re.compile(r'["\x00-\x1f\x7f]')
_IDE_CYLINDERS_MAX: Final = 16383
_SCSI_CYLINDERS_MAX: Final = 65535


@dataclass(frozen=True, slots=True, kw_only=True)
class Geometry:
    """Cylinders, heads, sectors per track: what old boot loaders ask the BIOS for."""

    cylinders: int
    heads: int
    sectors: int


def geometry_for(adapter_type: str, capacity_bytes: int) -> Geometry:
    """The geometry that VMware gives a disk of this size on this adapter."""
    total_sectors = capacity_bytes // SECTOR_BYTES
    if adapter_type == "ide":
        heads, sectors, cylinders_max = 16, 63, _IDE_CYLINDERS_MAX
    else:
        cylinders_max = _SCSI_CYLINDERS_MAX
        if capacity_bytes < GIB:
            heads, sectors = 64, 32
        elif capacity_bytes < 2 * GIB:
            heads, sectors = 128, 32
        else:
            heads, sectors = 255, 63
    cylinders = min(max(total_sectors // (heads * sectors), 1), cylinders_max)
    return Geometry(cylinders=cylinders, heads=heads, sectors=sectors)


def new_disk_uuid() -> str:
    """A uuid that no disk has yet, as ESXi makes them: ``6000c29…``, VMware's prefix, then chance."""
    return str(uuid.UUID("6000c29" + secrets.token_hex(13)[:25]))


def uuid_database_text(disk_uuid: str) -> str:
    """``60 00 c2 9a 0b 1c 2d 3e-4f …``: a uuid as a descriptor writes it. Raises: FormatError."""
    try:
        digits = uuid.UUID(disk_uuid).hex
    except ValueError as error:
        raise FormatError("not a disk's uuid", uuid=disk_uuid[:64]) from error
    pairs = [digits[i : i + 2] for i in range(0, 32, 2)]
    return " ".join(pairs[:8]) + "-" + " ".join(pairs[8:])


def extents_of_one_file(
    create_type: CreateType, *, file_name: str, capacity_bytes: int
) -> tuple[ExtentLine, ...]:
    """The one extent of a disk that lies in one file."""
    kind = sorted(EXTENT_KINDS[create_type] - {ExtentKind.ZERO})[0]
    return (ExtentLine(kind=kind, length=capacity_bytes, file_name=file_name),)


def descriptor_text(
    *,
    create_type: CreateType,
    extents: Sequence[ExtentLine],
    adapter_type: str = "lsilogic",
    content_id: int = NEW_DISK_CONTENT_ID,
    parent_content_id: int | None = None,
    parent_hint: str = "",
    hardware_version: int = 14,
    disk_uuid: str = "",
    thin: bool = False,
    geometry: Geometry | None = None,
) -> str:
    """A whole descriptor. For a flat disk give the ``-flat`` file's name in its extent.

    Raises: FormatError, when it could not be read back.
    """
    if not extents:
        raise FormatError("a VMDK descriptor needs an extent")
    capacity_bytes = sum(extent.length for extent in extents)
    for value in (parent_hint, adapter_type):
        if _UNSAFE.search(value) is not None:
            raise FormatError(
                "new VMDK descriptor: quotes or control characters", value=value[:100]
            )
    shape = geometry or geometry_for(adapter_type, capacity_bytes)
    parent = NO_PARENT if parent_content_id is None else parent_content_id
    lines = [
        "# Disk DescriptorFile",
        "version=1",
        'encoding="UTF-8"',
        f"CID={content_id:08x}",
        f"parentCID={parent:08x}",
        f'createType="{create_type.value}"',
    ]
    if parent_hint:
        lines.append(f'parentFileNameHint="{parent_hint}"')
    lines += ["", "# Extent description", *(_extent_text(extent) for extent in extents)]
    lines += ["", "# The Disk Data Base", "#DDB", ""]
    database = {
        "adapterType": adapter_type,
        "encoding": "UTF-8",
        "geometry.cylinders": str(shape.cylinders),
        "geometry.heads": str(shape.heads),
        "geometry.sectors": str(shape.sectors),
    }
    if thin:
        database["thinProvisioned"] = "1"
    if disk_uuid:
        database["uuid"] = uuid_database_text(disk_uuid)
    database["virtualHWVersion"] = str(hardware_version)
    lines += [f'ddb.{key} = "{value}"' for key, value in database.items()]
    text = "\n".join(lines) + "\n"
    parse_descriptor(text.encode())  # whatever we write, our own strict reader takes
    return text


def _extent_text(extent: ExtentLine) -> str:
    if extent.length % SECTOR_BYTES or extent.file_offset % SECTOR_BYTES:
        raise FormatError("an extent is whole sectors", length=extent.length)
    size_sectors = extent.length // SECTOR_BYTES
    if extent.kind is ExtentKind.ZERO:
        return f"RW {size_sectors} ZERO"
    name = bare_file_name(extent.file_name, where="new VMDK descriptor")
    if _UNSAFE.search(name) is not None:
        raise FormatError("new VMDK descriptor: quotes in a file name", name=name)
    text = f'RW {size_sectors} {extent.kind.value} "{name}"'
    if extent.kind is ExtentKind.FLAT:
        text += f" {extent.file_offset // SECTOR_BYTES}"
    return text
