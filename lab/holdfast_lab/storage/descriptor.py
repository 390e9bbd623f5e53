"""The text of a VMDK descriptor as ESXi writes it; the first thing read of every link.

The lab has its own writer and reader on purpose: it judges the product's.
"""

from __future__ import annotations

import enum
import re
import secrets
from dataclasses import dataclass
from pathlib import Path

from holdfast_lab.storage.errors import DescriptorError

SECTOR_BYTES = 512
DESCRIPTOR_BYTES_MAX = 64 * 1024  # ESXi's are about 500 bytes; qemu reads 20 sectors for the CIDs
NO_PARENT_CID = 0xFFFFFFFF


class CreateType(enum.Enum):
    """How a link keeps its data."""

    FLAT = "vmfs"
    COWD = "vmfsSparse"
    SE_SPARSE = "seSparse"
    STREAM = "streamOptimized"


EXTENT_WORDS = {
    CreateType.FLAT: "VMFS",
    CreateType.COWD: "VMFSSPARSE",
    CreateType.SE_SPARSE: "SESPARSE",
    CreateType.STREAM: "SPARSE",
}
# What others write for a single flat file, accepted when a disk is adopted.
FLAT_CREATE_TYPES = frozenset({"vmfs", "monolithicFlat", "vmfsThin"})
FLAT_EXTENT_WORDS = frozenset({"VMFS", "FLAT"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Descriptor:
    """One link. ``extent_name`` is a bare file name beside the descriptor."""

    create_type: CreateType
    capacity_bytes: int
    extent_name: str
    cid: int
    parent_cid: int = NO_PARENT_CID
    parent_name: str | None = None
    change_track_name: str | None = None
    uuid: str | None = None
    adapter: str = "lsilogic"
    thin: bool = False

    def __post_init__(self) -> None:
        if self.capacity_bytes <= 0 or self.capacity_bytes % SECTOR_BYTES:
            raise DescriptorError(f"capacity {self.capacity_bytes} is not whole sectors")
        if "/" in self.extent_name or self.extent_name in {"", ".", ".."}:
            raise DescriptorError(f"extent name {self.extent_name!r} is not a bare file name")


def new_cid() -> int:
    """A content id; never one of the two values that mean something else."""
    return secrets.randbelow(0xFFFFFFFC) + 1


def new_disk_uuid() -> str:
    """A disk uuid as ESXi makes them (``6000C29...``), in the form of the API."""
    return canonical_uuid("6000C29" + secrets.token_hex(13)[:25])


def canonical_uuid(text: str) -> str:
    """``6000C298-aaaa-...`` from any of the two spellings (API, descriptor)."""
    digits = re.sub(r"[^0-9A-Fa-f]", "", text)
    if len(digits) != 32:
        raise DescriptorError(f"disk uuid {text!r} has not 32 hexadecimal digits")
    upper = digits.upper()
    first = upper[:8]
    rest = upper[8:].lower()
    return f"{first}-{rest[:4]}-{rest[4:8]}-{rest[8:12]}-{rest[12:]}"


def descriptor_uuid(uuid: str) -> str:
    """``60 00 C2 98 .. ..-.. ..``, the spelling inside descriptors."""
    digits = canonical_uuid(uuid).replace("-", "").lower()
    pairs = [digits[at : at + 2] for at in range(0, 32, 2)]
    return " ".join(pairs[:8]) + "-" + " ".join(pairs[8:])


def _geometry(sectors: int) -> int:
    return min(max(sectors // (255 * 63), 1), 0xFFFFFF)


def to_text(descriptor: Descriptor) -> str:
    """The descriptor's text, in the order in which ESXi writes it."""
    sectors = descriptor.capacity_bytes // SECTOR_BYTES
    word = EXTENT_WORDS[descriptor.create_type]
    lines = [
        "# Disk DescriptorFile",
        "version=1",
        'encoding="UTF-8"',
        f"CID={descriptor.cid:08x}",
        f"parentCID={descriptor.parent_cid:08x}",
    ]
    if descriptor.parent_name is None:
        lines.append('isNativeSnapshot="no"')
    lines.append(f'createType="{descriptor.create_type.value}"')
    if descriptor.parent_name is not None:
        lines.append(f'parentFileNameHint="{descriptor.parent_name}"')
    lines += ["", "# Extent description", f'RW {sectors} {word} "{descriptor.extent_name}"', ""]
    if descriptor.change_track_name is not None:
        lines += [
            "# Change Tracking File",
            f'changeTrackPath="{descriptor.change_track_name}"',
            "",
        ]
    lines += ["# The Disk Data Base ", "#DDB", ""]
    if descriptor.parent_name is None:
        lines += [
            f'ddb.adapterType = "{descriptor.adapter}"',
            f'ddb.geometry.cylinders = "{_geometry(sectors)}"',
            'ddb.geometry.heads = "255"',
            'ddb.geometry.sectors = "63"',
        ]
    lines.append(f'ddb.longContentID = "{secrets.token_hex(12)}{descriptor.cid:08x}"')
    if descriptor.thin:
        lines.append('ddb.thinProvisioned = "1"')
    if descriptor.uuid is not None:
        lines.append(f'ddb.uuid = "{descriptor_uuid(descriptor.uuid)}"')
    lines.append('ddb.virtualHWVersion = "19"')
    return "\n".join(lines) + "\n"


_EXTENT_LINE = re.compile(r'^(RW|RDONLY)\s+(\d{1,16})\s+([A-Z]+)\s+"([^"]{1,255})"(?:\s+0)?\s*$')
_SETTING_LINE = re.compile(r'^([A-Za-z][A-Za-z0-9_.]*)\s*=\s*"?([^"]*)"?\s*$')


def from_text(text: str) -> Descriptor:
    """Understand one descriptor. Raises: DescriptorError, also for more than one extent."""
    settings: dict[str, str] = {}
    extents: list[tuple[int, str, str]] = []
    for raw_line in text.split("\n"):  # not splitlines: names may hold U+2028
        line = raw_line.strip()
        if not line or line.startswith("#"):
            continue
        extent = _EXTENT_LINE.match(line)
        if extent is not None:
            extents.append((int(extent[2]), extent[3], extent[4]))
            continue
        setting = _SETTING_LINE.match(line)
        if setting is None:
            raise DescriptorError(f"descriptor line {line[:80]!r} is not understood")
        settings[setting[1]] = setting[2]
    if settings.get("version") not in {"1", "2", "3"}:
        raise DescriptorError("no descriptor version 1, 2 or 3")
    if len(extents) != 1:
        raise DescriptorError(f"{len(extents)} extents; the lab keeps each link in one file")
    sectors, word, extent_name = extents[0]
    uuid = settings.get("ddb.uuid")
    return Descriptor(
        create_type=_create_type(settings.get("createType", ""), word),
        capacity_bytes=sectors * SECTOR_BYTES,
        extent_name=extent_name,
        cid=_cid(settings.get("CID", "")),
        parent_cid=_cid(settings.get("parentCID", "ffffffff")),
        parent_name=settings.get("parentFileNameHint"),
        change_track_name=settings.get("changeTrackPath"),
        uuid=canonical_uuid(uuid) if uuid else None,
        adapter=settings.get("ddb.adapterType", "lsilogic"),
        thin=settings.get("ddb.thinProvisioned") == "1",
    )


def _create_type(create_type: str, word: str) -> CreateType:
    if create_type in FLAT_CREATE_TYPES and word in FLAT_EXTENT_WORDS:
        return CreateType.FLAT
    for known, known_word in EXTENT_WORDS.items():
        if create_type == known.value and word == known_word:
            return known
    raise DescriptorError(f"create type {create_type!r} with extent type {word!r} is not supported")


def _cid(text: str) -> int:
    try:
        return int(text, 16) & 0xFFFFFFFF
    except ValueError as error:
        raise DescriptorError(f"content id {text!r} is not hexadecimal") from error


def load(path: Path) -> Descriptor:
    """Read a descriptor file. Raises: DescriptorError, FileNotFoundError."""
    with path.open("rb") as file:
        content = file.read(DESCRIPTOR_BYTES_MAX + 1)
    if len(content) > DESCRIPTOR_BYTES_MAX:
        raise DescriptorError(f"{path.name} is too large for a descriptor")
    try:
        return from_text(content.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise DescriptorError(f"{path.name} is not text") from error


def save(path: Path, descriptor: Descriptor) -> None:
    """Write a descriptor file, replacing an older one in one step."""
    fresh = path.with_name(path.name + ".new")
    fresh.write_text(to_text(descriptor), encoding="utf-8")
    fresh.replace(path)
