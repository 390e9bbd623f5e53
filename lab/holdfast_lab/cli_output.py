"""What the commands of ``holdfast-lab`` share: the option for the state, and showing an answer."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import click

from holdfast_lab.control_client import LabClient

Function = TypeVar("Function", bound=Callable[..., Any])
PlainValue = Any  # what JSON can hold


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """Something to show: as text, or with ``--json`` as one document."""

    text: str
    value: object = None


def state_option(function: Function) -> Function:
    """The option that says which lab is meant."""
    option = click.option(
        "--state",
        type=click.Path(path_type=Path),
        required=True,
        envvar="HOLDFAST_LAB_STATE",
        help="The lab's state directory.",
    )
    return option(function)


def json_option(function: Function) -> Function:
    """The option for answers as JSON."""
    option = click.option("--json", "as_json", is_flag=True, help="Answer as one JSON document.")
    return option(function)


def show(answer: Answer, *, as_json: bool = False) -> None:
    """Write an answer to stdout."""
    click.echo(json.dumps(answer.value, indent=2) if as_json else answer.text)


def give(
    state: Path,
    command: str,
    *,
    as_json: bool,
    text: Callable[[PlainValue], str] | None = None,
    **arguments: object,
) -> PlainValue:
    """Give a command to the running lab and show its answer; gives the answer's value."""
    value = LabClient(state).call(command, **arguments)
    shown = text(value) if text is not None else plain(value)
    show(Answer(text=shown, value=value), as_json=as_json)
    return value


def plain(value: PlainValue) -> str:
    """A value as lines of text."""
    if value is None:
        return "done"
    if isinstance(value, list):
        return "\n".join(plain(each) for each in value) or "none"
    if isinstance(value, Mapping):
        return "  ".join(f"{name}={_short(each)}" for name, each in value.items())
    return str(value)


def _short(value: PlainValue) -> str:
    if isinstance(value, list):
        return f"[{len(value)}]" if value and isinstance(value[0], (dict, list)) else str(value)
    return str(value)


def pairs(given: tuple[str, ...]) -> dict[str, str]:
    """``name=value`` texts as a mapping. Raises: BadParameter."""
    found = {}
    for each in given:
        name, sign, value = each.partition("=")
        if not sign:
            raise click.BadParameter(f"{each!r} is not name=value")
        found[name] = value
    return found
