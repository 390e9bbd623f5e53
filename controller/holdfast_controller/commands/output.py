"""What commands print: results on stdout, everything else on stderr; ``--json`` everywhere."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import click
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.json_format import MessageToDict
from google.protobuf.message import Message
from rich.console import Console
from rich.table import Table

SCHEMA = 1
_LARGE = (FieldDescriptor.CPPTYPE_INT64, FieldDescriptor.CPPTYPE_UINT64)


@dataclass(frozen=True, slots=True, kw_only=True)
class Output:
    """Where and how results are printed."""

    as_json: bool

    def document(self, kind: str, message: Message | dict[str, object]) -> None:
        """One JSON document. Call it only when ``as_json``."""
        content = plain(message) if isinstance(message, Message) else message
        click.echo(json.dumps({"type": kind, "schema": SCHEMA, **content}))

    def line(self, text: str) -> None:
        """A line of the result, for people."""
        if not self.as_json:
            click.echo(shown(text))

    def table(self, columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
        """A table for people; plain columns where stdout is no terminal."""
        if sys.stdout.isatty():
            table = Table(*columns, box=None, header_style="bold", pad_edge=False)
            for row in rows:
                table.add_row(*[shown(cell).replace("\n", "?") for cell in row])
            Console().print(table)
            return
        cells = [list(columns), *[[shown(cell).replace("\n", "?") for cell in row] for row in rows]]
        widths = [max(len(row[i]) for row in cells) for i in range(len(columns))]
        for row in cells:
            padded = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
            click.echo("  ".join(padded).rstrip())


def plain(message: Message) -> dict[str, object]:
    """A message as JSON: snake_case names, every field present, 64-bit numbers as numbers."""
    found: dict[str, object] = MessageToDict(
        message, preserving_proto_field_name=True, always_print_fields_with_no_presence=True
    )
    _numbers(found, message)
    return found


def _numbers(content: dict[str, object], message: Message) -> None:
    # MessageToDict writes 64-bit integers as strings; a reader of ours expects numbers.
    for field in message.DESCRIPTOR.fields:
        value = content.get(field.name)
        if value is None:
            continue
        if field.message_type is not None and field.message_type.GetOptions().map_entry:
            of_values = field.message_type.fields_by_name["value"].cpp_type
            if of_values in _LARGE and isinstance(value, dict):
                content[field.name] = {name: int(text) for name, text in value.items()}
        elif field.message_type is not None:
            inner = getattr(message, field.name)
            if isinstance(value, list):
                for item, part in zip(value, inner, strict=True):
                    _numbers(item, part)
            elif isinstance(value, dict):
                _numbers(value, inner)
        elif field.cpp_type in _LARGE:
            content[field.name] = (
                [int(item) for item in value] if isinstance(value, list) else int(str(value))
            )


def note(text: str) -> None:
    """Something that is no result: stderr."""
    click.echo(shown(text), err=True)


def shown(text: str) -> str:
    """Fit for a terminal: names of VMs and messages of servers are data, and may hold anything."""
    return "".join(c if c.isprintable() or c == "\n" else "?" for c in text)
