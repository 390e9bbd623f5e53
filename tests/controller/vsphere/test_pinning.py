from __future__ import annotations

import hashlib
import socket
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import trustme

from holdfast_common.errors import CertificateMismatch, UsageError, VsphereUnavailable
from holdfast_common.logs import Secret
from holdfast_controller.vsphere import inventory, pinning
from holdfast_controller.vsphere.session import Account, VcenterAddress, VsphereSession
from holdfast_lab.certificate import make_certificate
from holdfast_lab.server import RunningLab
from support.vsphere_sessions import account_of, address_of, session_at


@contextmanager
def tls_server(host: str, context: ssl.SSLContext) -> Iterator[tuple[int, list[bytes]]]:
    """Takes connections and remembers every byte that comes in after the handshake."""
    received: list[bytes] = []
    listener = socket.create_server((host, 0))
    listener.settimeout(0.1)
    stop = threading.Event()

    def serve() -> None:
        while not stop.is_set():
            try:
                connection, _ = listener.accept()
            except TimeoutError:
                continue
            try:
                with context.wrap_socket(connection, server_side=True) as wrapped:
                    wrapped.settimeout(5)
                    received.append(wrapped.recv(4096))
            except OSError:
                continue

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    try:
        yield listener.getsockname()[1], received
    finally:
        stop.set()
        thread.join(5)
        listener.close()


def server_context(authority: trustme.CA, *names: str) -> tuple[ssl.SSLContext, str]:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    issued = authority.issue_cert(*names)
    issued.configure_cert(context)
    der = ssl.PEM_cert_to_DER_cert(issued.cert_chain_pems[0].bytes().decode())
    return context, hashlib.sha256(der).hexdigest()


@pytest.mark.parametrize("host", ["127.0.0.1", "127.0.0.2", "localhost"])
def test_the_pinned_certificate_is_accepted_under_any_name(host: str) -> None:
    context, sha256 = server_context(trustme.CA(), "somewhere.else.example")
    with tls_server(host, context) as (port, _received):
        assert pinning.fetch_certificate(host, port).sha256 == sha256
        connection = pinning.pinned_connection(
            host, port, certificate_sha256=sha256, timeout_seconds=5
        )
        connection.connect()
        connection.close()


@pytest.mark.parametrize("host", ["127.0.0.1", "127.0.0.2", "localhost"])
def test_another_certificate_of_the_same_authority_and_name_is_refused(host: str) -> None:
    authority = trustme.CA()
    _, pinned = server_context(authority, host)
    other_context, other = server_context(authority, host)
    with tls_server(host, other_context) as (port, received):
        connection = pinning.pinned_connection(
            host, port, certificate_sha256=pinned, timeout_seconds=5
        )
        with pytest.raises(CertificateMismatch) as caught:
            connection.request("GET", "/", headers={"Cookie": "secret"})
        connection.close()
    assert caught.value.facts["shown"] == other
    assert not any(b"secret" in data for data in received)


def test_a_certificate_swapped_after_the_first_connection_is_refused(lab: RunningLab) -> None:
    with session_at(lab) as session:
        assert session.is_vcenter
        folder = lab.state / "another"
        folder.mkdir()
        lab.server.use_certificate(make_certificate(folder))
        lab.server.close_connections()
        with pytest.raises(CertificateMismatch):
            inventory.read_inventory(session)
        with pytest.raises(CertificateMismatch):
            VsphereSession(address_of(lab), account_of(lab)).login()


def test_no_password_reaches_a_server_with_another_certificate() -> None:
    context, _ = server_context(trustme.CA(), "vcenter.example")
    with tls_server("127.0.0.2", context) as (port, received):
        session = VsphereSession(
            VcenterAddress(host="127.0.0.2", port=port, certificate_sha256="0" * 64),
            Account(user_name="root", password=Secret(b"secret")),
        )
        with pytest.raises(CertificateMismatch):
            session.login()
        session.close()
    assert not any(received)


def test_a_host_is_known_by_the_thumbprint_that_its_vcenter_names() -> None:
    context, sha256 = server_context(trustme.CA(), "esx1.example")
    with tls_server("127.0.0.2", context) as (port, _received):
        sha1 = pinning.fetch_certificate("127.0.0.2", port).sha1
        shown = ":".join(sha1[i : i + 2] for i in range(0, 40, 2)).upper()
        assert pinning.host_certificate("127.0.0.2", port, thumbprint=shown).sha256 == sha256
        with pytest.raises(CertificateMismatch):
            pinning.host_certificate("127.0.0.2", port, thumbprint="00" * 20)


def test_a_server_that_does_not_answer_is_unavailable() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    with pytest.raises(VsphereUnavailable):
        pinning.fetch_certificate("127.0.0.1", port, timeout_seconds=2)


def test_what_is_no_fingerprint_is_refused() -> None:
    shown = pinning.shown_fingerprint("ab" * 32)
    assert pinning.fingerprint(shown) == "ab" * 32
    with pytest.raises(UsageError):
        pinning.fingerprint("AB:CD")
