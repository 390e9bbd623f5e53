"""Where notifications go: addresses with passwords and tokens in them, so from a file, a command, or a credential.

Read anew whenever something is sent: what was exchanged counts from then on. They are kept nowhere.
"""

from __future__ import annotations

import os
import stat
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from holdfast_common.errors import ConfigurationError
from holdfast_common.logs import Secret
from holdfast_controller.configuration import NotificationSettings

COMMAND_SECONDS_MAX: Final = 20.0
BYTES_MAX: Final = 64 * 1024
URLS_MAX: Final = 50
CREDENTIALS_VARIABLE: Final = "CREDENTIALS_DIRECTORY"  # of systemd's LoadCredential=


def notification_urls(
    settings: NotificationSettings, environment: Mapping[str, str] | None = None
) -> list[Secret]:
    """One a line; empty lines and those that begin with # are passed over. Empty: none is set.

    Raises: ConfigurationError when what is set cannot be read.
    """
    variables = os.environ if environment is None else environment
    texts = []
    if settings.urls_file:
        texts.append(_file(Path(settings.urls_file)))
    if settings.urls_credential:
        texts.append(_credential(settings.urls_credential, variables))
    if settings.urls_command:
        texts.append(_output(settings.urls_command, variables))
    lines = [line.strip() for text in texts for line in text.splitlines()]
    urls = list(dict.fromkeys(line for line in lines if line and not line.startswith("#")))
    if texts and not urls:
        raise ConfigurationError("there is no notification address where controller.toml says so")
    if len(urls) > URLS_MAX:
        raise ConfigurationError("too many notification addresses", addresses=len(urls))
    return [Secret(url.encode()) for url in urls]


def is_set(settings: NotificationSettings) -> bool:
    """Whether there is anybody to tell."""
    return bool(settings.urls_file or settings.urls_command or settings.urls_credential)


def _file(path: Path, *, private: bool = True) -> str:
    try:
        mode = stat.S_IMODE(path.stat().st_mode)
        with path.open("rb") as file:
            content = file.read(BYTES_MAX)
    except OSError as error:
        raise ConfigurationError(
            f"the notification addresses cannot be read: {error.strerror}", file=str(path)
        ) from error
    if private and mode & 0o007:
        raise ConfigurationError(
            "everybody may read the notification addresses",
            file=str(path),
            mode=f"{mode:04o}",
            advice=f"chmod o= {path}",
        )
    return _text(content, where=str(path))


def _credential(name: str, environment: Mapping[str, str]) -> str:
    folder = environment.get(CREDENTIALS_VARIABLE, "")
    if not folder:
        raise ConfigurationError(
            "systemd gave this controller no credentials",
            credential=name,
            advice="add LoadCredential= or LoadCredentialEncrypted= to the unit",
        )
    if "/" in name or name in (".", ".."):
        raise ConfigurationError("not a credential's name", credential=name[:100])
    return _file(Path(folder) / name, private=False)  # systemd sees to it


def _output(command: tuple[str, ...], environment: Mapping[str, str]) -> str:
    try:
        found = subprocess.run(
            list(command),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=COMMAND_SECONDS_MAX,
            env={**environment},
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise ConfigurationError(
            "the command for the notification addresses does not end",
            command=command[0],
            seconds=COMMAND_SECONDS_MAX,
        ) from error
    except OSError as error:
        raise ConfigurationError(
            f"the command for the notification addresses cannot be run: {error.strerror}",
            command=command[0],
        ) from error
    if found.returncode != 0:
        raise ConfigurationError(
            "the command for the notification addresses failed",
            command=command[0],
            status=found.returncode,
        )
    return _text(found.stdout[:BYTES_MAX], where=command[0])


def _text(content: bytes, *, where: str) -> str:
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        raise ConfigurationError("the notification addresses are not text", source=where) from error
