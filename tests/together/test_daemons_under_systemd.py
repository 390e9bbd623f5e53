"""Controller and agent as systemd runs them: ready, alive, connected, stopping, all told to a real socket; and its figures."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from urllib.request import urlopen

import pytest

from support.installation import Installation
from support.notification_receivers import http_receiver
from support.notify_socket import NotifySocket, notify_socket

WATCHED = {"WATCHDOG_USEC": "600000"}


def told_of(installation: Installation, listening: NotifySocket) -> None:
    """From here on programs are started as systemd starts them."""
    installation.extra_environment = {"NOTIFY_SOCKET": str(listening.path), **WATCHED}


@pytest.mark.long
def test_both_daemons_tell_systemd_when_they_are_ready_alive_and_stopping(tmp_path: Path) -> None:
    installation = Installation(tmp_path / "holdfast")
    try:
        installation.start_lab()
        installation.init()
        installation.configure(metrics_address="127.0.0.1:0")
        for folder in ("controller", "agent"):
            (tmp_path / folder).mkdir()
        with notify_socket(tmp_path / "controller") as told:
            told_of(installation, told)
            installation.start_controller()
            installation.extra_environment = {}
            told.wait_for("READY=1")
            told.wait_for("WATCHDOG=1")
            installation.enrol_agent(hot_add=False)
            _agent_tells(installation, tmp_path / "agent")
            assert 'holdfast_agents{role="proxy",state="connected"}' in _metrics(installation)
            installation.kill("controller", signal.SIGTERM)
            told.wait_for("STOPPING=1")
    finally:
        installation.stop()


def _metrics(installation: Installation) -> str:
    port = json.loads((installation.folder / "controller.ready").read_text())["metrics"]
    with urlopen(f"http://127.0.0.1:{port}/metrics", timeout=30) as answer:
        return str(answer.read().decode())


def _agent_tells(installation: Installation, folder: Path) -> None:
    with notify_socket(folder) as told:
        told_of(installation, told)
        installation.start_agent()
        installation.extra_environment = {}
        told.wait_for("READY=1")
        told.wait_for("WATCHDOG=1")
        address = f"127.0.0.1:{installation.session_port}"
        told.wait_for(f"STATUS=connected to {address}, 0 jobs at work")
        installation.kill("agent", signal.SIGTERM)
        told.wait_for("STOPPING=1")


@pytest.mark.long
def test_a_test_notification_tells_the_truth(tmp_path: Path) -> None:
    installation = Installation(tmp_path / "holdfast")
    urls = tmp_path / "urls"
    try:
        installation.init()
        installation.start_controller()
        nobody = installation.holdfast("notify", "test", expect=2)
        assert "no notification address is set" in nobody.stderr
        installation.kill("controller", signal.SIGTERM)
        installation.configure(urls_file=str(urls))
        installation.start_controller()
        with http_receiver(secret="s3cret-t0ken") as receiver:
            urls.write_text(receiver.url)
            urls.chmod(0o600)
            taken = installation.holdfast("notify", "test")
            assert taken.stdout.startswith("taken    json://")
            assert receiver.titles()[0].endswith(": a test")
            receiver.status = 500
            refused = installation.holdfast("notify", "test", "--json", expect=1)
            assert "500" in refused.json()["sent"][0]["error"]
            assert "s3cret" not in taken.text + refused.text + installation.log("controller")
        urls.unlink()
        assert "cannot be read" in installation.holdfast("notify", "test", expect=2).stderr
    finally:
        installation.stop()
