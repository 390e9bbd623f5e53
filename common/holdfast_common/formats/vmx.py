"""A VM's `.vmx` file: ``key = "value"`` lines, read, changed and written in their order.

Keys are the same in any case. In values ``|`` starts two hexadecimal digits of a byte, so that
quotes, bars and line ends can be written (``|22``, ``|7C``, ``|0A``).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final

from holdfast_common.errors import FormatError
from holdfast_common.units import KIB, MIB

FILE_BYTES_MAX: Final = 4 * MIB
LINE_CHARACTERS_MAX: Final = 512 * KIB  # guestinfo.userdata may hold a whole cloud-init file
ENTRIES_MAX: Final = 20_000
_ENCODINGS: Final[Mapping[str, str]] = {
    "utf-8": "utf-8",
    "ascii": "ascii",
    "us-ascii": "ascii",
    "iso-8859-1": "iso-8859-1",
    "windows-1252": "windows-1252",
    "windows-1250": "windows-1250",
    "windows-1251": "windows-1251",
    "gbk": "gbk",
    "big5": "big5",
    "shift_jis": "shift_jis",
    "windows-932": "cp932",
    "windows-949": "cp949",
}
_ENTRY: Final = re.compile(
    r'(?P<key>[A-Za-z0-9_.:\-+@/ ]{1,512}?)[ \t]*=[ \t]*(?:"(?P<quoted>[^"\0]*)"|(?P<bare>[^\s"#]*))'
    r"[ \t]*(?:#.*)?"
)
_ENCODING_LINE: Final = re.compile(
    rb'^[ \t]*\.encoding[ \t]*=[ \t]*"([^"\r\n]{1,64})"', re.MULTILINE | re.IGNORECASE
)
_ESCAPE: Final = re.compile(r"\|([0-9A-Fa-f]{2})")
_KEY: Final = re.compile(r"[A-Za-z0-9_.:\-+@/]{1,512}")
_DISK_KEY: Final = re.compile(r"(scsi|sata|ide|nvme)([0-9]{1,3}):([0-9]{1,3})\.filename")
_NIC_KEY: Final = re.compile(r"ethernet([0-9]{1,3})\.present")
_MUST_ESCAPE: Final = re.compile(r'["|\x00-\x1f\x7f]')


@dataclass(frozen=True, slots=True, kw_only=True)
class VmxDisk:
    """A virtual disk: ``file_name`` is a path as the .vmx has it, relative or of a datastore."""

    bus: str
    controller: int
    unit: int
    file_name: str
    mode: str

    @property
    def key(self) -> str:
        """``scsi0:0``."""
        return f"{self.bus}{self.controller}:{self.unit}"


@dataclass(frozen=True, slots=True, kw_only=True)
class VmxNic:
    """A network adapter. ``mac_address`` is empty until the VM was powered on once."""

    number: int
    model: str
    network_name: str
    address_type: str
    mac_address: str
    start_connected: bool


@dataclass(frozen=True, slots=True)
class VmxFile:
    """The entries of a .vmx, in order. Changing makes a new one."""

    entries: tuple[tuple[str, str], ...]

    def get(self, key: str, default: str = "") -> str:
        """The value of ``key``, in any case."""
        wanted = key.lower()
        return next((value for name, value in self.entries if name.lower() == wanted), default)

    def flag(self, key: str, *, default: bool = False) -> bool:
        """The value of ``key`` as TRUE or FALSE."""
        text = self.get(key).strip().lower()
        return text in {"true", "1", "yes"} if text else default

    def number(self, key: str, *, default: int) -> int:
        """The value of ``key`` as a number. Raises: FormatError."""
        text = self.get(key).strip()
        if not text:
            return default
        if re.fullmatch(r"[0-9]{1,18}", text) is None:
            raise FormatError(".vmx: not a number", key=key, value=text[:100])
        return int(text)

    def with_values(self, changes: Mapping[str, str]) -> VmxFile:
        """The same with values set; present keys keep their place, new ones come last."""
        for key in changes:
            if _KEY.fullmatch(key) is None:
                raise FormatError(".vmx: not a key", key=key[:100])
        left = {key.lower(): (key, value) for key, value in changes.items()}
        entries = []
        for key, value in self.entries:
            changed = left.pop(key.lower(), None)
            entries.append((key, value) if changed is None else (key, changed[1]))
        entries.extend(left.values())
        return VmxFile(tuple(entries))

    def without(self, *prefixes: str) -> VmxFile:
        """The same without the keys that are a prefix, or begin with one and a dot."""
        lowered = tuple(prefix.lower() for prefix in prefixes)
        dotted = tuple(prefix + "." for prefix in lowered)
        return VmxFile(
            tuple(
                (key, value)
                for key, value in self.entries
                if key.lower() not in lowered and not key.lower().startswith(dotted)
            )
        )

    def disks(self) -> list[VmxDisk]:
        """The present virtual disks, in the file's order."""
        found = []
        for key, value in self.entries:
            match = _DISK_KEY.fullmatch(key.lower())
            if match is None:
                continue
            device = key.rpartition(".")[0]
            kind = self.get(f"{device}.deviceType", "disk").lower()
            is_disk = kind.endswith("disk") and value.lower().endswith(".vmdk")
            if is_disk and self.flag(f"{device}.present"):
                found.append(
                    VmxDisk(
                        bus=match[1],
                        controller=int(match[2]),
                        unit=int(match[3]),
                        file_name=value,
                        mode=self.get(f"{device}.mode", "persistent"),
                    )
                )
        return found

    def nics(self) -> list[VmxNic]:
        """The present network adapters, in the file's order."""
        found = []
        for key, _value in self.entries:
            match = _NIC_KEY.fullmatch(key.lower())
            if match is None or not self.flag(key):
                continue
            nic = f"ethernet{match[1]}"
            found.append(
                VmxNic(
                    number=int(match[1]),
                    model=self.get(f"{nic}.virtualDev"),
                    network_name=self.get(f"{nic}.networkName"),
                    address_type=self.get(f"{nic}.addressType"),
                    mac_address=self.get(f"{nic}.address") or self.get(f"{nic}.generatedAddress"),
                    start_connected=self.flag(f"{nic}.startConnected", default=True),
                )
            )
        return found

    @property
    def display_name(self) -> str:
        """The VM's name."""
        return self.get("displayName")

    @property
    def guest_os(self) -> str:
        """The guest's kind, as vSphere's guestId without ``Guest``."""
        return self.get("guestOS")

    @property
    def bios_uuid(self) -> str:
        """``uuid.bios`` as 8-4-4-4-12, lower case; empty when absent."""
        return _uuid(self.get("uuid.bios"))

    @property
    def instance_uuid(self) -> str:
        """``vc.uuid`` as 8-4-4-4-12, lower case; empty when absent."""
        return _uuid(self.get("vc.uuid"))

    @property
    def nvram_name(self) -> str:
        """The file of the BIOS's or EFI's settings; empty when absent."""
        return self.get("nvram")

    @property
    def firmware(self) -> str:
        """``bios`` or ``efi``."""
        return self.get("firmware", "bios").lower()

    @property
    def hardware_version(self) -> int:
        """Virtual hardware version."""
        return self.number("virtualHW.version", default=4)

    @property
    def cpus(self) -> int:
        """Virtual processors."""
        return self.number("numvcpus", default=1)

    @property
    def memory_bytes(self) -> int:
        """Memory of the VM."""
        return self.number("memSize", default=4) * MIB

    def text(self) -> str:
        """The file's text, in UTF-8 when encoded."""
        lines = ['.encoding = "UTF-8"']
        lines += [
            f'{key} = "{_escaped(value)}"'
            for key, value in self.entries
            if key.lower() != ".encoding"
        ]
        return "\n".join(lines) + "\n"


def parse_vmx(data: bytes) -> VmxFile:
    """Parse a .vmx file. Comments are dropped. Raises: FormatError, naming the line."""
    entries: list[tuple[str, str]] = []
    seen: dict[str, str] = {}
    for number, line in _lines(data):
        if not line or line.startswith("#"):
            continue
        match = _ENTRY.fullmatch(line)
        if match is None:
            raise FormatError(f'.vmx line {number}: not key = "value"', line=line[:200])
        key = match["key"].strip()
        value = _unescaped(match["bare"] if match["quoted"] is None else match["quoted"], number)
        known = seen.setdefault(key.lower(), value)
        if known != value:
            raise FormatError(f".vmx line {number}: a second, different value", key=key)
        if len(entries) >= ENTRIES_MAX:
            raise FormatError(f".vmx line {number}: more than {ENTRIES_MAX} entries")
        entries.append((key, value))
    if not entries:
        raise FormatError(".vmx is empty")
    return VmxFile(tuple(entries))


def _lines(data: bytes) -> Iterator[tuple[int, str]]:
    if len(data) > FILE_BYTES_MAX:
        raise FormatError(".vmx is larger than 4 MiB", length=len(data))
    if (nul := data.find(b"\0")) >= 0:
        raise FormatError(".vmx holds a NUL", offset=nul)
    match = _ENCODING_LINE.search(data)
    said = "utf-8" if match is None else match[1].decode("ascii", "replace").lower()
    if said not in _ENCODINGS:
        raise FormatError(".vmx: unknown encoding", encoding=said)
    try:
        text = data.decode(_ENCODINGS[said]).removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        raise FormatError(f".vmx is not {said}", offset=error.start) from error
    for number, raw in enumerate(text.split("\n"), start=1):
        if len(raw) > LINE_CHARACTERS_MAX:
            raise FormatError(f".vmx line {number}: longer than 512 KiB")
        yield number, raw.strip(" \t\r")


def _unescaped(value: str, line_number: int) -> str:
    if "|" not in value:
        return value
    # escapes are bytes of the text's UTF-8 form
    pieces = _ESCAPE.split(value)
    raw = b"".join(
        bytes([int(piece, 16)]) if index % 2 else piece.encode()
        for index, piece in enumerate(pieces)
    )
    try:
        return raw.decode()
    except UnicodeDecodeError as error:
        raise FormatError(f".vmx line {line_number}: escapes are not UTF-8") from error


def _escaped(value: str) -> str:
    return _MUST_ESCAPE.sub(lambda match: f"|{ord(match[0]):02X}", value)


def _uuid(text: str) -> str:
    digits = re.sub(r"[ -]", "", text).lower()
    if re.fullmatch(r"[0-9a-f]{32}", digits) is None:
        return ""
    return "-".join((digits[:8], digits[8:12], digits[12:16], digits[16:20], digits[20:]))
