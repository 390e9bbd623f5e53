"""Policies as TOML: read with the line of what is wrong, written so that people like to read it. Pure.

A text holds one or more ``[[policy]]`` tables, each with the fields of `Policy`; ``level`` and ``retention`` are tables
in it. What is written is read as the very same policies. Left out of it are only fields whose value is nothing
(no window, no description), and the time zone of a retention rule where it is the policy's own.
"""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import MISSING, dataclass, fields
from typing import Any, Final

from holdfast_common.errors import UsageError
from holdfast_controller.decide.policy import Policy
from holdfast_controller.decide.policy_lines import PolicyLines, first_line, policy_lines
from holdfast_controller.decide.policy_values import TABLES, policy_of_values, policy_values

TEXT_LENGTH_MAX: Final = 1 << 20
POLICIES_MAX: Final = 1000
ALSO_TOLD_MAX: Final = 20  # of what else is wrong
LINE_LENGTH_MAX: Final = 100  # longer lists are written with a line for each
_FIRST: Final = ("name", "description", "enabled", "vms", "exclude", "start", "time_zone", "window")
_TOML_PLACE: Final = re.compile(r" \(at line (\d+), column (\d+)\)$")
_TOML_END: Final = " (at end of document)"
# What an editor is shown of fields that say nothing.
_EXAMPLES: Final[Mapping[str, object]] = {
    "disks": ["disk:2000"],
    "exclude_disks": ["disk:Hard disk 2"],
    "description": "what it is for",
    "exclude": ["power:off"],
    "window": "mon-fri 22:00-06:00; sat,sun 00:00-24:00",
    "promise": "26h",
    "resume_within": "10m",
    "transport": "hotadd",
    "level.full": "0 22 * * sun",
    "level.differential": "0 22 * * wed",
    "retention.keep_last": 3,
    "retention.keep_hourly": 24,
    "retention.keep_daily": 14,
    "retention.keep_weekly": 8,
    "retention.keep_monthly": 12,
    "retention.keep_yearly": 3,
    "retention.keep_within": "48h",
    "retention.time_zone": "UTC",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class WrittenPolicy:
    """A policy of a text, and where it stands there."""

    policy: Policy
    lines: PolicyLines
    file: str

    def refusal(self, message: str, *, field: str, advice: str = "", **facts: Any) -> UsageError:  # noqa: ANN401 - facts
        """An error that names where the field stands."""
        where = _where(self.file, self.policy.name, field, self.lines.line(field))
        return UsageError(message, advice=advice, **{**where, **facts})


def read_policies(text: str, *, file: str = "") -> tuple[WrittenPolicy, ...]:
    """The policies of a text, in its order. ``file``: what to call it in errors; "": it is in none, and has no lines.

    Raises: UsageError with the file, the policy, the field and the line, as far as they can be told; of each
    policy the first thing that is wrong.
    """
    tables = _tables(text, file)
    all_lines = list(policy_lines(text)) if file else []
    if len(all_lines) != len(tables):  # written in another way than line by line
        all_lines = [PolicyLines(of_field={})] * len(tables)
    found: dict[str, WrittenPolicy] = {}
    wrong: list[UsageError] = []
    for number, (table, lines) in enumerate(zip(tables, all_lines, strict=True), start=1):
        name = str(table.get("name") or f"number {number}")[:100]
        try:
            policy = policy_of_values(table)
        except UsageError as error:
            field = str(error.facts.get("field", ""))
            where = _where(file, name, field, lines.line(field))
            facts = {**where, **{key: error.facts[key] for key in error.facts if key != "field"}}
            wrong.append(UsageError(error.message, advice=error.advice, **facts))
            continue
        if policy.name in found:
            where = _where(file, policy.name, "name", lines.line("name"))
            wrong.append(UsageError("two policies of one name", **where))
        found[policy.name] = WrittenPolicy(policy=policy, lines=lines, file=file)
    if wrong:
        raise all_in_one(wrong)
    return tuple(found.values())


def all_in_one(wrong: Sequence[UsageError]) -> UsageError:
    """The first error, whose advice tells of the others: who mends a text wants to see all that is wrong."""
    first, *others = wrong
    lines = [first.advice, *(f"also: {each}" for each in others[:ALSO_TOLD_MAX])]
    if len(others) > ALSO_TOLD_MAX:
        lines.append(f"and {len(others) - ALSO_TOLD_MAX} more")
    advice = "\n".join(line for line in lines if line)
    return UsageError(first.message, advice=advice, **first.facts)


def policies_text(policies: Sequence[Policy], *, with_examples: bool = False) -> str:
    """The text that `read_policies` reads as the same. ``with_examples``: fields that say nothing stand there as comments."""
    return "\n".join(
        "\n".join(_policy_text(policy, with_examples=with_examples)) + "\n" for policy in policies
    )


def field_texts(policy: Policy) -> dict[str, str]:
    """Every field by its name (``level.full_days``) with its value as it is written; to compare policies by."""
    texts: dict[str, str] = {}
    for name, value in policy_values(policy).items():
        inner = value.items() if name in TABLES else ()
        texts |= {f"{name}.{field}": _line_text(each) for field, each in inner}
        if name not in TABLES:
            texts[name] = _line_text(value)
    return texts


def _tables(text: str, file: str) -> list[dict[str, Any]]:
    where: dict[str, Any] = {"file": file} if file else {}
    if len(text) > TEXT_LENGTH_MAX:
        raise UsageError("the text of policies is too long", **where, length=len(text))
    try:
        document = tomllib.loads(text)
    except (ValueError, RecursionError) as error:
        place = _TOML_PLACE.search(str(error))
        if place is not None:
            where["line"], where["column"] = int(place[1]), int(place[2])
        elif file and str(error).endswith(_TOML_END):
            where["line"] = text.count("\n") + 1
        problem = _TOML_PLACE.sub("", str(error)) or type(error).__name__
        raise UsageError(f"this is not TOML: {problem}", **where) from error
    advice = "each policy begins with a line [[policy]]"
    for key in document:
        if key != "policy":
            line = first_line(text, key) if file else 0
            where |= {"line": line} if line else {}
            raise UsageError("an unknown key", **where, field=key[:128], advice=advice)
    tables = document.get("policy", [])
    if not isinstance(tables, list) or not all(isinstance(each, dict) for each in tables):
        raise UsageError("policies are not written so", **where, advice=advice)
    if not 0 < len(tables) <= POLICIES_MAX:
        problem = "the text has too many policies" if tables else "the text has no policy"
        raise UsageError(problem, **where, advice=advice)
    return tables


def _where(file: str, policy: str, field: str, line: int) -> dict[str, Any]:
    where: dict[str, Any] = {"file": file} if file else {}
    if line:
        where["line"] = line
    return {**where, "policy": policy, "field": field}


def _policy_text(policy: Policy, *, with_examples: bool) -> Iterator[str]:
    values = policy_values(policy)
    if values["retention"]["time_zone"] == policy.time_zone:
        del values["retention"]["time_zone"]  # as it is read when it is not there
    yield "[[policy]]"
    names = [item.name for item in fields(Policy) if item.name not in TABLES]
    ordered = sorted(names, key=lambda name: _FIRST.index(name) if name in _FIRST else len(_FIRST))
    yield from _fields_text(values, Policy, ordered, prefix="", with_examples=with_examples)
    for name, kind in TABLES.items():
        inner = [item.name for item in fields(kind)]
        lines = list(
            _fields_text(values[name], kind, inner, prefix=f"{name}.", with_examples=with_examples)
        )
        if lines:
            yield ""
            yield f"[policy.{name}]"
            yield from lines


def _fields_text(
    values: Mapping[str, Any],
    kind: type,
    names: Sequence[str],
    *,
    prefix: str,
    with_examples: bool,
) -> Iterator[str]:
    defaults = {item.name: item.default for item in fields(kind)}
    for name in names:
        value = values.get(name)
        said = value is not None and not _says_nothing(value, defaults[name])
        if said:
            yield f"{name} = {_value_text(value, len(name))}"
        elif with_examples and prefix + name in _EXAMPLES:
            yield f"# {name} = {_value_text(_EXAMPLES[prefix + name], len(name))}"


def _says_nothing(value: object, default: object) -> bool:
    """Nothing stays nothing, whatever becomes a default later: `Policy` says that "" and 0 are none."""
    if isinstance(value, bool) or default is MISSING:
        return False
    return not value and (not default or isinstance(value, list | tuple))


def _value_text(value: object, name_length: int) -> str:
    line = _line_text(value)
    if not isinstance(value, list | tuple) or name_length + len(line) < LINE_LENGTH_MAX:
        return line
    return "[\n" + "".join(f"    {_quoted(str(item))},\n" for item in value) + "]"


def _line_text(value: object) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        return str(value)
    if isinstance(value, str):
        return _quoted(value)
    assert isinstance(value, list | tuple), value
    return f"[{', '.join(_quoted(str(item)) for item in value)}]"


def _quoted(text: str) -> str:
    """A basic string. What does not show, or would turn text around, is written as its number."""
    return "".join(
        c if c.isprintable() else _escaped(c) for c in json.dumps(text, ensure_ascii=False)
    )


def _escaped(character: str) -> str:
    number = ord(character)
    return f"\\u{number:04X}" if number <= 0xFFFF else f"\\U{number:08X}"
