"""The golden repositories of format 1: how they were made, byte for byte.

`python tests/support/golden_repository.py` (with PYTHONPATH as pytest has it) writes those that are
missing; one that exists is never changed, because repositories like it lie in the world.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from holdfast_common.repository.fence import Fence, store_fence
from holdfast_common.repository.key_changes import (
    add_recipient,
    found_recipient,
    recipients_of,
    remove_recipient,
    settle,
)
from holdfast_common.repository.manifest import ManifestFacts
from holdfast_common.repository.points import Point
from holdfast_common.repository.randomness import Randomness
from holdfast_common.repository.recipients import (
    Argon2Cost,
    NewRecipient,
    key_file_recipient,
    passphrase_recipient,
    public_key_recipient,
)
from support.memory_store import MemoryStore
from support.repositories import BLOCK, LINEAGE, Repository, SeededRandomness, new_repository

GOLDEN = Path(__file__).parents[1] / "common" / "repository" / "golden"
# name: whether its data compresses. In the first two manifests do not say what their points use. In the
# last one the keys were changed twice: a recipient came after the first point, and was shut out after the second.
KINDS = {
    "format-1-plain": False,
    "format-1-compressed": True,
    "format-1-used": False,
    "format-1-rotated": False,
}
ROTATED = "format-1-rotated"
VAULT_PRIVATE = bytes(range(32))  # of the recipient who was shut out
PASSPHRASE = "correct horse battery staple"
KEY_FILE = b"holdfast-key-1:" + b"ab" * 32 + b"\n"
OTHER_LINEAGE = "vcenter-1/502f-other"
CAPACITY = 4 * BLOCK + 1536


def noise(length: int, seed: str) -> bytes:
    """Bytes that no compressor shortens, so that the stored ones do not depend on zstd's version."""
    return hashlib.shake_256(seed.encode()).digest(length)


def text(length: int, seed: str) -> bytes:
    """Bytes that compress well."""
    line = f"{seed}: the quick brown fox jumps over the lazy dog\n".encode()
    return (line * (length // len(line) + 1))[:length]


def images(*, compressible: bool) -> dict[str, bytes]:
    """What every point must restore to, by job id."""
    make = text if compressible else noise
    first = bytearray(make(CAPACITY, "first"))
    first[BLOCK : 2 * BLOCK] = bytes(BLOCK)
    second = bytearray(first)
    second[BLOCK : 2 * BLOCK] = make(BLOCK, "second")
    second[3 * BLOCK : 4 * BLOCK] = bytes(BLOCK)
    third = bytearray(second)
    third[4 * BLOCK :] = make(1536, "third")
    return {
        "JOB00001": bytes(first),
        "JOB00002": bytes(second),
        "JOB00003": bytes(third),
        "JOB00004": make(BLOCK, "other"),
    }


def recipients(randomness: Randomness) -> list[NewRecipient]:
    cost = Argon2Cost(memory_kib=64, iterations=1, lanes=1)
    return [
        passphrase_recipient(PASSPHRASE, label="operator", randomness=randomness, cost=cost),
        key_file_recipient(KEY_FILE, label="controller"),
    ]


def built(
    *, compressible: bool, rotated: bool = False
) -> tuple[MemoryStore, Repository, dict[str, Point]]:
    """Two VMs, three generations of one, blobs, a zero range, an odd end, a closed epoch."""
    store = MemoryStore()
    seed = "rotated" if rotated else "compressible" if compressible else "plain"
    repository = new_repository(
        store, recipients=recipients(SeededRandomness(f"recipients {seed}")), seed=seed
    )
    content = images(compressible=compressible)
    make = text if compressible else noise
    first = repository.backup(
        content["JOB00001"],
        blobs={"vmx": make(900, "vmx"), "nvram": make(8684, "nvram")},
        facts=ManifestFacts(
            order=1,
            vm={"name": "web", "instance_uuid": "5028a1c3", "vcenter": "vcenter-1"},
            snapshot_at="2026-03-01T11:59:00.000000Z",
        ),
    )
    if rotated:
        _add_vault(repository)
    second = repository.backup(
        content["JOB00002"],
        ranges=[(BLOCK, BLOCK), (3 * BLOCK, BLOCK)],
        previous=first.disks[0],
        facts=ManifestFacts(order=2, level_done="incremental", previous_point=first.point_id),
    )
    store_fence(
        store,
        Fence(
            closed_epoch=1,
            closed_at="2026-03-01T13:00:00.000000Z",
            census={point.name: point.digest for point in (first, second)},
        ),
        keys=repository.keys.common,
        signing_key=repository.signing_key,
        randomness=repository.randomness,
    )
    if rotated:
        _shut_vault_out(repository, store)
    third = repository.backup(
        content["JOB00003"],
        ranges=[(4 * BLOCK, 1536)],
        previous=second.disks[0],
        facts=ManifestFacts(order=3, level_done="incremental", previous_point=second.point_id),
    )
    other = repository.backup(
        content["JOB00004"], lineage=OTHER_LINEAGE, facts=ManifestFacts(order=4)
    )
    points = {point.manifest.job_id: point for point in (first, second, third, other)}
    return store, repository, points


def _add_vault(repository: Repository) -> None:
    public = X25519PrivateKey.from_private_bytes(VAULT_PRIVATE).public_key().public_bytes_raw()
    vault = public_key_recipient(public, label="vault")
    changed = add_recipient(repository.store, repository.keys, vault, clock=repository.clock)
    settle(repository.store, changed)
    repository.keys = changed


def _shut_vault_out(repository: Repository, store: MemoryStore) -> None:
    """The generation of before is left over, as after a crash: readers take the highest one."""
    left = {name: data for name, data in store.objects.items() if name.startswith("keys/")}
    entries = recipients_of(store, repository.keys)
    vault = found_recipient(entries, "vault").recipient_id
    changed = remove_recipient(store, repository.keys, vault)
    settle(store, changed)
    store.objects.update(left)
    repository.keys = changed


def load(directory: Path) -> MemoryStore:
    """A golden repository as it lies in the tests."""
    store = MemoryStore()
    for path in sorted(directory.rglob("*")):
        if path.is_file():
            store.objects[str(path.relative_to(directory))] = path.read_bytes()
    return store


def lineage_of(job_id: str) -> str:
    return OTHER_LINEAGE if job_id == "JOB00004" else LINEAGE


def main() -> None:
    for name, compressible in KINDS.items():
        directory = GOLDEN / name
        if directory.exists():
            continue
        store, repository, _ = built(compressible=compressible, rotated=name == ROTATED)
        for object_name, data in store.objects.items():
            path = directory / object_name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
        (GOLDEN / f"{name}.recovery").write_text(repository.sheet.key_text() + "\n")


if __name__ == "__main__":
    main()
