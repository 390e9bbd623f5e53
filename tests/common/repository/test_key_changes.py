"""Recipients come and go, keys are rotated: with crashes at every call, forgers, and jobs that are running."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from holdfast_common.errors import (
    HoldfastError,
    IntegrityError,
    NotFound,
    Refused,
    RepositoryFailed,
    UsageError,
    WrongKey,
)
from holdfast_common.repository.check import check_data
from holdfast_common.repository.key_changes import (
    add_recipient,
    found_recipient,
    recipients_of,
    remove_recipient,
    rotate,
    settle,
)
from holdfast_common.repository.key_generation import KeySecrets, encoded_generation
from holdfast_common.repository.key_objects import new_epoch, newest_generation
from holdfast_common.repository.key_sets import ReaderKeys, SegmentKeyRequest, WriterKeys
from holdfast_common.repository.keys import RepositoryKeys, open_repository
from holdfast_common.repository.layout import copy_name, keys_name
from holdfast_common.repository.manifest import ManifestFacts
from holdfast_common.repository.object_store import ObjectStore
from holdfast_common.repository.points import list_points
from holdfast_common.repository.randomness import SYSTEM_RANDOMNESS
from holdfast_common.repository.recipients import (
    Argon2Cost,
    KeyFileUnlock,
    NewRecipient,
    PassphraseUnlock,
    PrivateKeyUnlock,
    RecoveryUnlock,
    Unlock,
    key_file_recipient,
    new_key_file,
    passphrase_recipient,
    public_key_recipient,
    recovery_recipient,
    wrapped_for,
)
from holdfast_common.repository.recovery_sheet import new_recovery_sheet
from holdfast_common.repository.writers import ROLE_WRITE, Writer, load_writers, store_writers
from support.faulty_store import Fault, FaultyStore
from support.memory_store import MemoryStore
from support.repositories import (
    LINEAGE,
    Repository,
    authorise,
    disk_header,
    new_repository,
    patterned,
)

CHEAP = Argon2Cost(memory_kib=64, iterations=1, lanes=1)
CONTROLLER = new_key_file(SYSTEM_RANDOMNESS)
VAULT = X25519PrivateKey.generate()
SECOND_SHEET = new_recovery_sheet(repository_id="", randomness=SYSTEM_RANDOMNESS)
IMAGE = patterned(3 * 65536, "image")
LATER = patterned(3 * 65536, "later")

NEW: dict[str, tuple[NewRecipient, Unlock]] = {
    "passphrase": (
        passphrase_recipient("night", label="new", randomness=SYSTEM_RANDOMNESS, cost=CHEAP),
        PassphraseUnlock("night"),
    ),
    "key file": (key_file_recipient(b"holdfast-key-1:" + b"cd" * 32, label="new"),
                 KeyFileUnlock(b"holdfast-key-1:" + b"cd" * 32)),
    "public key": (
        public_key_recipient(VAULT.public_key().public_bytes_raw(), label="new"),
        PrivateKeyUnlock(VAULT.private_bytes_raw()),
    ),
    "recovery sheet": (replace(recovery_recipient(SECOND_SHEET), label="new"), RecoveryUnlock(SECOND_SHEET)),
}  # fmt: skip


@pytest.fixture
def store() -> MemoryStore:
    return MemoryStore()


@pytest.fixture
def repository(store: MemoryStore) -> Repository:
    return new_repository(store, recipients=[key_file_recipient(CONTROLLER, label="controller")])


def changed(repository: Repository, keys: RepositoryKeys) -> RepositoryKeys:
    settle(repository.store, keys)
    repository.keys = keys
    return keys


def recipient_id(repository: Repository, label: str) -> bytes:
    entries = recipients_of(repository.store, repository.keys)
    return found_recipient(entries, label).recipient_id


def add(repository: Repository, recipient: NewRecipient) -> RepositoryKeys:
    keys = add_recipient(repository.store, repository.keys, recipient, clock=repository.clock)
    return changed(repository, keys)


@pytest.mark.parametrize("kind", NEW)
def test_who_is_added_opens_old_and_new_and_who_is_removed_opens_nothing(
    repository: Repository, store: MemoryStore, kind: str
) -> None:
    old = repository.backup(IMAGE)
    recipient, unlock = NEW[kind]
    with pytest.raises(WrongKey):
        open_repository(store, unlock)
    add(repository, recipient)
    opened = open_repository(store, unlock)
    assert replace(repository, keys=opened).restored(old) == IMAGE
    before = recipient_id(repository, "new")

    changed(repository, remove_recipient(store, repository.keys, before))
    with pytest.raises(WrongKey):
        open_repository(store, unlock)
    for remaining in (KeyFileUnlock(CONTROLLER), RecoveryUnlock(repository.sheet)):
        keys = open_repository(store, remaining)
        assert keys.generation == 3
        assert replace(repository, keys=keys).restored(old) == IMAGE


def test_recipients_keep_their_ids_labels_and_dates(repository: Repository) -> None:
    before = recipients_of(repository.store, repository.keys)
    add(repository, NEW["passphrase"][0])
    changed(repository, rotate(repository.store, repository.keys))
    after = recipients_of(repository.store, repository.keys)
    plain = [replace(entry, wrapped_root=b"") for entry in after]
    assert plain[:-1] == [replace(entry, wrapped_root=b"") for entry in before]
    assert len({entry.wrapped_root for entry in (*before, *after)}) == len(before) + len(after)


def test_what_a_removed_recipient_kept_opens_the_old_and_not_the_new(
    repository: Repository, store: MemoryStore
) -> None:
    """The promise and its limit: nothing is taken back, and nothing new is given."""
    old = repository.backup(IMAGE)
    add(repository, NEW["public key"][0])
    kept = open_repository(store, NEW["public key"][1])
    changed(repository, remove_recipient(store, repository.keys, recipient_id(repository, "new")))
    new = repository.backup(LATER)
    assert not [name for name in store.objects if name.startswith("keys/") and "3" not in name]

    evicted = replace(repository, keys=kept)
    assert evicted.restored(old) == IMAGE
    with pytest.raises(HoldfastError):
        evicted.restored(new)
    content_epochs = {epoch.epoch for epoch in kept.secrets.epochs}
    assert repository.keys.writer_keys(LINEAGE).content_epoch not in content_epochs


def test_a_rotation_renews_all_but_the_id_key(repository: Repository, store: MemoryStore) -> None:
    before = repository.keys.secrets
    after = changed(repository, rotate(store, repository.keys)).secrets
    assert after.id_key == before.id_key
    assert after.epochs[:-1] == before.epochs
    new, old = after.current, before.current
    assert new.epoch == old.epoch + 1
    assert not {new.index_key, new.meta_key, new.content_private} & {
        old.index_key, old.meta_key, old.content_private,
    }  # fmt: skip
    assert after.authority_private != before.authority_private
    assert after.earlier_authorities == (before.authority_private,)


def test_points_dedup_and_incrementals_go_on_across_rotations(
    repository: Repository, store: MemoryStore
) -> None:
    points = [repository.backup(patterned(16 * 65536, "wide"))]
    image = patterned(16 * 65536, "wide")
    for turn in range(3):
        changed(repository, rotate(store, repository.keys))
        image[turn * 65536 : turn * 65536 + 512] = bytes([turn + 1]) * 512
        points.append(
            repository.backup(image, ranges=[(turn * 65536, 65536)], previous=points[-1].disks[0])
        )
    packs = len(list(store.list("packs/")))
    repository.backup(patterned(16 * 65536, "wide"))  # known, from before the rotations
    assert len(list(store.list("packs/"))) == packs
    assert repository.restored(points[0]) == patterned(16 * 65536, "wide")
    assert repository.restored(points[-1]) == image
    report = check_data(store, repository.keys, segment_keys=repository.keys)
    assert report.is_clean, report.damaged
    assert len(repository.keys.earlier) == 3


def test_the_list_of_writers_is_put_again_under_the_new_keys(
    repository: Repository, store: MemoryStore
) -> None:
    before = repository.keys.writers(store)
    old_keys = repository.keys.common
    changed(repository, rotate(store, repository.keys))
    after = repository.keys.writers(store)
    assert (after.number, after.writers, after.damaged) == (before.number + 1, before.writers, ())
    assert repository.keys.common.writers_number_min == after.number
    assert load_writers(store, old_keys).writers == before.writers  # who holds old keys goes on


class TestRefusals:
    def test_the_last_sheet_stays_unless_it_is_said(
        self, repository: Repository, store: MemoryStore
    ) -> None:
        sheet = recipient_id(repository, "recovery sheet")
        before = dict(store.objects)
        with pytest.raises(Refused, match="last recovery sheet"):
            remove_recipient(store, repository.keys, sheet)
        assert store.objects == before
        changed(repository, remove_recipient(store, repository.keys, sheet, leave_no_sheet=True))
        with pytest.raises(WrongKey):
            open_repository(store, RecoveryUnlock(repository.sheet))

    def test_one_of_two_sheets_goes(self, repository: Repository, store: MemoryStore) -> None:
        add(repository, NEW["recovery sheet"][0])
        sheet = recipient_id(repository, "recovery sheet")
        changed(repository, remove_recipient(store, repository.keys, sheet))
        open_repository(store, RecoveryUnlock(SECOND_SHEET))

    def test_the_last_recipient_stays_whatever_is_said(self, store: MemoryStore) -> None:
        repository = new_repository(store)
        (only,) = recipients_of(store, repository.keys)
        with pytest.raises(Refused, match="nobody could open"):
            remove_recipient(store, repository.keys, only.recipient_id, leave_no_sheet=True)

    def test_the_same_recipient_and_the_same_label_are_refused(
        self, repository: Repository, store: MemoryStore
    ) -> None:
        recipient = NEW["key file"][0]
        add(repository, recipient)
        for again in (replace(recipient, label="other"), NEW["passphrase"][0]):
            with pytest.raises(Refused):
                add_recipient(store, repository.keys, again, clock=repository.clock)
        for label in ("", "x" * 101, "a\x1b[1m"):
            with pytest.raises(UsageError):
                add_recipient(
                    store,
                    repository.keys,
                    replace(NEW["passphrase"][0], label=label),
                    clock=repository.clock,
                )

    def test_an_unknown_recipient_is_not_found(
        self, repository: Repository, store: MemoryStore
    ) -> None:
        with pytest.raises(NotFound):
            remove_recipient(store, repository.keys, bytes(8))

    def test_keys_that_are_not_the_newest_any_more_change_nothing(
        self, repository: Repository, store: MemoryStore
    ) -> None:
        old = repository.keys
        changed(repository, rotate(store, old))
        before = dict(store.objects)
        for change in (lambda: rotate(store, old), lambda: recipients_of(store, old)):
            with pytest.raises(Refused, match="somebody else"):
                change()
        assert store.objects == before


CHANGES: dict[str, Callable[[ObjectStore, Repository], RepositoryKeys]] = {
    "add": lambda store, made: add_recipient(
        store, made.keys, NEW["public key"][0], clock=made.clock
    ),
    "remove": lambda store, made: remove_recipient(store, made.keys, recipient_id(made, "auditor")),
    "rotate": lambda store, made: rotate(store, made.keys),
}


@pytest.mark.parametrize(
    ("reply_lost", "persistent"), [(False, False), (True, False), (False, True)]
)
@pytest.mark.parametrize("change", CHANGES)
def test_a_crash_at_any_call_of_a_change_leaves_the_old_keys_or_the_new(
    change: str, reply_lost: bool, persistent: bool
) -> None:
    inner = MemoryStore()
    auditor = key_file_recipient(b"holdfast-key-1:" + b"ef" * 32, label="auditor")
    made = new_repository(
        inner, recipients=[key_file_recipient(CONTROLLER, label="controller"), auditor]
    )
    point = made.backup(IMAGE)
    call, generations = 0, set()
    while True:
        here = inner.copy()
        faulty = FaultyStore(
            here,
            Fault(
                call=call,
                error=RepositoryFailed("lost"),
                reply_lost=reply_lost,
                persistent=persistent,
            ),
        )
        ended = False
        try:
            settle(faulty, CHANGES[change](faulty, replace(made, store=here)))
            ended = not faulty.failed_at
        except RepositoryFailed:
            assert faulty.failed_at
        generations.add(_whole_after_a_crash(here, made, point))
        if ended:
            break
        call += 1
    assert call > 10
    assert generations == {1, 2}


def _whole_after_a_crash(store: MemoryStore, made: Repository, point: object) -> int:
    """Both remaining recipients open it, the point restores, the next backup runs, nothing is left over."""
    found = open_repository(store, RecoveryUnlock(made.sheet))
    keys = open_repository(store, KeyFileUnlock(CONTROLLER), authority=made.keys.authority_public)
    assert keys.generation == found.generation
    settle(store, keys)
    after = replace(made, store=store, keys=keys)
    authorise(after, made.signing_key, agent_id="proxy-1")
    (listed,) = list_points(store, keys).points
    assert after.restored(listed) == IMAGE
    after.backup(LATER)
    report = check_data(store, keys, segment_keys=keys)
    assert report.is_clean, report.damaged
    assert sorted(info.name for info in store.list("keys/")) == [
        keys_name(keys.generation),
        copy_name(keys_name(keys.generation)),
    ]
    return keys.generation


class TestRunningJobs:
    """What holds the old epoch's keys while they are rotated."""

    def test_a_running_backup_goes_on_to_its_end(
        self, repository: Repository, store: MemoryStore
    ) -> None:
        earlier = repository.backup(IMAGE)
        old_keys = repository.keys
        with repository.writer() as writer:
            disk = writer.begin_disk(disk_header(len(LATER)), previous=earlier.disks[0])
            disk.write(0, LATER)
            keys = changed(repository, rotate(store, old_keys))
            other = Ed25519PrivateKey.generate()
            authorise(repository, other, agent_id="proxy-2")
            repository.backup(IMAGE, signing_key=other)  # by the next StartJob, in the new epoch
            disk.finish()
            prepared = writer.prepare(ManifestFacts())
            wanted = old_keys.authority_public
            grant = keys.commit_grant(
                job_id=prepared.manifest.job_id,
                attempt=prepared.manifest.attempt,
                manifest_digest=prepared.manifest_digest,
                controller_epoch=1,
                authority=wanted,
            )
            point_id = writer.publish(prepared, grant)
        listed = list_points(store, repository.keys)
        assert not listed.unusable
        assert len(listed.points) == 3
        point = next(found for found in listed.points if found.point_id == point_id)
        assert repository.restored(point) == LATER
        assert check_data(store, keys, segment_keys=keys).is_clean

    def test_a_grant_of_the_new_authority_is_not_taken_by_who_cannot_know_it(
        self, repository: Repository, store: MemoryStore
    ) -> None:
        with repository.writer() as writer:
            disk = writer.begin_disk(disk_header(len(LATER)))
            disk.write(0, LATER)
            disk.finish()
            prepared = writer.prepare(ManifestFacts())
            changed(repository, rotate(store, repository.keys))
            with pytest.raises(IntegrityError, match="grant"):
                writer.publish(prepared, repository.grant(prepared))

    def test_a_running_restore_goes_on(self, repository: Repository, store: MemoryStore) -> None:
        point = repository.backup(IMAGE)
        keys = repository.keys.reader_keys(LINEAGE)
        changed(repository, rotate(store, repository.keys))
        held = replace(repository, keys=repository.keys)
        assert ReaderKeys.from_bytes(keys.to_bytes()).current_epoch == 1
        assert held.restored(point) == IMAGE

    def test_the_next_job_seals_in_the_new_epoch(
        self, repository: Repository, store: MemoryStore
    ) -> None:
        changed(repository, rotate(store, repository.keys))
        travelled = WriterKeys.from_bytes(repository.keys.writer_keys(LINEAGE).to_bytes())
        assert travelled == repository.keys.writer_keys(LINEAGE)
        assert (travelled.content_epoch, travelled.reader.current_epoch) == (2, 2)
        assert len(travelled.reader.replaced_authorities) == 1


class TestForgers:
    """Anybody can read the recipients' public keys, and some can write to the folder."""

    def _forged(self, store: MemoryStore, *, number: int, authority: bytes | None = None) -> None:
        """A generation whose secrets the forger knows, wrapped to everybody who is there."""
        head = newest_generation(store).head
        draw = SYSTEM_RANDOMNESS.draw
        root = draw(32)
        entries = tuple(
            wrapped_for(
                NewRecipient(
                    kind=entry.kind,
                    label=entry.label,
                    public_key=entry.public_key,
                    argon2_salt=entry.argon2_salt,
                    argon2=entry.argon2,
                ),
                root=root,
                repository_id=head.repository_id,
                generation=number,
                created_at=entry.created_at,
                randomness=SYSTEM_RANDOMNESS,
            )
            for entry in head.recipients
        )
        secrets = KeySecrets(
            repository_id=head.repository_id,
            domain_id=head.domain_id,
            id_key=draw(32),
            authority_private=authority or draw(32),
            epochs=(new_epoch(1, SYSTEM_RANDOMNESS),),
        )
        data = encoded_generation(
            secrets, root=root, generation=number, salt=draw(32), recipients=entries
        )
        store.objects[keys_name(number)] = data
        store.objects[copy_name(keys_name(number))] = data

    def test_keys_that_a_stranger_wrapped_for_the_controller_are_passed_over(
        self, repository: Repository, store: MemoryStore
    ) -> None:
        """Else who can write to the folder could have all later backups sealed to a key of his own."""
        point = repository.backup(IMAGE)
        known = repository.keys.authority_public
        self._forged(store, number=2)
        opened = open_repository(store, KeyFileUnlock(CONTROLLER), authority=known)
        assert opened.generation == 1
        assert replace(repository, keys=opened).restored(point) == IMAGE
        after = rotate(store, opened)  # and its number is not in the way
        assert after.generation == 3
        settle(store, after)
        found = open_repository(store, RecoveryUnlock(repository.sheet))
        assert found.authority_public == after.authority_public

    def test_who_was_shut_out_cannot_forge_a_generation_with_what_he_kept(
        self, repository: Repository, store: MemoryStore
    ) -> None:
        kept = repository.keys.secrets.authority_private
        keys = changed(repository, rotate(store, repository.keys))
        self._forged(store, number=9, authority=kept)
        opened = open_repository(
            store, KeyFileUnlock(CONTROLLER), authority=keys.authority_public, generation_min=2
        )
        assert opened.authority_public == keys.authority_public

    def test_who_was_shut_out_cannot_list_writers_with_what_he_kept(
        self, repository: Repository, store: MemoryStore
    ) -> None:
        old = repository.keys
        keys = changed(repository, rotate(store, old))
        thief = Ed25519PrivateKey.generate()
        mine = Writer(
            agent_id="thief",
            public_key=thief.public_key().public_bytes_raw(),
            roles=(ROLE_WRITE,),
            added_at="",
        )
        store_writers(
            store,
            (mine,),
            number=50,
            keys=old.common,
            authority=Ed25519PrivateKey.from_private_bytes(old.secrets.authority_private),
            randomness=SYSTEM_RANDOMNESS,
        )
        listed = keys.writers(store)
        assert listed.of(mine.public_key) is None
        assert [name for name, _ in listed.damaged] == [
            "writers/0000000050",
            "writers/0000000050-copy",
        ]
        point = repository.backup(IMAGE)
        assert repository.restored(point) == IMAGE

    def test_an_older_generation_put_back_is_noticed(
        self, repository: Repository, store: MemoryStore
    ) -> None:
        before = {name: data for name, data in store.objects.items() if name.startswith("keys/")}
        keys = changed(repository, rotate(store, repository.keys))
        for name in [info.name for info in store.list("keys/")]:
            store.delete(name)
        store.objects.update(before)
        for authority in (b"", keys.authority_public):
            with pytest.raises(IntegrityError):
                open_repository(
                    store, KeyFileUnlock(CONTROLLER), authority=authority, generation_min=2
                )
        with pytest.raises(IntegrityError):
            open_repository(store, KeyFileUnlock(CONTROLLER), authority=keys.authority_public)

    def test_a_succession_that_nobody_signed_is_refused(
        self, repository: Repository, store: MemoryStore
    ) -> None:
        keys = changed(repository, rotate(store, repository.keys))
        root = SYSTEM_RANDOMNESS.draw(32)
        for field, value in (
            ("signature", bytes(64)),
            ("writers_number", 10**6),
            ("next_generation", 1),
        ):
            (earlier,) = keys.earlier
            data = encoded_generation(
                keys.secrets,
                root=root,
                generation=3,
                salt=bytes(32),
                recipients=recipients_of(store, keys),
                earlier=(replace(earlier, **{field: value}),),  # type: ignore[arg-type]  # one field of each type
            )
            store.objects[keys_name(3)] = data
            assert newest_generation(store).head.generation == 2

    def test_a_segment_key_of_one_epoch_is_none_of_another(
        self, repository: Repository, store: MemoryStore
    ) -> None:
        from holdfast_common.repository.chunk_codec import SegmentSealer

        header = SegmentSealer(repository.keys.writer_keys(LINEAGE), SYSTEM_RANDOMNESS).header
        keys = changed(repository, rotate(store, repository.keys))
        request = SegmentKeyRequest(
            origin_id=header.origin_id, content_epoch=1, wrapped_key=header.wrapped_key
        )
        assert len(keys.open_segment_keys([request])) == 1
        with pytest.raises(WrongKey):
            keys.open_segment_keys([replace(request, content_epoch=2)])
