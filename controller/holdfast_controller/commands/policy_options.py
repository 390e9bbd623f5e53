"""The options of a policy's fields, given to a command as the values that were given."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final, TypeVar

import click

from holdfast_controller.decide.lanes import LANES_MAX
from holdfast_controller.decide.policy import (
    ATTEMPTS_MAX,
    CONSISTENCIES,
    FULL_DAYS_MAX,
    METHODS,
    PRIORITY_MAX,
    TRANSPORTS,
    WhenNotReached,
)
from holdfast_controller.decide.policy_checks import Oddity
from holdfast_controller.decide.retention import COUNT_MAX

Command = TypeVar("Command", bound=Callable[..., Any])


@dataclass(frozen=True, slots=True, kw_only=True)
class FieldOption:
    """One field. ``kind``: what click reads it as; None: a text."""

    flag: str
    field: str
    told: str
    metavar: str | None = None
    kind: click.ParamType[Any] | None = None
    multiple: bool = False


def _count(flag: str, told: str) -> FieldOption:
    field = f"retention.{flag.replace('-', '_')}"
    kind = click.IntRange(0, COUNT_MAX)
    return FieldOption(flag=f"--{flag}", field=field, told=told, kind=kind)


OPTIONS: Final = (
    FieldOption(
        flag="--vms",
        field="vms",
        metavar="SELECTOR",
        multiple=True,
        told="Which VMs, as `holdfast inventory list` names them; may be given more than once.",
    ),
    FieldOption(
        flag="--exclude",
        field="exclude",
        metavar="SELECTOR",
        multiple=True,
        told="But not these; may be given more than once.",
    ),
    FieldOption(
        flag="--disks",
        field="disks",
        metavar="SELECTOR",
        multiple=True,
        told="Only these disks of each VM, as disk:2000 (device key) or 'disk:Hard disk 2' (label); all if none is given.",
    ),
    FieldOption(
        flag="--exclude-disks",
        field="exclude_disks",
        metavar="SELECTOR",
        multiple=True,
        told="But not these disks; may be given more than once.",
    ),
    FieldOption(
        flag="--start",
        field="start",
        metavar="CALENDAR",
        told="When it is due: minute hour day-of-month month day-of-week, as '30 22 * * mon-fri'.",
    ),
    FieldOption(
        flag="--time-zone",
        field="time_zone",
        metavar="ZONE",
        told="Whose clocks these are, as Europe/Berlin; UTC if none is given.",
    ),
    FieldOption(
        flag="--window",
        field="window",
        metavar="WINDOWS",
        told="When its backups may work, as 'mon-fri 22:00-06:00; sat,sun 00:00-24:00'; always if none is given.",
    ),
    FieldOption(
        flag="--promise",
        field="promise",
        metavar="AGE",
        told="How old the last good point of each VM may be, as 26h or 2d: `holdfast status` tells those that are older.",
    ),
    FieldOption(
        flag="--resume-within",
        field="resume_within",
        metavar="TIME",
        told="How long a snapshot waits for an agent that lost its connection and reads on, as 90s or 10m.",
    ),
    FieldOption(flag="--description", field="description", metavar="TEXT", told="What it is for."),
    FieldOption(
        flag="--full-days",
        field="level.full_days",
        kind=click.IntRange(0, FULL_DAYS_MAX),
        told="Read a VM whole again after so many days; 0: never for that reason.",
    ),
    FieldOption(
        flag="--full",
        field="level.full",
        metavar="CALENDAR",
        told="When its run is a full one, as '0 22 * * sun'.",
    ),
    FieldOption(
        flag="--differential",
        field="level.differential",
        metavar="CALENDAR",
        told="When its run reads what changed since the last full one, as '0 22 * * wed'.",
    ),
    FieldOption(flag="--method", field="method", kind=click.Choice(METHODS), told="How."),
    FieldOption(
        flag="--consistency",
        field="consistency",
        kind=click.Choice(CONSISTENCIES),
        told="What is asked of each backup.",
    ),
    FieldOption(
        flag="--when-not-reached",
        field="when_not_reached",
        kind=click.Choice([str(each) for each in WhenNotReached]),
        told="What becomes of a backup that has less than that.",
    ),
    FieldOption(
        flag="--transport",
        field="transport",
        kind=click.Choice([*TRANSPORTS, ""]),
        told="Only this way to the disks; the best that can if none is given.",
    ),
    FieldOption(
        flag="--priority",
        field="priority",
        kind=click.IntRange(0, PRIORITY_MAX),
        told="The higher begins first.",
    ),
    FieldOption(
        flag="--attempts-max",
        field="attempts_max",
        kind=click.IntRange(1, ATTEMPTS_MAX),
        told="How often a backup is tried in one run.",
    ),
    FieldOption(
        flag="--lanes",
        field="lanes",
        kind=click.IntRange(1, LANES_MAX),
        told="How many streams a VM may have at once, if its disks are on datastores of their own.",
    ),
    _count("keep-last", "Keep the newest so many points of each VM."),
    _count("keep-hourly", "Keep the last point of each of the newest so many hours that have one."),
    _count("keep-daily", "The same by days."),
    _count("keep-weekly", "The same by weeks, from Monday (ISO 8601)."),
    _count("keep-monthly", "The same by months."),
    _count("keep-yearly", "The same by years."),
    FieldOption(
        flag="--keep-within",
        field="retention.keep_within",
        metavar="DURATION",
        told="Keep what is not older than that: 48h, 14d, 8w.",
    ),
    FieldOption(
        flag="--retention-time-zone",
        field="retention.time_zone",
        metavar="ZONE",
        told="Whose hours, days and weeks are kept; the policy's own if none is given.",
    ),
)

allow_option = click.option(
    "--allow",
    multiple=True,
    type=click.Choice([str(each) for each in Oddity]),
    help="What is refused unless it is meant: a selector that names no VM (yet), a window that is shorter than any"
    " backup of a VM was, restore points that are kept now and dropped then.",
)


def policy_options(*, required: tuple[str, ...] = ()) -> Callable[[Command], Command]:
    """All of them, given as ``values``: those that were given, by field, as ``level.full_days``. ``required``: fields."""

    def decorate(command: Command) -> Command:
        @functools.wraps(command)
        def with_values(*args: object, **options: object) -> object:
            values = {each.field: options.pop(_parameter(each)) for each in OPTIONS}
            enabled = options.pop("enabled")
            given = {name: value for name, value in values.items() if value not in (None, ())}
            if enabled is not None:
                given["enabled"] = enabled
            return command(*args, **options, values=given)

        wrapped: Callable[..., object] = click.option(
            "--enabled/--disabled", default=None, help="Whether it is carried out at all."
        )(with_values)
        for each in reversed(OPTIONS):
            wrapped = click.option(
                each.flag,
                _parameter(each),
                metavar=each.metavar,
                type=each.kind,
                multiple=each.multiple,
                required=each.field in required,
                default=None,
                help=each.told,
            )(wrapped)
        return wrapped  # type: ignore[return-value]  # click's decorators give back what they wrap

    return decorate


def with_given(values: Mapping[str, Any], given: Mapping[str, object]) -> dict[str, Any]:
    """A policy's values with those that were given in their places. A list of one empty text is an empty list."""
    merged = {name: dict(v) if isinstance(v, Mapping) else v for name, v in values.items()}
    for field, value in given.items():
        table, _, name = field.rpartition(".")
        target = merged.setdefault(table, {}) if table else merged
        if isinstance(value, tuple):
            target[name] = [] if value == ("",) else list(value)
        else:
            target[name] = value
    return merged


def _parameter(option: FieldOption) -> str:
    return "field_" + option.flag.removeprefix("--").replace("-", "_")
