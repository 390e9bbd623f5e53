"""TLS and keepalive of every gRPC connection, on both ends, and the channels that clients open.

A server's certificate is checked by our authority and by one fixed name that only a controller's
certificate has; so agents may reach the controller under any address.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import grpc

from holdfast_common.errors import ControllerUnreachable, Refused
from holdfast_common.places import Places
from holdfast_common.trust.authority import CONTROLLER_SERVER_NAME, Credentials
from holdfast_common.units import MIB

Options = list[tuple[str, str | int]]

SESSION_MESSAGE_BYTES_MAX: Final = (
    4 * MIB
)  # ours stay below 1 MiB, but for a StartJob with NVRAM and .vmx
OPERATOR_MESSAGE_BYTES_MAX: Final = 64 * MIB  # a list of ten thousand VMs
OPERATOR_READY_SECONDS: Final = 5.0
HANDSHAKE_BEGINS_SECONDS: Final = 0.2  # takes 0.1 ms, unless the machine is very busy


@dataclass(frozen=True, slots=True, kw_only=True)
class Keepalive:
    """How soon a silent connection counts as dead: ``time`` + ``timeout``, 13 s by default."""

    time_ms: int = 10_000
    timeout_ms: int = 3_000

    def options(self) -> Options:
        """For both ends. Without the last one a dead link is not noticed within 70 s."""
        return [
            ("grpc.keepalive_time_ms", self.time_ms),
            ("grpc.keepalive_timeout_ms", self.timeout_ms),
            ("grpc.keepalive_permit_without_calls", 1),
            ("grpc.http2.max_pings_without_data", 0),
            ("grpc.http2.ping_timeout_ms", self.timeout_ms),
        ]

    def server_options(self) -> Options:
        """A server must also expect the client's pings, or it ends the connection."""
        return [
            *self.options(),
            ("grpc.http2.min_ping_interval_without_data_ms", self.time_ms // 2),
            ("grpc.so_reuseport", 0),  # a second controller on the same port must fail
        ]


KEEPALIVE: Final = Keepalive()


def message_limit(bytes_max: int) -> Options:
    """Neither sent nor received beyond this."""
    return [
        ("grpc.max_receive_message_length", bytes_max),
        ("grpc.max_send_message_length", bytes_max),
    ]


def server_credentials(
    current: Callable[[], Credentials], *, client_certificates: bool
) -> grpc.ServerCredentials:
    """TLS of one port: another needs its own. ``current`` is asked at every handshake: a renewed one serves.

    With ``client_certificates`` a client without one of our authority's is not let in at all.
    """
    shown = _ShownCertificate(current, client_certificates=client_certificates)
    return grpc.dynamic_ssl_server_credentials(
        shown.first(),
        shown.changed,  # type: ignore[arg-type]  # the stub does not know that None means: the same as before
        require_client_authentication=client_certificates,
    )


class _ShownCertificate:
    """What gRPC asks at every handshake of a port, one handshake at a time.

    gRPC frees the configuration before while other handshakes may be about to begin with it, which crashes the
    process. So it gets a new one only when there is a new certificate, and then those others first get time.
    """

    def __init__(self, current: Callable[[], Credentials], *, client_certificates: bool) -> None:
        self._current = current
        self._client_certificates = client_certificates
        self._shown = current()

    def first(self) -> grpc.ServerCertificateConfiguration:
        """What is shown from the beginning."""
        return self._configuration()

    def changed(self) -> grpc.ServerCertificateConfiguration | None:
        """What is shown from now on; None: the same as before."""
        found = self._current()
        if found == self._shown:
            return None
        threading.Event().wait(HANDSHAKE_BEGINS_SECONDS)  # no other can begin meanwhile
        self._shown = found
        return self._configuration()

    def _configuration(self) -> grpc.ServerCertificateConfiguration:
        shown = self._shown
        return grpc.ssl_server_certificate_configuration(
            [(shown.key_pem, shown.certificate_pem)],
            root_certificates=shown.authority_pem if self._client_certificates else None,
        )


def channel_credentials(credentials: Credentials) -> grpc.ChannelCredentials:
    """TLS of a client that shows its certificate."""
    return grpc.ssl_channel_credentials(
        root_certificates=credentials.authority_pem,
        private_key=credentials.key_pem,
        certificate_chain=credentials.certificate_pem,
    )


def open_agent_channel(
    address: str, credentials: Credentials, *, keepalive: Keepalive = KEEPALIVE
) -> grpc.Channel:
    """An agent's channel to its controller; the caller closes it. It connects when first used."""
    return grpc.secure_channel(
        address,
        channel_credentials(credentials),
        options=_client_options(keepalive, SESSION_MESSAGE_BYTES_MAX),
    )


def open_enrolment_channel(address: str, authority_pem: bytes) -> grpc.Channel:
    """A channel for somebody without a certificate yet; the caller closes it."""
    return grpc.secure_channel(
        address,
        grpc.ssl_channel_credentials(root_certificates=authority_pem),
        options=_client_options(KEEPALIVE, SESSION_MESSAGE_BYTES_MAX),
    )


def open_operator_channel(
    places: Places, *, ready_seconds: float = OPERATOR_READY_SECONDS
) -> grpc.Channel:
    """A ready channel to this machine's controller over its Unix socket; the caller closes it.

    Raises: ControllerUnreachable; Refused when the socket is not in a folder of ours or root's.
    """
    path = places.operator_socket()
    try:
        owner = path.parent.stat().st_uid
        path.stat()
    except (FileNotFoundError, NotADirectoryError) as error:
        raise ControllerUnreachable("no controller runs here", socket=str(path)) from error
    except PermissionError as error:
        raise Refused(
            "this user may not speak to the controller",
            socket=str(path),
            advice="run it as root, or join the socket's group",
        ) from error
    if owner not in {0, os.geteuid()} and places.run not in path.parents:
        raise Refused("the controller's socket is in somebody else's folder", socket=str(path))
    channel = grpc.insecure_channel(
        f"unix:{path}",
        options=[*message_limit(OPERATOR_MESSAGE_BYTES_MAX), ("grpc.enable_http_proxy", 0)],
    )
    return _ready(channel, f"unix:{path}", ready_seconds)


def open_remote_operator_channel(
    address: str, credentials: Credentials, *, ready_seconds: float = OPERATOR_READY_SECONDS
) -> grpc.Channel:
    """The same with an operator's certificate over the network. Raises: ControllerUnreachable."""
    channel = grpc.secure_channel(
        address,
        channel_credentials(credentials),
        options=_client_options(KEEPALIVE, OPERATOR_MESSAGE_BYTES_MAX),
    )
    return _ready(channel, address, ready_seconds)


def _ready(channel: grpc.Channel, address: str, ready_seconds: float) -> grpc.Channel:
    try:
        grpc.channel_ready_future(channel).result(timeout=ready_seconds)
    except grpc.FutureTimeoutError as error:
        channel.close()
        raise ControllerUnreachable("the controller does not answer", address=address) from error
    return channel


def _client_options(keepalive: Keepalive, message_bytes_max: int) -> Options:
    return [
        *keepalive.options(),
        *message_limit(message_bytes_max),
        ("grpc.ssl_target_name_override", CONTROLLER_SERVER_NAME),
        ("grpc.use_local_subchannel_pool", 1),
        ("grpc.enable_http_proxy", 0),  # an agent dials its controller and nobody else
        ("grpc.initial_reconnect_backoff_ms", 1000),
        ("grpc.max_reconnect_backoff_ms", 30_000),
    ]
