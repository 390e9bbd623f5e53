"""Private keys, certificate requests, and files that only their owner reads."""

from __future__ import annotations

import os
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)

from holdfast_common.errors import ConfigurationError, Refused

_REQUEST_BYTES_MAX = 16 * 1024  # ours have some 400


def new_key() -> ec.EllipticCurvePrivateKey:
    """A key for TLS: ECDSA on P-256."""
    return ec.generate_private_key(ec.SECP256R1())


def key_pem(key: ec.EllipticCurvePrivateKey | Ed25519PrivateKey) -> bytes:
    """PKCS 8, not encrypted: the file's mode protects it."""
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def load_key(pem: bytes, *, file: Path) -> ec.EllipticCurvePrivateKey:
    """A key for TLS from its file's text. Raises: ConfigurationError naming the file."""
    key = _private_key(pem, file=file)
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise ConfigurationError("not an ECDSA key", file=str(file))
    return key


def load_signing_key(pem: bytes, *, file: Path) -> Ed25519PrivateKey:
    """An agent's signing key from its file's text. Raises: ConfigurationError naming the file."""
    key = _private_key(pem, file=file)
    if not isinstance(key, Ed25519PrivateKey):
        raise ConfigurationError("not an Ed25519 key", file=str(file))
    return key


def certificate_request(key: ec.EllipticCurvePrivateKey) -> bytes:
    """A request, as PEM: it proves that we hold the key, and names nobody."""
    builder = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
    return builder.sign(key, hashes.SHA256()).public_bytes(Encoding.PEM)


def public_key_of_request(pem: bytes) -> ec.EllipticCurvePublicKey:
    """The key of a request from outside; all else in it is ignored. Raises: Refused."""
    if len(pem) > _REQUEST_BYTES_MAX:
        raise Refused("a certificate request is too long", length=len(pem))
    try:
        request = x509.load_pem_x509_csr(pem)
        key = request.public_key()
        valid = request.is_signature_valid
    except Exception as error:
        raise Refused("not a certificate request") from error
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP256R1):
        raise Refused("a certificate request must be for an ECDSA key on P-256")
    if not valid:
        raise Refused("a certificate request is not signed by its own key")
    return key


def write_private(path: Path, content: bytes, *, mode: int = 0o600) -> None:
    """Write a file whole or not at all, synced, never readable by others meanwhile.

    Raises: ConfigurationError.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.new")
    try:
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, mode)
        with os.fdopen(descriptor, "wb") as file:
            os.fchmod(descriptor, mode)
            file.write(content)
            file.flush()
            os.fsync(descriptor)
        temporary.replace(path)
        folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise ConfigurationError(
            f"cannot write a file: {error.strerror}", file=str(path)
        ) from error


def read_file(path: Path, *, advice: str = "") -> bytes:
    """A key's or certificate's file. Raises: ConfigurationError naming it."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise ConfigurationError(
            f"cannot read a file: {error.strerror}", file=str(path), advice=advice
        ) from error


def _private_key(pem: bytes, *, file: Path) -> object:
    try:
        return load_pem_private_key(pem, password=None)
    except (ValueError, TypeError) as error:
        raise ConfigurationError("not a private key", file=str(file)) from error
