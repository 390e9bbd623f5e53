"""Who is logged in: users, sessions with their cookie, and tickets for one HTTP request.

A session owns its filters and views; they die with it. An unknown or expired cookie is answered
NotAuthenticated, a missing right NoPermission: the two are never confused.
"""

from __future__ import annotations

import secrets
import uuid
from dataclasses import dataclass, field
from datetime import datetime
from http.cookies import CookieError, SimpleCookie
from typing import TYPE_CHECKING

from pyVmomi import vim

from holdfast_lab.faults import SoapFault
from holdfast_lab.lab_clock import monotonic_seconds, utc_now

if TYPE_CHECKING:
    from holdfast_lab.lab import Lab
    from holdfast_lab.lab_object import LabObject

SESSION_COOKIE = "vmware_soap_session"
TICKET_COOKIE = "vmware_cgi_ticket"
SOAP = "soap"
IDLE_SECONDS = 1800.0  # vCenter's default: half an hour
SESSIONS_WITHOUT_USER_MAX = 500  # beyond it the oldest are dropped: they cost memory only


@dataclass(frozen=True, slots=True, kw_only=True)
class LabUser:
    """An account. ``privileges`` None means all; System.View and System.Read are always there."""

    name: str
    password: str
    privileges: frozenset[str] | None = None

    def may(self, privilege: str) -> bool:
        """Whether the account holds ``privilege``."""
        if self.privileges is None or privilege.startswith("System."):
            return True
        return privilege in self.privileges


@dataclass(slots=True, kw_only=True)
class Session:
    """One client's session. ``user`` is None before login; ``alive`` is False once it ended."""

    identifier: str
    key: str
    started: datetime
    user: LabUser | None = None
    alive: bool = True
    last_active_seconds: float = 0.0
    last_active: datetime
    calls_running: int = 0
    call_count: int = 0
    user_agent: str = ""
    address: str = ""
    interface: str = SOAP
    objects: dict[str, LabObject] = field(default_factory=dict)

    def describe(self) -> vim.UserSession:
        """The session as clients see it."""
        return vim.UserSession(
            key=self.key,
            userName=self.user.name if self.user else "",
            fullName=self.user.name if self.user else "",
            loginTime=self.started,
            lastActiveTime=self.last_active,
            locale="en",
            messageLocale="en",
            extensionSession=False,
            ipAddress=self.address,
            userAgent=self.user_agent,
            callCount=self.call_count,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceTicket:
    """A right to one HTTP request with this method on this path."""

    identifier: str
    path: str
    method: str
    user: LabUser


def cookie_value(header: str, name: str) -> str | None:
    """The value of the cookie ``name``, without its quotes."""
    try:
        morsel = SimpleCookie(header).get(name)
    except CookieError:
        return None
    return morsel.value.strip('"') if morsel else None


class Sessions:
    """All sessions of the lab. Every method needs ``Lab.lock``."""

    def __init__(self, lab: Lab) -> None:
        self.lab = lab
        self.idle_seconds = IDLE_SECONDS
        self.by_identifier: dict[str, Session] = {}
        self.tickets: dict[str, ServiceTicket] = {}

    def find(self, identifier: str | None, *, interface: str = SOAP) -> Session | None:
        """The living session with this cookie; ends it first when it was idle for too long."""
        session = self.by_identifier.get(identifier) if identifier else None
        if session is None or session.interface != interface:
            return None
        idle = monotonic_seconds() - session.last_active_seconds
        if session.calls_running == 0 and idle > self.idle_seconds:
            self.end(session)
            return None
        return session

    def open(self, *, address: str, user_agent: str, interface: str = SOAP) -> Session:
        """A new session, not logged in yet."""
        self._drop_oldest_without_user()
        now = utc_now()
        session = Session(
            identifier=secrets.token_hex(20),
            key=str(uuid.uuid4()),
            started=now,
            last_active=now,
            last_active_seconds=monotonic_seconds(),
            address=address,
            user_agent=user_agent,
            interface=interface,
        )
        self.by_identifier[session.identifier] = session
        return session

    def note_activity(self, session: Session) -> None:
        """Start the idle time anew."""
        session.last_active = utc_now()
        session.last_active_seconds = monotonic_seconds()

    def call_started(self, session: Session) -> None:
        """A call began; a session with a running call is not idle."""
        session.calls_running += 1
        session.call_count += 1
        self.note_activity(session)

    def call_ended(self, session: Session) -> None:
        """A call ended."""
        session.calls_running -= 1
        self.note_activity(session)

    def login(self, session: Session, name: str, password: str) -> vim.UserSession:
        """Log in. Raises: SoapFault (InvalidLogin), also when somebody is logged in already."""
        user = self.lab.users.get(name)
        known = user is not None and secrets.compare_digest(
            user.password.encode(), password.encode()
        )
        if not known or session.user is not None:
            raise SoapFault(
                vim.fault.InvalidLogin(),
                "Cannot complete login due to an incorrect user name or password.",
            )
        session.user = user
        session.started = utc_now()
        return session.describe()

    def end(self, session: Session) -> None:
        """End a session; its filters and views die, those who wait in it are woken."""
        session.alive = False
        self.by_identifier.pop(session.identifier, None)
        for owned in list(session.objects.values()):
            owned.forget()
        session.objects.clear()
        self.lab.changed.notify_all()

    def end_all(self, user_name: str | None = None) -> int:
        """End every session (of one user, when named); the number that had a user."""
        ended = [
            session
            for session in self.by_identifier.values()
            if session.user is not None and user_name in (None, session.user.name)
        ]
        for session in ended:
            self.end(session)
        return len(ended)

    def issue_ticket(self, session: Session, *, path: str, method: str) -> ServiceTicket:
        """A ticket that is good for one request."""
        if session.user is None:
            raise SoapFault(vim.fault.NotAuthenticated(object=None, privilegeId="System.View"))
        ticket = ServiceTicket(
            identifier=f"cst-{uuid.uuid4()}", path=path, method=method, user=session.user
        )
        self.tickets[ticket.identifier] = ticket
        return ticket

    def redeem_ticket(self, identifier: str) -> ServiceTicket | None:
        """Take a ticket; the second time it is unknown."""
        return self.tickets.pop(identifier, None)

    def logged_in(self) -> list[Session]:
        """The sessions with a user."""
        return [session for session in self.by_identifier.values() if session.user]

    def _drop_oldest_without_user(self) -> None:
        strangers = [session for session in self.by_identifier.values() if session.user is None]
        for session in strangers[: max(0, len(strangers) - SESSIONS_WITHOUT_USER_MAX)]:
            self.end(session)
