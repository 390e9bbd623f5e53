"""The controller backs itself up into the repository, hourly, and looks whether it is still the only one.

A controller that was brought back elsewhere has the next controller epoch, other keys, and copies of its own: the
one that it takes the place of sees them here within a minute, and from then on begins, publishes and deletes nothing.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

from holdfast_common.clock import parse_utc, utc_text
from holdfast_common.errors import (
    FormatError,
    HoldfastError,
    IntegrityError,
    Interrupted,
    ObjectExists,
    ObjectMissing,
)
from holdfast_common.places import Places
from holdfast_common.repository.controller_copy import (
    HOURLY_KEPT,
    CopyHead,
    CopyPlace,
    check_copy,
    copies_to_drop,
    read_copy_head,
    stored_copies,
)
from holdfast_common.repository.directory_store import DirectoryStore
from holdfast_common.repository.hang_watch import watched_files, while_it_answers
from holdfast_common.repository.key_objects import newest_generation
from holdfast_common.repository.keys import RepositoryKeys
from holdfast_common.repository.mount_probe import check_answers
from holdfast_common.repository.object_store import ObjectStore
from holdfast_common.repository.recipients import key_file_recipient
from holdfast_controller.runs.own_copy import OwnCopy, store_own_copy
from holdfast_controller.runs.world import World
from holdfast_controller.store import settings as names
from holdfast_controller.store.database import Database

log = logging.getLogger(__name__)

LOOK_SECONDS: Final = 60.0  # how soon a controller sees that another one took over
RETRY_SECONDS: Final = 300.0
OLD_AFTER: Final = 2.0  # copies that should have been made
OLD_AFTER_TOO: Final = timedelta(minutes=10)  # a try may take so long
_OTHER_TOOK_OVER: Final = "another controller has taken this repository over"


@dataclass(frozen=True, slots=True, kw_only=True)
class CopyVerdict:
    """What is to be told of the copies of this controller; ``problem`` is empty when there is none."""

    made_at: str
    problem: str


class SelfBackup:
    """`run` in one thread of its own. Ends with the controller."""

    def __init__(self, world: World, database: Database, places: Places) -> None:
        self._world = world
        self._database = database
        self._places = places
        self._next_at = 0.0  # monotonic
        self._heads: dict[CopyPlace, CopyHead] = {}

    def run(self) -> None:
        """Until the controller stops."""
        pause = min(LOOK_SECONDS, self._world.configuration.self_backup_seconds)
        self._next_at = self._world.clock.monotonic_seconds() + self._first_after()
        while True:
            self.look()
            if self._world.stopping.wait(pause):
                return

    def due(self) -> None:
        """The next round makes a copy, whenever the last one was made."""
        self._next_at = 0.0

    def look(self) -> None:
        """One round; what goes wrong is told by `copy_verdict`."""
        try:
            if self._world.keeper.has_repository:
                while_it_answers(self._round)
        except Interrupted:
            return  # the controller stops
        except HoldfastError as error:
            self._failed(error.line())
        except Exception as error:
            # Nobody else does it: a bug in one round must neither end it nor go untold.
            log.exception("the controller could not be backed up because of a bug")
            self._failed(f"a bug: {type(error).__name__}, see the controller's log")

    def _round(self) -> None:
        world = self._world
        folder = world.keeper.folder
        check_answers(folder)
        keys = world.keeper.keys()
        with DirectoryStore.open(folder, files=watched_files(folder)) as store:
            self._look_for_others(store)
            is_due = world.clock.monotonic_seconds() >= self._next_at or self._is_gone(store)
            sealed_in = world.settings.get(names.SELF_BACKUP_KEY_EPOCH)
            if world.settings.get(names.TAKEN_OVER):
                return
            if is_due or sealed_in != str(keys.secrets.current.epoch):
                self._copy(store, keys)
                self._drop_old(store, keys)

    def _is_gone(self, store: ObjectStore) -> bool:
        """Whether the last copy of this controller is in the repository no more; one that failed is tried again later."""
        world = self._world
        number = int(world.settings.get(names.SELF_BACKUP_NUMBER) or 0)
        own = CopyPlace(controller_epoch=world.controller_epoch, number=number)
        if not number or world.settings.get(names.SELF_BACKUP_PROBLEM):
            return False
        if own in stored_copies(store):
            return False
        log.error(
            "the last copy of the controller is gone; another one is made",
            extra={"object": own.name},
        )
        return True

    def _look_for_others(self, store: ObjectStore) -> None:
        """Whether somebody else works as the controller of this repository, by what only one who has its keys can put."""
        world = self._world
        authority = world.keeper.keys().authority_public
        head = newest_generation(store, authority=authority).head
        keys = world.keeper.keys()  # again: a change of our own may have come between
        found = ""
        if head.generation > keys.generation:
            found = f"{_OTHER_TOOK_OVER}: it changed the keys (generation {head.generation})"
        epoch = world.controller_epoch
        begun = int(world.settings.get(names.SELF_BACKUP_NUMBER) or 0)
        own = CopyPlace(controller_epoch=epoch, number=begun)
        authorities = [head.authority_public, *(each.public_key for each in head.earlier)]
        for place in reversed([each for each in stored_copies(store) if each > own]):
            try:
                check_copy(store, place, keys.common, successors=authorities)
            except (IntegrityError, FormatError, ObjectMissing):
                continue  # nobody who has the keys put it; `check` tells of it
            found = f"{_OTHER_TOOK_OVER}: it put {place.name}"
            break
        if found != world.settings.get(names.TAKEN_OVER):
            log.error("whether this is the only controller has changed", extra={"found": found})
            world.settings.set(names.TAKEN_OVER, found)

    def _copy(self, store: ObjectStore, keys: RepositoryKeys) -> None:
        world = self._world
        begun = int(world.settings.get(names.SELF_BACKUP_NUMBER) or 0)
        place = CopyPlace(controller_epoch=world.controller_epoch, number=begun + 1)
        # before it is put: what is there beyond this number, somebody else put
        world.settings.set(names.SELF_BACKUP_NUMBER, str(place.number))
        made_at = utc_text(world.clock.now())
        own = key_file_recipient(world.keeper.key_file().read_bytes(), label="controller")
        try:
            self._heads[place] = store_own_copy(
                store,
                keys,
                OwnCopy(
                    place=place,
                    controller_id=world.controller_id,
                    made_at=made_at,
                    recipient=own.public_key,
                ),
                database=self._database,
                places=self._places,
                check=self._check,
            )
        except ObjectExists:
            log.warning("somebody else put a copy of this controller")
            self._look_for_others(store)
            return
        with self._database.transaction():
            world.settings.set(names.DATABASE_COPIED_AT, made_at)
            world.settings.set(names.SELF_BACKUP_KEY_EPOCH, str(keys.secrets.current.epoch))
            world.settings.set(names.SELF_BACKUP_PROBLEM, "")
        every = world.configuration.self_backup_seconds
        self._next_at = world.clock.monotonic_seconds() + every
        log.info("the controller was backed up", extra={"object": place.name})

    def _drop_old(self, store: ObjectStore, keys: RepositoryKeys) -> None:
        there = stored_copies(store)
        unreadable = []
        for place in there:
            try:
                if place not in self._heads:
                    self._heads[place] = read_copy_head(store, place, keys)
            except (IntegrityError, FormatError):
                unreadable.append(place)
            except ObjectMissing:
                continue
        self._heads = {place: head for place, head in self._heads.items() if place in there}
        doomed = copies_to_drop(self._heads.values())
        if len(self._heads) >= HOURLY_KEPT:
            oldest_kept = sorted(self._heads)[-HOURLY_KEPT]
            doomed += [place for place in unreadable if place < oldest_kept]
        for place in doomed:
            self._check()
            try:
                store.delete(place.name)
            except ObjectMissing:
                continue

    def _check(self) -> None:
        if self._world.stopping.is_set():
            raise Interrupted("the controller is stopping")

    def _first_after(self) -> float:
        """Seconds until the first copy of this life: the last one may be young."""
        made_at = self._world.settings.get(names.DATABASE_COPIED_AT)
        if not made_at:
            return 0.0
        age = (self._world.clock.now() - parse_utc(made_at)).total_seconds()
        every = self._world.configuration.self_backup_seconds
        return every - age if 0 <= age < every else 0.0  # of the future: a clock was wrong

    def _failed(self, problem: str) -> None:
        every = self._world.configuration.self_backup_seconds
        self._next_at = self._world.clock.monotonic_seconds() + min(every, RETRY_SECONDS)
        log.warning("the controller could not be backed up", extra={"error": problem})
        try:
            self._world.settings.set(names.SELF_BACKUP_PROBLEM, problem)
        except HoldfastError as error:
            log.warning("that could not be written down", extra={"error": error.line()})


def copy_verdict(world: World) -> CopyVerdict:
    """Whether this controller could be brought back as it was not long ago."""
    made_at = world.settings.get(names.DATABASE_COPIED_AT)
    problem = world.settings.get(names.SELF_BACKUP_PROBLEM)
    last = f"the last one is of {made_at[:19]}" if made_at else "there is none yet"
    if problem:
        return CopyVerdict(
            made_at=made_at,
            problem=f"the controller could not be backed up into the repository, {last}: {problem}",
        )
    if made_at and _is_old(world, parse_utc(made_at)):
        return CopyVerdict(made_at=made_at, problem=f"the copy of the controller is old: {last}")
    return CopyVerdict(made_at=made_at, problem="")


def _is_old(world: World, made_at: datetime) -> bool:
    every = timedelta(seconds=world.configuration.self_backup_seconds)
    return world.clock.now() - made_at > every * OLD_AFTER + OLD_AFTER_TOO
