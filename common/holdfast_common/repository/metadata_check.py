"""Objects that are not on the way to any byte of a disk: keys, writers, fences, leases, proofs, descriptions.

Part of `check`: each must be whole, rightly signed, and stand under its own name.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Final

from holdfast_common.errors import (
    FormatError,
    IntegrityError,
    ObjectMissing,
    RepositoryFailed,
    RevokedWriter,
)
from holdfast_common.repository.about import damaged_about
from holdfast_common.repository.controller_copy import FOLDER, CopyPlace, check_copy
from holdfast_common.repository.fence import load_fences, tombstoned_packs
from holdfast_common.repository.holds import read_hold
from holdfast_common.repository.key_objects import generation_named
from holdfast_common.repository.key_sets import ReaderKeys
from holdfast_common.repository.layout import copy_name, fence_name
from holdfast_common.repository.lease import read_lease
from holdfast_common.repository.object_store import ObjectStore
from holdfast_common.repository.proof import read_proof
from holdfast_common.repository.stored_objects import STRAY, stored_objects, stray_names
from holdfast_common.repository.writers import WriterList, read_list

_DAMAGE: Final = (IntegrityError, FormatError, RepositoryFailed)


@dataclass(slots=True)
class MetadataChecked:
    """What was looked at, and what of it is damaged: name and reason."""

    checked: int = 0
    damaged: dict[str, str] = field(default_factory=dict)
    tombstoned: frozenset[bytes] = frozenset()  # packs that the newest fence calls dead


def check_metadata(
    store: ObjectStore, keys: ReaderKeys, writers: WriterList, *, epochs: Iterable[int]
) -> MetadataChecked:
    """``epochs``: of the writers of all points; a point tells of the fences before it. Raises: RepositoryFailed."""
    found = MetadataChecked(damaged=dict.fromkeys(stray_names(store), STRAY))
    found.damaged |= dict(writers.damaged)
    _check_copies(store, "keys/", found, read=lambda name: _check_generation(store, name, keys))
    _check_copies(store, "writers/", found, read=lambda name: read_list(store, name, keys))
    for name, reason in damaged_about(store):
        found.damaged[name] = reason
    _check_fences(store, keys, writers, found, epochs=epochs)
    _check_signed(store, keys, writers, found)
    _check_controller_copies(store, keys, found)
    return found


def _check_copies(
    store: ObjectStore, prefix: str, found: MetadataChecked, *, read: Callable[[str], object]
) -> None:
    """Key generations and lists of writers: both copies of each."""
    names = {info.name for info in stored_objects(store, prefix)}
    for name in sorted(names):
        found.checked += 1
        original = name.removesuffix("-copy")
        for other in (original, copy_name(original)):
            if other not in names:
                found.damaged[other] = "the object is missing"
        try:
            read(name)
        except _DAMAGE as error:
            found.damaged[name] = str(error)


def _check_generation(store: ObjectStore, name: str, keys: ReaderKeys) -> None:
    """Whole, and of this repository, whichever of its authority keys signed it."""
    head = generation_named(store, name).head
    ours = {keys.authority_public, *(each.public_key for each in keys.replaced_authorities)}
    if (head.repository_id, head.domain_id) != (keys.repository_id, keys.domain_id):
        raise IntegrityError("a key generation is another repository's", name=name)
    if head.authority_public not in ours and not head.descends_from(keys.authority_public):
        raise IntegrityError("a key generation is signed by a key that nobody handed on to")


def _check_fences(
    store: ObjectStore,
    keys: ReaderKeys,
    writers: WriterList,
    found: MetadataChecked,
    *,
    epochs: Iterable[int],
) -> None:
    fences = load_fences(store, keys, writers)
    found.tombstoned = tombstoned_packs(fences)
    for epoch, reason in fences.unusable.items():
        found.damaged[fence_name(epoch)] = reason
    for epoch in range(fences.current_epoch, max(epochs, default=0)):
        found.damaged[fence_name(epoch)] = "it is missing"


def _check_signed(
    store: ObjectStore, keys: ReaderKeys, writers: WriterList, found: MetadataChecked
) -> None:
    """Objects that nothing refers to: each must be whole and rightly signed.

    What a revoked writer signed counts for nothing, and is no damage: its leases are ended.
    """
    for prefix, read in (
        ("leases/", read_lease),
        ("proofs/", read_proof),
        ("holds/", read_hold),
    ):
        for info in stored_objects(store, prefix):
            found.checked += 1
            try:
                read(store, info.name, keys, writers)
            except RevokedWriter:
                continue
            except _DAMAGE as error:
                found.damaged[info.name] = str(error)


def _check_controller_copies(store: ObjectStore, keys: ReaderKeys, found: MetadataChecked) -> None:
    """Whole and the authority's; what is in them only the controller's own keys open."""
    for info in stored_objects(store, FOLDER):
        found.checked += 1
        try:
            check_copy(store, CopyPlace.of_name(info.name), keys)
        except ObjectMissing:
            continue  # the controller dropped it this moment
        except _DAMAGE as error:
            found.damaged[info.name] = str(error)
