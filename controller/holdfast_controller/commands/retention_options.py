"""The options of a retention rule, given to a command as one message."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Final

import click

from holdfast_common.wire import operator_pb2
from holdfast_controller.decide.retention import COUNT_MAX

_COUNTS: Final = {
    "keep_last": "Keep the newest so many points of each VM.",
    "keep_hourly": "Keep the last point of each of the newest so many hours that have one.",
    "keep_daily": "The same by days.",
    "keep_weekly": "The same by weeks, from Monday (ISO 8601).",
    "keep_monthly": "The same by months.",
    "keep_yearly": "The same by years.",
}


def retention_options(command: Callable[..., None]) -> Callable[..., None]:
    """``--keep-…`` and ``--time-zone``, given as ``rule``."""

    @functools.wraps(command)
    def with_rule(*args: object, **options: object) -> None:
        names = (*_COUNTS, "keep_within", "time_zone")
        rule = operator_pb2.RetentionRule(**{name: options.pop(name) for name in names})  # type: ignore[arg-type]  # click checked them
        command(*args, **options, rule=rule)

    wrapped: Callable[..., None] = click.option(
        "--time-zone",
        default="UTC",
        show_default=True,
        metavar="ZONE",
        help="Whose hours, days and weeks these are, as Europe/Berlin.",
    )(with_rule)
    wrapped = click.option(
        "--keep-within",
        default="",
        metavar="DURATION",
        help="Keep what is not older than that: 48h, 14d, 8w.",
    )(wrapped)
    for name, told in reversed(_COUNTS.items()):
        wrapped = click.option(
            f"--{name.replace('_', '-')}",
            type=click.IntRange(min=0, max=COUNT_MAX),
            default=0,
            help=told,
        )(wrapped)
    return wrapped


def says_nothing(rule: operator_pb2.RetentionRule) -> bool:
    """Whether no option was given that keeps something."""
    return not rule.keep_within and not any(getattr(rule, name) for name in _COUNTS)
