"""The attacker of the tests finds what there is to find: else it would show nothing that he finds nothing."""

from __future__ import annotations

from pathlib import Path

import pytest

from holdfast_common.repository.directory_store import DirectoryStore
from holdfast_common.repository.randomness import SystemRandomness
from support.attacker import (
    Attacker,
    canaries_in,
    memory_keys,
    new_canary,
    sheet_secret,
    windows,
)
from support.repositories import SeededRandomness, new_repository

CANARY = new_canary("secret")
IMAGE = CANARY + bytes(4096) + b"some more that compresses " * 2000


class Noting(SystemRandomness):
    """Keeps what was drawn."""

    def __init__(self) -> None:
        self.drawn: list[bytes] = []

    def draw(self, count: int) -> bytes:
        made = super().draw(count)
        self.drawn.append(bytes(bytearray(made)))  # a copy: secrets are overwritten after use
        return made


class NotingSeeded(SeededRandomness):
    """The same, with the sender of HPKE that draws its ephemeral key where it can be seen."""

    def __init__(self) -> None:
        super().__init__("seen")
        self.drawn: list[bytes] = []

    def draw(self, count: int) -> bytes:
        made = super().draw(count)
        self.drawn.append(bytes(bytearray(made)))
        return made


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "r"


def backed_up(folder: Path, randomness: Noting | NotingSeeded) -> str:
    """One point; what was drawn for it alone; the recovery key."""
    with DirectoryStore.create(folder) as store:
        repository = new_repository(store)
        repository.randomness = randomness
        repository.backup(IMAGE.ljust(65536, b"x"))
    return repository.sheet.key_text()


def test_he_finds_a_segments_key_in_whatever_form_it_lies_around(folder: Path) -> None:
    randomness = Noting()
    backed_up(folder, randomness)
    keys = {each for each in randomness.drawn if len(each) == 32}
    for dump in (
        b"".join(bytes(8) + each for each in keys),  # on a heap
        b"".join((32).to_bytes(8, "little") + bytes(8) + each for each in keys),  # Python's
        b",".join(each.hex().encode() for each in keys),  # as text
    ):
        found = memory_keys([dump.ljust(4096, b"\0")])
        loot = Attacker(folder).attack(found.objects, found.words)
        assert CANARY in loot.canaries()
        assert set(loot.by) == {"a segment's key"}


def test_he_finds_it_in_what_crosses_the_wire(folder: Path) -> None:
    randomness = Noting()
    backed_up(folder, randomness)
    message = b"\x0a\x07message" + b"|".join(randomness.drawn)
    assert CANARY in Attacker(folder).attack(windows(message), set()).canaries()


def test_he_makes_use_of_what_the_sender_had_in_hand(folder: Path) -> None:
    randomness = NotingSeeded()
    backed_up(folder, randomness)
    few = {each for each in randomness.drawn if len(each) == 32}
    loot = Attacker(folder).attack(set(), set(), few=few)
    assert loot.by["what a sender of HPKE had in hand"] == 1
    assert CANARY in loot.canaries()


def test_with_the_recovery_key_he_reads_everything_and_without_it_nothing(folder: Path) -> None:
    recovery_key = backed_up(folder, Noting())
    attacker = Attacker(folder)
    assert CANARY in attacker.attack({sheet_secret(recovery_key)}, set()).canaries()
    assert not attacker.attack(
        windows(b"".join(p.read_bytes() for p in (folder / "keys").iterdir())), set()
    ).by


def test_canaries_are_found_wherever_they_lie() -> None:
    others = [new_canary(str(number)) for number in range(3)]
    assert set(others) <= canaries_in([bytes(7) + others[0] + b"x" + others[1], others[2]])
    assert CANARY not in canaries_in(others)
