"""Secrets of the controller's database, sealed by a key that lies outside of it.

Whoever has only the database (a backup of it, a copied disk) reads no password. The key is 32 random
bytes in a file of its own, mode 0600. A sealed value is bound to its purpose: it cannot be moved to
another row.

    sealed value: version 1 (1 byte) | nonce (12 bytes) | AES-256-GCM ciphertext and tag
"""

from __future__ import annotations

import hashlib
import hmac
import os
import secrets
import stat
from pathlib import Path
from typing import Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from holdfast_common.errors import ConfigurationError, WrongKey
from holdfast_common.logs import Secret

KEY_BYTES: Final = 32
NONCE_BYTES: Final = 12
TAG_BYTES: Final = 16
_VERSION: Final = b"\x01"
_MARKS: Final = b"holdfast marks of secrets"  # another key than that which seals


def create_key_file(path: Path) -> None:
    """Make the key file, durably. Raises: ConfigurationError when it exists or cannot be made."""
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(secrets.token_bytes(KEY_BYTES))
            file.flush()
            os.fsync(file.fileno())
        folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    except OSError as error:
        raise ConfigurationError(
            "the controller's key file cannot be made", file=str(path), cause=str(error)
        ) from error


class SecretSeal:
    """Seals and opens secrets with one key."""

    def __init__(self, key: Secret) -> None:
        if len(key.reveal()) != KEY_BYTES:
            raise ConfigurationError("the controller's key has a wrong length", wanted=KEY_BYTES)
        self._cipher = AESGCM(key.reveal())
        self._mark_key = hmac.digest(key.reveal(), _MARKS, hashlib.sha256)

    @classmethod
    def from_file(cls, path: Path) -> SecretSeal:
        """With the key of a file. Raises: ConfigurationError, also when others may read it."""
        try:
            mode = stat.S_IMODE(path.stat().st_mode)
            key = path.read_bytes()
        except OSError as error:
            raise ConfigurationError(
                "the controller's key file cannot be read", file=str(path), cause=str(error)
            ) from error
        if mode & 0o077:
            raise ConfigurationError(
                "others may read the controller's key file",
                file=str(path),
                mode=f"{mode:04o}",
                advice=f"chmod 600 {path}",
            )
        return cls(Secret(key))

    def seal(self, secret: Secret, *, purpose: str) -> bytes:
        """The secret for the database. ``purpose`` names the row and the column."""
        nonce = secrets.token_bytes(NONCE_BYTES)
        sealed = self._cipher.encrypt(nonce, secret.reveal(), purpose.encode())
        return _VERSION + nonce + sealed

    def mark(self, text: str, *, purpose: str) -> str:
        """What stands for a secret where only equal or not matters: without the key it tells nothing of it."""
        content = f"{purpose}\0{text}".encode()
        return hmac.digest(self._mark_key, content, hashlib.sha256).hex()[:32]

    def open(self, sealed: bytes, *, purpose: str) -> Secret:
        """The secret again. Raises: WrongKey when key, purpose or bytes are others."""
        if sealed[:1] != _VERSION or len(sealed) < 1 + NONCE_BYTES + TAG_BYTES:
            raise WrongKey("a sealed secret has an unknown form", purpose=purpose)
        nonce = sealed[1 : 1 + NONCE_BYTES]
        try:
            opened = self._cipher.decrypt(nonce, sealed[1 + NONCE_BYTES :], purpose.encode())
        except InvalidTag as error:
            raise WrongKey(
                "a secret of the controller's database cannot be opened",
                purpose=purpose,
                advice="give the controller the key file that belongs to this database",
            ) from error
        return Secret(opened)
