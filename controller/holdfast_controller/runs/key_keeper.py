"""The controller's hold on its repository: it makes it, keeps its keys, and opens segment keys for live jobs.

The engine itself runs on proxies; here only small key and writer objects are read and written.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path

from holdfast_common.clock import Clock
from holdfast_common.errors import NoRepository, NotFound, Refused
from holdfast_common.identity import AgentId, LineageId, RepositoryId
from holdfast_common.job_spec import Attempt
from holdfast_common.logs import Secret
from holdfast_common.repository.directory_store import DirectoryStore
from holdfast_common.repository.key_sets import SegmentKeyRequest
from holdfast_common.repository.keys import RepositoryKeys, open_repository
from holdfast_common.repository.recipients import KeyFileUnlock
from holdfast_controller.runs.agent_link import SignedGrant
from holdfast_controller.store import settings as names
from holdfast_controller.store.agents import AgentTable
from holdfast_controller.store.audit import AuditTrail
from holdfast_controller.store.settings import Settings


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
        self._keys: RepositoryKeys | None = None

    @property
    def repository_id(self) -> RepositoryId:
        """Raises: NoRepository before `holdfast init`."""
        found = self._settings.get(names.REPOSITORY_ID)
        if not found:
            raise NoRepository("no repository was made yet", advice="run `holdfast init`")
        return RepositoryId(found)

    @property
    def folder(self) -> Path:
        """Where the controller reaches it."""
        return Path(self._settings.get(names.REPOSITORY_FOLDER))

    def problem(self) -> str:
        """Why the repository cannot be used just now; empty: it can. For `status` and `doctor`."""
        try:
            self.keys()
        except NoRepository as error:
            return str(error)
        return ""

    def keys(self) -> RepositoryKeys:
        """Raises: NoRepository when its folder is missing, WrongKey, IntegrityError."""
        repository_id = self.repository_id
        store = self._store()  # looked at each time: a mount may have gone
        with self._lock:
            if self._keys is None:
                content = (self._key_folder / f"{repository_id}.key").read_bytes()
                generation = int(self._settings.get(names.REPOSITORY_GENERATION) or 1)
                keys = open_repository(store, KeyFileUnlock(content), generation_min=generation)
                if keys.repository_id != repository_id:
                    raise NoRepository(
                        "another repository lies where this one should",
                        folder=str(self.folder),
                        found=keys.repository_id,
                        wanted=repository_id,
                    )
                keys.writers_number_min = int(self._settings.get(names.WRITERS_NUMBER) or 0)
                self._keys = keys
                self._settings.raise_number(names.REPOSITORY_GENERATION, keys.generation)
            return self._keys

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
        """List an agent as a writer of the repository. Raises: NotFound, Refused when revoked."""
        agent = self._agents.get(AgentId(agent_id))
        if agent.revoked_at:
            raise Refused("this agent was revoked", agent=agent_id)
        keys = self.keys()
        listed = keys.authorise_writer(
            self._store(), agent.signing_public_key, agent_id=agent_id, clock=self._clock
        )
        self._settings.raise_number(names.WRITERS_NUMBER, listed.number)

    def revoke(self, agent_id: str) -> None:
        """Refuse everything this agent signs from now on; what it wrote before stays valid."""
        agent = self._agents.get(AgentId(agent_id))
        keys = self.keys()
        try:
            listed = keys.revoke_writer(
                self._store(), agent.signing_public_key, clock=self._clock, keep_existing=True
            )
        except NotFound:
            return  # it never wrote anything
        self._settings.raise_number(names.WRITERS_NUMBER, listed.number)

    def grant(
        self, attempt: Attempt, manifest_digest: bytes, *, controller_epoch: int
    ) -> SignedGrant:
        """Leave to publish one manifest."""
        encoded = self.keys().commit_grant(
            job_id=attempt.job_id,
            attempt=attempt.number,
            manifest_digest=manifest_digest,
            controller_epoch=controller_epoch,
        )
        return SignedGrant(controller_epoch=controller_epoch, signature=encoded[8:])

    def _store(self) -> DirectoryStore:
        return DirectoryStore.open(self.folder)
