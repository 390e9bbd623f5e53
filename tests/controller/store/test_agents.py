"""Agents, join tokens, revocation."""

from __future__ import annotations

import threading
from datetime import timedelta
from pathlib import Path

import pytest

from holdfast_common.clock import SystemClock, parse_utc
from holdfast_common.errors import AuthenticationFailed, NotFound
from holdfast_common.identity import AgentId, new_ulid
from holdfast_controller.store.agents import AgentCapabilities, AgentTable, NewAgent
from holdfast_controller.store.schema import open_database


def table(tmp_path: Path) -> AgentTable:
    return AgentTable(open_database(tmp_path / "d"), SystemClock())


def new_agent(*, role: str = "proxy", host_name: str = "one") -> NewAgent:
    return NewAgent(
        agent_id=AgentId(new_ulid()),
        role=role,
        host_name=host_name,
        signing_public_key=b"k" * 32,
        certificate_serial="5",
        certificate_ends_at="2030-01-01T00:00:00.000000Z",
    )


def add_token(agents: AgentTable, *, minutes: int = 15) -> None:
    agents.add_token(
        token_hash="h",
        role="proxy",
        host_name="one",
        expires_at=SystemClock().now() + timedelta(minutes=minutes),
    )


def test_of_a_hundred_who_use_one_token_at_once_exactly_one_joins(tmp_path: Path) -> None:
    agents = table(tmp_path)
    add_token(agents)
    outcomes: list[str] = []
    start = threading.Barrier(100)

    def join() -> None:
        start.wait(60)
        try:
            agents.join("h", new_agent())
            outcomes.append("joined")
        except AuthenticationFailed:
            outcomes.append("refused")

    threads = [threading.Thread(target=join) for _ in range(100)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(100)
    assert outcomes.count("joined") == 1
    assert outcomes.count("refused") == 99
    assert len(agents.all()) == 1


@pytest.mark.parametrize(
    ("token", "agent"),
    [
        ("other", new_agent()),
        ("h", new_agent(role="restore")),
        ("h", new_agent(host_name="two")),
    ],
)
def test_a_token_is_for_one_role_and_host_and_a_refusal_does_not_use_it_up(
    tmp_path: Path, token: str, agent: NewAgent
) -> None:
    agents = table(tmp_path)
    add_token(agents)
    with pytest.raises(AuthenticationFailed):
        agents.join(token, agent)
    agents.join("h", new_agent())


def test_a_late_token_is_refused(tmp_path: Path) -> None:
    agents = table(tmp_path)
    add_token(agents, minutes=-1)
    with pytest.raises(AuthenticationFailed):
        agents.join("h", new_agent())


def test_session_epochs_rise_and_the_last_hello_is_kept(tmp_path: Path) -> None:
    agents = table(tmp_path)
    add_token(agents)
    agent = new_agent()
    agents.join("h", agent)
    capabilities = AgentCapabilities(transports=("nfc",), repositories=("r",), version="1")
    for epoch in (1, 2, 3):
        assert epoch == agents.open_session(
            agent.agent_id, features=frozenset({"a"}), capabilities=capabilities
        )
    row = agents.get(agent.agent_id)
    assert row.capabilities == capabilities
    assert row.features == {"a"}
    assert row.last_seen_at


def test_when_agents_were_heard_last_is_written_for_all_at_once(tmp_path: Path) -> None:
    agents = table(tmp_path)
    found = []
    for number in range(2):
        ends_at = SystemClock().now() + timedelta(minutes=15)
        agents.add_token(token_hash=f"{number}", role="proxy", host_name="one", expires_at=ends_at)
        found.append(new_agent())
        agents.join(f"{number}", found[number])
    agents.seen({found[0].agent_id: 0.0, found[1].agent_id: 30.0})
    first, second = (parse_utc(agents.get(each.agent_id).last_seen_at) for each in found)
    assert first - second == timedelta(seconds=30)


def test_a_revoked_agent_stays_in_the_list_and_gives_its_name_away(tmp_path: Path) -> None:
    agents = table(tmp_path)
    add_token(agents)
    agent = new_agent()
    agents.join("h", agent)
    assert agents.named("one").agent_id == agent.agent_id
    agents.revoke(agent.agent_id)
    first = agents.get(agent.agent_id).revoked_at
    agents.revoke(agent.agent_id)
    assert agents.get(agent.agent_id).revoked_at == first != ""
    with pytest.raises(NotFound):
        agents.named("one")


def test_one_certificate_can_be_revoked(tmp_path: Path) -> None:
    agents = table(tmp_path)
    assert not agents.certificate_is_revoked("7")
    agents.revoke_certificate(serial="7", subject="holdfast://operator/a", reason="lost")
    assert agents.certificate_is_revoked("7")
