"""Another repository's keys, held for one job that reads it: opened with what the operator brought, audited.

The secret and the private keys stay here, as our own do; a proxy gets what a reader gets.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from holdfast_common.errors import UsageError
from holdfast_common.job_spec import Attempt
from holdfast_common.logs import Secret
from holdfast_common.repository.directory_store import DirectoryStore
from holdfast_common.repository.hang_watch import watched_files, while_it_answers
from holdfast_common.repository.key_sets import SegmentKeyRequest
from holdfast_common.repository.keys import RepositoryKeys, open_repository
from holdfast_common.repository.layout import manifest_tag
from holdfast_common.repository.mount_probe import check_answers
from holdfast_common.repository.recipients import KeyFileUnlock, RecoveryUnlock
from holdfast_common.repository.recovery_sheet import RecoverySheet
from holdfast_controller.store.audit import AuditTrail
from holdfast_controller.store.jobs import JobRow

_KEY_FILE = b"holdfast-key-1:"


@dataclass(frozen=True, slots=True)
class OtherRepositoryKeys:
    """Of a repository that is no configured one. They live as long as the job."""

    keys: RepositoryKeys = field(repr=False)
    tags: tuple[bytes, ...]  # of its lineages
    audit: AuditTrail

    @classmethod
    def opened(
        cls, folder: Path, secret: Secret, *, job: JobRow, audit: AuditTrail
    ) -> OtherRepositoryKeys:
        """Open it where this controller reaches it; that is in the audit trail before it happens.

        Raises: NoRepository, WrongKey, UsageError (no text), TimedOut.
        """
        unlock = _unlock(secret.reveal())
        check_answers(folder)
        audit.append(
            actor=f"job {job.job_id}",
            action="open another repository",
            object=str(folder),
            result="begins",
        )

        def opened_it() -> tuple[RepositoryKeys, set[bytes | None]]:
            with DirectoryStore.open(folder, files=watched_files(folder)) as store:
                keys = open_repository(store, unlock)
                return keys, {manifest_tag(info.name) for info in store.list("points/")}

        keys, tags = while_it_answers(opened_it)
        return cls(keys, tuple(sorted(tag for tag in tags if tag is not None)), audit)

    def reader_keys(self) -> tuple[Secret, ...]:
        """Encoded, one per lineage."""
        found = [self.keys.of_tag(tag) for tag in self.tags]
        return tuple(Secret(each.to_bytes()) for each in found if each is not None)

    def open_segment_keys(self, attempt: Attempt, headers: Sequence[bytes]) -> list[bytes]:
        """As the keeper's, of that repository. Raises: WrongKey, FormatError."""
        opened = self.keys.open_segment_keys([SegmentKeyRequest.from_bytes(h) for h in headers])
        self.audit.append(
            actor=f"job {attempt.job_id} attempt {attempt.number}",
            action="open segment keys",
            object=self.keys.repository_id,
            result=f"{len(opened)} keys",
        )
        return opened


def _unlock(content: bytes) -> KeyFileUnlock | RecoveryUnlock:
    if content.startswith(_KEY_FILE):
        return KeyFileUnlock(content)
    try:
        return RecoveryUnlock(RecoverySheet.parse(content.decode()))
    except UnicodeDecodeError as error:
        raise UsageError(
            "that is neither a key file nor a recovery sheet",
            advice="give the key file of the other repository, or a file with its recovery sheet's groups",
        ) from error
