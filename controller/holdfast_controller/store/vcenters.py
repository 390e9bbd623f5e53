"""The vCenters and hosts that the controller knows, with their pinned certificates and accounts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from sqlite_utils import Database as SqliteDatabase
from sqlite_utils import Migrations

from holdfast_common.clock import Clock, utc_text
from holdfast_common.errors import NotFound, Refused
from holdfast_common.identity import new_ulid
from holdfast_common.logs import Secret
from holdfast_controller.store.database import Database
from holdfast_controller.store.secrets import SecretSeal

MIGRATIONS = Migrations("vcenters")
_COLUMNS: Final = (
    "vcenter_id, name, host, port, user_name, certificate_sha256, instance_uuid, product, version,"
    " is_vcenter, added_at, checked_at, last_error"
)


@MIGRATIONS()
def create_vcenters(database: SqliteDatabase) -> None:
    """One row for each; the password is sealed."""
    database.create_table(
        "vcenters",
        {
            "vcenter_id": str,
            "name": str,
            "host": str,
            "port": int,
            "user_name": str,
            "sealed_password": bytes,
            "certificate_sha256": str,
            "instance_uuid": str,
            "product": str,
            "version": str,
            "is_vcenter": int,
            "added_at": str,
            "checked_at": str,
            "last_error": str,
        },
        pk="vcenter_id",
        not_null={"name", "host", "port", "user_name", "sealed_password", "certificate_sha256"},
    )
    database.table("vcenters").create_index(["name"], unique=True)
    database.table("vcenters").create_index(["instance_uuid"], unique=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class NewVcenter:
    """A vCenter about to be added; it answered with this instance uuid."""

    name: str
    host: str
    port: int
    user_name: str
    password: Secret
    certificate_sha256: str
    instance_uuid: str
    product: str
    version: str
    is_vcenter: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class VcenterRow:
    """One vCenter or host. ``instance_uuid`` is its identity, also after it was added anew."""

    vcenter_id: str
    name: str
    host: str
    port: int
    user_name: str
    certificate_sha256: str
    instance_uuid: str
    product: str
    version: str
    is_vcenter: bool
    added_at: str
    checked_at: str
    last_error: str


class VcenterTable:
    """Thread-safe; each method is one transaction."""

    def __init__(self, database: Database, clock: Clock, seal: SecretSeal) -> None:
        self._database = database
        self._clock = clock
        self._seal = seal

    def add(self, new: NewVcenter) -> VcenterRow:
        """Add one; the same server again, by its name here, gets the new address, account and pin.

        Raises: Refused when the name belongs to another server, or the server has another name.
        """
        now = utc_text(self._clock.now())
        with self._database.transaction() as connection:
            named = connection.execute(
                "SELECT instance_uuid FROM vcenters WHERE name = ?", (new.name,)
            ).fetchone()
            if named is not None and named[0] != new.instance_uuid:
                raise Refused("another server has this name already", name=new.name)
            known = connection.execute(
                "SELECT vcenter_id, name FROM vcenters WHERE instance_uuid = ?",
                (new.instance_uuid,),
            ).fetchone()
            if known is not None and known[1] != new.name:
                raise Refused(
                    "this server is known here by another name; nothing was changed",
                    known_as=str(known[1]),
                    advice="add it by that name to give it another address, account or pin",
                )
            vcenter_id = str(known[0]) if known else new_ulid()
            sealed = self._seal.seal(new.password, purpose=_purpose(vcenter_id))
            values = (
                new.name,
                new.host,
                new.port,
                new.user_name,
                sealed,
                new.certificate_sha256,
                new.product,
                new.version,
                int(new.is_vcenter),
                now,
            )
            if known is None:
                connection.execute(
                    "INSERT INTO vcenters (name, host, port, user_name, sealed_password,"
                    " certificate_sha256, product, version, is_vcenter, checked_at, last_error,"
                    " added_at, instance_uuid, vcenter_id) VALUES (?,?,?,?,?,?,?,?,?,?,'',?,?,?)",
                    (*values, now, new.instance_uuid, vcenter_id),
                )
            else:
                connection.execute(
                    "UPDATE vcenters SET name=?, host=?, port=?, user_name=?, sealed_password=?,"
                    " certificate_sha256=?, product=?, version=?, is_vcenter=?, checked_at=?,"
                    " last_error='' WHERE vcenter_id=?",
                    (*values, vcenter_id),
                )
        return self.vcenter(vcenter_id)

    def note_check(self, vcenter_id: str, *, error: str) -> None:
        """When it was last talked to, and what went wrong (empty: nothing)."""
        with self._database.transaction() as connection:
            connection.execute(
                "UPDATE vcenters SET checked_at = ?, last_error = ? WHERE vcenter_id = ?",
                (utc_text(self._clock.now()), error[:2000], vcenter_id),
            )

    def all(self) -> list[VcenterRow]:
        """By name."""
        return self._select("ORDER BY name", ())

    def vcenter(self, vcenter_id: str) -> VcenterRow:
        """By id. Raises: NotFound."""
        return self._one("WHERE vcenter_id = ?", vcenter_id)

    def named(self, name: str) -> VcenterRow:
        """By the name that an operator gave it. Raises: NotFound."""
        return self._one("WHERE name = ?", name)

    def password(self, vcenter_id: str) -> Secret:
        """The account's password. Raises: NotFound, WrongKey."""
        row = self._database.execute(
            "SELECT sealed_password FROM vcenters WHERE vcenter_id = ?", (vcenter_id,)
        ).fetchone()
        if row is None:
            raise NotFound("there is no such vCenter", id=vcenter_id)
        return self._seal.open(bytes(row[0]), purpose=_purpose(vcenter_id))

    def remove(self, vcenter_id: str) -> None:
        """Forget one. Raises: NotFound."""
        self.vcenter(vcenter_id)
        with self._database.transaction() as connection:
            connection.execute("DELETE FROM vcenters WHERE vcenter_id = ?", (vcenter_id,))

    def _one(self, where: str, value: str) -> VcenterRow:
        found = self._select(where, (value,))
        if not found:
            raise NotFound(
                "there is no such vCenter", vcenter=value, advice="see `holdfast vcenter list`"
            )
        return found[0]

    def _select(self, where: str, values: tuple[object, ...]) -> list[VcenterRow]:
        rows = self._database.execute(f"SELECT {_COLUMNS} FROM vcenters {where}", values)  # noqa: S608 - constant texts
        return [_of_row(row) for row in rows.fetchall()]


def _purpose(vcenter_id: str) -> str:
    return f"vcenter password {vcenter_id}"


def _of_row(row: Sequence[object]) -> VcenterRow:
    fields = dict(zip(VcenterRow.__slots__, row, strict=True))
    fields["is_vcenter"] = bool(fields["is_vcenter"])
    return VcenterRow(**fields)  # type: ignore[arg-type]  # the columns are the dataclass's fields
