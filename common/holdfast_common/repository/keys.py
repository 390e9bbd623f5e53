"""The controller's keys of a repository: made once, opened by any recipient, never given away whole."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import replace

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from holdfast_common.clock import Clock, utc_text
from holdfast_common.errors import (
    HoldfastError,
    IntegrityError,
    ObjectExists,
    Refused,
    UsageError,
    WrongKey,
)
from holdfast_common.repository.about_renewal import describe
from holdfast_common.repository.derivation import lineage_key, lineage_tag, opened_with_private_key
from holdfast_common.repository.key_generation import (
    EarlierAuthority,
    KeySecrets,
    encoded_generation,
)
from holdfast_common.repository.key_objects import (
    new_epoch,
    newest_generations,
    put_generation,
    withdraw_generation,
)
from holdfast_common.repository.key_sets import (
    EpochKeys,
    ReaderKeys,
    ReplacedAuthority,
    SegmentKeyRequest,
    WriterKeys,
    grant_message,
    segment_info,
)
from holdfast_common.repository.layout import (
    ID_BYTES,
    KEY_BYTES,
    NO_LINEAGE,
)
from holdfast_common.repository.object_store import ObjectStore
from holdfast_common.repository.randomness import SYSTEM_RANDOMNESS, Randomness
from holdfast_common.repository.recipients import (
    NewRecipient,
    Unlock,
    recovery_recipient,
    unwrapped_root,
    wrapped_for,
)
from holdfast_common.repository.recovery_sheet import RecoverySheet, new_recovery_sheet
from holdfast_common.repository.revocation import Revoked, next_step
from holdfast_common.repository.stored_objects import stored_objects
from holdfast_common.repository.writers import (
    ROLE_VERIFY,
    ROLE_WRITE,
    ROLES,
    Writer,
    WriterList,
    load_writers,
    store_missing_copy,
    store_writers,
)

_WRITERS_ATTEMPTS = 8  # two controllers at once are a mistake, not a load


class RepositoryKeys:
    """Everything: whoever holds this object can read the repository and name its writers.

    Safe for use by several threads.
    """

    def __init__(
        self,
        secrets: KeySecrets,
        *,
        generation: int,
        randomness: Randomness,
        earlier: tuple[EarlierAuthority, ...] = (),
    ) -> None:
        self.secrets = secrets
        self.randomness = randomness
        self.generation = generation
        self.earlier = earlier
        self.writers_number_min = 0  # set it to the highest number ever seen, and raise it

    def __repr__(self) -> str:
        return f"RepositoryKeys(repository={self.repository_id}, generation={self.generation})"

    @property
    def repository_id(self) -> str:
        """32 hexadecimal digits."""
        return self.secrets.repository_id.hex()

    @property
    def authority_public(self) -> bytes:
        """The public key that vouches for writers and grants."""
        return self._authority().public_key().public_bytes_raw()

    @property
    def common(self) -> ReaderKeys:
        """Keys of what no lineage owns."""
        return self._reader("", NO_LINEAGE)

    def of_tag(self, tag: bytes) -> ReaderKeys | None:
        """Keys of the lineage that a name in the repository belongs to; its id is not known from here."""
        return self._reader("", tag)

    def reader_keys(self, lineage_id: str) -> ReaderKeys:
        """For a restore, verify or check job of that lineage."""
        return self._reader(lineage_id, lineage_tag(self.secrets.id_key, lineage_id))

    def writer_keys(self, lineage_id: str) -> WriterKeys:
        """For a backup job of that lineage."""
        current = self.secrets.current
        return WriterKeys(
            reader=self.reader_keys(lineage_id),
            content_epoch=current.epoch,
            content_public=current.content_public,
        )

    def open_segment_keys(self, requests: list[SegmentKeyRequest]) -> list[bytes]:
        """The answer to OpenSegmentKeys, in the requests' order. Raises: WrongKey."""
        private = {epoch.epoch: epoch.content_private for epoch in self.secrets.epochs}
        keys = []
        for request in requests:
            if request.content_epoch not in private:
                raise WrongKey("there is no content key of that epoch", epoch=request.content_epoch)
            info = segment_info(
                repository_id=self.secrets.repository_id,
                domain_id=self.secrets.domain_id,
                origin_id=request.origin_id,
                epoch=request.content_epoch,
            )
            keys.append(
                opened_with_private_key(
                    private[request.content_epoch], sealed=request.wrapped_key, info=info
                )
            )
        return keys

    def commit_grant(
        self,
        *,
        job_id: str,
        attempt: int,
        manifest_digest: bytes,
        controller_epoch: int,
        authority: bytes = b"",
    ) -> bytes:
        """The bytes of a commit grant; without one no restore point becomes valid.

        ``authority``: the public key that the job's own keys name, when it began before a rotation.
        """
        message = grant_message(
            self.secrets.repository_id,
            job_id=job_id,
            attempt=attempt,
            manifest_digest=manifest_digest,
            epoch=controller_epoch,
        )
        return controller_epoch.to_bytes(8, "little") + self._authority(authority).sign(message)

    def writers(self, store: ObjectStore) -> WriterList:
        """The newest list of writers."""
        listed = load_writers(store, self.common)
        self.writers_number_min = max(self.writers_number_min, listed.number)
        return listed

    def authorise_writer(
        self,
        store: ObjectStore,
        public_key: bytes,
        *,
        agent_id: str,
        clock: Clock,
        roles: Sequence[str] = (ROLE_WRITE, ROLE_VERIFY),
    ) -> WriterList:
        """List an agent's Ed25519 public key; harmless when it is listed already in these roles.

        Not in the role `prune`: a stolen proxy must not be able to close an epoch.

        Raises: Refused when that key was revoked; UsageError, RepositoryFull, RepositoryFailed.
        """
        if len(public_key) != KEY_BYTES or not set(roles) <= ROLES:
            raise UsageError("not a writer's key or roles", agent=agent_id)
        for _ in range(_WRITERS_ATTEMPTS):
            listed = self.writers(store)
            known = listed.of(public_key)
            if known is not None and known.revoked_at:
                raise Refused(
                    "this key was revoked; the agent needs a new one", agent=known.agent_id
                )
            if known is not None and set(known.roles) == set(roles):
                store_missing_copy(store, listed.number)
                return listed
            others = tuple(writer for writer in listed.writers if writer.public_key != public_key)
            added = Writer(
                agent_id=agent_id,
                public_key=public_key,
                roles=tuple(sorted(roles)),
                added_at=utc_text(clock.now()),
            )
            stored = self._store_writers(store, (*others, added), number=listed.number + 1)
            if stored is not None:
                return stored
        raise Refused("somebody else keeps changing the list of writers")

    def revoke_writer(
        self,
        store: ObjectStore,
        public_key: bytes,
        *,
        clock: Clock,
        keep_existing: bool,
        give_up_unread: bool = False,
    ) -> Revoked:
        """Refuse what this key signs from now on. Again is harmless, and finishes what was interrupted.

        ``keep_existing``: what it has signed until now stays valid (a proxy that retires); otherwise all of
        it is refused (a stolen key). ``give_up_unread``: also if damaged objects will count no more then.
        Raises: NotFound, Refused (something is damaged), RepositoryFull, RepositoryFailed: also when something
        cannot be read just now, and then the revocation may be half done; again goes on with it.
        """
        given_up: tuple[str, ...] = ()
        for _ in range(_WRITERS_ATTEMPTS):
            listed = self.writers(store)
            step = next_step(
                store,
                self,
                listed,
                public_key,
                at=utc_text(clock.now()),
                keep_existing=keep_existing,
                give_up_unread=give_up_unread,
            )
            if step is None:
                return Revoked(listed, given_up)
            given_up = tuple(dict.fromkeys((*given_up, *step.given_up)))
            self._store_writers(store, step.writers, number=listed.number + 1)
        raise Refused("somebody else keeps changing the list of writers")

    def restate_writers(self, store: ObjectStore) -> WriterList:
        """Put the present list again, under the present keys. Raises: Refused, RepositoryFull, RepositoryFailed."""
        for _ in range(_WRITERS_ATTEMPTS):
            listed = self.writers(store)
            stored = self._store_writers(store, listed.writers, number=listed.number + 1)
            if stored is not None:
                return stored
        raise Refused("somebody else keeps changing the list of writers")

    def _store_writers(
        self, store: ObjectStore, writers: tuple[Writer, ...], *, number: int
    ) -> WriterList | None:
        try:
            stored = store_writers(
                store,
                writers,
                number=number,
                keys=self.common,
                authority=self._authority(),
                randomness=self.randomness,
            )
        except ObjectExists:
            return None
        self.writers_number_min = max(self.writers_number_min, number)
        return stored

    def _authority(self, public_key: bytes = b"") -> Ed25519PrivateKey:
        """The current one, or the one of before a rotation that has this public key."""
        for private, earlier in zip(self.secrets.earlier_authorities, self.earlier, strict=True):
            if earlier.public_key == public_key:
                return Ed25519PrivateKey.from_private_bytes(private)
        return Ed25519PrivateKey.from_private_bytes(self.secrets.authority_private)

    def _reader(self, lineage_id: str, tag: bytes) -> ReaderKeys:
        epochs = tuple(
            EpochKeys(
                epoch=epoch.epoch,
                index_key=epoch.index_key,
                lineage_key=b"" if tag == NO_LINEAGE else lineage_key(epoch.meta_key, tag),
            )
            for epoch in self.secrets.epochs
        )
        return ReaderKeys(
            repository_id=self.secrets.repository_id,
            domain_id=self.secrets.domain_id,
            lineage_id=lineage_id,
            lineage_tag=tag,
            id_key=self.secrets.id_key,
            epochs=epochs,
            authority_public=self.authority_public,
            writers_number_min=self.writers_number_min,
            replaced_authorities=tuple(
                ReplacedAuthority(public_key=each.public_key, writers_number=each.writers_number)
                for each in self.earlier
            ),
        )


def create_repository(
    store: ObjectStore,
    *,
    recipients: Sequence[NewRecipient],
    clock: Clock,
    randomness: Randomness = SYSTEM_RANDOMNESS,
) -> tuple[RepositoryKeys, RecoverySheet]:
    """Make a repository in an empty store; it exists from the moment that its first keys are stored.

    Raises: Refused when there is one already; RepositoryFull, RepositoryFailed.
    """
    for _ in stored_objects(store, "keys/"):
        raise Refused("there is a repository here already; nothing was changed")
    describe(store)
    repository_id = randomness.draw(ID_BYTES)
    sheet = new_recovery_sheet(repository_id=repository_id.hex(), randomness=randomness)
    secrets = KeySecrets(
        repository_id=repository_id,
        domain_id=randomness.draw(ID_BYTES),
        id_key=randomness.draw(KEY_BYTES),
        authority_private=randomness.draw(KEY_BYTES),
        epochs=(new_epoch(1, randomness),),
    )
    root = randomness.draw(KEY_BYTES)
    created_at = utc_text(clock.now())
    entries = tuple(
        wrapped_for(
            recipient,
            root=root,
            repository_id=repository_id,
            generation=1,
            created_at=created_at,
            randomness=randomness,
        )
        for recipient in (*recipients, recovery_recipient(sheet))
    )
    data = encoded_generation(
        secrets, root=root, generation=1, salt=randomness.draw(32), recipients=entries
    )
    try:
        put_generation(store, 1, data)
    except HoldfastError:
        # Nobody has the sheet yet: a repository that nobody could ever recover must not stay.
        with contextlib.suppress(HoldfastError):
            withdraw_generation(store, 1)
        raise
    return RepositoryKeys(secrets, generation=1, randomness=randomness), sheet


def open_repository(
    store: ObjectStore,
    unlock: Unlock,
    *,
    generation_min: int = 1,
    authority: bytes = b"",
    randomness: Randomness = SYSTEM_RANDOMNESS,
) -> RepositoryKeys:
    """Open the newest key generation.

    ``generation_min``: the highest generation seen before; an older one is a replay. ``authority``: the
    public key that signed that one; what does not descend from it was put there by somebody else.
    Raises: NoRepository, WrongKey, IntegrityError, FormatError, RepositoryFailed.
    """
    copies = newest_generations(store, authority=authority)
    if copies[0].head.generation < generation_min:
        raise IntegrityError(
            "the keys are older than they were",
            found=copies[0].head.generation,
            wanted=generation_min,
        )
    for stored in copies:  # the first one may be another repository's, whole as it is
        head = stored.head
        for entry in head.recipients:
            root = unwrapped_root(
                entry, unlock=unlock, repository_id=head.repository_id, generation=head.generation
            )
            if root is not None:
                return RepositoryKeys(
                    stored.open(root),
                    generation=head.generation,
                    randomness=randomness,
                    earlier=head.earlier,
                )
    raise WrongKey("this passphrase or key does not open the repository")


def with_lineage_id(keys: ReaderKeys, lineage_id: str) -> ReaderKeys:
    """The same keys, knowing their lineage's id. Raises: IntegrityError when it has another tag."""
    if lineage_tag(keys.id_key, lineage_id) != keys.lineage_tag:
        raise IntegrityError("a point belongs to another lineage", lineage=lineage_id[:100])
    return replace(keys, lineage_id=lineage_id)
