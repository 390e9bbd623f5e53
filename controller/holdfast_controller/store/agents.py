"""Agents, the tokens that let them join, and certificates that are no longer accepted."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta

import msgspec
from sqlite_utils import Database as SqliteDatabase
from sqlite_utils import Migrations

from holdfast_common.clock import Clock, utc_text
from holdfast_common.errors import AuthenticationFailed, NotFound
from holdfast_common.identity import AgentId
from holdfast_controller.store.database import Database

MIGRATIONS = Migrations("agents")


@MIGRATIONS()
def create_agents(database: SqliteDatabase) -> None:
    """Agents, join tokens (only their SHA-256), revoked certificates."""
    database.create_table(
        "agents",
        {
            "agent_id": str,
            "role": str,
            "host_name": str,
            "signing_public_key": bytes,
            "enrolled_at": str,
            "last_seen_at": str,
            "certificate_serial": str,
            "certificate_ends_at": str,
            "revoked_at": str,
            "session_epoch": int,
            "features": str,
            "capabilities": str,
        },
        pk="agent_id",
        not_null={"role", "host_name", "signing_public_key", "enrolled_at", "session_epoch"},
    )
    database.create_table(
        "join_tokens",
        {
            "token_hash": str,
            "role": str,
            "host_name": str,
            "created_at": str,
            "expires_at": str,
            "used_at": str,
            "agent_id": str,
        },
        pk="token_hash",
        not_null={"role", "host_name", "created_at", "expires_at"},
    )
    database.create_table(
        "revoked_certificates",
        {"serial": str, "subject": str, "revoked_at": str, "reason": str},
        pk="serial",
        not_null={"subject", "revoked_at", "reason"},
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentCapabilities:
    """What an agent said at its last hello; empty before the first."""

    transports: tuple[str, ...] = ()
    datastores: tuple[str, ...] = ()
    writable_datastores: tuple[str, ...] = ()
    repositories: tuple[str, ...] = ()
    restore_folders: tuple[str, ...] = ()
    repair_folders: tuple[str, ...] = ()
    vm_bios_uuid: str = ""
    version: str = ""
    mac_addresses: tuple[str, ...] = ()
    clock_ahead_seconds: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class NewAgent:
    """An agent that joins. ``certificate_serial`` is the serial number in decimal."""

    agent_id: AgentId
    role: str
    host_name: str
    signing_public_key: bytes
    certificate_serial: str
    certificate_ends_at: str


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentRow:
    """One agent. Times are UTC ISO text; ``last_seen_at`` and ``revoked_at`` are empty for never."""

    agent_id: AgentId
    role: str
    host_name: str
    signing_public_key: bytes
    enrolled_at: str
    last_seen_at: str
    certificate_serial: str
    certificate_ends_at: str
    revoked_at: str
    session_epoch: int
    features: frozenset[str]
    capabilities: AgentCapabilities = field(default_factory=AgentCapabilities)


class AgentTable:
    """Agents and tokens. Thread-safe; each method is one transaction, or joins the caller's."""

    def __init__(self, database: Database, clock: Clock) -> None:
        self._database = database
        self._clock = clock

    def add_token(
        self, *, token_hash: str, role: str, host_name: str, expires_at: datetime
    ) -> None:
        """Remember a join token by its hash."""
        with self._database.transaction() as connection:
            connection.execute(
                "INSERT INTO join_tokens (token_hash, role, host_name, created_at, expires_at)"
                " VALUES (?,?,?,?,?)",
                (
                    token_hash,
                    role,
                    host_name,
                    utc_text(self._clock.now()),
                    utc_text(expires_at),
                ),
            )

    def join(self, token_hash: str, agent: NewAgent) -> None:
        """Use up a token for this agent: of many at once exactly one succeeds.

        Raises: AuthenticationFailed when the token is unknown, used, late, or for another role or
        host. The message does not tell which.
        """
        now = utc_text(self._clock.now())
        with self._database.transaction() as connection:
            used = connection.execute(
                "UPDATE join_tokens SET used_at = ?, agent_id = ? WHERE token_hash = ?"
                " AND used_at IS NULL AND role = ? AND host_name = ? AND expires_at > ?",
                (now, agent.agent_id, token_hash, agent.role, agent.host_name, now),
            )
            if used.rowcount != 1:
                raise AuthenticationFailed(
                    "the join token is not accepted",
                    advice="make a new one with `holdfast agent token`; it is for one host and role, "
                    "once, within its time",
                )
            connection.execute(
                "INSERT INTO agents (agent_id, role, host_name, signing_public_key, enrolled_at,"
                " last_seen_at, certificate_serial, certificate_ends_at, revoked_at, session_epoch,"
                " features, capabilities) VALUES (?,?,?,?,?,'',?,?,'',0,'[]','{}')",
                (
                    agent.agent_id,
                    agent.role,
                    agent.host_name,
                    agent.signing_public_key,
                    now,
                    agent.certificate_serial,
                    agent.certificate_ends_at,
                ),
            )

    def void_tokens(self) -> None:
        """No token that was not used yet lets anybody join any more."""
        now = utc_text(self._clock.now())
        with self._database.transaction() as connection:
            connection.execute(
                "UPDATE join_tokens SET expires_at = min(expires_at, ?) WHERE used_at IS NULL",
                (now,),
            )

    def raise_session_epochs(self, by: int) -> None:
        """Sessions that this database does not know of may have had the next ones."""
        with self._database.transaction() as connection:
            connection.execute("UPDATE agents SET session_epoch = session_epoch + ?", (by,))

    def token_is_known(self, token_hash: str) -> bool:
        """Whether such a token was ever made."""
        found = self._database.execute(
            "SELECT 1 FROM join_tokens WHERE token_hash = ?", (token_hash,)
        ).fetchone()
        return found is not None

    def all(self) -> list[AgentRow]:
        """By host name, revoked ones too."""
        return self._select("ORDER BY host_name, agent_id", ())

    def get(self, agent_id: AgentId) -> AgentRow:
        """Raises: NotFound."""
        found = self._select("WHERE agent_id = ?", (agent_id,))
        if not found:
            raise NotFound("there is no such agent", agent=agent_id)
        return found[0]

    def named(self, name: str) -> AgentRow:
        """By id, or by host name where only one that is not revoked has it. Raises: NotFound."""
        found = self._select("WHERE agent_id = ?", (name,)) or self._select(
            "WHERE host_name = ? AND revoked_at = ''", (name,)
        )
        if len(found) != 1:
            problem = "there is no such agent" if not found else "more than one agent has this name"
            raise NotFound(problem, agent=name, advice="see `holdfast agent list`")
        return found[0]

    def open_session(
        self, agent_id: AgentId, *, features: frozenset[str], capabilities: AgentCapabilities
    ) -> int:
        """A session begins: what the agent said is kept; the epoch of this session, rising for ever."""
        with self._database.transaction() as connection:
            row = connection.execute(
                "UPDATE agents SET session_epoch = session_epoch + 1, last_seen_at = ?,"
                " features = ?, capabilities = ? WHERE agent_id = ? RETURNING session_epoch",
                (
                    utc_text(self._clock.now()),
                    json.dumps(sorted(features)),
                    _capabilities_text(capabilities),
                    agent_id,
                ),
            ).fetchone()
        if row is None:
            raise NotFound("there is no such agent", agent=agent_id)
        return int(row[0])

    def seen(self, seconds_ago: Mapping[AgentId, float]) -> None:
        """When each of these was heard last."""
        now = self._clock.now()
        heard = [
            (utc_text(now - timedelta(seconds=seconds)), agent_id)
            for agent_id, seconds in seconds_ago.items()
        ]
        with self._database.transaction() as connection:
            connection.executemany("UPDATE agents SET last_seen_at = ? WHERE agent_id = ?", heard)

    def certificate_renewed(self, agent_id: AgentId, *, serial: str, ends_at: str) -> None:
        """The agent has a new certificate; the old one is accepted until it ends."""
        with self._database.transaction() as connection:
            connection.execute(
                "UPDATE agents SET certificate_serial = ?, certificate_ends_at = ? WHERE agent_id = ?",
                (serial, ends_at, agent_id),
            )

    def revoke(self, agent_id: AgentId) -> None:
        """None of its certificates is accepted any more; twice is harmless. Raises: NotFound."""
        now = utc_text(self._clock.now())
        with self._database.transaction() as connection:
            changed = connection.execute(
                "UPDATE agents SET revoked_at = CASE revoked_at WHEN '' THEN ? ELSE revoked_at END"
                " WHERE agent_id = ?",
                (now, agent_id),
            )
            if changed.rowcount != 1:
                raise NotFound("there is no such agent", agent=agent_id)

    def revoke_certificate(self, *, serial: str, subject: str, reason: str) -> None:
        """One certificate, of whatever role, is no longer accepted."""
        with self._database.transaction() as connection:
            connection.execute(
                "INSERT OR IGNORE INTO revoked_certificates (serial, subject, revoked_at, reason)"
                " VALUES (?,?,?,?)",
                (serial, subject, utc_text(self._clock.now()), reason),
            )

    def certificate_is_revoked(self, serial: str) -> bool:
        """Whether this one certificate was revoked."""
        found = self._database.execute(
            "SELECT 1 FROM revoked_certificates WHERE serial = ?", (serial,)
        ).fetchone()
        return found is not None

    def _select(self, where: str, values: tuple[str, ...]) -> list[AgentRow]:
        rows = self._database.execute(
            "SELECT agent_id, role, host_name, signing_public_key, enrolled_at, last_seen_at,"  # noqa: S608 - constant texts
            " certificate_serial, certificate_ends_at, revoked_at, session_epoch, features,"
            f" capabilities FROM agents {where}",
            values,
        ).fetchall()
        return [
            AgentRow(
                agent_id=AgentId(row[0]),
                role=row[1],
                host_name=row[2],
                signing_public_key=row[3],
                enrolled_at=row[4],
                last_seen_at=row[5],
                certificate_serial=row[6],
                certificate_ends_at=row[7],
                revoked_at=row[8],
                session_epoch=row[9],
                features=frozenset(json.loads(row[10])),
                capabilities=_capabilities_from_text(row[11]),
            )
            for row in rows
        ]


def _capabilities_text(capabilities: AgentCapabilities) -> str:
    return msgspec.json.encode(capabilities).decode()


def _capabilities_from_text(text: str) -> AgentCapabilities:
    return msgspec.json.decode(text, type=AgentCapabilities)
