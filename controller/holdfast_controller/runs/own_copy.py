"""What of this controller is copied into the repository, and how: its whole database, and the files beside it.

Before `self_backup` and `bring_back`, which both make copies.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version as package_version
from pathlib import Path
from typing import Final

from holdfast_common.errors import IntegrityError, StoreFailed
from holdfast_common.places import Places
from holdfast_common.repository.controller_copy import (
    CopyHead,
    CopyPlace,
    NewCopy,
    extract_copy,
    put_copy,
)
from holdfast_common.repository.keys import RepositoryKeys
from holdfast_common.repository.object_store import ObjectStore
from holdfast_controller.store.database import Database

CONFIGURATION: Final = "controller.toml"
RECIPIENT: Final = "recipient"  # the public key of what the controller opened the repository with
PRUNER_KEY: Final = "keys/pruner.key"
MAY_LACK: Final = frozenset({PRUNER_KEY})  # it is made by the first prune
PACKAGE: Final = "holdfast-controller"
_TEMPORARY: Final = "own-copy.sqlite"


@dataclass(frozen=True, slots=True, kw_only=True)
class OwnCopy:
    """One copy that is to be made."""

    place: CopyPlace
    controller_id: str
    made_at: str
    recipient: bytes  # public key
    configuration: bytes = b""  # what controller.toml will be; empty: it lies there


def small_files(places: Places) -> dict[str, Path]:
    """Where the files lie that a copy has beside the database; the repository's key file is not among them.

    Who brings a controller back opens the repository himself, and gets a key file of his own.
    """
    state = places.controller_state
    return {
        CONFIGURATION: places.controller_configuration,
        "secrets.key": state / "secrets.key",
        "trust/authority.key": places.trust / "authority.key",
        "trust/authority.pem": places.trust / "authority.pem",
        "trust/controller.id": places.trust / "controller.id",
        PRUNER_KEY: state / "keys" / "pruner.key",
    }


def store_own_copy(
    store: ObjectStore,
    keys: RepositoryKeys,
    own: OwnCopy,
    *,
    database: Database,
    places: Places,
    check: Callable[[], None] = lambda: None,
) -> CopyHead:
    """Copy the database, store it, and read all of it back. ``check`` raises when it is to stop.

    Raises: ObjectExists, Locked, StoreFailed, IntegrityError, RepositoryFull, RepositoryFailed.
    """
    files = {RECIPIENT: own.recipient}
    temporary = places.controller_state / _TEMPORARY
    try:
        for name, path in small_files(places).items():
            if name == CONFIGURATION and own.configuration:
                files[name] = own.configuration
            elif name not in MAY_LACK or path.exists():
                files[name] = path.read_bytes()
        temporary.unlink(missing_ok=True)
        os.close(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
        database.copy_to(temporary)
        new = NewCopy(
            place=own.place,
            controller_id=own.controller_id,
            made_at=own.made_at,
            release=package_version(PACKAGE),
            files=files,
        )
        with temporary.open("rb") as file:
            put_copy(store, new, file, keys=keys, check=check)
    except OSError as error:
        raise StoreFailed(f"the controller's files could not be copied: {error}") from error
    finally:
        temporary.unlink(missing_ok=True)
    # what cannot be brought back is no copy: all of it is opened once
    found = extract_copy(store, own.place, keys, lambda _: check())
    if found.files != files:
        raise IntegrityError("a copy of the controller was not stored as it is")
    return found
