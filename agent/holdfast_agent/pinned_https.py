"""HTTPS to one host whose certificate is known by its digest: checked before anything is sent.

Under the transport `nfc`. Hosts' certificates are mostly self-signed, and what matters is that the
bytes come from the host that the controller spoke of.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import ssl
from http.client import HTTPException, HTTPResponse, HTTPSConnection
from typing import Final
from urllib.parse import urlsplit

from holdfast_common.errors import CertificateMismatch, HoldfastError, LeaseExpired, Refused

_QUIET_SECONDS_MAX: Final = 120.0  # a host under load may pause; the lease itself ends after 300
_EXPIRED_STATUSES: Final = frozenset({403, 404, 410})  # what a URL of an ended lease answers


class PinnedConnection(HTTPSConnection):
    """Connects to a host only if it shows the certificate with the digest that is known."""

    def __init__(self, host: str, port: int, *, certificate_sha256: str) -> None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        # the pinned digest, checked in connect(), stands in for names and authorities
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        super().__init__(host, port, timeout=_QUIET_SECONDS_MAX, context=context)
        self._certificate_sha256 = certificate_sha256

    def connect(self) -> None:
        """Connect, and check the certificate. Raises: CertificateMismatch, OSError."""
        super().connect()
        assert isinstance(self.sock, ssl.SSLSocket)
        shown = hashlib.sha256(self.sock.getpeercert(binary_form=True) or b"").hexdigest()
        if not hmac.compare_digest(shown, self._certificate_sha256):
            self.close()
            raise CertificateMismatch(
                "the host shows another certificate than the transfer lease names",
                host=self.host,
                found=shown,
                wanted=self._certificate_sha256,
            )


def pinned_connection(url: str, *, certificate_sha256: str) -> tuple[PinnedConnection, str]:
    """A connection (not yet made) for an https URL, and the request target. Raises: Refused."""
    parts = urlsplit(url)
    if parts.scheme != "https" or not parts.hostname or parts.username or "*" in parts.netloc:
        raise Refused("not the https address of a host", host=parts.netloc[:300])
    digest = certificate_sha256.lower()
    if not re.fullmatch(r"[0-9a-f]{64}", digest):
        raise Refused("not the SHA-256 of a certificate", digest=certificate_sha256[:80])
    target = parts.path or "/"
    if parts.query:
        target += f"?{parts.query}"
    return PinnedConnection(parts.hostname, parts.port or 443, certificate_sha256=digest), target


def checked_status(response: HTTPResponse, *, failure: type[HoldfastError], host: str) -> None:
    """Raises: LeaseExpired, ``failure``, unless the answer is a success."""
    if 200 <= response.status < 300:
        return
    error = LeaseExpired if response.status in _EXPIRED_STATUSES else failure
    raise error(
        "the host refuses the transfer", host=host, status=response.status, reason=response.reason
    )


TRANSFER_ERRORS: Final = (OSError, HTTPException)  # what a connection may raise beside ours
