"""The golden repository after a prune that repacked and a change of all keys, with a backup after both.

`python tests/support/golden_repacked.py` (with PYTHONPATH as pytest has it) writes it if it is missing. It is
never changed: repositories like it lie in the world.
"""

from __future__ import annotations

from holdfast_common.repository.key_changes import rotate, settle
from holdfast_common.repository.manifest import ManifestFacts
from holdfast_common.repository.points import Point
from support.golden_repository import GOLDEN, noise, text
from support.memory_store import MemoryStore
from support.pruning import Pruner, forget
from support.repositories import BLOCK, Repository, new_repository

NAME = "format-1-repacked"
MAIL = "vcenter-1/5028-mail"
CAPACITY = 48 * BLOCK + 512


def images() -> dict[str, bytes]:
    """What is left, by job id: JOB00001 was forgotten."""
    first = noise(CAPACITY, "first")
    second = text(40 * BLOCK, "second") + first[40 * BLOCK :]
    third = second[: 4 * BLOCK] + noise(BLOCK, "after") + second[5 * BLOCK :]
    return {"JOB00002": second, "JOB00003": noise(3 * BLOCK, "mail"), "JOB00004": third}


def built() -> tuple[MemoryStore, Repository]:
    store = MemoryStore()
    repository = new_repository(store, seed="repacked")
    store.now = repository.clock.now
    pruner = Pruner.of(repository)
    content = images()
    gone = repository.backup(noise(CAPACITY, "first"), facts=_facts(1, "web", "full"))
    second = repository.backup(
        content["JOB00002"],
        ranges=[(0, 40 * BLOCK)],
        previous=gone.disks[0],
        facts=_facts(2, "web", "incremental"),
    )
    repository.backup(content["JOB00003"], lineage=MAIL, facts=_facts(3, "mail", "full"))
    forget(repository, gone)
    reports = pruner.until_done()
    assert any(report.moved_bytes for report in reports), "nothing was repacked"
    _change_all_keys(repository, store)
    _backed_up_again(repository, second)
    return store, repository


def _facts(order: int, name: str, level: str) -> ManifestFacts:
    return ManifestFacts(order=order, level_done=level, vm={"name": name})


def _change_all_keys(repository: Repository, store: MemoryStore) -> None:
    changed = rotate(store, repository.keys)
    settle(store, changed)
    repository.keys = changed


def _backed_up_again(repository: Repository, second: Point) -> None:
    repository.backup(
        images()["JOB00004"],
        ranges=[(4 * BLOCK, BLOCK)],
        previous=second.disks[0],
        facts=_facts(4, "web", "incremental"),
    )


def main() -> None:
    directory = GOLDEN / NAME
    if directory.exists():
        return
    store, repository = built()
    for object_name, data in store.objects.items():
        path = directory / object_name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    (GOLDEN / f"{NAME}.recovery").write_text(repository.sheet.key_text() + "\n")


if __name__ == "__main__":
    main()
