from __future__ import annotations

import stat
from pathlib import Path

import pytest

from holdfast_common.errors import ConfigurationError, WrongKey
from holdfast_common.logs import Secret
from holdfast_controller.store.secrets import SecretSeal, create_key_file


@pytest.fixture
def key_file(tmp_path: Path) -> Path:
    path = tmp_path / "database.key"
    create_key_file(path)
    return path


def test_a_secret_comes_back_only_with_its_key_and_purpose(key_file: Path, tmp_path: Path) -> None:
    seal = SecretSeal.from_file(key_file)
    sealed = seal.seal(Secret(b"hunter2"), purpose="vcenter password 1")
    assert b"hunter2" not in sealed
    assert seal.open(sealed, purpose="vcenter password 1").reveal() == b"hunter2"
    with pytest.raises(WrongKey):
        seal.open(sealed, purpose="vcenter password 2")
    create_key_file(tmp_path / "other.key")
    with pytest.raises(WrongKey):
        SecretSeal.from_file(tmp_path / "other.key").open(sealed, purpose="vcenter password 1")


@pytest.mark.parametrize("position", [0, 1, 12, 13, -1])
def test_a_changed_byte_is_noticed(key_file: Path, position: int) -> None:
    seal = SecretSeal.from_file(key_file)
    sealed = bytearray(seal.seal(Secret(b"hunter2"), purpose="p"))
    sealed[position] ^= 1
    with pytest.raises(WrongKey):
        seal.open(bytes(sealed), purpose="p")


def test_the_same_secret_is_sealed_differently_each_time(key_file: Path) -> None:
    seal = SecretSeal.from_file(key_file)
    assert seal.seal(Secret(b"x"), purpose="p") != seal.seal(Secret(b"x"), purpose="p")


def test_what_is_cut_short_is_refused(key_file: Path) -> None:
    seal = SecretSeal.from_file(key_file)
    for length in range(29):
        with pytest.raises(WrongKey):
            seal.open(seal.seal(Secret(b""), purpose="p")[:length], purpose="p")


def test_the_key_file_is_private_and_never_overwritten(key_file: Path) -> None:
    assert stat.S_IMODE(key_file.stat().st_mode) == 0o600
    with pytest.raises(ConfigurationError):
        create_key_file(key_file)
    key_file.chmod(0o640)
    with pytest.raises(ConfigurationError, match="others may read"):
        SecretSeal.from_file(key_file)


def test_a_key_of_a_wrong_length_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "short.key"
    path.write_bytes(b"short")
    path.chmod(0o600)
    with pytest.raises(ConfigurationError):
        SecretSeal.from_file(path)
    with pytest.raises(ConfigurationError):
        SecretSeal.from_file(tmp_path / "missing.key")
