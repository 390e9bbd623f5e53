"""Which copy of a lost controller's database counts: the last one that is whole. Before `bring_back`."""

from __future__ import annotations

import os
from collections.abc import Set
from dataclasses import dataclass
from pathlib import Path

from holdfast_common.errors import FormatError, IntegrityError, NotFound, ObjectMissing
from holdfast_common.repository.controller_copy import CopyHead, copies_by_age, extract_copy
from holdfast_common.repository.keys import RepositoryKeys
from holdfast_common.repository.object_store import ObjectStore


@dataclass(frozen=True, slots=True, kw_only=True)
class Chosen:
    """The copy that is to be used, with its database in a file; ``passed_over``: newer ones, and why."""

    head: CopyHead
    passed_over: tuple[str, ...]


def choose_copy(
    store: ObjectStore, keys: RepositoryKeys, target: Path, *, needed: Set[str] = frozenset()
) -> Chosen:
    """Write the database of the last copy that is whole to ``target``; ``needed``: files that it must have.

    Raises: NotFound, RepositoryFailed.
    """
    passed_over: list[str] = []
    for place in copies_by_age(store):
        descriptor = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        try:
            with os.fdopen(descriptor, "wb") as file:
                head = extract_copy(store, place, keys, file.write)
                file.flush()
                os.fsync(file.fileno())
        except (IntegrityError, FormatError, ObjectMissing) as error:
            passed_over.append(f"{place.name}: {error}")
            continue
        lacks = sorted(needed - head.files.keys())
        if lacks:
            passed_over.append(f"{place.name}: it lacks {', '.join(lacks)}")
            continue
        return Chosen(head=head, passed_over=tuple(passed_over))
    target.unlink(missing_ok=True)
    raise NotFound(
        "no copy of a controller in this repository can be used"
        if passed_over
        else "there is no copy of a controller in this repository",
        passed_over="; ".join(passed_over)[:500],
        advice="its points can be restored all the same, without Holdfast: see about/rescue.py in it",
    )
