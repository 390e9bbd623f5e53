"""A lost controller is brought back from its repository: of `init --from-repository`.

The last copy of its database is put in place and told what it cannot know: it is another life (the next controller
epoch), with keys of its own (rotated: the lost machine's key file opens nothing that comes after), and what the
repository shows that is newer than the copy. It claims the repository before it changes anything else there. The
configuration file comes last and says that all of it is there; whatever ends this before leaves nothing that a
controller would start with, and it can be done again.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from holdfast_common.clock import Clock, utc_text
from holdfast_common.errors import (
    FormatError,
    HoldfastError,
    IntegrityError,
    ObjectExists,
    ObjectMissing,
    Refused,
)
from holdfast_common.identity import RepositoryId
from holdfast_common.places import Places, private_folder
from holdfast_common.repository.controller_copy import (
    CopyHead,
    CopyPlace,
    check_copy,
    stored_copies,
)
from holdfast_common.repository.key_changes import add_recipient, recipients_of, rotate, settle
from holdfast_common.repository.keys import RepositoryKeys, open_repository
from holdfast_common.repository.object_store import ObjectStore
from holdfast_common.repository.points import PointList, list_points
from holdfast_common.repository.randomness import SYSTEM_RANDOMNESS
from holdfast_common.repository.recipients import (
    KEY_FILE,
    NewRecipient,
    RecipientEntry,
    Unlock,
    key_file_recipient,
    new_key_file,
)
from holdfast_common.trust.keys import write_private
from holdfast_controller.runs.chosen_copy import Chosen, choose_copy
from holdfast_controller.runs.own_copy import (
    CONFIGURATION,
    MAY_LACK,
    RECIPIENT,
    OwnCopy,
    small_files,
    store_own_copy,
)
from holdfast_controller.runs.point_rows import point_row
from holdfast_controller.store import settings as names
from holdfast_controller.store.agents import AgentTable
from holdfast_controller.store.audit import AuditTrail
from holdfast_controller.store.catalogue import Catalogue
from holdfast_controller.store.database import Database
from holdfast_controller.store.schema import open_database
from holdfast_controller.store.settings import Settings

LABEL: Final = "controller"
OWN_WRITER: Final = "controller"  # as `KeyKeeper.pruner_key` lists it
ACTOR: Final = "init --from-repository"
UNKNOWN_SESSIONS: Final = 1 << 20  # more than any agent can have opened since the copy was made


@dataclass(frozen=True, slots=True, kw_only=True)
class BroughtBack:
    """What was done, and what people must know."""

    repository_id: str
    copy_name: str
    copy_made_at: str
    controller_epoch: int
    key_generation: int
    points: int
    points_added: tuple[str, ...]
    points_missing: tuple[str, ...]
    newest_point_at: str
    agents_revoked: tuple[str, ...]
    agents_unknown: tuple[str, ...]
    passed_over: tuple[str, ...]


class BringingBack:
    """One lost controller. `carry_out` once."""

    def __init__(
        self, places: Places, folder: Path, store: ObjectStore, *, unlock: Unlock, clock: Clock
    ) -> None:
        self._places = places
        self._folder = folder
        self._store = store
        self._unlock = unlock
        self._clock = clock

    def carry_out(
        self, configured: Callable[[bytes], bytes], *, sheet_was_typed: bool
    ) -> BroughtBack:
        """``configured``: the text of controller.toml as it is to be, from that of the lost controller.

        ``sheet_was_typed``: the recovery sheet was what opened the repository, so it is kept.

        Raises: WrongKey, NotFound, Refused, IntegrityError, ConfigurationError, RepositoryFull, RepositoryFailed.
        """
        places = self._places
        keys = open_repository(self._store, self._unlock)
        private_folder(places.controller_state)
        needed = small_files(places).keys() - MAY_LACK
        chosen = choose_copy(self._store, keys, places.database, needed=needed)
        self._put_files(chosen.head)
        text = configured(chosen.head.files[CONFIGURATION])
        database = open_database(places.database)
        try:
            if sheet_was_typed:
                now = utc_text(self._clock.now())
                Settings(database).set(names.SHEET_CONFIRMED_AT, now)
            found = self._take_over(database, keys, chosen, configuration=text)
        finally:
            database.close()
        write_private(places.controller_configuration, text, mode=0o644)
        return found

    def _put_files(self, head: CopyHead) -> None:
        """All but the configuration. Raises: IntegrityError, ConfigurationError."""
        state = self._places.controller_state
        for folder in (self._places.trust, state / "keys"):
            private_folder(folder)
        for name, path in small_files(self._places).items():
            if name in head.files and name != CONFIGURATION:
                mode = 0o644 if path.suffix == ".pem" else 0o600
                write_private(path, head.files[name], mode=mode)

    def _take_over(
        self, database: Database, keys: RepositoryKeys, chosen: Chosen, *, configuration: bytes
    ) -> BroughtBack:
        """The claim comes first: from then on no other controller begins anything. Only then the keys are changed.

        So an attempt that ends before its claim changed nothing, and of two at the same time at most one rotates.
        """
        settings = Settings(database)
        keys = self._as_the_copy_knows_it(settings, keys)
        points = list_points(self._store, keys)
        epoch = self._next_epoch(settings, keys, points)
        with database.transaction():
            self._note(settings, keys, CopyPlace(controller_epoch=epoch, number=1))
            known = _known_points(database, keys)
            revoked, unknown = self._agents(database, keys)
            added = self._add_points(database, keys, points, known)
            AuditTrail(database, self._clock).append(
                actor=ACTOR,
                action="bring the controller back",
                object=keys.repository_id,
                result=f"from {chosen.head.place.name}, controller epoch {epoch}",
            )
        own = OwnCopy(
            place=CopyPlace(controller_epoch=epoch, number=1),
            controller_id=settings.get(names.CONTROLLER_ID),
            made_at=settings.get(names.DATABASE_COPIED_AT),
            recipient=chosen.head.files.get(RECIPIENT, b""),
            configuration=configuration,
        )
        self._claim(database, keys, own)
        changed, recipient = self._with_own_key(keys, own.recipient)
        settle(self._store, changed)
        second = CopyPlace(controller_epoch=epoch, number=2)
        with database.transaction():
            self._note(settings, changed, second)
        # sealed with the new keys: who kept those of the lost controller cannot put a later one
        own = replace(own, place=second, recipient=recipient)
        store_own_copy(self._store, changed, own, database=database, places=self._places)
        self._check_newest(changed, epoch)
        there = {str(point.point_id) for point in points.points}
        there |= {item.name.rpartition("/")[2] for item in points.unusable}
        return BroughtBack(
            repository_id=changed.repository_id,
            copy_name=chosen.head.place.name,
            copy_made_at=chosen.head.made_at,
            controller_epoch=epoch,
            key_generation=changed.generation,
            points=len(known) + len(added),
            points_added=added,
            points_missing=tuple(sorted(known - there)),
            newest_point_at=max((p.manifest.created_at for p in points.points), default=""),
            agents_revoked=revoked,
            agents_unknown=unknown,
            passed_over=chosen.passed_over,
        )

    def _as_the_copy_knows_it(self, settings: Settings, keys: RepositoryKeys) -> RepositoryKeys:
        """The same keys, not older than the copy, nor somebody else's. Raises: Refused, IntegrityError."""
        if settings.get(names.REPOSITORY_ID) != keys.repository_id:
            raise Refused(
                "the copy is of a controller of another repository",
                found=settings.get(names.REPOSITORY_ID),
                wanted=keys.repository_id,
            )
        opened = open_repository(
            self._store,
            self._unlock,
            generation_min=int(settings.get(names.REPOSITORY_GENERATION) or 1),
            authority=bytes.fromhex(settings.get(names.REPOSITORY_AUTHORITY)),
        )
        opened.writers_number_min = int(settings.get(names.WRITERS_NUMBER) or 0)
        opened.writers(self._store)
        return opened

    def _next_epoch(self, settings: Settings, keys: RepositoryKeys, points: PointList) -> int:
        """Beyond every one that was ever used, as far as the copy, the copies and the points tell."""
        epoch = self._newest_epoch(keys, at_least=int(settings.get(names.CONTROLLER_EPOCH) or 1))
        return max([epoch, *(point.controller_epoch for point in points.points)]) + 1

    def _newest_epoch(self, keys: RepositoryKeys, *, at_least: int) -> int:
        """Of the copies that somebody with the keys put."""
        for place in reversed(stored_copies(self._store)):
            if place.controller_epoch <= at_least:
                break
            try:
                check_copy(self._store, place, keys.common)
            except (IntegrityError, FormatError, ObjectMissing):
                continue  # anybody may have put it
            return place.controller_epoch
        return at_least

    def _check_newest(self, keys: RepositoryKeys, epoch: int) -> None:
        """Raises: Refused when somebody else took over since this one's claim."""
        if self._newest_epoch(keys, at_least=epoch) > epoch:
            raise _two_at_once()

    def _with_own_key(self, keys: RepositoryKeys, lost: bytes) -> tuple[RepositoryKeys, bytes]:
        """Rotated, with a new key file in the place of the lost controller's; and its public key.

        An attempt on this machine that ended after its rotation left its key file: that one is used, and the keys
        need no further change.
        """
        key_file = self._places.controller_state / "keys" / f"{keys.repository_id}.key"
        entries = recipients_of(self._store, keys)
        left = _public_key(key_file)
        if left and left != lost and any(entry.public_key == left for entry in entries):
            return keys, left
        content = new_key_file(SYSTEM_RANDOMNESS)
        new = key_file_recipient(content, label=LABEL)
        write_private(key_file, content)  # before the generation that needs it
        own = _own_entry(entries, lost)
        try:
            if own is None:
                keys = add_recipient(self._store, keys, new, clock=self._clock)
                return rotate(self._store, keys), new.public_key
            changed = tuple(
                _renewed(entry, new, at=utc_text(self._clock.now())) if entry is own else entry
                for entry in entries
            )
            return rotate(self._store, keys, recipients=changed), new.public_key
        except ObjectExists as error:
            raise _two_at_once() from error

    def _note(self, settings: Settings, keys: RepositoryKeys, place: CopyPlace) -> None:
        """What this life is, and that it puts this copy next."""
        now = utc_text(self._clock.now())
        settings.set(names.REPOSITORY_FOLDER, str(self._folder))
        settings.set(names.REPOSITORY_GENERATION, str(keys.generation))
        settings.set(names.REPOSITORY_AUTHORITY, keys.authority_public.hex())
        settings.set(names.WRITERS_NUMBER, str(keys.writers(self._store).number))
        settings.set(names.CONTROLLER_EPOCH, str(place.controller_epoch))
        settings.set(names.BROUGHT_BACK_AT, now)
        settings.set(names.SELF_BACKUP_NUMBER, str(place.number))
        settings.set(names.DATABASE_COPIED_AT, now)
        settings.set(names.SELF_BACKUP_KEY_EPOCH, str(keys.secrets.current.epoch))
        settings.set(names.SELF_BACKUP_PROBLEM, "")
        settings.set(names.TAKEN_OVER, "")

    def _agents(
        self, database: Database, keys: RepositoryKeys
    ) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """Agents that were revoked since, and writers that joined since and must join again."""
        agents = AgentTable(database, self._clock)
        agents.void_tokens()
        agents.raise_session_epochs(UNKNOWN_SESSIONS)
        by_key = {row.signing_public_key: row for row in agents.all()}
        revoked, unknown = [], []
        for writer in keys.writers(self._store).writers:
            row = by_key.get(writer.public_key)
            if row is None and writer.agent_id != OWN_WRITER and not writer.revoked_at:
                unknown.append(writer.agent_id)
            elif row is not None and writer.revoked_at and not row.revoked_at:
                agents.revoke(row.agent_id)
                revoked.append(row.host_name)
        return tuple(revoked), tuple(unknown)

    def _add_points(
        self, database: Database, keys: RepositoryKeys, points: PointList, known: set[str]
    ) -> tuple[str, ...]:
        catalogue = Catalogue(database)
        added = [point for point in points.points if point.point_id not in known]
        self._store.confirm(point.name for point in added)
        for point in sorted(added, key=lambda each: each.manifest.created_at):
            catalogue.add(point_row(point, RepositoryId(keys.repository_id)))
        return tuple(point.point_id for point in added)

    def _claim(self, database: Database, keys: RepositoryKeys, own: OwnCopy) -> None:
        """The first copy of this epoch: from here on the lost controller, if it lives, knows. Raises: Refused."""
        try:
            store_own_copy(self._store, keys, own, database=database, places=self._places)
        except ObjectExists as error:
            raise _two_at_once() from error
        self._check_newest(keys, own.place.controller_epoch)


def _two_at_once() -> Refused:
    return Refused(
        "somebody else brings this controller back at the same time",
        advice="let only one of them go on: stop the other one, and run this one again",
    )


def removed_leftovers(places: Places) -> Callable[[], None]:
    """What undoes an attempt that failed: exactly the files that it makes, and nothing that was there before."""
    files = [path for name, path in small_files(places).items() if name != CONFIGURATION]
    files += [places.database.with_name(places.database.name + end) for end in ("", "-wal", "-shm")]
    fresh = [path for path in files if not path.exists()]

    def undo() -> None:
        for path in fresh:
            path.unlink(missing_ok=True)
        for folder in (places.trust, places.controller_state / "keys"):
            if folder.is_dir() and not any(folder.iterdir()):
                folder.rmdir()

    return undo


def _known_points(database: Database, keys: RepositoryKeys) -> set[str]:
    rows = Catalogue(database).points()
    return {row.point_id for row in rows if row.repository_id == keys.repository_id}


def _public_key(key_file: Path) -> bytes:
    """Empty: there is no such file, or it is none."""
    try:
        return key_file_recipient(key_file.read_bytes(), label=LABEL).public_key
    except (OSError, HoldfastError):
        return b""


def _own_entry(entries: tuple[RecipientEntry, ...], lost: bytes) -> RecipientEntry | None:
    """The lost controller's: by its public key, or, when that was renewed since the copy, by its label."""
    files = [entry for entry in entries if entry.kind == KEY_FILE]
    for entry in files:
        if entry.public_key == lost:
            return entry
    return next((entry for entry in files if entry.label == LABEL), None)


def _renewed(entry: RecipientEntry, new: NewRecipient, *, at: str) -> RecipientEntry:
    return replace(entry, public_key=new.public_key, created_at=at)
