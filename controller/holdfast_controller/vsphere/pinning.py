"""Before any byte goes to a vCenter or host: its certificate is exactly the one that was pinned.

pyVmomi's own pinning accepts a swapped certificate, so a context of ours does it: it compares the
SHA-256 of the certificate right after the handshake (which proves that the server holds its key),
for every host name, 127.0.0.1 included. Chains, names and dates play no part: a pin is exact.
"""

from __future__ import annotations

import hashlib
import http.client
import re
import socket
import ssl
from dataclasses import dataclass
from typing import Final

from cryptography import x509

from holdfast_common.clock import utc_text
from holdfast_common.errors import CertificateMismatch, UsageError, VsphereUnavailable
from holdfast_controller.vsphere.foreign import Foreign

HANDSHAKE_TIMEOUT_SECONDS: Final = 15.0
_SHA256: Final = re.compile(r"^[0-9a-f]{64}$")


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerCertificate:
    """What a server showed; nothing of it was verified. ``sha256``, ``sha1``: lower-case hex."""

    sha256: str
    sha1: str
    subject: str
    issuer: str
    not_before: str
    not_after: str
    pem: str


def fingerprint(text: str) -> str:
    """A SHA-256 as people write it (colons, capitals) in its one form. Raises: UsageError."""
    plain = text.replace(":", "").strip().lower()
    if not _SHA256.match(plain):
        raise UsageError("not a SHA-256 of a certificate", value=text[:100])
    return plain


def shown_fingerprint(sha256: str) -> str:
    """``AB:CD:…``: as vSphere's own consoles show it."""
    return ":".join(sha256[i : i + 2] for i in range(0, len(sha256), 2)).upper()


class PinnedContext(ssl.SSLContext):
    """A client context whose every connection ends unless the server shows the pinned certificate."""

    pinned_sha256: str

    def __new__(cls, certificate_sha256: str) -> PinnedContext:
        """A context for this certificate. Raises: UsageError."""
        context = super().__new__(cls, ssl.PROTOCOL_TLS_CLIENT)
        context.pinned_sha256 = fingerprint(certificate_sha256)
        return context

    def __init__(self, certificate_sha256: str) -> None:
        # The comparison in wrap_socket replaces chain and name: both would refuse the self-signed
        # certificates that hosts have, and accept another one of the same authority.
        self.check_hostname = False
        self.verify_mode = ssl.CERT_NONE
        self.minimum_version = ssl.TLSVersion.TLSv1_2

    def wrap_socket(self, sock: socket.socket, *args: Foreign, **options: Foreign) -> ssl.SSLSocket:
        """Shake hands and compare. Raises: CertificateMismatch; the socket is closed then."""
        options["do_handshake_on_connect"] = True
        wrapped = super().wrap_socket(sock, *args, **options)
        shown = wrapped.getpeercert(binary_form=True)
        if shown is None or hashlib.sha256(shown).hexdigest() != self.pinned_sha256:
            actual = hashlib.sha256(shown or b"").hexdigest()
            name = _peer_name(wrapped)
            wrapped.close()
            raise CertificateMismatch(
                "the server shows another certificate than the pinned one",
                server=name,
                pinned=self.pinned_sha256,
                shown=actual,
                advice="find out why it changed; if it was renewed, pin the new one"
                " with `holdfast vcenter add`",
            )
        return wrapped

    def wrap_bio(self, *args: Foreign, **options: Foreign) -> ssl.SSLObject:
        """Not pinned, therefore refused. Raises: NotImplementedError."""
        raise NotImplementedError("a pinned context works with sockets only")


def pinned_connection(
    host: str, port: int, *, certificate_sha256: str, timeout_seconds: float
) -> http.client.HTTPSConnection:
    """An HTTPS connection that talks only to the holder of the pinned certificate; not yet open."""
    return http.client.HTTPSConnection(
        host, port, context=PinnedContext(certificate_sha256), timeout=timeout_seconds
    )


def fetch_certificate(
    host: str, port: int = 443, *, timeout_seconds: float = HANDSHAKE_TIMEOUT_SECONDS
) -> ServerCertificate:
    """The certificate that a server shows now, to be shown to a person; nothing is sent to it.

    Raises: VsphereUnavailable.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    try:
        with (
            socket.create_connection((host, port), timeout=timeout_seconds) as plain,
            context.wrap_socket(plain, server_hostname=host) as wrapped,
        ):
            shown = wrapped.getpeercert(binary_form=True)
    except OSError as error:
        raise VsphereUnavailable(
            "cannot read the server's certificate", host=host, port=port, cause=str(error)
        ) from error
    if not shown:
        raise VsphereUnavailable("the server shows no certificate", host=host, port=port)
    return described(shown)


def described(der: bytes) -> ServerCertificate:
    """A certificate in DER as facts. Raises: VsphereUnavailable when it cannot be read."""
    try:
        certificate = x509.load_der_x509_certificate(der)
        return ServerCertificate(
            sha256=hashlib.sha256(der).hexdigest(),
            sha1=hashlib.sha1(der).hexdigest(),  # noqa: S324 - vSphere names certificates of hosts so
            subject=certificate.subject.rfc4514_string(),
            issuer=certificate.issuer.rfc4514_string(),
            not_before=utc_text(certificate.not_valid_before_utc),
            not_after=utc_text(certificate.not_valid_after_utc),
            pem=ssl.DER_cert_to_PEM_cert(der),
        )
    except ValueError as error:
        raise VsphereUnavailable("the certificate cannot be read", cause=str(error)) from error


def host_certificate(
    host: str, port: int, *, thumbprint: str, timeout_seconds: float = HANDSHAKE_TIMEOUT_SECONDS
) -> ServerCertificate:
    """The certificate of a host that a lease names by thumbprint (SHA-1 or SHA-256).

    Raises: CertificateMismatch, VsphereUnavailable.
    """
    shown = fetch_certificate(host, port, timeout_seconds=timeout_seconds)
    wanted = thumbprint.replace(":", "").strip().lower()
    if wanted not in (shown.sha1, shown.sha256):
        raise CertificateMismatch(
            "the host shows another certificate than its vCenter says",
            server=f"{host}:{port}",
            pinned=wanted,
            shown=shown.sha1 if len(wanted) == len(shown.sha1) else shown.sha256,
        )
    return shown


def _peer_name(connection: ssl.SSLSocket) -> str:
    try:
        name = connection.getpeername()
    except OSError:
        return "unknown"
    return f"{name[0]}:{name[1]}"
