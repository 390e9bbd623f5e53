"""What every command gets: where things are, how to print, and the options that all share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import click

from holdfast_common.places import Places
from holdfast_controller.commands.output import Output

Command = TypeVar("Command", bound=Callable[..., Any])


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """The context object of click."""

    places: Places


pass_entry = click.make_pass_decorator(Entry)


def json_option(command: Command) -> Command:
    """``--json``, given to the command as an `Output`."""

    def to_output(_context: click.Context, _parameter: click.Parameter, value: object) -> Output:
        return Output(as_json=bool(value))

    return click.option(
        "--json", "output", is_flag=True, callback=to_output, help="Machine-readable output."
    )(command)
