"""Enrolment over its real listener: one token, one agent."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from holdfast_agent.configuration import HotAddConfiguration, RestoreConfiguration
from holdfast_agent.enrolment import Enrolment, enrol
from holdfast_common.errors import (
    AuthenticationFailed,
    ControllerUnreachable,
    HoldfastError,
    Refused,
    UsageError,
)
from holdfast_common.places import find_places
from holdfast_common.trust.authority import create_authority
from holdfast_common.trust.join_token import parse_join_token
from support.session_rig import ControllerRig, controller_rig


@pytest.fixture(name="controller")
def listening_controller(tmp_path: Path) -> Iterator[ControllerRig]:
    with controller_rig(tmp_path / "controller") as rig:
        yield rig


def wanted(controller: ControllerRig, token: str, *, host_name: str = "proxy-one") -> Enrolment:
    return Enrolment(
        token=parse_join_token(token),
        controller=f"127.0.0.1:{controller.bound.session}",
        role="proxy",
        host_name=host_name,
        repositories={},
        datastores={},
        hot_add=HotAddConfiguration(),
        restore=RestoreConfiguration(),
    )


def test_a_token_makes_an_agent_with_private_keys(
    controller: ControllerRig, tmp_path: Path
) -> None:
    places = find_places({"HOLDFAST_HOME": str(tmp_path / "agent")})
    configuration = enrol(places, wanted(controller, controller.token()))
    [row] = controller.agents.all()
    assert row.agent_id == configuration.agent_id
    assert (row.role, row.host_name, len(row.signing_public_key)) == ("proxy", "proxy-one", 32)
    for name in ("identity.pem", "signing.key"):
        assert (places.agent_state / name).stat().st_mode & 0o777 == 0o600
    assert places.agent_state.stat().st_mode & 0o777 == 0o700
    actions = [(entry.action, entry.result) for entry in controller.audit.entries()]
    assert actions == [("create-token", "ok"), ("enrol", "ok")]
    with pytest.raises(Refused, match="enrolled already"):
        enrol(places, wanted(controller, controller.token()))


def test_of_many_agents_with_one_token_exactly_one_joins(
    controller: ControllerRig, tmp_path: Path
) -> None:
    token = controller.token()

    def join(number: int) -> str:
        places = find_places({"HOLDFAST_HOME": str(tmp_path / f"agent-{number}")})
        try:
            enrol(places, wanted(controller, token))
        except AuthenticationFailed as error:
            assert not (places.agent_state / "identity.pem").exists()
            return error.code
        return "joined"

    with ThreadPoolExecutor(20) as pool:
        outcomes = list(pool.map(join, range(40)))
    assert outcomes.count("joined") == 1
    assert outcomes.count("authentication_failed") == 39
    assert len(controller.agents.all()) == 1


@pytest.mark.parametrize("minutes", [0, 24 * 60 + 1])
def test_a_token_lives_a_limited_time(controller: ControllerRig, minutes: int) -> None:
    with pytest.raises(UsageError):
        controller.token(minutes=minutes)


@pytest.mark.parametrize("host_name", ["", "a b", "../etc", "x" * 300, "a\n"])
def test_a_token_is_for_a_real_host_name(controller: ControllerRig, host_name: str) -> None:
    with pytest.raises(UsageError):
        controller.token(host_name=host_name)


def test_another_host_cannot_use_the_token_and_that_is_on_record(
    controller: ControllerRig, tmp_path: Path
) -> None:
    token = controller.token()
    places = find_places({"HOLDFAST_HOME": str(tmp_path / "agent")})
    with pytest.raises(AuthenticationFailed) as caught:
        enrol(places, wanted(controller, token, host_name="another"))
    assert caught.value.exit_status == 15
    last = controller.audit.entries()[-1]
    assert (last.actor, last.action, last.result) == ("joiner", "enrol", "refused")
    enrol(places, wanted(controller, token))


def test_a_late_token_is_refused(controller: ControllerRig, tmp_path: Path) -> None:
    token = controller.token()
    controller.database.execute("UPDATE join_tokens SET expires_at = '2020'")
    with pytest.raises(AuthenticationFailed):
        enrol(find_places({"HOLDFAST_HOME": str(tmp_path / "agent")}), wanted(controller, token))


def test_a_guessed_token_leaves_no_trace_in_the_audit(
    controller: ControllerRig, tmp_path: Path
) -> None:
    guess = wanted(controller, controller.token())
    guess = replace(guess, token=replace(guess.token, secret=bytes(32)))
    before = len(controller.audit.entries())
    with pytest.raises(AuthenticationFailed):
        enrol(find_places({"HOLDFAST_HOME": str(tmp_path / "agent")}), guess)
    assert len(controller.audit.entries()) == before


def test_the_secret_is_not_sent_to_a_controller_of_another_authority(
    controller: ControllerRig, tmp_path: Path
) -> None:
    misled = wanted(controller, controller.token())
    other = create_authority(now=controller.clock.now()).certificate_pem
    misled = replace(misled, token=replace(misled.token, authority_pem=other))
    with pytest.raises(ControllerUnreachable):
        enrol(find_places({"HOLDFAST_HOME": str(tmp_path / "agent")}), misled)
    assert controller.database.execute("SELECT used_at FROM join_tokens").fetchone()[0] is None


def test_nobody_listening_is_exit_14(controller: ControllerRig, tmp_path: Path) -> None:
    nobody = replace(wanted(controller, controller.token()), enrolment_port=1)
    with pytest.raises(HoldfastError) as caught:
        enrol(find_places({"HOLDFAST_HOME": str(tmp_path / "agent")}), nobody)
    assert caught.value.exit_status == 14


def test_the_token_is_stored_only_as_a_hash(controller: ControllerRig) -> None:
    secret = parse_join_token(controller.token()).secret
    dump = "\n".join(controller.database.connection().iterdump()).encode()
    assert secret not in dump
    assert secret.hex().encode() not in dump
    files = [file for file in controller.places.controller_state.rglob("*") if file.is_file()]
    assert not any(secret in file.read_bytes() for file in files)
