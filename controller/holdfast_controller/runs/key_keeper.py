"""The controller's hold on its repository: it makes it, keeps its keys, and opens segment keys for live jobs.

The engine itself runs on proxies; here only small key and writer objects are read and written.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Final

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from holdfast_common.clock import Clock
from holdfast_common.errors import HoldfastError, NoRepository, NotFound, Refused, WrongKey
from holdfast_common.identity import AgentId, LineageId, RepositoryId
from holdfast_common.job_spec import Attempt
from holdfast_common.logs import Secret
from holdfast_common.repository.directory_store import DirectoryStore
from holdfast_common.repository.hang_watch import locked, watched_files, while_it_answers
from holdfast_common.repository.key_changes import settle
from holdfast_common.repository.key_generation import StoredGeneration
from holdfast_common.repository.key_objects import newest_generation
from holdfast_common.repository.key_sets import SegmentKeyRequest, WriterKeys
from holdfast_common.repository.keys import RepositoryKeys, open_repository
from holdfast_common.repository.mount_probe import check_answers
from holdfast_common.repository.object_store import ObjectStore
from holdfast_common.repository.randomness import SYSTEM_RANDOMNESS
from holdfast_common.repository.recipients import KeyFileUnlock
from holdfast_common.repository.revocation import Revoked
from holdfast_common.repository.writers import ROLE_PRUNE
from holdfast_common.trust.keys import write_private
from holdfast_controller.runs.agent_link import SignedGrant
from holdfast_controller.store import settings as names
from holdfast_controller.store.agents import AgentTable
from holdfast_controller.store.audit import AuditTrail
from holdfast_controller.store.settings import Settings

log = logging.getLogger(__name__)

TAKEN_OVER_ADVICE: Final = (
    "if this controller was brought back elsewhere by `holdfast init --from-repository`, stop this one for good;"
    " if it is the one to go on, move its home away and bring it back in the same way"
)


class KeyKeeper:
    """Keys of the default repository. Thread-safe; opened once, when it is first needed."""

    def __init__(
        self,
        *,
        settings: Settings,
        agents: AgentTable,
        audit: AuditTrail,
        key_folder: Path,
        clock: Clock,
    ) -> None:
        self._settings = settings
        self._agents = agents
        self._audit = audit
        self._key_folder = key_folder
        self._clock = clock
        self._lock = threading.Lock()
        self._writing = (
            threading.Lock()
        )  # of writers' lists and key generations; taken before the other
        self._keys: RepositoryKeys | None = None

    @property
    def repository_id(self) -> RepositoryId:
        """Raises: NoRepository before one was made."""
        found = self._settings.get(names.REPOSITORY_ID)
        if not found:
            raise NoRepository(
                "no repository was made yet", advice="make one with `holdfast repo init DIRECTORY`"
            )
        return RepositoryId(found)

    @property
    def has_repository(self) -> bool:
        """Whether one was ever set up for this controller; its folder may be out of reach."""
        return bool(self._settings.get(names.REPOSITORY_ID))

    @property
    def folder(self) -> Path:
        """Where the controller reaches it."""
        return Path(self._settings.get(names.REPOSITORY_FOLDER))

    def problem(self) -> str:
        """Why the repository cannot be used just now; empty: it can. For `status` and `doctor`."""
        try:
            self.keys()
        except (NoRepository, WrongKey) as error:
            return str(error)
        return self._settings.get(names.TAKEN_OVER)

    def check_alone(self) -> None:
        """Before anything is begun, published or deleted. Raises: Refused when another controller took over."""
        found = self._settings.get(names.TAKEN_OVER)
        if found:
            raise Refused(found, advice=TAKEN_OVER_ADVICE)

    def keys(self) -> RepositoryKeys:
        """Raises: NoRepository when its folder is missing, WrongKey, IntegrityError, TimedOut."""
        looked = partial(self._looked, self.repository_id)
        return looked() if self._keys is not None else while_it_answers(looked)

    def prove_key_file(self) -> None:
        """That the key file, as it lies there now, still opens the repository: after a restart nothing else does.

        Raises: WrongKey, NoRepository, IntegrityError, TimedOut.
        """

        def proven() -> None:
            try:
                unlock = self.own_unlock()
            except OSError as error:
                raise WrongKey(
                    f"the controller's key file cannot be read: {error.strerror}",
                    file=str(self.key_file()),
                    advice="bring it back while the controller still runs",
                ) from error
            authority = bytes.fromhex(self._settings.get(names.REPOSITORY_AUTHORITY))
            generation = int(self._settings.get(names.REPOSITORY_GENERATION) or 1)
            open_repository(self._store(), unlock, generation_min=generation, authority=authority)

        while_it_answers(proven)

    def _looked(self, repository_id: RepositoryId) -> RepositoryKeys:
        store = self._store()  # looked at each time: a mount may have gone
        with locked(self._lock, self.folder):
            if self._keys is None:
                self._opened(store, repository_id)
            assert self._keys is not None
            return self._keys

    def change(
        self, work: Callable[[ObjectStore, RepositoryKeys], RepositoryKeys]
    ) -> RepositoryKeys:
        """Let ``work`` make a new key generation; jobs that begin afterwards get its keys.

        Nobody lists writers meanwhile. When it fails, nobody knows which generation counts: whoever needs
        keys next looks. Raises: what ``work`` raises.
        """
        with locked(self._writing, self.folder):
            keys = self.keys()
            store = self._store()
            with locked(self._lock, self.folder):
                self._keys = None
                changed = work(store, keys)
                self._remember(changed)
                self._settle(store, changed)
                self._keys = changed
                return changed

    def generation(self) -> StoredGeneration:
        """The key generation in force, as anybody can read it. Raises: NoRepository, IntegrityError."""
        return newest_generation(self._store(), authority=self.keys().authority_public)

    def key_file(self) -> Path:
        """What opens the repository for this controller."""
        return self._key_folder / f"{self.repository_id}.key"

    def replacement_file(self) -> Path:
        """Where a new key file lies while the generation that needs it is being stored."""
        return self._key_folder / f"{self.repository_id}.key.new"

    def own_unlock(self) -> KeyFileUnlock:
        """The controller's own secret."""
        return KeyFileUnlock(self.key_file().read_bytes())

    def _opened(self, store: ObjectStore, repository_id: RepositoryId) -> None:
        authority = bytes.fromhex(self._settings.get(names.REPOSITORY_AUTHORITY))
        generation = int(self._settings.get(names.REPOSITORY_GENERATION) or 1)
        replacement = self.replacement_file()
        try:
            keys = open_repository(
                store, self.own_unlock(), generation_min=generation, authority=authority
            )
        except WrongKey:
            if not replacement.exists():
                raise WrongKey(
                    "this controller's key does not open its repository any more",
                    advice=TAKEN_OVER_ADVICE,
                ) from None
            # Its generation is stored, and a crash came before it took the other one's place.
            unlock = KeyFileUnlock(replacement.read_bytes())
            keys = open_repository(store, unlock, generation_min=generation, authority=authority)
            replacement.replace(self.key_file())
        if keys.repository_id != repository_id:
            raise NoRepository(
                "another repository lies where this one should",
                folder=str(self.folder),
                found=keys.repository_id,
                wanted=repository_id,
            )
        keys.writers_number_min = int(self._settings.get(names.WRITERS_NUMBER) or 0)
        self._keys = keys
        self._remember(keys)
        self._settle(store, keys)

    def _remember(self, keys: RepositoryKeys) -> None:
        """An older generation, and one that does not descend from this one, are refused from now on."""
        self._settings.raise_number(names.REPOSITORY_GENERATION, keys.generation)
        self._settings.set(names.REPOSITORY_AUTHORITY, keys.authority_public.hex())

    def _settle(self, store: ObjectStore, keys: RepositoryKeys) -> None:
        """What a change leaves to be done can wait: it is tried again at the next start or change."""
        try:
            kept = settle(store, keys)
        except HoldfastError as error:
            log.warning("a change of keys is not finished", extra={"error": error.line()})
            return
        self._settings.raise_number(names.WRITERS_NUMBER, keys.writers_number_min)
        if kept:
            log.warning("older keys could not be removed", extra={"object": ", ".join(kept)})

    def writer_keys(self, lineage_id: LineageId) -> Secret:
        """Encoded, for a backup job."""
        return Secret(self.keys().writer_keys(lineage_id).to_bytes())

    def reader_keys(self, lineage_id: LineageId) -> Secret:
        """Encoded, for a restore, verify, check or list job."""
        return Secret(self.keys().reader_keys(lineage_id).to_bytes())

    def open_segment_keys(self, attempt: Attempt, headers: Sequence[bytes]) -> list[bytes]:
        """Keys of pack segments for a live job; each answer is audited. Raises: WrongKey, FormatError."""
        keys = self.keys()
        opened = keys.open_segment_keys([SegmentKeyRequest.from_bytes(each) for each in headers])
        self._audit.append(
            actor=f"job {attempt.job_id} attempt {attempt.number}",
            action="open segment keys",
            object=self.repository_id,
            result=f"{len(opened)} keys",
        )
        return opened

    def authorise(self, agent_id: str) -> None:
        """List an agent as a writer of the repository. Raises: NotFound, Refused when revoked, TimedOut."""
        agent = self._agents.get(AgentId(agent_id))
        if agent.revoked_at:
            raise Refused("this agent was revoked", agent=agent_id)

        def listed_it() -> None:
            with locked(self._writing, self.folder):
                listed = self.keys().authorise_writer(
                    self._store(), agent.signing_public_key, agent_id=agent_id, clock=self._clock
                )
                self._settings.raise_number(names.WRITERS_NUMBER, listed.number)

        while_it_answers(listed_it)

    def pruner_key(self) -> Ed25519PrivateKey:
        """The controller's own signing key, listed in the role `prune` and in no other."""
        path = self._key_folder / "pruner.key"
        with locked(self._writing, self.folder):
            if not path.exists():
                write_private(path, SYSTEM_RANDOMNESS.draw(32))
            signing_key = Ed25519PrivateKey.from_private_bytes(path.read_bytes())
            listed = self.keys().authorise_writer(
                self._store(),
                signing_key.public_key().public_bytes_raw(),
                agent_id="controller",
                clock=self._clock,
                roles=(ROLE_PRUNE,),
            )
            self._settings.raise_number(names.WRITERS_NUMBER, listed.number)
        return signing_key

    def revoke(self, agent_id: str, *, give_up_unread: bool) -> tuple[str, ...]:
        """Refuse everything this agent signs from now on; what it wrote before stays valid.

        Returns names of damaged objects that will never count again. Raises: Refused (there are such, and
        they are not to be given up), RepositoryFull, RepositoryFailed, TimedOut (it may yet be refused, when its mount
        answers again).
        """
        agent = self._agents.get(AgentId(agent_id))

        def revoked() -> Revoked:
            with locked(self._writing, self.folder):
                done = self.keys().revoke_writer(
                    self._store(),
                    agent.signing_public_key,
                    clock=self._clock,
                    keep_existing=True,
                    give_up_unread=give_up_unread,
                )
                self._settings.raise_number(names.WRITERS_NUMBER, done.writers.number)
                return done

        try:
            done = while_it_answers(revoked)
        except NotFound:
            return ()  # it never wrote anything
        if done.given_up:
            log.warning(
                "damaged objects given up",
                extra={"agent_id": agent_id, "object": ", ".join(done.given_up)},
            )
        return done.given_up

    def grant(
        self,
        attempt: Attempt,
        manifest_digest: bytes,
        *,
        controller_epoch: int,
        job_keys: Secret,
    ) -> SignedGrant:
        """Leave to publish one manifest; ``job_keys`` (its `writer_keys`) say whose word the job can check.

        Raises: Refused when another controller took over.
        """
        self.check_alone()
        authority = WriterKeys.from_bytes(job_keys.reveal()).reader.authority_public
        encoded = self.keys().commit_grant(
            job_id=attempt.job_id,
            attempt=attempt.number,
            manifest_digest=manifest_digest,
            controller_epoch=controller_epoch,
            authority=authority,
        )
        return SignedGrant(controller_epoch=controller_epoch, signature=encoded[8:])

    def _store(self) -> DirectoryStore:
        check_answers(self.folder)
        return DirectoryStore.open(self.folder, files=watched_files(self.folder))
