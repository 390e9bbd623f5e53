"""Where files live."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from holdfast_common.errors import Refused
from holdfast_common.places import SOCKET_PATH_BYTES_MAX, find_places, private_folder


def test_holdfast_home_overrides_everything(tmp_path: Path) -> None:
    places = find_places({"HOLDFAST_HOME": str(tmp_path), "HOME": "/root"})
    for path in (places.database, places.trust, places.agent_configuration, places.agent_state):
        assert tmp_path in path.parents


def test_root_has_the_system_folders(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    places = find_places({"HOME": "/root"})
    assert places.agent_configuration == Path("/etc/holdfast/agent.toml")
    assert places.database == Path("/var/lib/holdfast/controller/controller.sqlite")
    assert places.operator_socket() == Path("/run/holdfast/operators/operator.sock")


def test_others_have_the_xdg_folders(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    places = find_places({"HOME": "/home/ann"})
    assert places.configuration == Path("/home/ann/.config/holdfast")
    assert places.state == Path("/home/ann/.local/state/holdfast")
    places = find_places({"HOME": "/home/ann", "XDG_RUNTIME_DIR": "/run/user/1000"})
    assert places.run == Path("/run/user/1000/holdfast")


def test_a_long_path_gets_a_short_socket_of_our_own(tmp_path: Path) -> None:
    long_home = tmp_path / ("long" * 40)
    places = find_places({"HOLDFAST_HOME": str(long_home)})
    socket = places.operator_socket()
    assert len(os.fsencode(socket)) <= SOCKET_PATH_BYTES_MAX
    assert socket == find_places({"HOLDFAST_HOME": str(long_home)}).operator_socket()
    assert socket != find_places({"HOLDFAST_HOME": f"{long_home}2"}).operator_socket()


def test_a_private_folder_gets_its_mode_and_is_never_a_link(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir(mode=0o755)
    assert private_folder(tmp_path / "a").stat().st_mode & 0o777 == 0o700
    assert private_folder(tmp_path / "b", mode=0o750).stat().st_mode & 0o777 == 0o750
    (tmp_path / "link").symlink_to(tmp_path / "a")
    with pytest.raises(Refused):
        private_folder(tmp_path / "link")
    (tmp_path / "file").write_text("")
    with pytest.raises(Refused):
        private_folder(tmp_path / "file")
