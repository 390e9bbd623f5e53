from __future__ import annotations

from pathlib import Path

import pytest

from holdfast_common.places import HOME_VARIABLE
from holdfast_common.repository import mount_probe
from holdfast_controller import main
from support.hanging_mount import hanging_mount


@pytest.mark.parametrize(
    "command",
    [
        ("init", "--accept-recovery-sheet", "--repository"),
        ("key", "test", "--passphrase-file", "secret", "--repository"),
        ("repo", "scrub"),
    ],
    ids=" ".join,
)
def test_a_command_whose_repository_hangs_exits_with_124_and_names_the_folder(
    command: tuple[str, ...],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(mount_probe, "ANSWER_SECONDS_MAX", 0.2)
    monkeypatch.setenv(HOME_VARIABLE, str(tmp_path / "home"))
    folder = tmp_path / "repository"
    folder.mkdir()
    monkeypatch.chdir(tmp_path)
    (tmp_path / "secret").write_text("a passphrase\n")
    with hanging_mount(folder):
        assert main.run([*command, str(folder)]) == 124
    assert str(folder) in capsys.readouterr().err
    assert not (tmp_path / "home" / "lib").exists()
