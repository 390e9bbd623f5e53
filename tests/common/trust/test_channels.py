"""TLS of a real gRPC listener: 1.3 only, our certificates only."""

from __future__ import annotations

import datetime as dt
import os
import socket
import ssl
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import grpc
import pytest

from holdfast_common.clock import SystemClock
from holdfast_common.errors import ControllerUnreachable
from holdfast_common.identity import new_ulid
from holdfast_common.places import find_places
from holdfast_common.trust.authority import Credentials, create_authority
from holdfast_common.trust.channels import (
    open_agent_channel,
    open_enrolment_channel,
    open_operator_channel,
    server_credentials,
)
from holdfast_common.trust.peer import Role, Subject
from support.handshake_crowd import CLIENTS, TIMES

TESTS = Path(__file__).parents[2]
NOW = SystemClock().now()
AUTHORITY = create_authority(now=NOW)
STRANGE_AUTHORITY = create_authority(now=NOW)
CONTROLLER = AUTHORITY.issue_with_key(Subject(role=Role.CONTROLLER, name=new_ulid()), now=NOW)
PROXY = Subject(role=Role.PROXY, name=new_ulid())


class EchoHandler(grpc.GenericRpcHandler):
    def service(
        self, handler_call_details: grpc.HandlerCallDetails
    ) -> grpc.RpcMethodHandler[bytes, bytes]:
        return grpc.unary_unary_rpc_method_handler(lambda request, _context: request)


def serve(credentials: Credentials, *, client_certificates: bool) -> tuple[grpc.Server, int]:
    server = grpc.server(ThreadPoolExecutor(2), handlers=[EchoHandler()])
    port = server.add_secure_port(
        "127.0.0.1:0",
        server_credentials(lambda: credentials, client_certificates=client_certificates),
    )
    server.start()
    return server, port


@pytest.fixture(name="port", scope="module")
def listening_port() -> Iterator[int]:
    server, port = serve(CONTROLLER, client_certificates=True)
    yield port
    server.stop(0).wait(5)


def echoed(channel: grpc.Channel) -> bytes:
    with channel:
        echo = channel.unary_unary("/echo", request_serializer=bytes, response_deserializer=bytes)
        return echo(b"hello", timeout=10)


def test_a_proxys_certificate_is_let_in_under_any_address(port: int) -> None:
    credentials = AUTHORITY.issue_with_key(PROXY, now=NOW)
    assert echoed(open_agent_channel(f"127.0.0.1:{port}", credentials)) == b"hello"
    assert echoed(open_agent_channel(f"localhost:{port}", credentials)) == b"hello"


def expired() -> Credentials:
    long_ago = NOW - dt.timedelta(days=2)
    return AUTHORITY.issue_with_key(PROXY, now=long_ago, lifetime=dt.timedelta(days=1))


def of_the_wrong_authority() -> Credentials:
    strange = STRANGE_AUTHORITY.issue_with_key(PROXY, now=NOW)
    return Credentials(
        authority_pem=AUTHORITY.certificate_pem,
        certificate_pem=strange.certificate_pem,
        key_pem=strange.key_pem,
    )


def of_a_controller() -> Credentials:
    return CONTROLLER  # for servers, so it is no client


def not_yet_valid() -> Credentials:
    return AUTHORITY.issue_with_key(PROXY, now=NOW + dt.timedelta(days=2))


@pytest.mark.parametrize(
    "credentials", [expired(), of_the_wrong_authority(), of_a_controller(), not_yet_valid()]
)
def test_a_bad_certificate_does_not_get_through_the_handshake(
    port: int, credentials: Credentials
) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        echoed(open_agent_channel(f"127.0.0.1:{port}", credentials))
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE


def test_nobody_gets_in_without_a_certificate(port: int) -> None:
    with pytest.raises(grpc.RpcError):
        echoed(open_enrolment_channel(f"127.0.0.1:{port}", AUTHORITY.certificate_pem))


@pytest.mark.parametrize(
    "server_certificate",
    [
        AUTHORITY.issue_with_key(PROXY, now=NOW),
        AUTHORITY.issue_with_key(Subject(role=Role.ADMINISTRATOR, name="ann"), now=NOW),
        STRANGE_AUTHORITY.issue_with_key(Subject(role=Role.CONTROLLER, name=new_ulid()), now=NOW),
    ],
)
def test_an_agent_speaks_to_nobody_but_its_controller(server_certificate: Credentials) -> None:
    server, port = serve(server_certificate, client_certificates=False)
    try:
        credentials = AUTHORITY.issue_with_key(PROXY, now=NOW)
        with pytest.raises(grpc.RpcError):
            echoed(open_agent_channel(f"127.0.0.1:{port}", credentials))
        with pytest.raises(grpc.RpcError):
            echoed(open_enrolment_channel(f"127.0.0.1:{port}", AUTHORITY.certificate_pem))
    finally:
        server.stop(0).wait(5)


@pytest.mark.parametrize("client_certificates", [True, False])
def test_only_tls_1_3_is_spoken(tmp_path: Path, client_certificates: bool) -> None:
    server, port = serve(CONTROLLER, client_certificates=client_certificates)
    try:
        (tmp_path / "c.pem").write_bytes(AUTHORITY.issue_with_key(PROXY, now=NOW).key_pem)
        assert tls_version(port, ssl.TLSVersion.TLSv1_3) == "TLSv1.3"
        with pytest.raises(ssl.SSLError):
            tls_version(port, ssl.TLSVersion.TLSv1_2)
        assert tls_version(port, ssl.TLSVersion.TLSv1_2, highest=ssl.TLSVersion.TLSv1_3) == (
            "TLSv1.3"
        )
    finally:
        server.stop(0).wait(5)


def test_a_client_of_ours_refuses_a_server_that_speaks_only_tls_1_2(tmp_path: Path) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["h2"])
    (tmp_path / "c.pem").write_bytes(CONTROLLER.certificate_pem + CONTROLLER.key_pem)
    context.load_cert_chain(tmp_path / "c.pem")
    with socket.create_server(("127.0.0.1", 0)) as listener, ThreadPoolExecutor(1) as pool:
        listener.settimeout(20)

        def handshake() -> str:
            connection, _ = listener.accept()
            with connection:
                connection.settimeout(20)
                try:
                    context.wrap_socket(connection, server_side=True)
                except ssl.SSLError as error:
                    return str(error.reason)
                return "completed"

        server = pool.submit(handshake)
        port = listener.getsockname()[1]
        with pytest.raises(grpc.RpcError):
            echoed(open_enrolment_channel(f"127.0.0.1:{port}", AUTHORITY.certificate_pem))
        assert server.result(20) != "completed"


def test_a_renewed_certificate_serves_the_next_handshake() -> None:
    first = CONTROLLER
    second = AUTHORITY.issue_with_key(Subject(role=Role.CONTROLLER, name=new_ulid()), now=NOW)
    shown = [first]
    server = grpc.server(ThreadPoolExecutor(2), handlers=[EchoHandler()])
    port = server.add_secure_port(
        "127.0.0.1:0", server_credentials(lambda: shown[0], client_certificates=False)
    )
    server.start()
    try:
        before = ssl.get_server_certificate(("127.0.0.1", port))
        shown[0] = second
        after = ssl.get_server_certificate(("127.0.0.1", port))
        assert before.encode().strip() == first.certificate_pem.strip()
        assert after.encode().strip() == second.certificate_pem.strip()
    finally:
        server.stop(0).wait(5)


def test_a_crowd_that_dials_at_once_ends_no_server_not_even_while_its_certificate_changes(
    tmp_path: Path,
) -> None:
    crowds = 3
    with ExitStack() as stack:

        def program(module: str, *arguments: object) -> subprocess.Popen[bytes]:
            order = [sys.executable, "-m", module, *map(str, arguments)]
            environment = {**os.environ, "PYTHONPATH": str(TESTS)}
            found = subprocess.Popen(order, stdout=subprocess.PIPE, env=environment)
            stack.callback(found.wait)
            stack.callback(found.kill)
            return found

        server = program("support.handshake_server", tmp_path, 400)
        assert server.stdout is not None
        port = int(server.stdout.readline())
        told = [program("support.handshake_crowd", tmp_path, port) for _ in range(crowds)]
        done = [int(each.communicate(timeout=60)[0] or 0) for each in told]
        assert done == [CLIENTS * TIMES] * crowds
        assert server.poll() is None, "the server lives"


def test_without_a_controller_the_operator_is_told_at_once(tmp_path: Path) -> None:
    places = find_places({"HOLDFAST_HOME": str(tmp_path)})
    with pytest.raises(ControllerUnreachable) as caught:
        open_operator_channel(places)
    assert caught.value.exit_status == 14
    socket_path = places.operator_socket()
    socket_path.parent.mkdir(parents=True)
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(str(socket_path))
    with pytest.raises(ControllerUnreachable):
        open_operator_channel(places, ready_seconds=0.3)


def tls_version(
    port: int, lowest: ssl.TLSVersion, *, highest: ssl.TLSVersion | None = None
) -> str | None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.maximum_version = highest or lowest
    context.minimum_version = lowest
    context.set_alpn_protocols(["h2"])
    with (
        socket.create_connection(("127.0.0.1", port), timeout=10) as plain,
        context.wrap_socket(plain) as wrapped,
    ):
        return wrapped.version()
