"""How agents come and go: tokens, enrolment, revocation. Plain functions on executor threads."""

from __future__ import annotations

import logging
import re
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Final

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from holdfast_common.clock import Clock, utc_text
from holdfast_common.errors import AuthenticationFailed, Refused, UsageError
from holdfast_common.identity import AgentId, new_ulid
from holdfast_common.trust.authority import CertificateAuthority
from holdfast_common.trust.join_token import new_join_token, token_hash, token_text
from holdfast_common.trust.keys import public_key_of_request
from holdfast_common.trust.peer import Role, Subject
from holdfast_controller.service.access_rules import current_actor
from holdfast_controller.service.agent_sessions import AgentSessions
from holdfast_controller.store.agents import AgentTable, NewAgent
from holdfast_controller.store.audit import AuditTrail
from holdfast_controller.store.database import Database

log = logging.getLogger(__name__)

ENROLABLE_ROLES: Final = frozenset({Role.PROXY})  # of the others nothing is built yet
TOKEN_MINUTES_MAX: Final = 24 * 60
_HOST_NAME: Final = re.compile(r"^[a-z0-9]([a-z0-9._-]{0,251}[a-z0-9])?$")


@dataclass(frozen=True, slots=True, kw_only=True)
class EnrolmentRequest:
    """What a new agent sends. Nothing of it is believed before the token is."""

    secret: bytes = field(repr=False)
    certificate_request_pem: bytes
    signing_public_key: bytes
    role: str
    host_name: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Enrolled:
    """What a new agent gets. ``session_address`` may be ``:port``: the host that it dialled already."""

    agent_id: AgentId
    certificate_pem: bytes
    authority_pem: bytes
    session_address: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ListeningAt:
    """Where agents find this controller, once its listeners are up."""

    enrolment_port: int
    session_address: str


class AgentAdministration:
    """Thread-safe."""

    def __init__(
        self,
        *,
        database: Database,
        agents: AgentTable,
        audit: AuditTrail,
        sessions: AgentSessions,
        authority: CertificateAuthority,
        clock: Clock,
    ) -> None:
        self._database = database
        self._agents = agents
        self._audit = audit
        self._sessions = sessions
        self._authority = authority
        self._clock = clock
        self._listening: ListeningAt | None = None

    def listening(self, at: ListeningAt) -> None:
        """The listeners are up: tokens can be made."""
        self._listening = at

    def create_token(self, *, role: str, host_name: str, minutes: int) -> tuple[str, datetime]:
        """A join token for one host and role, once, and when it ends. Only its hash is kept.

        Raises: UsageError, Refused.
        """
        known = _role(role)
        name = _checked_host_name(host_name)
        if not 1 <= minutes <= TOKEN_MINUTES_MAX:
            raise UsageError("a token lives 1 minute to 24 hours", minutes=minutes)
        if self._listening is None:
            raise Refused("the controller does not listen for new agents yet")
        token = new_join_token(
            enrolment_port=self._listening.enrolment_port,
            authority_pem=self._authority.certificate_pem,
        )
        expires_at = self._clock.now() + timedelta(minutes=minutes)
        with self._database.transaction():
            self._agents.add_token(
                token_hash=token_hash(token.secret),
                role=known,
                host_name=name,
                expires_at=expires_at,
            )
            self._audit.append(
                actor=current_actor(), action="create-token", object=f"{known} {name}", result="ok"
            )
        return token_text(token), expires_at

    def enrol(self, request: EnrolmentRequest) -> Enrolled:
        """Use a token up for a new agent. Raises: AuthenticationFailed, Refused, UsageError."""
        role = _role(request.role)
        name = _checked_host_name(request.host_name)
        key = public_key_of_request(request.certificate_request_pem)
        _check_signing_key(request.signing_public_key)
        agent_id = AgentId(new_ulid())
        subject = Subject(role=role, name=agent_id)
        certificate_pem, peer = self._authority.issue(key, subject, now=self._clock.now())
        agent = NewAgent(
            agent_id=agent_id,
            role=role,
            host_name=name,
            signing_public_key=request.signing_public_key,
            certificate_serial=peer.serial,
            certificate_ends_at=utc_text(peer.ends_at),
        )
        hashed = token_hash(request.secret)
        try:
            with self._database.transaction():
                self._agents.join(hashed, agent)
                self._audit.append(
                    actor=peer.actor(), action="enrol", object=f"{role} {name}", result="ok"
                )
        except AuthenticationFailed:
            log.warning("enrolment refused", extra={"role": role, "host_name": name})
            if self._agents.token_is_known(hashed):  # a stranger's guesses must not fill the trail
                self._audit.append(
                    actor=str(Role.JOINER),
                    action="enrol",
                    object=f"{role} {name}",
                    result="refused",
                )
            raise
        assert self._listening is not None, "nobody enrols before the listeners are up"
        log.info("agent enrolled", extra={"agent_id": agent_id, "role": role, "host_name": name})
        return Enrolled(
            agent_id=agent_id,
            certificate_pem=certificate_pem,
            authority_pem=self._authority.certificate_pem,
            session_address=self._listening.session_address,
        )

    def revoke(self, agent_id: AgentId) -> None:
        """Accept the agent no more: first durably, then its session is cut. Raises: NotFound."""
        with self._database.transaction():
            self._agents.revoke(agent_id)
            self._audit.append(
                actor=current_actor(), action="revoke-agent", object=agent_id, result="ok"
            )
        self._sessions.bar(agent_id)


def _role(text: str) -> Role:
    if text not in ENROLABLE_ROLES:
        raise UsageError(
            "no agent has this role", role=text[:50], known=", ".join(sorted(ENROLABLE_ROLES))
        )
    return Role(text)


def _checked_host_name(text: str) -> str:
    name = text.lower()
    if not _HOST_NAME.fullmatch(name):
        raise UsageError("not a host name", host_name=text[:100])
    return name


def _check_signing_key(raw: bytes) -> None:
    try:
        Ed25519PublicKey.from_public_bytes(raw)
    except (ValueError, UnsupportedAlgorithm) as error:
        raise UsageError("not an Ed25519 public key") from error
