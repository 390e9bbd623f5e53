"""What opens a repository for `rescue.py`: every form of a key is taken, and what is none is said to be none."""

from __future__ import annotations

import io
import sys
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
)

from holdfast_common.repository import rescue
from support.golden_machines import NAME
from support.golden_repository import GOLDEN

SECRET = bytes(range(32))
PRIVATE = X25519PrivateKey.from_private_bytes(SECRET)
PEM = PRIVATE.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


@pytest.mark.parametrize(
    "form",
    [SECRET, SECRET.hex().encode(), b"holdfast-private-1:" + SECRET.hex().encode() + b"\n", PEM],
    ids=["raw", "hex", "our line", "PEM"],
)
def test_a_private_key_is_read_in_every_form(form: bytes) -> None:
    assert rescue.private_key_secret(form) == SECRET


@pytest.mark.parametrize(
    "form",
    [
        b"",
        SECRET[:31],
        SECRET.hex().encode()[:-1],
        PEM[:60],
        PRIVATE.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"x")),
        Ed25519PrivateKey.generate().private_bytes(
            Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()
        ),
    ],
    ids=["nothing", "short", "short hex", "cut", "with a password", "of another kind"],
)
def test_what_is_no_private_key_is_said_to_be_none(form: bytes) -> None:
    with pytest.raises(rescue.RescueError, match="X25519"):
        rescue.private_key_secret(form)


@pytest.mark.parametrize("content", [b"", b"holdfast-key-1:zz", SECRET.hex().encode()])
def test_what_is_no_key_file_is_said_to_be_none(content: bytes) -> None:
    with pytest.raises(rescue.RescueError, match="A key file is one line"):
        rescue.key_file_secret(content)


def status(*arguments: str) -> int:
    return rescue.main([str(GOLDEN / NAME), "list", *arguments])


def test_a_file_that_is_not_there_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for option in ("--key-file", "--private-key-file", "--passphrase-file"):
        assert status(option, str(tmp_path / "missing")) == 2
        assert "missing: No such file" in capsys.readouterr().err


def test_a_share_that_is_not_mounted_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert rescue.main([str(tmp_path / "mnt"), "list", "--key-file", "x"]) == 2
    assert "is the share mounted?" in capsys.readouterr().err


def test_groups_of_a_sheet_in_another_order_are_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = (GOLDEN / f"{NAME}.recovery").read_text()
    groups = rescue.sheet_groups(text)
    groups[0], groups[1] = groups[1], groups[0]
    (tmp_path / "sheet").write_text(" ".join(groups))
    assert status("--recovery-sheet-file", str(tmp_path / "sheet")) == 3
    assert "The recovery sheet is not right" in capsys.readouterr().err


def test_a_sheet_that_is_typed_only_half_is_told(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    groups = rescue.sheet_groups((GOLDEN / f"{NAME}.recovery").read_text())
    monkeypatch.setattr(sys, "stdin", io.StringIO("\n".join(groups[:4]) + "\n"))
    assert status() == 2
    assert "ended early" in capsys.readouterr().err


def test_a_passphrase_is_asked_for(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("getpass.getpass", lambda _: "not that one")
    assert status("--passphrase") == 3
    assert "does not open the repository" in capsys.readouterr().err
