"""Proofs: a verifier's signed word that it decoded every blob of some packs and found their ids true.

Only then may other writers take those packs' chunks as known.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Collection

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from holdfast_common.errors import FormatError, IntegrityError, RepositoryFailed
from holdfast_common.repository.key_sets import ReaderKeys
from holdfast_common.repository.layout import METADATA_BYTES_MAX, ObjectKind, proof_name
from holdfast_common.repository.object_store import ObjectStore
from holdfast_common.repository.randomness import SYSTEM_RANDOMNESS, Randomness
from holdfast_common.repository.sealed_object import ObjectHeader
from holdfast_common.repository.writers import ROLE_VERIFY, WriterList

log = logging.getLogger(__name__)


def store_proof(
    store: ObjectStore,
    packs: Collection[bytes],
    *,
    proven_at: str,
    keys: ReaderKeys,
    signing_key: Ed25519PrivateKey,
    randomness: Randomness = SYSTEM_RANDOMNESS,
) -> str:
    """Sign that every blob of these packs was decoded; the proof's name. Raises: RepositoryFull, RepositoryFailed."""
    document = {"proven_at": proven_at, "packs": sorted(digest.hex() for digest in packs)}
    body = json.dumps(document, sort_keys=True, separators=(",", ":")).encode()
    data = keys.seal(ObjectKind.PROOF, body, signing_key=signing_key, randomness=randomness)
    name = proof_name(ObjectHeader.decode(data).object_id)
    store.put(name, data)
    return name


def load_proven_packs(
    store: ObjectStore, keys: ReaderKeys, writers: WriterList
) -> frozenset[bytes]:
    """All packs that some listed verifier proved; unusable proofs prove nothing. Raises: RepositoryFailed."""
    proven: set[bytes] = set()
    for info in store.list("proofs/"):
        try:
            proven |= read_proof(store, info.name, keys, writers)
        except (FormatError, IntegrityError, RepositoryFailed) as error:
            log.warning("proof refused", extra={"object": info.name, "reason": str(error)})
    return frozenset(proven)


def read_proof(store: ObjectStore, name: str, keys: ReaderKeys, writers: WriterList) -> set[bytes]:
    """The packs of one proof. Raises: IntegrityError, ObjectMissing, RepositoryFailed."""
    found = keys.open(ObjectKind.PROOF, store.get(name, length_max=METADATA_BYTES_MAX))
    if proof_name(found.header.object_id) != name:
        raise IntegrityError("a proof stands under another name", name=name)
    writers.check(found, role=ROLE_VERIFY)
    return _packs(found.body)


def _packs(body: bytes) -> set[bytes]:
    try:
        return {bytes.fromhex(digest) for digest in json.loads(body)["packs"]}
    except (ValueError, KeyError, TypeError) as error:
        raise IntegrityError("a proof cannot be read") from error
