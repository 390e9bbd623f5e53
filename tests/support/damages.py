"""Damages of every kind to every kind of object, drawn by chance from a seed."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from functools import cache

from holdfast_common.errors import FormatError, IntegrityError, RevokedWriter
from holdfast_common.repository.layout import pack_name
from holdfast_common.repository.lease import read_lease
from holdfast_common.repository.pack import TRAILER, read_plain_footer
from holdfast_common.repository.reference_check import stored_packs
from holdfast_common.repository.writers import load_writers
from support.damaged_worlds import WORLDS, World
from support.memory_store import MemoryStore

DRAWS_MAX = 50


class Damage(StrEnum):
    """What happens to an object."""

    FLIP = "flip"
    ZERO = "zero"
    TRUNCATE = "truncate"
    SWAP = "swap"
    REPLAY = "replay"
    REMOVE = "remove"


def _starting(prefix: str, *, copies: bool | None = None) -> Callable[[str], bool]:
    return lambda name: (
        name.startswith(prefix) and (copies is None or name.endswith("-copy") == copies)
    )


# kind of object: which names it has
WHOLE: dict[str, Callable[[str], bool]] = {
    "key generation": _starting("keys/", copies=False),
    "its copy": _starting("keys/", copies=True),
    "list of writers": _starting("writers/", copies=False),
    "copy of the list": _starting("writers/", copies=True),
    "pack": _starting("packs/"),
    "index": _starting("index/"),
    "map": _starting("maps/"),
    "manifest": _starting("points/"),
    "fence": _starting("fences/"),
    "lease": _starting("leases/"),
    "proof": _starting("proofs/"),
    "copy of the controller": _starting("controller/"),
    "description": _starting("about/"),
}
PACK_PARTS = ("segment header", "blob", "plain footer", "sealed footer", "trailer")
KINDS = (*WHOLE, *PACK_PARTS)
# Nothing refers to these: one that is gone is like one that never was, and nothing is lost by it.
FREE_TO_GO = frozenset(
    (kind, Damage.REMOVE) for kind in ("lease", "proof", "copy of the controller")
)


@dataclass(frozen=True)
class Damaged:
    """A repository after one damage."""

    world: World
    store: MemoryStore
    name: str
    told: str  # for a failing test


def drawn(kind: str, damage: Damage, seed: int) -> Damaged:
    """The damage of that seed; it changes the object."""
    chance = random.Random(f"{kind} {damage} {seed}")
    for _ in range(DRAWS_MAX):
        number = chance.randrange(len(WORLDS))
        world = WORLDS[number]()
        store = world.store.copy()
        if kind in WHOLE:
            name = _damage_object(store, kind, damage, chance, number)
        else:
            name = _damage_part(store, kind, damage, chance, number)
        if kind == "lease" and _is_of_revoked(world, store, name):
            continue  # what a revoked key signs is no damage; the lease below it is gone, which may be
        if store.objects.get(name) != world.store.objects[name]:
            told = f"world {number + 1}: {damage} of {kind} {name}, seed {seed}"
            return Damaged(world, store, name, told)
    raise AssertionError(f"no {damage} changes any {kind}")


def _is_of_revoked(world: World, store: MemoryStore, name: str) -> bool:
    keys = world.repository.keys.common
    try:
        read_lease(store, name, keys, load_writers(world.store, keys))
    except RevokedWriter:
        return True
    except (IntegrityError, FormatError):
        return False
    return False


@cache
def names_of(kind: str, number: int) -> tuple[str, ...]:
    """All objects of a kind in one world, oldest first."""
    return tuple(name for name in WORLDS[number]().store.objects if WHOLE[kind](name))


@cache
def parts_of(kind: str, number: int) -> tuple[tuple[str, int, int], ...]:
    """Where those parts of packs stand: name, first byte, end."""
    store = WORLDS[number]().store
    found = []
    for digest, length in stored_packs(store).items():
        footer, plain, sealed = read_plain_footer(store, digest, length=length)
        name = pack_name(digest)
        trailer = length - TRAILER.size
        ends = {
            "segment header": [(each.offset, each.offset + 144) for each in footer.segments],
            "blob": [(each.offset, each.offset + each.stored_length) for each in footer.blobs],
            "plain footer": [(trailer - len(sealed) - len(plain), trailer - len(sealed))],
            "sealed footer": [(trailer - len(sealed), trailer)],
            "trailer": [(trailer, length)],
        }
        found += [(name, start, end) for start, end in ends[kind]]
    return tuple(found)


def _damage_object(
    store: MemoryStore, kind: str, damage: Damage, chance: random.Random, number: int
) -> str:
    names = names_of(kind, number)
    name = chance.choice(names)
    data = store.objects[name]
    if damage is Damage.REMOVE:
        del store.objects[name]
    elif damage is Damage.SWAP:
        others = [each for each in names if each != name and store.objects[each] != data]
        other = chance.choice(others or [each for each in store.objects if each != name])
        store.objects[name], store.objects[other] = store.objects[other], data
    elif damage is Damage.REPLAY:
        store.objects[name] = _earlier(kind, name, chance, number)
    else:
        store.objects[name] = _damaged_bytes(data, damage, 0, len(data), chance)
    return name


def _earlier(kind: str, name: str, chance: random.Random, number: int) -> bytes:
    """Another valid object of that kind: one that was stored before, or another repository's."""
    own = WORLDS[number]().store.objects
    names = names_of(kind, number)
    before = [own[each] for each in names[: names.index(name)]]
    foreign = (number + 1) % len(WORLDS)
    others = WORLDS[foreign]().store.objects
    elsewhere = [others[each] for each in names_of(kind, foreign)]
    if kind == "description":
        elsewhere = [b"# Repository format 1\n\nAn earlier version of this page.\n"]
    return chance.choice(before if before and chance.random() < 0.7 else elsewhere)


def _damage_part(
    store: MemoryStore, kind: str, damage: Damage, chance: random.Random, number: int
) -> str:
    parts = parts_of(kind, number)
    name, start, end = chance.choice(parts)
    data = store.objects[name]
    if damage is Damage.REMOVE:
        store.objects[name] = data[:start] + data[end:]
    elif damage is Damage.SWAP:
        other, other_start, other_end = chance.choice(parts)
        mine, theirs = data[start:end], store.objects[other][other_start:other_end]
        length = min(len(mine), len(theirs))
        _put_at(store, name, start, theirs[:length])
        _put_at(store, other, other_start, mine[:length])
    elif damage is Damage.REPLAY:
        foreign = chance.choice([number, (number + 1) % len(WORLDS)])
        other, other_start, other_end = chance.choice(parts_of(kind, foreign))
        theirs = WORLDS[foreign]().store.objects[other][other_start:other_end]
        store.objects[name] = data[:start] + theirs + data[end:]
    else:
        store.objects[name] = _damaged_bytes(data, damage, start, end, chance)
    return name


def _put_at(store: MemoryStore, name: str, start: int, piece: bytes) -> None:
    data = store.objects[name]
    store.objects[name] = data[:start] + piece + data[start + len(piece) :]


def _damaged_bytes(
    data: bytes, damage: Damage, start: int, end: int, chance: random.Random
) -> bytes:
    if damage is Damage.TRUNCATE:
        return data[: chance.randrange(start, end)]
    changed = bytearray(data)
    if damage is Damage.FLIP:
        for _ in range(chance.choice([1, 1, 1, 2, 8])):
            changed[chance.randrange(start, end)] ^= 1 << chance.randrange(8)
    else:
        first = chance.randrange(start, end)
        length = min(chance.choice([8, 512, 4096, 65536]), end - first)
        changed[first : first + length] = bytes(length)
    return bytes(changed)
