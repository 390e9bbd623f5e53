"""A policy as plain values (texts, numbers, lists, tables) and back: between `Policy` and whatever holds its text. Pure."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from dataclasses import fields
from typing import Any, Final, TypeVar

import msgspec

from holdfast_common.errors import UsageError
from holdfast_controller.decide.local_time import time_zone
from holdfast_controller.decide.policy import LevelRule, Policy
from holdfast_controller.decide.retention import RetentionRule

TABLES: Final[Mapping[str, type]] = {"level": LevelRule, "retention": RetentionRule}
NEEDED: Final = frozenset({"name", "vms", "start"})
_PLACE: Final = re.compile(r" - at `\$\.?([^`]*)`$")
Value = TypeVar("Value")


def policy_values(policy: Policy) -> dict[str, Any]:
    """Every field by its name, also those at their defaults: a later default changes no policy that was kept."""
    values: dict[str, Any] = msgspec.to_builtins(policy)
    return values


def policy_of_values(values: Mapping[str, object]) -> Policy:
    """The inverse. Fields that are left out have their defaults.

    A retention rule that names no time zone counts in the policy's own.
    Raises: UsageError naming the field, as ``level.full_days`` for one of a table.
    """
    _check_keys(values, Policy, prefix="")
    given = dict(values)
    tables = {name: _table(given.pop(name, {}), name) for name in TABLES}
    zone = given.get("time_zone")
    if isinstance(zone, str):
        time_zone(zone)  # refused as the policy's, not as the rule's
        tables["retention"].setdefault("time_zone", zone)
    parts: dict[str, object] = {}
    for name, kind in TABLES.items():
        _check_keys(tables[name], kind, prefix=f"{name}.")
        parts[name] = _converted(tables[name], kind, prefix=f"{name}.")
    for item in fields(Policy):
        if item.name in NEEDED and item.name not in given:
            raise UsageError("a policy needs this field", field=item.name)
    # the tables were read before: msgspec takes a value of the right type as it is
    return _converted({**given, **parts}, Policy, prefix="")


def _table(value: object, name: str) -> dict[str, object]:
    if not isinstance(value, Mapping):
        raise UsageError("a table is expected", field=name, advice=f"write [policy.{name}]")
    return dict(value)


def _converted(values: Mapping[str, object], kind: type[Value], *, prefix: str) -> Value:
    try:
        return msgspec.convert(values, kind)
    except msgspec.ValidationError as error:
        text = str(error)
        place = _PLACE.search(text)
        name = prefix + (place[1] if place is not None else "")
        raise UsageError(_PLACE.sub("", text), field=name.rstrip(".")) from error
    except UsageError as error:
        if not prefix or "field" not in error.facts:
            raise
        facts = {**error.facts, "field": f"{prefix}{error.facts['field']}"}
        raise UsageError(error.message, advice=error.advice, **facts) from error


def _check_keys(values: Mapping[str, object], kind: type, *, prefix: str) -> None:
    known = [item.name for item in fields(kind)]
    for key in values:
        if key in known:
            continue
        near = difflib.get_close_matches(str(key), known, n=1)
        advice = f"did you mean {prefix}{near[0]}?" if near else f"known are {', '.join(known)}"
        raise UsageError("an unknown key in a policy", field=f"{prefix}{key}"[:128], advice=advice)
