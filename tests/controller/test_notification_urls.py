"""Addresses of notifications come from a file, a command or a credential, and from nowhere else."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from holdfast_common.errors import ConfigurationError
from holdfast_controller.configuration import NotificationSettings, read_configuration
from holdfast_controller.notification_urls import URLS_MAX, is_set, notification_urls

TEXT = "# who is told\njson://one/\n\n  json://two/  \njson://one/\n"


def read(settings: NotificationSettings, environment: dict[str, str] | None = None) -> list[str]:
    return [url.reveal().decode() for url in notification_urls(settings, environment)]


def secret_file(folder: Path, text: str = TEXT, *, mode: int = 0o600) -> Path:
    path = folder / "urls"
    path.write_text(text)
    path.chmod(mode)
    return path


def test_an_address_a_line_each_once(tmp_path: Path) -> None:
    settings = NotificationSettings(urls_file=str(secret_file(tmp_path, mode=0o640)))
    assert read(settings) == ["json://one/", "json://two/"]
    assert is_set(settings)


def test_nobody_is_told_where_nothing_is_set() -> None:
    assert read(NotificationSettings()) == []
    assert not is_set(NotificationSettings())


def test_what_a_command_prints_counts() -> None:
    command = (sys.executable, "-c", "print('json://printed/')")
    assert read(NotificationSettings(urls_command=command), {}) == ["json://printed/"]


def test_a_credential_of_systemd_counts(tmp_path: Path) -> None:
    secret_file(tmp_path, mode=0o444)
    settings = NotificationSettings(urls_credential="urls")
    assert read(settings, {"CREDENTIALS_DIRECTORY": str(tmp_path)})[0] == "json://one/"


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        (NotificationSettings(urls_file="/nowhere/urls"), "cannot be read"),
        (NotificationSettings(urls_command=("/nowhere/program",)), "cannot be run"),
        (NotificationSettings(urls_command=(sys.executable, "-c", "exit(3)")), "failed"),
        (NotificationSettings(urls_credential="urls"), "no credentials"),
    ],
)
def test_what_cannot_be_read_is_named(settings: NotificationSettings, problem: str) -> None:
    with pytest.raises(ConfigurationError, match=problem):
        notification_urls(settings, {})


def test_a_file_for_everybody_is_refused(tmp_path: Path) -> None:
    path = secret_file(tmp_path, mode=0o644)
    with pytest.raises(ConfigurationError, match="everybody may read") as caught:
        read(NotificationSettings(urls_file=str(path)))
    assert "chmod" in caught.value.advice


def test_no_address_and_too_many_are_refused(tmp_path: Path) -> None:
    empty = NotificationSettings(urls_file=str(secret_file(tmp_path, "# nobody\n")))
    with pytest.raises(ConfigurationError, match="no notification address"):
        read(empty)
    lines = "".join(f"json://{number}/\n" for number in range(URLS_MAX + 1))
    many = NotificationSettings(urls_file=str(secret_file(tmp_path, lines)))
    with pytest.raises(ConfigurationError, match="too many"):
        read(many)


def test_a_credential_is_a_name_and_no_path(tmp_path: Path) -> None:
    settings = NotificationSettings(urls_credential="../urls")
    with pytest.raises(ConfigurationError, match="not a credential's name"):
        read(settings, {"CREDENTIALS_DIRECTORY": str(tmp_path)})


@pytest.mark.parametrize(
    "line", ['events = ["weather"]', 'url = "json://me:secret@host/"', "repeat_hours = 0"]
)
def test_settings_that_cannot_be_are_named(tmp_path: Path, line: str) -> None:
    file = tmp_path / "controller.toml"
    file.write_text(f"[notifications]\n{line}\n")
    with pytest.raises(ConfigurationError, match="notifications"):
        read_configuration(file)
