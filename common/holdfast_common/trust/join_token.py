"""Join tokens: what an administrator carries from the controller to a new agent's host.

Text: ``hf1.`` and base64url of

    enrolment port   2 bytes, big-endian
    secret          32 bytes, random
    authority        the authority's certificate, DER, to the end

The agent thus knows whom to trust before it says anything. The controller keeps only the
secret's SHA-256; the secret is used once, within its time, for one role and host.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import secrets
from dataclasses import dataclass, field
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from holdfast_common.errors import UsageError

_PREFIX: Final = "hf1."
_SECRET_BYTES: Final = 32
_PORT_BYTES: Final = 2
_TEXT_LENGTH_MAX: Final = 8192
_WRONG: Final = "not a join token"
_ADVICE: Final = "copy all of what `holdfast agent token` printed"


@dataclass(frozen=True, slots=True, kw_only=True)
class JoinToken:
    """One token. ``secret`` goes to the enrolment service and nowhere else."""

    enrolment_port: int
    secret: bytes = field(repr=False)
    authority_pem: bytes = field(repr=False)


def new_join_token(*, enrolment_port: int, authority_pem: bytes) -> JoinToken:
    """A token with a new secret of 256 bits."""
    return JoinToken(
        enrolment_port=enrolment_port,
        secret=secrets.token_bytes(_SECRET_BYTES),
        authority_pem=authority_pem,
    )


def token_hash(secret: bytes) -> str:
    """What the controller keeps of a token: the SHA-256 of its secret in hex."""
    return hashlib.sha256(secret).hexdigest()


def token_text(token: JoinToken) -> str:
    """The token as an administrator copies it."""
    der = x509.load_pem_x509_certificate(token.authority_pem).public_bytes(Encoding.DER)
    content = token.enrolment_port.to_bytes(_PORT_BYTES, "big") + token.secret + der
    return _PREFIX + base64.urlsafe_b64encode(content).decode().rstrip("=")


def parse_join_token(text: str) -> JoinToken:
    """The inverse of `token_text`. Raises: UsageError, without the text in it."""
    stripped = "".join(text.split())
    if not stripped.startswith(_PREFIX) or len(stripped) > _TEXT_LENGTH_MAX:
        raise UsageError(_WRONG, advice=_ADVICE)
    encoded = stripped.removeprefix(_PREFIX)
    try:
        content = base64.b64decode(
            encoded + "=" * (-len(encoded) % 4), altchars=b"-_", validate=True
        )
        certificate = x509.load_der_x509_certificate(content[_PORT_BYTES + _SECRET_BYTES :])
    except (binascii.Error, ValueError) as error:
        raise UsageError(_WRONG, advice=_ADVICE) from error
    return JoinToken(
        enrolment_port=int.from_bytes(content[:_PORT_BYTES], "big"),
        secret=content[_PORT_BYTES : _PORT_BYTES + _SECRET_BYTES],
        authority_pem=certificate.public_bytes(Encoding.PEM),
    )
