"""Proofs: a verifier's signed word that it decoded every blob of some packs and found their ids true.

Only then may other writers take those packs' chunks as known. Nobody vouches for what he wrote himself, and
who was revoked vouches for nothing, also not by what he signed before (see `trusted_chunks`).
"""

from __future__ import annotations

import contextlib
import json
import logging
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Final

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from holdfast_common.errors import FormatError, IntegrityError, RepositoryFailed, RevokedWriter
from holdfast_common.repository.key_sets import ReaderKeys
from holdfast_common.repository.layout import (
    KEY_BYTES,
    METADATA_BYTES_MAX,
    UNREADABLE,
    ObjectKind,
    proof_name,
)
from holdfast_common.repository.object_store import ObjectStore
from holdfast_common.repository.randomness import SYSTEM_RANDOMNESS, Randomness
from holdfast_common.repository.sealed_object import ObjectHeader
from holdfast_common.repository.stored_objects import stored_objects
from holdfast_common.repository.writers import ROLE_VERIFY, WriterList

log = logging.getLogger(__name__)

NOBODY: Final = bytes(KEY_BYTES)  # the writer of packs that no index named


@dataclass(frozen=True, slots=True, kw_only=True)
class Proof:
    """What one proof says."""

    proven_at: str
    packs: frozenset[bytes]
    prover: bytes  # public key


@dataclass(frozen=True, slots=True, kw_only=True)
class Provers:
    """Who proved which packs."""

    packs_of: Mapping[bytes, Collection[bytes]]  # public key -> digests

    def vouch(self, pack: bytes, *, writer: bytes) -> bool:
        """Whether somebody else than its writer proved that pack."""
        return any(pack in packs for prover, packs in self.packs_of.items() if prover != writer)


@dataclass(frozen=True, slots=True, kw_only=True)
class ProofTimes:
    """When which prover proved which packs last."""

    of_prover: Mapping[bytes, Mapping[bytes, str]]  # public key -> digest -> time

    def last(self, pack: bytes, *, writers: Collection[bytes], reader: bytes) -> str:
        """When that pack was proven last, as far as ``reader`` can do better; "" = never.

        ``writers``: of what is in the pack. What a proof says of its own prover's data does not count. But
        where ``reader`` wrote all of it, his reading makes no proof that counts: then any one tells when it
        was read, so that he reads the others of his packs the next time.
        """
        others = [writer for writer in writers if writer not in (reader, NOBODY)]
        if not others:
            return max((times.get(pack, "") for times in self.of_prover.values()), default="")
        return min(
            max(
                (times.get(pack, "") for who, times in self.of_prover.items() if who != writer),
                default="",
            )
            for writer in others
        )


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


def load_provers(store: ObjectStore, keys: ReaderKeys, writers: WriterList) -> Provers:
    """What listed verifiers proved; unusable proofs prove nothing. Raises: RepositoryFailed."""
    packs_of: dict[bytes, set[bytes]] = {}
    for proof in _usable(store, keys, writers):
        packs_of.setdefault(proof.prover, set()).update(proof.packs)
    return Provers(packs_of=packs_of)


def load_proof_times(store: ObjectStore, keys: ReaderKeys, writers: WriterList) -> ProofTimes:
    """When each pack was proven last, by each prover. Raises: RepositoryFailed."""
    times: dict[bytes, dict[bytes, str]] = {}
    for proof in _usable(store, keys, writers):
        of_prover = times.setdefault(proof.prover, {})
        for pack in proof.packs:
            of_prover[pack] = max(of_prover.get(pack, ""), proof.proven_at)
    return ProofTimes(of_prover=times)


def proven_packs(
    store: ObjectStore, names: Iterable[str], keys: ReaderKeys, writers: WriterList
) -> dict[str, frozenset[bytes]]:
    """What each proof among these names proves: of a revoked verifier nothing.

    One that cannot be read is `check`'s affair.
    """
    found = {}
    for name in names:
        if name.startswith("proofs/"):
            with contextlib.suppress(IntegrityError):
                try:
                    found[name] = read_proof(store, name, keys, writers).packs
                except RevokedWriter:
                    found[name] = frozenset()
    return found


def read_proof(store: ObjectStore, name: str, keys: ReaderKeys, writers: WriterList) -> Proof:
    """One proof. Raises: IntegrityError, RevokedWriter, ObjectMissing, RepositoryFailed."""
    found = keys.open(ObjectKind.PROOF, store.get(name, length_max=METADATA_BYTES_MAX))
    if proof_name(found.header.object_id) != name:
        raise IntegrityError("a proof stands under another name", name=name)
    prover = writers.check(found, role=ROLE_VERIFY)
    if prover.revoked_at:  # nobody can tell when it was signed: its time is its signer's word
        raise RevokedWriter("a proof is signed by a revoked verifier", agent=prover.agent_id)
    return _from_json(found.body, prover=prover.public_key)


def _usable(store: ObjectStore, keys: ReaderKeys, writers: WriterList) -> Iterator[Proof]:
    for info in stored_objects(store, "proofs/"):
        try:
            yield read_proof(store, info.name, keys, writers)
        except (FormatError, IntegrityError, RepositoryFailed) as error:
            log.warning("proof refused", extra={"object": info.name, "reason": str(error)})


def _from_json(body: bytes, *, prover: bytes) -> Proof:
    try:
        document = json.loads(body)
        return Proof(
            proven_at=str(document["proven_at"]),
            packs=frozenset(bytes.fromhex(digest) for digest in document["packs"]),
            prover=prover,
        )
    except UNREADABLE as error:
        raise IntegrityError("a proof cannot be read") from error
