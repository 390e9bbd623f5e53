"""What lies in a repository for people: the format's description, and whatever else helps to read it.

Each text stands beside its SHA-256, so that anybody can check it without a key and without Holdfast:
`sha256sum -c FORMAT.md.sha256`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from importlib.resources import files
from typing import Final

from holdfast_common.errors import (
    FormatError,
    HoldfastError,
    IntegrityError,
    RepositoryFailed,
)
from holdfast_common.repository.object_store import ObjectStore, is_legal_name, put_or_confirm
from holdfast_common.repository.stored_objects import STRAY

ABOUT_BYTES_MAX: Final = 16 << 20
DESCRIPTION: Final = "about/FORMAT.md"
DIGEST_SUFFIX: Final = ".sha256"


def store_about(store: ObjectStore, name: str, data: bytes) -> None:
    """Put a text and its digest; harmless when they are there. Raises: RepositoryFull, RepositoryFailed."""
    # what is there is of an attempt that ended before its keys were stored
    put_or_confirm(store, name, data)
    put_or_confirm(store, name + DIGEST_SUFFIX, digest_line(name, data))


def shipped_description() -> bytes:
    """The page that this version of Holdfast puts into new repositories."""
    return files("holdfast_common.repository").joinpath("FORMAT.md").read_bytes()


def damaged_about(store: ObjectStore) -> Iterator[tuple[str, str]]:
    """Name and reason of each text that is not what was stored.

    Repositories of before there were digests are judged by what can be told: whether the page is there.
    Raises: RepositoryFailed when they cannot be listed.
    """
    names = {info.name for info in store.list("about/")}
    strays = {name for name in names if not is_legal_name(name)}
    yield from ((name, STRAY) for name in sorted(strays))
    names -= strays
    names |= {DESCRIPTION}
    for name in sorted(names):
        if name.endswith(DIGEST_SUFFIX):
            if name.removesuffix(DIGEST_SUFFIX) not in names:
                yield name.removesuffix(DIGEST_SUFFIX), "the object is missing"
            continue
        if name not in names or store.head(name) is None:
            yield name, "the object is missing"
            continue
        yield from _judged(store, name, has_digest=name + DIGEST_SUFFIX in names)


def _judged(store: ObjectStore, name: str, *, has_digest: bool) -> Iterator[tuple[str, str]]:
    try:
        data = store.get(name, length_max=ABOUT_BYTES_MAX)
    except (IntegrityError, FormatError, RepositoryFailed) as error:
        yield name, str(error)
        return
    if not has_digest:
        if not _is_old(data):
            yield name + DIGEST_SUFFIX, "the object is missing"
        return
    wanted = digest_line(name, data)
    try:
        found = store.get(name + DIGEST_SUFFIX, length_max=ABOUT_BYTES_MAX)
    except HoldfastError as error:
        yield name + DIGEST_SUFFIX, str(error)
        return
    if found == wanted:
        return
    if _is_digest_line(data, name):  # the two were exchanged
        yield name, "it is the digest of a text, not a text"
    if (name == DESCRIPTION and data == shipped_description()) or not _is_digest_line(found, name):
        yield name + DIGEST_SUFFIX, "it is not the digest of the text beside it"
    else:
        yield name, "it does not match the digest beside it"


def digest_line(name: str, data: bytes) -> bytes:
    """As `sha256sum` writes it."""
    return f"{hashlib.sha256(data).hexdigest()}  {name.rpartition('/')[2]}\n".encode()


def _is_digest_line(found: bytes, name: str) -> bool:
    digest, _, rest = found.partition(b"  ")
    return (
        len(digest) == 64
        and not digest.strip(b"0123456789abcdef")
        and rest == name.rpartition("/")[2].encode() + b"\n"
    )


def _is_old(data: bytes) -> bool:
    """Whether a page is of a version that put no digest beside it: it does not tell of any."""
    return DIGEST_SUFFIX.encode() not in data
