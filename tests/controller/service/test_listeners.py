"""The listeners as an administrator meets them: ports, socket, one controller only, a kind end."""

from __future__ import annotations

import socket
import threading
from pathlib import Path

import grpc
import pytest

from holdfast_common.errors import ConfigurationError, ControllerUnreachable, Locked
from holdfast_common.places import SOCKET_PATH_BYTES_MAX, find_places
from holdfast_common.trust.channels import open_operator_channel, open_remote_operator_channel
from holdfast_common.trust.peer import Role
from holdfast_common.wire import operator_pb2, operator_pb2_grpc
from holdfast_controller.service.listeners import ListenerAddresses, only_controller
from support.session_rig import ControllerRig, agent_rig, controller_rig, done_at_once, patience


def status_over(channel: grpc.Channel) -> operator_pb2.Status:
    with channel:
        return operator_pb2_grpc.OperatorsStub(channel).GetStatus(operator_pb2.Empty(), timeout=10)


def test_the_socket_goes_with_the_controller(tmp_path: Path) -> None:
    with controller_rig(tmp_path / "c") as rig:
        assert status_over(open_operator_channel(rig.places)) == operator_pb2.Status()
        assert rig.operators.calls[0][1].role is Role.LOCAL_OPERATOR
        path = rig.bound.operator_socket
    assert not path.exists()
    with pytest.raises(ControllerUnreachable):
        open_operator_channel(rig.places)


def test_a_folder_with_a_long_name_gets_a_socket_too(tmp_path: Path) -> None:
    with controller_rig(tmp_path / ("deep" * 30)) as rig:
        assert len(str(rig.bound.operator_socket)) <= SOCKET_PATH_BYTES_MAX
        assert rig.bound.operator_socket.parents[1].stat().st_mode & 0o777 == 0o700
        assert status_over(open_operator_channel(rig.places)) == operator_pb2.Status()


def test_a_socket_that_a_killed_controller_left_is_replaced(tmp_path: Path) -> None:
    rig = ControllerRig(tmp_path / "c")
    path = rig.places.operator_socket()
    path.parent.mkdir(parents=True)
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(path))
    rig.start()
    try:
        assert status_over(open_operator_channel(rig.places)) == operator_pb2.Status()
    finally:
        rig.stop()


def test_a_file_in_the_sockets_place_is_not_removed(tmp_path: Path) -> None:
    rig = ControllerRig(tmp_path / "c")
    path = rig.places.operator_socket()
    path.parent.mkdir(parents=True)
    path.write_text("precious")
    with pytest.raises(ConfigurationError, match="where our socket should be"):
        rig.start()
    assert path.read_text() == "precious"


def test_an_operator_with_a_certificate_comes_over_the_network(tmp_path: Path) -> None:
    with controller_rig(tmp_path / "c", operator_address="127.0.0.1:0") as rig:
        credentials = rig.credentials(Role.ADMINISTRATOR, "ann")
        address = f"127.0.0.1:{rig.bound.operators}"
        status_over(open_remote_operator_channel(address, credentials))
        [(name, caller)] = rig.operators.calls
        assert name == "GetStatus"
        assert caller.actor().startswith("holdfast://operator/ann/administrator ")
        with pytest.raises(ControllerUnreachable):
            open_remote_operator_channel("127.0.0.1:1", credentials, ready_seconds=0.5)


def test_there_is_one_controller_only(tmp_path: Path) -> None:
    places = find_places({"HOLDFAST_HOME": str(tmp_path)})
    with only_controller(places), pytest.raises(Locked) as caught, only_controller(places):
        pass
    assert caught.value.exit_status == 11
    with only_controller(places):
        pass


def test_a_port_that_is_taken_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with controller_rig(tmp_path / "one") as first:
        taken = f"127.0.0.1:{first.bound.session}"
        second = ControllerRig(tmp_path / "two")

        def on_the_same_port(**_: object) -> ListenerAddresses:
            return ListenerAddresses(session=taken, enrolment="127.0.0.1:0")

        monkeypatch.setattr("support.session_rig.ListenerAddresses", on_the_same_port)
        with pytest.raises(ConfigurationError) as caught:
            second.start()
        assert caught.value.facts["address"] == taken
        assert "Address already in use" in caught.value.message


def test_the_end_is_quick_with_agents_connected(tmp_path: Path) -> None:
    with (
        controller_rig(tmp_path / "c") as rig,
        agent_rig(rig, tmp_path / "a", done_at_once, host_name="a"),
        agent_rig(rig, tmp_path / "b", done_at_once, host_name="b"),
    ):
        patience(lambda: len(rig.sessions.connected()) == 2)
        stopping = threading.Thread(target=rig.stop)
        stopping.start()
        stopping.join(8)
        assert not stopping.is_alive()


def test_an_address_of_another_machine_is_told_with_its_reason_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    rig = ControllerRig(tmp_path)
    monkeypatch.setattr(
        "support.session_rig.ListenerAddresses",
        lambda **_: ListenerAddresses(session="203.0.113.5:0", enrolment="127.0.0.1:0"),
    )
    with pytest.raises(ConfigurationError, match="Cannot assign requested address"):
        rig.start()
    assert "add_port" not in capfd.readouterr().err
