"""Reading XML that somebody else wrote: no document types, no entities, bounded in every way."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final
from xml.parsers import expat

from holdfast_common.errors import FormatError
from holdfast_common.units import MIB

XML_BYTES_MAX: Final = 8 * MIB
_DEPTH_MAX: Final = 64
_ELEMENTS_MAX: Final = 100_000
_ATTRIBUTES_MAX: Final = 64
_DECLARATION: Final = re.compile(r"<\?xml[^>]*?encoding\s*=\s*[\"']([^\"']*)[\"']")
_FORBIDDEN: Final = ("<!DOCTYPE", "<!ENTITY")


@dataclass(slots=True)
class XmlElement:
    """One element. Names are ``{namespace}local``, or ``local`` without a namespace."""

    name: str
    attributes: Mapping[str, str]
    children: list[XmlElement] = field(default_factory=list)
    text: str = ""

    @property
    def local_name(self) -> str:
        """The name without its namespace."""
        return self.name.rpartition("}")[2]

    def attribute(self, local_name: str, default: str = "") -> str:
        """An attribute by its local name, whatever its namespace."""
        for name, value in self.attributes.items():
            if name.rpartition("}")[2] == local_name:
                return value
        return default

    def all(self, local_name: str) -> Iterator[XmlElement]:
        """Direct children by local name."""
        return (child for child in self.children if child.local_name == local_name)

    def first(self, local_name: str) -> XmlElement | None:
        """The first direct child by local name, None if there is none."""
        return next(self.all(local_name), None)

    def child_text(self, local_name: str, default: str = "") -> str:
        """The text of the first direct child of that name."""
        child = self.first(local_name)
        return default if child is None else child.text.strip()


def parse_xml(data: bytes, *, what: str) -> XmlElement:
    """The root element. Comments and processing instructions are dropped. Raises: FormatError."""
    if len(data) > XML_BYTES_MAX:
        raise FormatError(f"{what}: larger than 8 MiB", length=len(data))
    try:
        text = data.decode("utf-8").removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        raise FormatError(f"{what}: is not UTF-8", offset=error.start) from error
    # a second encoding would let a document look harmless to this check and not to the parser
    declared = _DECLARATION.match(text.lstrip())
    if declared is not None and declared[1].lower() not in {"utf-8", "us-ascii", "ascii"}:
        raise FormatError(f"{what}: is declared as another encoding", encoding=declared[1][:40])
    upper = text.upper()
    for forbidden in _FORBIDDEN:
        if (offset := upper.find(forbidden)) >= 0:
            raise FormatError(f"{what}: document types and entities are refused", offset=offset)
    return _Builder(what).build(text)


class _Builder:
    """Turns expat's events into elements and counts them."""

    def __init__(self, what: str) -> None:
        self._what = what
        self._root: XmlElement | None = None
        self._open: list[XmlElement] = []
        self._text: list[list[str]] = []
        self._count = 0

    def build(self, text: str) -> XmlElement:
        parser = expat.ParserCreate("utf-8", "}")
        parser.StartElementHandler = self._start
        parser.EndElementHandler = self._end
        parser.CharacterDataHandler = self._characters
        parser.StartDoctypeDeclHandler = self._refuse
        parser.EntityDeclHandler = self._refuse
        parser.ExternalEntityRefHandler = self._refuse
        try:
            parser.Parse(text.encode(), True)
        except expat.ExpatError as error:
            raise FormatError(
                f"{self._what}: is not well-formed XML: {expat.ErrorString(error.code)}",
                line=error.lineno,
                column=error.offset,
            ) from error
        assert self._root is not None, "expat accepts no document without a root"
        return self._root

    def _start(self, name: str, attributes: dict[str, str]) -> None:
        self._count += 1
        if self._count > _ELEMENTS_MAX or len(self._open) >= _DEPTH_MAX:
            raise FormatError(f"{self._what}: too many or too deep elements", count=self._count)
        if len(attributes) > _ATTRIBUTES_MAX:
            raise FormatError(f"{self._what}: too many attributes", element=name[:200])
        element = XmlElement(
            _clark(name), {_clark(key): value for key, value in attributes.items()}
        )
        if self._open:
            self._open[-1].children.append(element)
        else:
            self._root = element
        self._open.append(element)
        self._text.append([])

    def _end(self, _name: str) -> None:
        self._open.pop().text = "".join(self._text.pop())

    def _characters(self, text: str) -> None:
        self._text[-1].append(text)

    def _refuse(self, *_arguments: object) -> int:
        raise FormatError(f"{self._what}: document types and entities are refused")


def _clark(name: str) -> str:
    namespace, bar, local = name.rpartition("}")
    return f"{{{namespace}}}{local}" if bar else local
