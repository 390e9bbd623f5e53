"""Policies, as operators made them: each with a revision, so that nobody overwrites what he has not seen."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from sqlite_utils import Database as SqliteDatabase
from sqlite_utils import Migrations

from holdfast_common.clock import Clock, parse_utc, utc_text
from holdfast_common.errors import NotFound, Refused, UsageError
from holdfast_common.identity import new_ulid
from holdfast_controller.decide.policy import Policy
from holdfast_controller.decide.policy_values import policy_of_values, policy_values
from holdfast_controller.store.audit import AuditTrail
from holdfast_controller.store.database import Database

MIGRATIONS = Migrations("policies")
_COLUMNS: Final = "policy_id, name, content, created_at, changed_at, changed_by, revision"


@MIGRATIONS()
def create_policies(database: SqliteDatabase) -> None:
    """One row each. ``content``: all fields as JSON, the name among them."""
    database.create_table(
        "policies",
        {
            "policy_id": str,
            "name": str,
            "content": str,
            "created_at": str,
            "changed_at": str,
            "changed_by": str,
            "revision": int,
        },
        pk="policy_id",
        not_null={"name", "content", "created_at", "changed_at", "changed_by", "revision"},
    )
    database.table("policies").create_index(["name"], unique=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredPolicy:
    """A policy and its history. ``policy_id`` stays when it is renamed; ``revision`` counts its changes from 1."""

    policy_id: str
    policy: Policy
    created_at: datetime
    changed_at: datetime
    changed_by: str
    revision: int


@dataclass(frozen=True, slots=True, kw_only=True)
class UnreadablePolicy:
    """One that this program cannot carry out, and why: a time zone that this machine does not know (any more), say."""

    policy_id: str
    name: str
    revision: int
    problem: str


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyChange:
    """One of several that are made together.

    ``policy``: None takes it away. ``policy_id`` "": it is new. ``revision``: of the one that the operator saw.
    """

    policy: Policy | None
    policy_id: str = ""
    revision: int = 0


class PolicyTable:
    """Thread-safe; each method is one transaction, the audit trail's entries with it."""

    def __init__(self, database: Database, clock: Clock, audit: AuditTrail) -> None:
        self._database = database
        self._clock = clock
        self._audit = audit

    def policies(self) -> list[StoredPolicy]:
        """All that can be carried out, by name; the others are in `unreadable`."""
        return [found for found in self._all() if isinstance(found, StoredPolicy)]

    def unreadable(self) -> list[UnreadablePolicy]:
        """Those that protect nothing, because they cannot be read."""
        return [found for found in self._all() if isinstance(found, UnreadablePolicy)]

    def policy(self, name: str) -> StoredPolicy:
        """Raises: NotFound; UsageError when it cannot be read."""
        found = self._find(name)
        if isinstance(found, UnreadablePolicy):
            raise UsageError(
                f"the policy cannot be read: {found.problem}",
                policy=name,
                advice="give it anew with `holdfast policy apply`, or delete it",
            )
        return found

    def find(self, name: str) -> StoredPolicy | UnreadablePolicy:
        """Raises: NotFound."""
        return self._find(name)

    def create(self, policy: Policy, *, actor: str) -> StoredPolicy:
        """Raises: Refused when the name is taken."""
        self.change([PolicyChange(policy=policy)], actor=actor)
        return self.policy(policy.name)

    def replace(self, policy_id: str, policy: Policy, *, revision: int, actor: str) -> StoredPolicy:
        """Raises: Refused when it is no longer of this revision, is gone, or the new name is taken."""
        change = PolicyChange(policy=policy, policy_id=policy_id, revision=revision)
        self.change([change], actor=actor)
        return self.policy(policy.name)

    def delete(self, policy_id: str, *, revision: int, actor: str) -> None:
        """Raises: Refused when it is no longer of this revision, or is gone."""
        change = PolicyChange(policy=None, policy_id=policy_id, revision=revision)
        self.change([change], actor=actor)

    def change(self, changes: Sequence[PolicyChange], *, actor: str) -> None:
        """All of them or none. Raises: Refused, as the single ones do."""
        now = utc_text(self._clock.now())
        with self._database.transaction() as connection:
            for change in changes:
                if change.policy_id:
                    name = _check_unchanged(connection, change)
                if change.policy is None:
                    connection.execute(
                        "DELETE FROM policies WHERE policy_id = ?", (change.policy_id,)
                    )
                    self._tell(actor, "policy deleted", name)
                    continue
                _check_name(connection, change)
                content = json.dumps(policy_values(change.policy))
                values = (change.policy.name, content, now, actor)
                if change.policy_id:
                    connection.execute(
                        "UPDATE policies SET name = ?, content = ?, changed_at = ?, changed_by = ?,"
                        " revision = revision + 1 WHERE policy_id = ?",
                        (*values, change.policy_id),
                    )
                    self._tell(actor, "policy changed", name)
                else:
                    connection.execute(
                        "INSERT INTO policies (name, content, changed_at, changed_by, created_at,"
                        " policy_id, revision) VALUES (?,?,?,?,?,?,1)",
                        (*values, now, new_ulid()),
                    )
                    self._tell(actor, "policy created", change.policy.name)

    def _tell(self, actor: str, action: str, name: str) -> None:
        self._audit.append(actor=actor, action=action, object=name, result="done")

    def _find(self, name: str) -> StoredPolicy | UnreadablePolicy:
        rows = self._database.execute(
            f"SELECT {_COLUMNS} FROM policies WHERE name = ?",  # noqa: S608 - constant texts
            (name,),
        )
        if not rows:
            raise NotFound(
                "there is no such policy", policy=name, advice="see `holdfast policy list`"
            )
        return _of_row(rows[0])

    def _all(self) -> list[StoredPolicy | UnreadablePolicy]:
        rows = self._database.execute(f"SELECT {_COLUMNS} FROM policies ORDER BY name")  # noqa: S608 - constant texts
        return [_of_row(row) for row in rows]


def _check_unchanged(connection: sqlite3.Connection, change: PolicyChange) -> str:
    """Its present name. Raises: Refused."""
    row = connection.execute(
        "SELECT name, revision, changed_by FROM policies WHERE policy_id = ?", (change.policy_id,)
    ).fetchone()
    if row is None:
        raise Refused("the policy was deleted meanwhile; nothing was changed", id=change.policy_id)
    if int(row[1]) != change.revision:
        raise Refused(
            "the policy was changed meanwhile; nothing was changed",
            policy=str(row[0]),
            by=str(row[2]),
            advice="look at it again with `holdfast policy show`, then say it once more",
        )
    return str(row[0])


def _check_name(connection: sqlite3.Connection, change: PolicyChange) -> None:
    assert change.policy is not None
    row = connection.execute(
        "SELECT policy_id FROM policies WHERE name = ? AND policy_id != ?",
        (change.policy.name, change.policy_id),
    ).fetchone()
    if row is not None:
        raise Refused(
            "a policy has this name already; nothing was changed",
            policy=change.policy.name,
            advice="change it with `holdfast policy edit`",
        )


def _of_row(row: Sequence[Any]) -> StoredPolicy | UnreadablePolicy:
    policy_id, name, content, created_at, changed_at, changed_by, revision = row
    try:
        policy = policy_of_values(json.loads(content))
    except (UsageError, ValueError, AttributeError) as error:
        return UnreadablePolicy(
            policy_id=policy_id, name=name, revision=int(revision), problem=str(error)
        )
    return StoredPolicy(
        policy_id=policy_id,
        policy=policy,
        created_at=parse_utc(created_at),
        changed_at=parse_utc(changed_at),
        changed_by=changed_by,
        revision=int(revision),
    )
