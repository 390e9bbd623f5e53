"""Certificates that end, are renewed, or are taken back, under a living session."""

from __future__ import annotations

import datetime as dt
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from holdfast_agent.certificates import load_identity, new_request, save_certificate
from holdfast_common.errors import AuthenticationFailed
from holdfast_common.job_result import Outcome
from holdfast_common.trust.controller_trust import load_credentials, save_credentials
from holdfast_common.trust.peer import Role, Subject
from support.session_rig import (
    FAST_AGENT,
    AgentRig,
    ControllerRig,
    GatedPipeline,
    RecordingHandler,
    agent_rig,
    check_spec,
    controller_rig,
    done_at_once,
    new_attempt,
    patience,
)


@pytest.fixture(name="controller")
def listening_controller(tmp_path: Path) -> Iterator[ControllerRig]:
    with controller_rig(tmp_path / "controller") as rig:
        yield rig


def give_short_certificate(rig: ControllerRig, agent: AgentRig, *, seconds: float) -> None:
    """One that ends soon, and (because it is backdated) is long due for renewal."""
    credentials = rig.trust.authority.issue_with_key(
        Subject(role=Role.PROXY, name=agent.agent_id),
        now=rig.clock.now(),
        lifetime=dt.timedelta(seconds=seconds),
    )
    save_credentials(agent.places.agent_state / "identity.pem", credentials)


def test_a_certificate_is_renewed_and_the_session_goes_over_to_it(
    controller: ControllerRig, tmp_path: Path
) -> None:
    agent = AgentRig(controller, tmp_path / "agent", done_at_once)
    give_short_certificate(controller, agent, seconds=600)
    file = agent.places.agent_state / "identity.pem"
    old = load_identity(agent.places.agent_state)
    old_key = load_credentials(file).key_pem
    agent.start()
    try:
        patience(lambda: load_identity(agent.places.agent_state).peer.serial != old.peer.serial)
        new = load_identity(agent.places.agent_state)
        assert new.agent_id == old.agent_id
        assert new.peer.ends_at - controller.clock.now() > dt.timedelta(days=29)
        assert load_credentials(file).key_pem != old_key
        assert controller.agents.get(agent.agent_id).certificate_serial == new.peer.serial
        patience(lambda: agent.daemon._identity.peer.serial == new.peer.serial)
        agent.wait_connected()
        assert controller.audit.entries()[-1].action == "renew-certificate"
        handler = RecordingHandler()
        patience(lambda: controller.agents.get(agent.agent_id).session_epoch >= 2)
        agent.wait_connected()
        controller.sessions.start(agent.agent_id, new_attempt(), check_spec(), handler)
        assert handler.has_finished.wait(20)
    finally:
        agent.stop()


def test_a_renewal_does_not_disturb_a_job(controller: ControllerRig, tmp_path: Path) -> None:
    pipeline = GatedPipeline()
    with agent_rig(controller, tmp_path / "agent", pipeline) as agent:
        handler = RecordingHandler()
        controller.sessions.start(agent.agent_id, new_attempt(), check_spec(), handler)
        assert pipeline.began.wait(20)
        epoch = controller.agents.get(agent.agent_id).session_epoch
        later = replace(
            agent.daemon._identity,
            peer=replace(
                agent.daemon._identity.peer,
                starts_at=controller.clock.now() - dt.timedelta(days=80),
            ),
        )
        agent.daemon._identity = later
        patience(lambda: agent.daemon._renewed is not None)
        threading.Event().wait(0.5)
        assert controller.agents.get(agent.agent_id).session_epoch == epoch
        pipeline.gate.set()
        assert handler.has_finished.wait(20)
        patience(lambda: controller.agents.get(agent.agent_id).session_epoch > epoch)
        assert handler.results[0].outcome is Outcome.DONE


def test_a_session_ends_with_its_certificate(controller: ControllerRig, tmp_path: Path) -> None:
    never = replace(FAST_AGENT, watch=3600.0)  # this agent forgets to renew
    agent = AgentRig(controller, tmp_path / "agent", done_at_once, timing=never)
    give_short_certificate(controller, agent, seconds=2)
    agent.start()
    agent.wait_connected()
    patience(lambda: not controller.sessions.connected(), seconds=15)
    ended_at = load_identity(agent.places.agent_state).peer.ends_at
    assert controller.clock.now() >= ended_at
    threading.Event().wait(0.5)
    assert controller.sessions.connected() == []
    agent.daemon._timing = FAST_AGENT
    agent._stop.set()
    agent.stop()


def test_a_revoked_agents_jobs_stop_and_it_stays_away(
    controller: ControllerRig, tmp_path: Path
) -> None:
    pipeline = GatedPipeline()
    with agent_rig(controller, tmp_path / "agent", pipeline) as agent:
        handler = RecordingHandler()
        controller.sessions.start(agent.agent_id, new_attempt(), check_spec(), handler)
        assert pipeline.began.wait(20)
        controller.administration.revoke(agent.agent_id)
        patience(lambda: not controller.sessions.connected())
        patience(lambda: not agent.daemon.runner.running(), seconds=10)
        assert handler.was_lost.wait(20)
        assert handler.results == []
        assert controller.sessions.connected() == []


def test_a_certificate_for_another_key_is_not_taken(
    controller: ControllerRig, tmp_path: Path
) -> None:
    agent = AgentRig(controller, tmp_path / "agent", done_at_once)
    folder = agent.places.agent_state
    before = (folder / "identity.pem").read_bytes()
    wrong = controller.credentials(Role.PROXY, agent.agent_id)
    with pytest.raises(AuthenticationFailed, match="another key"):
        save_certificate(
            folder,
            new_request(),
            certificate_pem=wrong.certificate_pem,
            authority_pem=wrong.authority_pem,
        )
    assert (folder / "identity.pem").read_bytes() == before
