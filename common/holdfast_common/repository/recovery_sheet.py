"""The recovery sheet: a secret on paper, in groups that each show a typing error by themselves.

Nine groups of eight characters (Crockford's base 32). Groups 1 to 8 hold four secret bytes and one
check byte each; group 9 holds five bytes of a checksum over all of it.
"""

from __future__ import annotations

import hmac
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from blake3 import blake3
from cryptography.hazmat.primitives.kdf.argon2 import Argon2id

from holdfast_common.errors import WrongKey
from holdfast_common.repository.layout import KEY_BYTES
from holdfast_common.repository.randomness import Randomness

GROUP_COUNT: Final = 9
CHALLENGE_GROUPS: Final = (
    2  # typed back before the first backup; 192 of 256 bits stay unknown to a digest
)
_GROUP_SECRET_BYTES: Final = 4
_GROUP_BYTES: Final = 5
_GROUP_CHARACTERS: Final = 8
_ALPHABET: Final = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"
_SAME: Final = str.maketrans({"O": "0", "I": "1", "L": "1", "-": None, " ": None})
_CHECK: Final = b"holdfast 1 recovery sheet"


@dataclass(frozen=True, slots=True, kw_only=True)
class RecoverySheet:
    """What `create_repository` hands out once, to be printed and kept away from every computer."""

    repository_id: str
    secret: bytes = field(repr=False)

    @classmethod
    def parse(cls, text: str, *, repository_id: str = "") -> RecoverySheet:
        """The sheet from its nine groups as typed; case, blanks and dashes do not matter.

        Raises: WrongKey, naming the first group with a typing error.
        """
        typed = text.upper().translate(_SAME | {ord(c): None for c in "\t\r\n"})
        if len(typed) != GROUP_COUNT * _GROUP_CHARACTERS:
            raise WrongKey(
                "a recovery key has nine groups of eight characters",
                wanted=GROUP_COUNT * _GROUP_CHARACTERS,
                found=len(typed),
            )
        groups = [
            _decoded(typed[start : start + _GROUP_CHARACTERS], number=number)
            for number, start in enumerate(range(0, len(typed), _GROUP_CHARACTERS), start=1)
        ]
        secret = b"".join(group[:_GROUP_SECRET_BYTES] for group in groups[:-1])
        for number, group in enumerate(groups[:-1], start=1):
            if group != _secret_group(secret, number):
                raise WrongKey("a group of the recovery key has a typing error", group=number)
        if groups[-1] != _last_group(secret):
            raise WrongKey("the last group does not fit the others", group=GROUP_COUNT)
        return cls(repository_id=repository_id, secret=secret)

    def group(self, number: int) -> str:
        """Group 1 to 9 as printed."""
        if number == GROUP_COUNT:
            return _encoded(_last_group(self.secret))
        return _encoded(_secret_group(self.secret, number))

    def key_text(self) -> str:
        """All groups on one line; this is what `RecoverySheet.parse` takes."""
        return " ".join(self.group(number) for number in range(1, GROUP_COUNT + 1))

    def text(self) -> str:
        """The sheet to print."""
        numbers = range(1, GROUP_COUNT + 1)
        groups = "\n".join(f"    {number}  {self.group(number)}" for number in numbers)
        return (
            "HOLDFAST RECOVERY SHEET\n\n"
            f"Repository  {self.repository_id}\n\n"
            "Whoever has this sheet and the repository can read every backup in it.\n"
            "Without it, and when the controller and its keys are lost, nobody can.\n"
            "Print it, keep it away from these machines, and delete the file.\n\n"
            f"{groups}\n\n"
            "The letters I, L, O and U do not occur.\n"
        )

    def challenge(self, randomness: Randomness) -> SheetChallenge:
        """Two groups to be typed back, chosen at random."""
        first = randomness.draw(1)[0] % (GROUP_COUNT - 1)
        step = 1 + randomness.draw(1)[0] % (GROUP_COUNT - 2)
        second = (first + step) % (GROUP_COUNT - 1)
        numbers = tuple(sorted((first + 1, second + 1)))
        salt = randomness.draw(16)
        answer = "".join(self.group(number) for number in numbers)
        return SheetChallenge(numbers=numbers, salt=salt, digest=_slow_digest(answer, salt))


@dataclass(frozen=True, slots=True, kw_only=True)
class SheetChallenge:
    """Which groups must be typed back, and how to know that they are right without the sheet.

    May be stored: even if the digest is broken, six of the eight secret groups stay unknown.
    """

    numbers: tuple[int, ...]
    salt: bytes
    digest: bytes

    def accepts(self, typed: Mapping[int, str]) -> bool:
        """Whether ``typed`` (group number -> text) has all groups asked for, right."""
        parts = [typed.get(number, "").upper().translate(_SAME) for number in self.numbers]
        answer = "".join(parts)
        if any(len(part) != _GROUP_CHARACTERS for part in parts):
            return False
        return hmac.compare_digest(_slow_digest(answer, self.salt), self.digest)


def new_recovery_sheet(*, repository_id: str, randomness: Randomness) -> RecoverySheet:
    """A sheet with a new secret."""
    return RecoverySheet(repository_id=repository_id, secret=randomness.draw(KEY_BYTES))


def _secret_group(secret: bytes, number: int) -> bytes:
    start = (number - 1) * _GROUP_SECRET_BYTES
    part = secret[start : start + _GROUP_SECRET_BYTES]
    return part + blake3(_CHECK + bytes([number]) + part).digest(1)


def _last_group(secret: bytes) -> bytes:
    return blake3(_CHECK + secret).digest(_GROUP_BYTES)


def _encoded(group: bytes) -> str:
    value = int.from_bytes(group, "big")
    return "".join(_ALPHABET[value >> shift & 31] for shift in range(35, -1, -5))


def _decoded(text: str, *, number: int) -> bytes:
    value = 0
    for character in text:
        digit = _ALPHABET.find(character)
        if digit < 0:
            raise WrongKey("a group of the recovery key has a typing error", group=number)
        value = value << 5 | digit
    return value.to_bytes(_GROUP_BYTES, "big")


def _slow_digest(answer: str, salt: bytes) -> bytes:
    return Argon2id(salt=salt, length=32, iterations=2, lanes=1, memory_cost=16 * 1024).derive(
        answer.encode()
    )
