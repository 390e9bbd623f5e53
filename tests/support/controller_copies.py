"""Copies of a controller in a repository, made without a controller."""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import replace

from holdfast_common.repository.controller_copy import CopyPlace, NewCopy, copy_keys, put_copy
from holdfast_common.repository.key_sets import ReaderKeys
from holdfast_common.repository.keys import RepositoryKeys
from holdfast_common.repository.object_store import ObjectStore

MADE_AT = "2026-03-01T13:00:00.000000Z"
FILES = {"secrets.key": b"a key of 32 bytes, or so it says", "controller.toml": b""}


def put_controller_copy(
    store: ObjectStore,
    keys: RepositoryKeys,
    *,
    number: int = 1,
    epoch: int = 1,
    database: bytes = b"a database",
    made_at: str = MADE_AT,
    files: Mapping[str, bytes] = FILES,
) -> CopyPlace:
    """Put one; where it lies."""
    place = CopyPlace(controller_epoch=epoch, number=number)
    new = NewCopy(place=place, controller_id="01C", made_at=made_at, release="0.0.0", files=files)
    put_copy(store, new, io.BytesIO(database), keys=keys)
    return place


def with_copy_keys(reader: ReaderKeys, keys: RepositoryKeys) -> ReaderKeys:
    """With the keys of the controller's copies, which no agent ever has."""
    epochs = [
        replace(each, copy_key=copies.copy_key)
        for each, copies in zip(reader.epochs, copy_keys(keys).epochs, strict=True)
    ]
    return replace(reader, epochs=tuple(epochs))
