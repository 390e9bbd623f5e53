"""Where things stand in a text of policies: what reads TOML tells the values, but not the lines they came from. Pure.

Only of a text that is TOML: what is looked for is the beginning of lines, outside of texts and lists.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final

_HEADER: Final = re.compile(r"\s*(\[\[|\[)\s*([^\]]+?)\s*\]")
_KEY: Final = re.compile(r"""\s*((?:[A-Za-z0-9_-]+|"[^"]*"|'[^']*')(?:\s*\.\s*[^=.]+?)*)\s*=""")
# What decides how a line of TOML goes on: texts, comments, brackets.
_TOKEN: Final = re.compile(r"""\"{3}|'{3}|"(?:[^"\\]|\\.)*"|'[^']*'|\#.*|[\[\]{}]""")
_CLOSING: Final = {
    '"' * 3: re.compile(r'(?:[^"\\]|\\.|"{1,2}(?!"))*+"{3,5}'),
    "'" * 3: re.compile(r"(?:[^']|'{1,2}(?!'))*+'{3,5}"),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyLines:
    """Where a policy stands in its text: the line of its head (0: not found), and of each field that was found."""

    head: int = 0
    of_field: Mapping[str, int]

    def line(self, field: str) -> int:
        """Of a field, or of one inside it (``vms[3]``), else of the policy's head."""
        name = field.partition("[")[0]
        while name:
            if name in self.of_field:
                return self.of_field[name]
            name = name.rpartition(".")[0]
        return self.head


def policy_lines(text: str) -> Iterator[PolicyLines]:
    """One for each ``[[policy]]`` line. Fields of ``[policy.level]`` are named ``level.full_days``."""
    head, of_field = 0, dict[str, int]()
    for number, table, key in _keys(text):
        if table == "policy" and not key:
            if head:
                yield PolicyLines(head=head, of_field=of_field)
            head, of_field = number, {}
            continue
        inside = table.removeprefix("policy").removeprefix(".")
        of_field.setdefault(".".join(part for part in (inside, key) if part), number)
    if head:
        yield PolicyLines(head=head, of_field=of_field)


def first_line(text: str, key: str) -> int:
    """Where a key of the document stands first; 0: not found."""
    for number, table, found in _keys(text):
        if (table or found).partition(".")[0] == key:
            return number
    return 0


def _keys(text: str) -> Iterator[tuple[int, str, str]]:
    """Lines that begin a table (its name, no key) or set a key in one; what stands in texts and lists is neither."""
    table, state = "", _LineState()
    for number, line in enumerate(text.split("\n"), start=1):
        if not state.inside:
            header, key = _HEADER.match(line), _KEY.match(line)
            if key is not None:
                yield number, table, _bare(key[1])
            elif header is not None:
                table = _bare(header[2])
                yield number, table, ""
        state.read(line)


@dataclass(slots=True)
class _LineState:
    """What a line begins in. ``quotes``: of a text over several lines; ``depth``: of lists."""

    quotes: str = ""
    depth: int = 0

    @property
    def inside(self) -> bool:
        return bool(self.quotes) or self.depth > 0

    def read(self, line: str) -> None:
        """Go on to the next line."""
        place = 0
        while place < len(line):
            if self.quotes:
                end = _CLOSING[self.quotes].match(line, place)
                if end is None:
                    return
                self.quotes, place = "", end.end()
                continue
            token = _TOKEN.search(line, place)
            if token is None or token[0].startswith("#"):
                return
            place = token.end()
            if token[0] in _CLOSING:
                self.quotes = token[0]
            elif token[0] in "[{":
                self.depth += 1
            elif token[0] in "]}":
                self.depth -= 1


def _bare(name: str) -> str:
    return ".".join(part.strip().strip("\"'") for part in name.split("."))
