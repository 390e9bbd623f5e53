"""vCenter's REST interface, for what SOAP does not tell (tags): pinned like every other connection of ours.

A session of its own beside the SOAP login, with the same account, given back at the end. Two dialects:
``/api`` since vCenter 7.0 update 2, ``/rest/com/vmware`` before. A single host has neither.
"""

from __future__ import annotations

import base64
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final, TypeVar
from urllib.parse import quote

import msgspec

from holdfast_common.errors import (
    AuthenticationFailed,
    CapabilityAbsent,
    HoldfastError,
    Interrupted,
    NotFound,
    VsphereFailed,
    VsphereUnavailable,
)
from holdfast_common.units import MIB
from holdfast_controller.vsphere import faults
from holdfast_controller.vsphere.pinning import pinned_connection
from holdfast_controller.vsphere.session import VsphereSession

log = logging.getLogger(__name__)

REQUEST_TIMEOUT_SECONDS: Final = 60.0
ANSWER_BYTES_MAX: Final = 64 * MIB
SESSION_HEADER: Final = "vmware-api-session-id"
RIGHTS: Final = "give the account the right to read (System.Read) tags, categories and VMs"
_NO_SUCH_PATH: Final = frozenset({404, 405})
_UNAVAILABLE: Final = frozenset({429, 502, 503, 504})
_NOTHING: Final = msgspec.Raw(b"null")
Answer = TypeVar("Answer")


@dataclass(frozen=True, slots=True, kw_only=True)
class Dialect:
    """How one generation of vCenters writes the same operations."""

    session_path: str
    prefix: str
    action_name: str
    identifier_prefix: str
    wrapped: bool

    def path(self, resource: str, *, identifier: str = "", action: str = "") -> str:
        """The path of an operation."""
        found = self.prefix + resource
        if identifier:
            found += f"/{self.identifier_prefix}{quote(identifier, safe=':')}"
        return found + (f"?{self.action_name}={action}" if action else "")


NEWER: Final = Dialect(
    session_path="/api/session",
    prefix="/api/",
    action_name="action",
    identifier_prefix="",
    wrapped=False,
)
OLDER: Final = Dialect(
    session_path="/rest/com/vmware/cis/session",
    prefix="/rest/com/vmware/",
    action_name="~action",
    identifier_prefix="id:",
    wrapped=True,
)


class RestSession:
    """One session at a vCenter's REST interface, in a ``with``. One thread only.

    Every request raises: SessionLost when the login ended, CapabilityAbsent for a missing right, NotFound,
    VsphereUnavailable, VsphereFailed, CertificateMismatch.
    """

    def __init__(self, session: VsphereSession) -> None:
        self._session = session
        self._connection = pinned_connection(
            session.address.host,
            session.address.port,
            certificate_sha256=session.address.certificate_sha256,
            timeout_seconds=REQUEST_TIMEOUT_SECONDS,
        )
        self._dialect = NEWER
        self._identifier = ""

    def __enter__(self) -> RestSession:
        try:
            self._log_in()
        except BaseException:
            self._connection.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self._log_out()
        except HoldfastError as error:
            # it ends by itself when it is idle
            log.info("a REST session was not given back", extra={"error": error.line()})
        finally:
            self._connection.close()

    def get(self, resource: str, identifier: str, kind: type[Answer]) -> Answer:
        """One thing by its id."""
        path = self._dialect.path(resource, identifier=identifier)
        name = f"REST GET {resource}"
        return self._through_gate(name, identifier, lambda: self._answer("GET", path, None, kind))

    def ask(
        self, resource: str, action: str, body: Mapping[str, object], kind: type[Answer]
    ) -> Answer:
        """An action that only reads."""
        path = self._dialect.path(resource, action=action)
        data = msgspec.json.encode(body)
        name = f"REST POST {resource}"
        return self._through_gate(name, action, lambda: self._answer("POST", path, data, kind))

    # -- the session ----------------------------------------------------------------------------

    def _log_in(self) -> None:
        for dialect in (NEWER, OLDER):
            self._dialect = dialect
            try:
                self._identifier = self._through_gate("REST login", "", self._login)
            except NotFound:
                continue
            return
        raise CapabilityAbsent(
            "this server has no REST interface, and so no tags", host=self._session.address.host
        )

    def _login(self) -> str:
        account = self._session.account
        secret = account.user_name.encode() + b":" + account.password.reveal()
        headers = {
            "Authorization": "Basic " + base64.b64encode(secret).decode("ascii"),
            "vmware-use-header-authn": "true",  # the id in the answer, no cookie
        }
        path = self._dialect.session_path
        status, data = self._exchange("POST", path, None, headers)
        if status == 401:
            raise AuthenticationFailed(
                "the account is not accepted by vCenter's REST interface",
                user=account.user_name,
                advice="check user name and password with `holdfast vcenter test`",
            )
        if status in _NO_SUCH_PATH:
            raise NotFound("there is no such REST interface", path=path)
        return self._decoded(status, data, f"POST {path}", str)

    def _log_out(self) -> None:
        def logout() -> None:
            headers = {SESSION_HEADER: self._identifier}
            status, data = self._exchange("DELETE", self._dialect.session_path, None, headers)
            if status not in (200, 204, 401):  # 401: it ended before
                raise _status_error(status, data, what="logging out of REST")

        self._session.through_gate("REST logout", "", logout)

    # -- one request ----------------------------------------------------------------------------

    def _through_gate(self, name: str, subject: str, work: Callable[[], Answer]) -> Answer:
        if self._session.stop.is_set():
            raise Interrupted("the session at vSphere is being closed")
        return self._session.through_gate(name, subject, work)

    def _answer(self, method: str, path: str, data: bytes | None, kind: type[Answer]) -> Answer:
        headers = {SESSION_HEADER: self._identifier, "Accept": "application/json"}
        if data is not None:
            headers["Content-Type"] = "application/json"
        status, answer = self._exchange(method, path, data, headers)
        return self._decoded(status, answer, f"{method} {path}", kind)

    def _exchange(
        self, method: str, path: str, data: bytes | None, headers: Mapping[str, str]
    ) -> tuple[int, bytes]:
        """The status and the whole answer. Raises: VsphereUnavailable, VsphereFailed, CertificateMismatch."""
        try:
            self._connection.request(method, path, body=data, headers=dict(headers))
            answer = self._connection.getresponse()
            found = answer.read(ANSWER_BYTES_MAX + 1)
        except faults.CONNECTION_ERRORS as error:
            self._connection.close()
            raise faults.connection_error(error, what=f"{method} {path}") from error
        except HoldfastError:
            self._connection.close()
            raise
        if len(found) > ANSWER_BYTES_MAX:
            self._connection.close()
            raise VsphereFailed("an answer over REST is larger than it can be", path=path)
        return answer.status, found

    def _decoded(self, status: int, data: bytes, what: str, kind: type[Answer]) -> Answer:
        if status not in (200, 201):
            raise _status_error(status, data, what=what)
        try:
            if self._dialect.wrapped:
                data = msgspec.json.decode(data, type=dict[str, msgspec.Raw]).get("value", _NOTHING)
            return msgspec.json.decode(data, type=kind)
        except msgspec.DecodeError as error:
            raise VsphereFailed(f"{what}: the answer cannot be read", cause=str(error)) from error


def _status_error(status: int, data: bytes, *, what: str) -> HoldfastError:
    text = " ".join(data[:300].decode("utf-8", "replace").split())
    if status == 401:
        return faults.SessionLost(f"{what}: the REST session ended", status=status)
    if status == 403:
        return CapabilityAbsent(f"{what}: the account lacks a right", advice=RIGHTS, status=status)
    if status == 404:
        return NotFound(f"{what}: there is no such thing", status=status)
    if status in _UNAVAILABLE:
        return VsphereUnavailable(f"{what}: vSphere does not answer", status=status)
    return VsphereFailed(f"{what} failed: {text}" if text else f"{what} failed", status=status)
