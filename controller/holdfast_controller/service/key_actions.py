"""What operators can do with the repository's keys: message in, message out. No secret passes through here."""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from holdfast_common.clock import utc_text
from holdfast_common.errors import Refused, UsageError
from holdfast_common.repository.key_changes import (
    add_recipient,
    check_addition,
    check_removal,
    found_recipient,
    recipients_of,
    remove_recipient,
    rotate,
)
from holdfast_common.repository.key_generation import KeyGenerationHead
from holdfast_common.repository.keys import RepositoryKeys
from holdfast_common.repository.object_store import ObjectStore
from holdfast_common.repository.randomness import SYSTEM_RANDOMNESS
from holdfast_common.repository.recipients import (
    KEY_FILE,
    KINDS,
    PASSPHRASE,
    RECOVERY_SHEET,
    Argon2Cost,
    KeyFileUnlock,
    NewRecipient,
    RecipientEntry,
    key_file_recipient,
    new_key_file,
    public_key_recipient,
    unlocks,
)
from holdfast_common.trust.keys import write_private
from holdfast_common.wire import operator_pb2
from holdfast_controller.runs.world import World
from holdfast_controller.service.access_rules import current_actor
from holdfast_controller.store import settings as names

KEPT_FOR_JOBS: Final = "jobs that run now end with the keys that they were given ({count} of them)"


class KeyActions:
    """Thread-safe: changes are made one after the other."""

    def __init__(self, world: World) -> None:
        self._world = world

    def list_keys(self, _: operator_pb2.Empty) -> operator_pb2.KeyList:
        """Who can open the repository. Raises: NoRepository, IntegrityError."""
        keeper = self._world.keeper
        keys = keeper.keys()
        stored = keeper.generation()
        own = keeper.own_unlock()
        return operator_pb2.KeyList(
            repository_id=keeper.repository_id,
            generation=stored.head.generation,
            epoch=keys.secrets.current.epoch,
            authority=keys.authority_public.hex(),
            recipients=[recipient_message(entry, own) for entry in stored.head.recipients],
            key_object=stored.encoded,
        )

    def add_recipient(self, request: operator_pb2.NewRecipient) -> operator_pb2.KeyChange:
        """One more who can open everything. Raises: UsageError, Refused."""
        recipient = _recipient(request)
        head = self._head()
        check_addition(head.recipients, recipient)
        plan = [
            f"{recipient.label} ({recipient.kind}) will be able to read every backup in this repository,"
            " of before and of later"
        ]
        if request.dry_run:
            return self._planned(plan)
        keys = self._world.keeper.change(
            lambda store, keys: add_recipient(store, keys, recipient, clock=self._world.clock)
        )
        added = found_recipient(self._head().recipients, recipient.label)
        if recipient.kind == RECOVERY_SHEET and request.sheet_kept:
            # It takes the place of one that was never typed back, or was lost before it was.
            settings = self._world.settings
            settings.set(names.SHEET_CONFIRMED_AT, utc_text(self._world.clock.now()))
        self._audit("add a recipient", added, keys)
        return self._done(plan, keys, recipient=added)

    def remove_recipient(self, request: operator_pb2.RecipientRemoval) -> operator_pb2.KeyChange:
        """Shut one out, and rotate. Raises: NotFound, Refused."""
        head = self._head()
        entry = found_recipient(head.recipients, request.recipient)
        if unlocks(self._world.keeper.own_unlock(), entry):
            raise Refused(
                "the controller opens the repository with this one",
                advice="to replace it: `holdfast key rotate --renew-controller-key`",
            )
        leave = request.leave_no_sheet
        rest = check_removal(head.recipients, entry, leave_no_sheet=leave)
        plan = [
            f"{entry.label} ({entry.kind}) will not open what is in this repository any more;"
            " what it copied from it, or opened before, it keeps",
            f"{len(rest)} recipients remain: " + ", ".join(each.label for each in rest),
            *self._rotation_plan(),
        ]
        if request.dry_run:
            return self._planned(plan, recipient=entry)
        keys = self._world.keeper.change(
            lambda store, keys: remove_recipient(
                store, keys, entry.recipient_id, leave_no_sheet=leave
            )
        )
        self._audit("remove a recipient", entry, keys)
        return self._done(plan, keys, recipient=entry)

    def rotate_keys(self, request: operator_pb2.KeyRotation) -> operator_pb2.KeyChange:
        """New keys for all that is written from now on. Raises: Refused."""
        self._head()
        plan = self._rotation_plan()
        if request.renew_controller_key:
            plan.append("the controller gets a new key file; the old one opens nothing any more")
        if request.dry_run:
            return self._planned(plan)
        if request.renew_controller_key:
            keys = self._with_new_controller_key()
        else:
            keys = self._world.keeper.change(rotate)
        self._audit("rotate the keys", None, keys)
        return self._done(plan, keys)

    def _with_new_controller_key(self) -> RepositoryKeys:
        keeper = self._world.keeper
        own = keeper.own_unlock()
        now = utc_text(self._world.clock.now())
        content = new_key_file(SYSTEM_RANDOMNESS)
        new = key_file_recipient(content, label="controller")
        replacement = keeper.replacement_file()
        # First the file, then the generation that needs it; the keeper puts it in place after a crash.
        write_private(replacement, content)

        def work(store: ObjectStore, keys: RepositoryKeys) -> RepositoryKeys:
            entries = tuple(
                replace(entry, public_key=new.public_key, created_at=now)
                if unlocks(own, entry)
                else entry
                for entry in recipients_of(store, keys)
            )
            return rotate(store, keys, recipients=entries)

        keys = keeper.change(work)
        replacement.replace(keeper.key_file())
        return keys

    def _rotation_plan(self) -> list[str]:
        return [
            "what is written from now on is sealed with new keys; what is there stays sealed with the old"
            " ones, and who holds those (or a copy of the root) still opens it",
            *([KEPT_FOR_JOBS.format(count=self._running())] if self._running() else []),
        ]

    def _running(self) -> int:
        return len(self._world.jobs.unfinished())

    def _head(self) -> KeyGenerationHead:
        return self._world.keeper.generation().head

    def _planned(
        self, plan: list[str], recipient: RecipientEntry | None = None
    ) -> operator_pb2.KeyChange:
        return self._change(plan, self._world.keeper.keys(), recipient, done=False)

    def _done(
        self, plan: list[str], keys: RepositoryKeys, recipient: RecipientEntry | None = None
    ) -> operator_pb2.KeyChange:
        return self._change(plan, keys, recipient, done=True)

    def _change(
        self,
        plan: list[str],
        keys: RepositoryKeys,
        recipient: RecipientEntry | None,
        *,
        done: bool,
    ) -> operator_pb2.KeyChange:
        own = self._world.keeper.own_unlock()
        return operator_pb2.KeyChange(
            done=done,
            generation=keys.generation,
            epoch=keys.secrets.current.epoch,
            recipient=None if recipient is None else recipient_message(recipient, own),
            plan=plan,
            running_jobs=self._running(),
        )

    def _audit(self, action: str, recipient: RecipientEntry | None, keys: RepositoryKeys) -> None:
        about = "" if recipient is None else f" {recipient.recipient_id.hex()} {recipient.kind}"
        self._world.audit.append(
            actor=current_actor(),
            action=action,
            object=f"{self._world.keeper.repository_id}{about}",
            result=f"generation {keys.generation}, epoch {keys.secrets.current.epoch}",
        )


def _recipient(request: operator_pb2.NewRecipient) -> NewRecipient:
    """Raises: UsageError, FormatError."""
    if request.kind not in KINDS:
        raise UsageError("unknown kind of recipient", kind=request.kind[:40])
    checked = public_key_recipient(request.public_key, label=request.label)
    if request.kind != PASSPHRASE:
        return replace(checked, kind=request.kind)
    cost = Argon2Cost(
        memory_kib=request.argon2_memory_kib,
        iterations=request.argon2_iterations,
        lanes=request.argon2_lanes,
    )
    return replace(checked, kind=PASSPHRASE, argon2_salt=request.argon2_salt, argon2=cost)


def recipient_message(entry: RecipientEntry, own: KeyFileUnlock) -> operator_pb2.Recipient:
    """One who can open the repository; ``own``: what the controller opens it with."""
    return operator_pb2.Recipient(
        recipient_id=entry.recipient_id.hex(),
        kind=entry.kind,
        label=entry.label,
        created_at=entry.created_at,
        public_key=entry.public_key.hex(),
        controller=entry.kind == KEY_FILE and unlocks(own, entry),
    )
