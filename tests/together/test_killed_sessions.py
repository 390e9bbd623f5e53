"""A controller that is killed again and again finds its agents soon, every time."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

from support.fault_proxy import fault_proxy
from support.session_rig import (
    FAST_AGENT,
    agent_rig,
    controller_rig,
    done_at_once,
    patience,
)

CUTS = 9
SECONDS_MAX = 8.0  # were each cut to double the wait for the next dial, it would be half a minute


def test_only_dials_in_vain_make_an_agent_wait_longer(tmp_path: Path) -> None:
    timing = replace(FAST_AGENT, session=replace(FAST_AGENT.session, reconnect_max=60.0))
    with (
        controller_rig(tmp_path / "controller") as controller,
        fault_proxy(controller.bound.session) as network,
        agent_rig(
            controller, tmp_path / "agent", done_at_once, session_port=network.port, timing=timing
        ) as agent,
    ):
        began = time.monotonic()
        for _ in range(CUTS):
            network.cut()
            patience(lambda: not agent.daemon.session.connected.is_set())
            agent.wait_connected()
        assert time.monotonic() - began < SECONDS_MAX
