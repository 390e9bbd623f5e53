"""An agent as a writer of the repository: announced by the product's own lease, it stores what is not known, and publishes.

In the order of the real one: packs, the map, the manifest. Nothing is taken from packs that a fence called dead.
"""

from __future__ import annotations

import hashlib
from typing import Any, Final

from holdfast_common.errors import IntegrityError, ObjectExists, PreviousLost
from holdfast_common.job_spec import Attempt
from holdfast_common.repository.fence import tombstoned_packs
from holdfast_common.repository.layout import manifest_name, map_name, pack_name
from holdfast_common.repository.lease import acquire_writer_lease
from simulation.virtual_keys import KEYS, WRITERS, tag_of
from simulation.virtual_pruning import keep_reserve
from simulation.virtual_repository import Manifest, VirtualRepository
from simulation.virtual_storage import VirtualStore
from simulation.virtual_time import Life, VirtualClock

LEASE_SECONDS: Final = (
    60  # in place of the real half hour: so long a prune waits for a writer that died
)
LEASE_MARGIN_SECONDS: Final = 10


class _Randomness:
    """Names of leases follow from their attempts."""

    def __init__(self, text: str) -> None:
        self._text = text

    def draw(self, count: int) -> bytes:
        self._text += "."
        return hashlib.sha256(self._text.encode()).digest()[:count]


class VirtualWriter:
    """One attempt's. `close` in any case."""

    def __init__(
        self,
        repository: VirtualRepository,
        life: Life,
        attempt: Attempt,
        lineage_id: str,
    ) -> None:
        """Announce it. Raises: Locked, RepositoryFull, RepositoryFailed."""
        self._repository = repository
        self._store = VirtualStore(repository.storage, life)
        self._attempt = attempt
        self._text = f"{attempt.job_id} {attempt.number}"
        self.tag = tag_of(lineage_id)
        randomness: Any = _Randomness(self._text)
        signing_key: Any = None
        store: Any = self._store
        keep_reserve(store, None)
        self.lease = acquire_writer_lease(
            store,
            KEYS,
            writers=WRITERS,
            signing_key=signing_key,
            job_id=attempt.job_id,
            attempt=attempt.number,
            clock=VirtualClock(repository.storage.kernel, is_right=True),  # the proxy's own
            randomness=randomness,
        )
        self._dead = tombstoned_packs(self.lease.fences)
        self._known = self._there()

    def store(self, device_key: int, values: frozenset[int]) -> None:
        """What is not known yet goes into a pack. Raises: LeaseExpired, RepositoryFull, RepositoryFailed."""
        self.lease.renew_when_due()
        fresh = values - self._known
        if fresh:
            digest = hashlib.sha256(f"{self._text} {device_key} {sorted(fresh)}".encode()).digest()
            self._store.put(pack_name(digest), body=fresh)
            self._known |= fresh

    def prepare(self, values: frozenset[int]) -> str:
        """All but the manifest is there; the map's name. Raises: PreviousLost, LeaseExpired, RepositoryFull."""
        self.lease.renew_when_due()
        name = map_name(self.tag, hashlib.sha256(self._text.encode()).digest()[:16])
        self._store.put(name, body=name)
        if values - self._there():
            raise PreviousLost("what the point refers to is no longer whole")
        return name

    def manifest_name(self) -> str:
        return manifest_name(self.tag, self._attempt.job_id)

    def publish(self, manifest: Manifest) -> None:
        """Raises: LeaseExpired, IntegrityError, RepositoryFull, RepositoryFailed."""
        self.lease.check_epoch(WRITERS)
        try:
            self._store.put(manifest.name, body=manifest)
        except ObjectExists as error:
            raise IntegrityError("another attempt of this job has published") from error
        self.lease.check_epoch(WRITERS)

    def close(self) -> None:
        """Nobody has to wait for it any more. Raises: Crashed."""
        self.lease.release_quietly()

    def _there(self) -> frozenset[int]:
        storage = self._repository.storage
        found: set[int] = set()
        for name in storage.names("packs/"):
            if bytes.fromhex(name.rpartition("/")[2]) not in self._dead:
                found |= storage.objects[name].body
        return frozenset(found)
