"""The controller's folder of keys: its authority, and its own certificate, renewed by itself."""

from __future__ import annotations

import re
import threading
from pathlib import Path

from holdfast_common.clock import Clock
from holdfast_common.errors import ConfigurationError
from holdfast_common.identity import new_ulid
from holdfast_common.places import private_folder
from holdfast_common.trust.authority import (
    CertificateAuthority,
    Credentials,
    create_authority,
    load_authority,
    renewal_is_due,
)
from holdfast_common.trust.keys import load_key, read_file, write_private
from holdfast_common.trust.peer import Role, Subject, peer_of_pem

_ID_FILE = "controller.id"
_PEM = re.compile(rb"(-----BEGIN ([A-Z ]+)-----[^-]+-----END \2-----)")


class ControllerTrust:
    """The authority and the controller's certificate. Thread-safe."""

    def __init__(self, authority: CertificateAuthority, controller_id: str, clock: Clock) -> None:
        self.authority = authority
        self.controller_id = controller_id
        self._clock = clock
        self._lock = threading.Lock()
        self._credentials = self._issued()
        self._peer = peer_of_pem(self._credentials.certificate_pem)

    def credentials(self) -> Credentials:
        """The controller's certificate and key; new ones when two thirds of their life are over.

        They live in memory only: the authority is here, so each start makes its own.
        """
        with self._lock:
            if renewal_is_due(self._peer, now=self._clock.now()):
                self._credentials = self._issued()
                self._peer = peer_of_pem(self._credentials.certificate_pem)
            return self._credentials

    def _issued(self) -> Credentials:
        subject = Subject(role=Role.CONTROLLER, name=self.controller_id)
        return self.authority.issue_with_key(subject, now=self._clock.now())


def create_trust(folder: Path, clock: Clock) -> ControllerTrust:
    """Make an authority in ``folder``, for `holdfast init`. Raises: Refused when there is one."""
    private_folder(folder)
    authority = create_authority(now=clock.now())
    authority.save(folder)
    controller_id = new_ulid()
    write_private(folder / _ID_FILE, controller_id.encode())
    return ControllerTrust(authority, controller_id, clock)


def load_trust(folder: Path, clock: Clock) -> ControllerTrust:
    """What `create_trust` made. Raises: ConfigurationError."""
    authority = load_authority(folder)
    id_file = folder / _ID_FILE
    try:
        controller_id = read_file(id_file, advice="run `holdfast init` first").decode().strip()
        return ControllerTrust(authority, controller_id, clock)
    except UnicodeDecodeError as error:
        raise ConfigurationError("not a controller's id", file=str(id_file)) from error


def save_credentials(file: Path, credentials: Credentials) -> None:
    """Write all three into one file (0600), so that key and certificate can never be of two ages."""
    parts = (credentials.key_pem, credentials.certificate_pem, credentials.authority_pem)
    write_private(file, b"".join(part.rstrip(b"\n") + b"\n" for part in parts))


def load_credentials(file: Path, *, advice: str = "") -> Credentials:
    """What `save_credentials` wrote. Raises: ConfigurationError."""
    parts = _PEM.findall(read_file(file, advice=advice))
    labels = [label for _whole, label in parts]
    if labels != [b"PRIVATE KEY", b"CERTIFICATE", b"CERTIFICATE"]:
        raise ConfigurationError("not a key with its certificate", file=str(file), advice=advice)
    key, certificate, authority = (whole + b"\n" for whole, _label in parts)
    load_key(key, file=file)
    return Credentials(authority_pem=authority, certificate_pem=certificate, key_pem=key)
