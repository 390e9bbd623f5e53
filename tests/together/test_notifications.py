"""A real controller tells a real receiver of a real failure: once, also when it is killed meanwhile."""

from __future__ import annotations

from pathlib import Path

import pytest

from support.installation import whole_installation
from support.notification_receivers import closed_port, http_receiver
from support.waiting import wait_until

LOOK_AND_SEND_SECONDS = 150.0


@pytest.mark.long  # the controller looks once a minute
def test_a_failed_backup_is_told_once_although_the_controller_is_killed(tmp_path: Path) -> None:
    urls = tmp_path / "urls"
    with http_receiver() as receiver, whole_installation(tmp_path / "holdfast") as installation:
        dead = f"json://127.0.0.1:{closed_port()}/"
        urls.write_text(f"{dead}\n{receiver.url}\n")
        urls.chmod(0o600)
        installation.configure(urls_file=str(urls), attempts_max=1, metrics_address="127.0.0.1:0")
        installation.kill("controller")
        installation.start_controller()
        wait_until(installation.agent_is_connected, seconds=60, what="the agent is back")
        installation.misbehave("fail_task", {"description": "VirtualMachine.createSnapshot"})
        installation.holdfast("backup", "web", expect=1)
        wait_until(
            lambda: len(receiver.taken) == 2, seconds=LOOK_AND_SEND_SECONDS, what="it is told"
        )
        failure, digest = receiver.bodies()
        assert failure.startswith("backup of web: failed: ")
        assert digest.startswith("backup ") and "1 failed" in digest
        # what went to one address and not to the other is written down before it is killed
        wait_until(
            lambda: (
                "notifications cannot be sent (2 wait," in installation.holdfast("status").stdout
            ),
            seconds=60.0,
            every_seconds=1.0,
            what="status warns",
        )
        installation.kill("controller")
        installation.start_controller()
        urls.write_text(receiver.url)  # the other one is given up by hand
        wait_until(
            lambda: "notifications cannot be sent" not in installation.holdfast("status").stdout,
            seconds=LOOK_AND_SEND_SECONDS,
            every_seconds=2.0,
            what="nothing is left to send",
        )
        assert len(receiver.taken) == 2
