"""What people were told and are to be told: notices by key, and messages on their way. See `decide.notices`.

Both outlive a restart: nothing is told twice because of one, and nothing is forgotten. No address is ever kept here.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from sqlite_utils import Database as SqliteDatabase
from sqlite_utils import Migrations

from holdfast_common.clock import parse_utc, utc_text
from holdfast_controller.decide.notices import STANDING, Message, Notice, NoticeKind
from holdfast_controller.store.database import Database
from holdfast_controller.store.secrets import SecretSeal

MIGRATIONS = Migrations("notices")
MESSAGES_KEPT: Final = 1000
ERROR_LENGTH_MAX: Final = 500
_CURSOR: Final = "job events"
_COLUMNS: Final = "message_id, kind, title, body, created_at, tries, sent_to, last_error"


@MIGRATIONS()
def create_notices(database: SqliteDatabase) -> None:
    """Notices (``told_at`` empty: not yet), messages, and up to where jobs' events were looked at."""
    database.create_table(
        "notices",
        {"key": str, "kind": str, "text": str, "told_at": str},
        pk="key",
        not_null={"kind", "text", "told_at"},
    )
    database.table("notices").create_index(["kind", "told_at"])
    database.create_table(
        "messages",
        {
            "message_id": int,
            "kind": str,
            "title": str,
            "body": str,
            "created_at": str,
            "tries": int,
            "next_try_at": str,
            "sent_at": str,
            "given_up_at": str,
            "sent_to": str,
            "last_error": str,
        },
        pk="message_id",
        not_null={"kind", "title", "body", "created_at", "tries", "sent_to", "last_error"},
    )
    database.table("messages").create_index(["next_try_at"])
    database.create_table("notice_cursors", {"name": str, "event_id": int}, pk="name")


@dataclass(frozen=True, slots=True, kw_only=True)
class WaitingMessage:
    """A message that not all addresses have taken. ``sent_to``: marks of those that have."""

    message_id: int
    message: Message
    created_at: str
    tries: int
    sent_to: frozenset[str]
    last_error: str


@dataclass(frozen=True, slots=True, kw_only=True)
class MessageCounts:
    """``waiting``: to be sent yet. ``given_up``: of those kept. ``last_error``: of the newest that is not sent."""

    waiting: int
    given_up: int
    last_error: str


class NoticeTable:
    """Thread-safe; each method is one transaction."""

    def __init__(self, database: Database, seal: SecretSeal) -> None:
        self._database = database
        self._seal = seal

    def mark(self, url: str) -> str:
        """What stands for an address here: it tells nothing of it without the controller's key."""
        return self._seal.mark(url, purpose="notification address")

    def cursor(self) -> int | None:
        """The last event of a job that was looked at; None: never looked."""
        row = self._database.execute(
            "SELECT event_id FROM notice_cursors WHERE name = ?", (_CURSOR,)
        ).fetchone()
        return None if row is None else int(row[0])

    def add_passing(self, notices: Iterable[Notice], *, cursor: int) -> None:
        """Notices of events up to ``cursor``, to be told; one that is known stays as it is."""
        with self._database.transaction() as connection:
            self.add(notices)
            connection.execute(
                "INSERT INTO notice_cursors (name, event_id) VALUES (?,?)"
                " ON CONFLICT (name) DO UPDATE SET event_id = excluded.event_id",
                (_CURSOR, cursor),
            )

    def add(self, notices: Iterable[Notice]) -> None:
        """Passing notices, to be told; one that is known stays as it is."""
        with self._database.transaction() as connection:
            connection.executemany(
                "INSERT OR IGNORE INTO notices (key, kind, text, told_at) VALUES (?,?,?,'')",
                [(notice.key, notice.kind, notice.text) for notice in notices],
            )

    def standing_told(self) -> dict[str, datetime]:
        """When each standing notice was told last."""
        kinds = tuple(sorted(STANDING))
        rows = self._database.execute(
            f"SELECT key, told_at FROM notices WHERE kind IN ({_marks(kinds)})",  # noqa: S608 - only question marks
            kinds,
        ).fetchall()
        return {str(key): parse_utc(told_at) for key, told_at in rows}

    def untold(self) -> dict[NoticeKind, list[str]]:
        """Texts of what is to be told, in the order in which it came."""
        rows = self._database.execute(
            "SELECT kind, text FROM notices WHERE told_at = '' ORDER BY rowid"
        ).fetchall()
        found: dict[NoticeKind, list[str]] = {}
        for kind, text in rows:
            found.setdefault(NoticeKind(kind), []).append(str(text))
        return found

    def last_told(self, kind: NoticeKind) -> datetime | None:
        """When the newest message of a kind was made; None: there was none."""
        row = self._database.execute(
            "SELECT max(created_at) FROM messages WHERE kind = ?", (kind,)
        ).fetchone()
        return parse_utc(row[0]) if row[0] else None

    def tell(
        self, message: Message, due: Sequence[Notice], *, now: datetime, send: bool = True
    ) -> None:
        """A message of everything of its kind that was to be told, and of the standing notices in ``due``.

        Without ``send`` it is only kept: nobody wants messages of its kind.
        """
        at = utc_text(now)
        with self._database.transaction() as connection:
            connection.execute(
                "INSERT INTO messages (kind, title, body, created_at, tries, next_try_at, sent_at,"
                " given_up_at, sent_to, last_error) VALUES (?,?,?,?,0,?,'','','[]','')",
                (message.kind, message.title, message.body, at, at if send else ""),
            )
            connection.execute(
                "UPDATE notices SET told_at = ? WHERE kind = ? AND told_at = ''", (at, message.kind)
            )
            connection.executemany(
                "INSERT INTO notices (key, kind, text, told_at) VALUES (?,?,?,?) ON CONFLICT (key)"
                " DO UPDATE SET text = excluded.text, told_at = excluded.told_at",
                [(notice.key, notice.kind, notice.text, at) for notice in due],
            )

    def forget(self, keys: Collection[str], *, passing_before: datetime) -> None:
        """Notices that are over, passing ones that were told before then, and all but the newest messages."""
        passing = tuple(sorted(set(NoticeKind) - STANDING))
        with self._database.transaction() as connection:
            connection.executemany("DELETE FROM notices WHERE key = ?", [(key,) for key in keys])
            connection.execute(
                f"DELETE FROM notices WHERE kind IN ({_marks(passing)}) AND told_at != ''"  # noqa: S608 - only question marks
                " AND told_at < ?",
                (*passing, utc_text(passing_before)),
            )
            connection.execute(
                "DELETE FROM messages WHERE next_try_at = '' AND message_id <="
                " (SELECT max(message_id) FROM messages) - ?",
                (MESSAGES_KEPT,),
            )

    def to_send(self, *, now: datetime, limit: int) -> list[WaitingMessage]:
        """What is to be tried now, oldest first."""
        rows = self._database.execute(
            f"SELECT {_COLUMNS} FROM messages WHERE next_try_at != '' AND next_try_at <= ?"  # noqa: S608 - constant text
            " ORDER BY message_id LIMIT ?",
            (utc_text(now), limit),
        ).fetchall()
        return [_waiting(row) for row in rows]

    def tried(
        self,
        message_id: int,
        *,
        sent_to: Collection[str],
        error: str,
        now: datetime,
        next_try_at: datetime | None,
    ) -> None:
        """What came of sending a message. No ``error``: all have it. ``next_try_at`` None: it is given up."""
        with self._database.transaction() as connection:
            connection.execute(
                "UPDATE messages SET tries = tries + 1, sent_to = ?, last_error = ?,"
                " next_try_at = ?, sent_at = ?, given_up_at = ? WHERE message_id = ?",
                (
                    json.dumps(sorted(sent_to)),
                    error[:ERROR_LENGTH_MAX],
                    utc_text(next_try_at) if error and next_try_at else "",
                    "" if error else utc_text(now),
                    utc_text(now) if error and next_try_at is None else "",
                    message_id,
                ),
            )

    def counts(self) -> MessageCounts:
        """How sending goes."""
        row = self._database.execute(
            "SELECT count(*) FILTER (WHERE next_try_at != ''),"
            " count(*) FILTER (WHERE given_up_at != ''),"
            " (SELECT last_error FROM messages WHERE last_error != '' ORDER BY message_id DESC"
            " LIMIT 1) FROM messages"
        ).fetchone()
        return MessageCounts(
            waiting=int(row[0]), given_up=int(row[1]), last_error=str(row[2] or "")
        )

    def is_failing(self) -> str:
        """Why the newest message that was tried is not with everybody; empty: it is, or none was tried."""
        row = self._database.execute(
            "SELECT last_error FROM messages WHERE tries > 0 ORDER BY message_id DESC LIMIT 1"
        ).fetchone()
        return "" if row is None else str(row[0])


def _marks(values: Sequence[object]) -> str:
    return ",".join("?" * len(values))


def _waiting(row: Sequence[object]) -> WaitingMessage:
    found: Mapping[str, object] = dict(zip(_COLUMNS.split(", "), row, strict=True))
    return WaitingMessage(
        message_id=int(str(found["message_id"])),
        message=Message(
            kind=NoticeKind(str(found["kind"])),
            title=str(found["title"]),
            body=str(found["body"]),
        ),
        created_at=str(found["created_at"]),
        tries=int(str(found["tries"])),
        sent_to=frozenset(json.loads(str(found["sent_to"]))),
        last_error=str(found["last_error"]),
    )
