"""What lies in `about/` of every repository: its description, and the program that reads it without Holdfast.

A repository gets both when it is made, and what is missing or older at the next write. They are the only
objects that are ever replaced: never without a whole copy lying there, and never by those of an older release.
"""

from __future__ import annotations

import contextlib
import logging
import re
from functools import cache
from importlib.resources import files
from typing import Final

from holdfast_common.errors import HoldfastError, ObjectMissing
from holdfast_common.repository.about import (
    ABOUT_BYTES_MAX,
    DESCRIPTION,
    DIGEST_SUFFIX,
    digest_line,
    shipped_description,
    store_about,
)
from holdfast_common.repository.object_store import ObjectStore

log = logging.getLogger(__name__)

RESCUE_NAME: Final = "about/rescue.py"
_SPARE_PREFIX: Final = "about/renewed-"
_RELEASE: Final = re.compile(rb"^RESCUE_RELEASE = ([0-9]{1,6})$", re.MULTILINE)


@cache
def about_files() -> dict[str, bytes]:
    """This release's files by object name."""
    rescue = files("holdfast_common.repository").joinpath("rescue.py").read_bytes()
    return {DESCRIPTION: shipped_description(), RESCUE_NAME: rescue}


def describe(store: ObjectStore) -> None:
    """Put what is missing. Raises: RepositoryFull, RepositoryFailed."""
    for name, data in about_files().items():
        store_about(store, name, data)


def renew_description(store: ObjectStore) -> None:
    """Put what is missing, and replace what is older or damaged. Never raises: no backup fails for it."""
    try:
        _renew(store)
    except HoldfastError as error:
        log.warning("rescue.py could not be renewed", extra={"error": error.line()})


def _renew(store: ObjectStore) -> None:
    theirs = _release(_stored(store, RESCUE_NAME) or b"")
    if theirs > _release(about_files()[RESCUE_NAME]):
        return
    for name, data in about_files().items():
        stored = _stored(store, name)
        spare = _SPARE_PREFIX + name.removeprefix("about/")
        if stored is not None and stored != data:
            _remove(store, spare)
            store_about(store, spare, data)
            _remove(store, name)
        digest = _stored(store, name + DIGEST_SUFFIX)
        if digest is not None and digest != digest_line(name, data):
            _remove(store, name + DIGEST_SUFFIX, with_digest=False)
        store_about(store, name, data)
        _remove(store, spare)  # also of a renewal that was interrupted


def _stored(store: ObjectStore, name: str) -> bytes | None:
    try:
        return store.get(name, length_max=ABOUT_BYTES_MAX)
    except ObjectMissing:
        return None


def _remove(store: ObjectStore, name: str, *, with_digest: bool = True) -> None:
    for each in (name + DIGEST_SUFFIX, name) if with_digest else (name,):
        with contextlib.suppress(ObjectMissing):
            store.delete(each)


def _release(rescue: bytes) -> int:
    """The number that a rescue.py says of itself; 0 of something that is none."""
    found = _RELEASE.search(rescue)
    return int(found[1]) if found else 0
