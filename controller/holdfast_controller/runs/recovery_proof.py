"""The proof that the recovery sheet was kept: part of it typed back. Only a slow digest is stored."""

from __future__ import annotations

import base64
import json

from holdfast_common.errors import NoRepository
from holdfast_common.repository.recovery_sheet import SheetChallenge
from holdfast_controller.store import settings as names
from holdfast_controller.store.settings import Settings


def challenge_text(challenge: SheetChallenge) -> str:
    """A challenge as a setting."""
    return json.dumps(
        {
            "numbers": challenge.numbers,
            "salt": base64.b64encode(challenge.salt).decode(),
            "digest": base64.b64encode(challenge.digest).decode(),
        }
    )


def challenge_from_text(text: str) -> SheetChallenge:
    """The inverse of `challenge_text`."""
    fields = json.loads(text)
    return SheetChallenge(
        numbers=tuple(fields["numbers"]),
        salt=base64.b64decode(fields["salt"]),
        digest=base64.b64decode(fields["digest"]),
    )


def confirm_recovery_sheet(settings: Settings, typed: str) -> bool:
    """Whether ``typed`` holds, in order, the groups that were asked for. Raises: NoRepository."""
    text = settings.get(names.SHEET_CHALLENGE)
    if not text:
        raise NoRepository(
            "no repository was made yet, so there is no recovery sheet",
            advice="make one with `holdfast repo init DIRECTORY`",
        )
    challenge = challenge_from_text(text)
    groups = typed.replace(",", " ").split()
    if len(groups) != len(challenge.numbers):
        return False
    return challenge.accepts(dict(zip(challenge.numbers, groups, strict=True)))
