"""A secret that opens a repository, as options: of `key test` and of `init --from-repository`.

It is read from a file or asked for, and never leaves this machine.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from typing import Any, Final, TypeVar

import click

from holdfast_common.errors import UsageError
from holdfast_common.repository.recipients import (
    KeyFileUnlock,
    PassphraseUnlock,
    PrivateKeyUnlock,
    RecoveryUnlock,
    Unlock,
    private_key_of_text,
)
from holdfast_common.repository.recovery_sheet import GROUP_COUNT, RecoverySheet
from holdfast_common.trust.keys import read_file
from holdfast_controller.commands.key_secrets import first_line

Command = TypeVar("Command", bound=Callable[..., Any])

_PRINTED_GROUP: Final = re.compile(r"^\s+[1-9]\s+(\S{8})\s*$", re.MULTILINE)
_FILE: Final = click.Path(exists=True, dir_okay=False, path_type=Path)


@dataclass(frozen=True, slots=True, kw_only=True)
class GivenSecrets:
    """What was given of a command's secrets; nothing was read or asked yet."""

    ask_passphrase: bool
    passphrase_file: Path | None
    key_file: Path | None
    private_key_file: Path | None
    ask_recovery: bool
    recovery_key_file: Path | None

    @property
    def count(self) -> int:
        """How many were given."""
        return len(self._ways())

    def unlock(self) -> Unlock:
        """The one that was given. Raises: UsageError unless it is one; WrongKey, ConfigurationError, click.Abort."""
        ways = self._ways()
        if len(ways) != 1:
            raise UsageError(
                "give exactly one secret: a file, or --passphrase or --recovery to be asked for it"
            )
        return ways[0]()

    def _ways(self) -> list[Callable[[], Unlock]]:
        ways: list[Callable[[], Unlock] | None] = [
            (lambda: PassphraseUnlock(_asked("Passphrase"))) if self.ask_passphrase else None,
            _read(self.passphrase_file, lambda f: PassphraseUnlock(first_line(f))),
            _read(self.key_file, lambda f: KeyFileUnlock(read_file(f))),
            _read(
                self.private_key_file, lambda f: PrivateKeyUnlock(private_key_of_text(read_file(f)))
            ),
            (lambda: _sheet(_asked("Recovery sheet, group 1 to 9"))) if self.ask_recovery else None,
            _read(
                self.recovery_key_file, lambda f: _sheet(read_file(f).decode("utf-8", "replace"))
            ),
        ]
        return [way for way in ways if way is not None]


def unlock_options(command: Command) -> Command:
    """The options, as one argument: ``secrets``, a `GivenSecrets`."""

    @wraps(command)
    def gathered(*arguments: object, **named: Any) -> Any:  # noqa: ANN401 - click's own values
        names = GivenSecrets.__slots__
        secrets = GivenSecrets(**{name: named.pop(name) for name in names})
        return command(*arguments, secrets=secrets, **named)

    wrapped: Any = gathered
    for option in reversed(_OPTIONS):
        wrapped = option(wrapped)
    found: Command = wrapped
    return found


_OPTIONS: Final = (
    click.option("--passphrase", "ask_passphrase", is_flag=True, help="Ask for a passphrase."),
    click.option(
        "--passphrase-file", type=_FILE, help="A passphrase in the first line of this file."
    ),
    click.option("--key-file", type=_FILE, help="A key file."),
    click.option("--private-key-file", type=_FILE, help="What `holdfast key new-pair` made."),
    click.option(
        "--recovery", "ask_recovery", is_flag=True, help="Ask for the groups of the sheet."
    ),
    click.option(
        "--recovery-key-file", type=_FILE, help="The groups of the recovery sheet in a file."
    ),
)


def _read(file: Path | None, make: Callable[[Path], Unlock]) -> Callable[[], Unlock] | None:
    return None if file is None else lambda: make(file)


def _sheet(text: str) -> Unlock:
    printed = _PRINTED_GROUP.findall(text)
    if len(printed) == GROUP_COUNT:  # the sheet's whole text
        text = " ".join(printed)
    return RecoveryUnlock(RecoverySheet.parse(text))


def _asked(what: str) -> str:
    typed: str = click.prompt(what, hide_input=True, err=True)
    return typed
