"""The fence: once a writer epoch is decided, a manifest of it counts only if the census names it.

A directory cannot stop a suspended writer from renaming its manifest into place later; so readers do:
they void it. A fence is written by prune, in the same act as its tombstones. It closes an epoch, so that
who begins afterwards belongs to the next one and builds on nothing that it calls dead; and it decides the
epoch before, whose writers have all ended. Nobody who is still at work is shut out by it.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from holdfast_common.clock import parse_utc
from holdfast_common.errors import FormatError, IntegrityError, RepositoryFailed
from holdfast_common.repository.key_sets import ReaderKeys
from holdfast_common.repository.layout import (
    UNREADABLE,
    ObjectKind,
    fence_name,
    is_object_name,
    numbered,
)
from holdfast_common.repository.object_store import ObjectStore
from holdfast_common.repository.randomness import SYSTEM_RANDOMNESS, Randomness
from holdfast_common.repository.stored_objects import stored_objects
from holdfast_common.repository.writers import ROLE_PRUNE, WriterList

log = logging.getLogger(__name__)

FENCE_BYTES_MAX: Final = 1 << 30


@dataclass(frozen=True, slots=True, kw_only=True)
class Fence:
    """One closed epoch. Fences are numbered by the epoch that they close, in order from 1."""

    closed_epoch: int
    closed_at: str
    census: Mapping[str, bytes]  # manifest's name -> its digest: all that counted
    tombstones: Sequence[str] = ()  # names of what no point needs
    decided_epoch: int = (
        -1
    )  # of manifests up to it only those of the census count; -1: the closed one
    first_kept: int = 1  # older fences were deleted: the newest one says all that they said

    @property
    def decides(self) -> int:
        """The highest epoch whose manifests count only if the census names them."""
        return self.closed_epoch if self.decided_epoch < 0 else self.decided_epoch


@dataclass(frozen=True, slots=True, kw_only=True)
class Fences:
    """All fences of a repository, by epoch."""

    by_epoch: Mapping[int, Fence]
    unusable: Mapping[int, str] = field(
        default_factory=dict
    )  # epoch -> why its fence cannot be used
    unread: frozenset[int] = (
        frozenset()
    )  # of the unusable: the storage failed; another day it may be read

    @property
    def current_epoch(self) -> int:
        """The epoch that a writer which starts now belongs to."""
        return max((*self.by_epoch, *self.unusable), default=0) + 1

    @property
    def newest(self) -> Fence | None:
        """The fence that closed the epoch before the current one; None: there is none, or it is unusable."""
        return self.by_epoch.get(self.current_epoch - 1)

    @property
    def newest_problem(self) -> str:
        """Why nobody knows what the newest fence calls dead; empty: it is known, or there is none."""
        return self.unusable.get(self.current_epoch - 1, "")

    @property
    def decided_epoch(self) -> int:
        """Manifests up to this epoch count only if they were counted; 0: nothing is decided."""
        return max((fence.decides for fence in self.by_epoch.values()), default=0)

    def admits(self, *, name: str, digest: bytes, writer_epoch: int) -> bool:
        """Whether a manifest counts: its epoch is undecided, or the newest census that decided it names it.

        Where a fence was lost to damage the one before it speaks, and what none has decided counts: a
        doubtful point that fails its own checks later is better than a good one that nobody sees. `check`
        reports the fence.
        """
        for epoch in sorted(self.by_epoch, reverse=True):
            fence = self.by_epoch[epoch]
            if fence.decides >= writer_epoch:
                return fence.census.get(name) == digest
        return True


def newest_number(store: ObjectStore) -> int:
    """The highest epoch that any fence closes, usable or not; 0: none. Raises: RepositoryFailed.

    A number below it may be free again, its fence deleted: that one is free says nothing.
    """
    return max((numbered(info.name) for info in stored_objects(store, "fences/")), default=0)


def tombstoned_packs(fences: Fences) -> frozenset[bytes]:
    """Digests of the packs that a writer of the current epoch must not take anything from."""
    if fences.newest is None:
        return frozenset()
    return frozenset(
        bytes.fromhex(name.rpartition("/")[2])
        for name in fences.newest.tombstones
        if name.startswith("packs/") and is_object_name(name)
    )


def load_fences(store: ObjectStore, keys: ReaderKeys, writers: WriterList) -> Fences:
    """All fences that a pruner signed; the others are noted. Raises: RepositoryFailed."""
    found: dict[int, Fence] = {}
    unusable: dict[int, str] = {}
    unread: set[int] = set()
    for info in stored_objects(store, "fences/"):
        epoch = numbered(info.name)
        try:
            item = keys.open(ObjectKind.FENCE, store.get(info.name, length_max=FENCE_BYTES_MAX))
            writers.check(item, role=ROLE_PRUNE)
            fence = _from_json(item.body)
            if fence_name(fence.closed_epoch) != info.name:
                raise IntegrityError("a fence stands under another number", name=info.name)
            if fence.decides > fence.closed_epoch:
                raise IntegrityError("a fence decides more than it closes", name=info.name)
        except (FormatError, IntegrityError, RepositoryFailed) as error:
            log.warning("fence refused", extra={"object": info.name, "reason": str(error)})
            unusable[epoch] = str(error)
            if isinstance(error, RepositoryFailed):
                unread.add(epoch)
            continue
        found[epoch] = fence
    newest = max(found, default=0)
    for epoch in range(found[newest].first_kept if newest else 1, newest):
        if epoch not in found:
            unusable.setdefault(epoch, "it is missing")
    return Fences(by_epoch=found, unusable=unusable, unread=frozenset(unread))


def confirm_newest(store: ObjectStore, fences: Fences) -> None:
    """Make the two newest ones durable, whoever put them: by them is deleted, and told what may be built on.

    Raises: ObjectMissing, RepositoryFailed.
    """
    last = fences.current_epoch - 1
    store.confirm(fence_name(epoch) for epoch in (last - 1, last) if epoch in fences.by_epoch)


def store_fence(
    store: ObjectStore,
    fence: Fence,
    *,
    keys: ReaderKeys,
    signing_key: Ed25519PrivateKey,
    randomness: Randomness = SYSTEM_RANDOMNESS,
) -> None:
    """Close an epoch. Raises: ObjectExists when it is closed already; RepositoryFull, RepositoryFailed."""
    data = keys.seal(
        ObjectKind.FENCE, _to_json(fence), signing_key=signing_key, randomness=randomness
    )
    store.put(fence_name(fence.closed_epoch), data)
    log.info(
        "writer epoch closed", extra={"epoch": fence.closed_epoch, "points": len(fence.census)}
    )


def _to_json(fence: Fence) -> bytes:
    document: dict[str, object] = {
        "closed_epoch": fence.closed_epoch,
        "closed_at": fence.closed_at,
        "census": {name: digest.hex() for name, digest in fence.census.items()},
        "tombstones": list(fence.tombstones),
    }
    if fence.decides != fence.closed_epoch:
        document["decided_epoch"] = fence.decides
    if fence.first_kept != 1:
        document["first_kept"] = fence.first_kept
    return json.dumps(document, sort_keys=True, separators=(",", ":")).encode()


def _from_json(body: bytes) -> Fence:
    try:
        document = json.loads(body)
        parse_utc(document["closed_at"])
        return Fence(
            closed_epoch=int(document["closed_epoch"]),
            closed_at=str(document["closed_at"]),
            census={
                str(name): bytes.fromhex(digest) for name, digest in document["census"].items()
            },
            tombstones=tuple(str(name) for name in document["tombstones"]),
            decided_epoch=int(document.get("decided_epoch", document["closed_epoch"])),
            first_kept=int(document.get("first_kept", 1)),
        )
    except UNREADABLE as error:
        raise IntegrityError("a fence cannot be read") from error
