"""The text part of a VMDK: which files hold the disk, its parent's id, its data base of properties.

Every line must match one of the forms below; anything else is refused, because a descriptor comes
from whoever could write to the datastore. Extents are bare file names: they can name nothing
outside of the descriptor's own directory. The parent's path is a hint of the file's author: it is
shown, and nothing here ever opens it.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final

from holdfast_common.errors import FormatError
from holdfast_common.formats.vmdk_limits import (
    CAPACITY_BYTES_MAX,
    DESCRIPTOR_BYTES_MAX,
    EXTENTS_MAX,
    LINE_CHARACTERS_MAX,
)
from holdfast_common.units import SECTOR_BYTES

NO_PARENT: Final = 0xFFFFFFFF
NEW_DISK_CONTENT_ID: Final = 0xFFFFFFFE  # what ESXi writes into a disk that was never powered on


class CreateType(StrEnum):
    """The kinds of VMDK that are read."""

    MONOLITHIC_SPARSE = "monolithicSparse"
    STREAM_OPTIMIZED = "streamOptimized"
    MONOLITHIC_FLAT = "monolithicFlat"
    VMFS = "vmfs"
    VMFS_THIN = "vmfsThin"
    VMFS_SPARSE = "vmfsSparse"
    SE_SPARSE = "seSparse"
    TWO_GB_SPARSE = "twoGbMaxExtentSparse"
    TWO_GB_FLAT = "twoGbMaxExtentFlat"


class ExtentKind(StrEnum):
    """How the bytes of one extent lie in its file."""

    FLAT = "FLAT"
    VMFS = "VMFS"
    SPARSE = "SPARSE"
    VMFS_SPARSE = "VMFSSPARSE"
    SE_SPARSE = "SESPARSE"
    ZERO = "ZERO"


EXTENT_KINDS: Final[Mapping[CreateType, frozenset[ExtentKind]]] = {
    CreateType.MONOLITHIC_SPARSE: frozenset({ExtentKind.SPARSE}),
    CreateType.STREAM_OPTIMIZED: frozenset({ExtentKind.SPARSE}),
    CreateType.MONOLITHIC_FLAT: frozenset({ExtentKind.FLAT}),
    CreateType.VMFS: frozenset({ExtentKind.VMFS}),
    CreateType.VMFS_THIN: frozenset({ExtentKind.VMFS}),
    CreateType.VMFS_SPARSE: frozenset({ExtentKind.VMFS_SPARSE}),
    CreateType.SE_SPARSE: frozenset({ExtentKind.SE_SPARSE}),
    CreateType.TWO_GB_SPARSE: frozenset({ExtentKind.SPARSE, ExtentKind.ZERO}),
    CreateType.TWO_GB_FLAT: frozenset({ExtentKind.FLAT, ExtentKind.ZERO}),
}
EMBEDDED_TYPES: Final = frozenset({CreateType.MONOLITHIC_SPARSE, CreateType.STREAM_OPTIMIZED})
# qemu leaves the last bytes of the old text behind a NUL when it writes an id with fewer digits
_REMAINS_BYTES_MAX: Final = 7


@dataclass(frozen=True, slots=True, kw_only=True)
class ExtentLine:
    """One extent: ``length`` bytes of the disk, from ``file_offset`` of the file on for flat kinds.

    ``file_name`` is empty only for `ExtentKind.ZERO`.
    """

    kind: ExtentKind
    length: int
    file_name: str = ""
    file_offset: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Descriptor:
    """What a descriptor says. ``parent_content_id`` None: the disk has no parent."""

    create_type: CreateType
    content_id: int
    parent_content_id: int | None
    extents: tuple[ExtentLine, ...]
    parent_hint: str = ""
    change_tracking_name: str = ""
    database: Mapping[str, str] = field(default_factory=dict)

    @property
    def capacity_bytes(self) -> int:
        """The disk's size: the sum of its extents."""
        return sum(extent.length for extent in self.extents)

    @property
    def adapter_type(self) -> str:
        """``lsilogic``, ``buslogic``, ``ide`` …; empty when not said."""
        return self.database.get("adapterType", "")

    @property
    def disk_uuid(self) -> str:
        """``ddb.uuid`` as vSphere writes a backing's uuid; empty when not said."""
        digits = re.sub(r"[ -]", "", self.database.get("uuid", "")).lower()
        if re.fullmatch(r"[0-9a-f]{32}", digits) is None:
            return ""
        return "-".join((digits[:8], digits[8:12], digits[12:16], digits[16:20], digits[20:]))


_BARE_NAME = re.compile(r"[^/\\\0]{1,255}")
_COMMENT = re.compile(r"#[^\0]*")
_EXTENT = re.compile(
    r"(?P<access>RW|RDONLY|NOACCESS)[ \t]+(?P<sectors>[0-9]{1,18})[ \t]+(?P<kind>[A-Z0-9]{1,16})"
    r'(?:[ \t]+"(?P<name>[^"\0]*)"(?:[ \t]+(?P<offset>[0-9]{1,18}))?)?'
)
_DATABASE = re.compile(r'ddb\.(?P<key>[A-Za-z0-9_.\-]{1,128})[ \t]*=[ \t]*"(?P<value>[^"\0]*)"')
_HEADER_FORMS: Final[Mapping[str, re.Pattern[str]]] = {
    key: re.compile(form)
    for key, form in {
        "version": r'"?(?P<value>[1-4])"?',
        "encoding": r'"(?P<value>[A-Za-z0-9_\-]{1,32})"',
        "CID": r"(?P<value>[0-9a-fA-F]{1,8})",
        "parentCID": r"(?P<value>[0-9a-fA-F]{1,8})",
        "isNativeSnapshot": r'"(?P<value>yes|no)"',
        "createType": r'"(?P<value>[A-Za-z0-9\-]{1,64})"',
        "parentFileNameHint": r'"(?P<value>[^"\0]{0,4096})"',
        "changeTrackPath": r'"(?P<value>[^"\0]{0,4096})"',
        "objectParentUri": r'"(?P<value>[^"\0]{0,4096})"',
    }.items()
}
_HEADER = re.compile(r"(?P<key>[A-Za-z]{1,32})[ \t]*=[ \t]*(?P<rest>.*)")


def bare_file_name(name: str, *, where: str) -> str:
    """``name``, if it can only mean a file in the same directory.

    Raises: FormatError.
    """
    if _BARE_NAME.fullmatch(name) is None or name in {".", ".."} or len(os.fsencode(name)) > 255:
        raise FormatError(f"{where}: not a bare file name", name=name[:300])
    if ":" in name:
        raise FormatError(f"{where}: a file name with a scheme is never opened", name=name)
    if any(ord(character) < 32 or ord(character) == 127 for character in name):
        raise FormatError(f"{where}: control characters in a file name", name=repr(name))
    return name


def parse_descriptor(data: bytes) -> Descriptor:
    """Parse a descriptor file, or one embedded in a sparse file (padded with NUL).

    Raises: FormatError, naming the line.
    """
    header: dict[str, str] = {}
    database: dict[str, str] = {}
    extents: list[ExtentLine] = []
    for number, line in _lines(data):
        where = f"VMDK descriptor line {number}"
        if not line or _COMMENT.fullmatch(line):
            continue
        if (match := _EXTENT.fullmatch(line)) is not None:
            if len(extents) >= EXTENTS_MAX:
                raise FormatError(f"{where}: more than {EXTENTS_MAX} extents")
            extents.append(_extent_line(match, where))
        elif (match := _DATABASE.fullmatch(line)) is not None:
            _put_once(database, match["key"], match["value"], where)
        elif (match := _HEADER.fullmatch(line)) is not None and match["key"] in _HEADER_FORMS:
            value = _HEADER_FORMS[match["key"]].fullmatch(match["rest"])
            if value is None:
                raise FormatError(f"{where}: bad value of {match['key']}", line=line[:200])
            _put_once(header, match["key"], value["value"], where)
        else:
            raise FormatError(f"{where}: unknown line", line=line[:200])
    return _assembled(header, database, extents)


def _lines(data: bytes) -> Iterator[tuple[int, str]]:
    if len(data) > DESCRIPTOR_BYTES_MAX:
        raise FormatError("VMDK descriptor is larger than 1 MiB", length=len(data))
    text_bytes, _nul, behind = data.partition(b"\0")
    if len(behind.strip(b"\0")) > _REMAINS_BYTES_MAX:
        raise FormatError("VMDK descriptor: NUL inside the text", offset=len(text_bytes))
    try:
        text = text_bytes.decode("utf-8")
    except UnicodeDecodeError as error:
        raise FormatError("VMDK descriptor is not UTF-8", offset=error.start) from error
    first = text.lstrip(" \t\r\n")[:21]
    if not first.lower().startswith("# disk descriptorfile"):
        raise FormatError("VMDK descriptor does not start with '# Disk DescriptorFile'")
    for number, raw in enumerate(text.split("\n"), start=1):
        if len(raw) > LINE_CHARACTERS_MAX:
            raise FormatError(f"VMDK descriptor line {number}: longer than 8192 characters")
        yield number, raw.strip(" \t\r")


def _put_once(values: dict[str, str], key: str, value: str, where: str) -> None:
    # two readers that prefer the first and the last of two values would see two different disks
    if values.setdefault(key, value) != value:
        raise FormatError(f"{where}: a second, different value of {key}")


def _extent_line(match: re.Match[str], where: str) -> ExtentLine:
    if match["access"] == "NOACCESS":
        raise FormatError(f"{where}: extent without access")
    if match["kind"] not in set(ExtentKind):
        raise FormatError(f"{where}: extents of this kind are not read", kind=match["kind"])
    kind = ExtentKind(match["kind"])
    length = int(match["sectors"]) * SECTOR_BYTES
    if not 0 < length <= CAPACITY_BYTES_MAX:
        raise FormatError(f"{where}: extent size outside 1 sector to 64 TiB", length=length)
    if kind is ExtentKind.ZERO:
        if match["name"] is not None:
            raise FormatError(f"{where}: a zero extent has no file")
        return ExtentLine(kind=kind, length=length)
    if match["name"] is None:
        raise FormatError(f"{where}: extent without a file name")
    name = bare_file_name(match["name"], where=where)
    offset = int(match["offset"] or 0) * SECTOR_BYTES
    if kind is ExtentKind.FLAT and match["offset"] is None:
        raise FormatError(f"{where}: flat extent without an offset")
    if kind not in {ExtentKind.FLAT, ExtentKind.VMFS} and match["offset"] is not None:
        raise FormatError(f"{where}: this kind of extent has no offset")
    if offset > CAPACITY_BYTES_MAX:
        raise FormatError(f"{where}: extent's offset is beyond 64 TiB", offset=offset)
    return ExtentLine(kind=kind, length=length, file_name=name, file_offset=offset)


def _assembled(
    header: Mapping[str, str], database: Mapping[str, str], extents: list[ExtentLine]
) -> Descriptor:
    for key in ("version", "CID", "parentCID", "createType"):
        if key not in header:
            raise FormatError(f"VMDK descriptor has no {key}")
    if header["createType"] not in set(CreateType):
        raise FormatError(
            "VMDKs of this kind are not read",
            create_type=header["createType"],
            advice="physical raw device maps and Workstation's device disks cannot be backed up so",
        )
    create_type = CreateType(header["createType"])
    if not extents:
        raise FormatError("VMDK descriptor names no extent")
    for extent in extents:
        if extent.kind not in EXTENT_KINDS[create_type]:
            raise FormatError(
                "VMDK descriptor: extent does not fit the disk's kind",
                kind=extent.kind.value,
                create_type=create_type.value,
            )
    if create_type in EMBEDDED_TYPES and len(extents) != 1:
        raise FormatError("VMDK descriptor: a monolithic disk has one extent", count=len(extents))
    parent = int(header["parentCID"], 16)
    descriptor = Descriptor(
        create_type=create_type,
        content_id=int(header["CID"], 16),
        parent_content_id=None if parent == NO_PARENT else parent,
        extents=tuple(extents),
        parent_hint=header.get("parentFileNameHint", ""),
        change_tracking_name=header.get("changeTrackPath", ""),
        database=dict(database),
    )
    if descriptor.capacity_bytes > CAPACITY_BYTES_MAX:
        raise FormatError(
            "VMDK descriptor: capacity above 64 TiB", capacity_bytes=descriptor.capacity_bytes
        )
    return descriptor
