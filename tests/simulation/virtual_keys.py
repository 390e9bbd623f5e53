"""The repository's keys, as a model: whatever is sealed can be opened by everybody. What is decided is the product's."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any, Final

from blake3 import blake3

from holdfast_common.job_spec import Attempt
from holdfast_common.logs import Secret
from holdfast_common.repository.derivation import lineage_tag
from holdfast_controller.runs.agent_link import SignedGrant
from simulation.virtual_repository import REPOSITORY

ID_KEY: Final = bytes(32)
_TAGS: dict[str, bytes] = {}


def tag_of(lineage_id: str) -> bytes:
    """The lineage's tag, which names its objects."""
    if lineage_id not in _TAGS:
        _TAGS[lineage_id] = lineage_tag(ID_KEY, lineage_id)
    return _TAGS[lineage_id]


class AnyWriter:
    """`WriterList`: whoever signed may."""

    def check(self, found: object, *, role: str) -> None:
        """Every agent is listed, in every role."""


class OpenKeys:
    """`ReaderKeys`."""

    id_key = ID_KEY

    def seal(self, kind: object, body: bytes, **_: object) -> bytes:
        del kind
        return body

    def open(self, kind: object, data: bytes, **_: object) -> Any:
        del kind
        return SimpleNamespace(body=bytes(data), digest=blake3(data).digest(), signer=b"")


class OpenRing:
    """`RepositoryKeys`."""

    common = OpenKeys()

    def writers(self, store: object) -> Any:
        del store
        return WRITERS


KEYS: Final[Any] = OpenKeys()
RING: Final[Any] = OpenRing()
WRITERS: Final[Any] = AnyWriter()


class VirtualKeeper:
    """`KeyKeeper`: nothing is decided by what the keys hold."""

    repository_id = REPOSITORY
    has_repository = True
    folder = Path("/repository")

    def keys(self) -> Any:
        """They can be used."""
        return RING

    def pruner_key(self) -> object:
        return object()

    def check_alone(self) -> None:
        """No other controller took over."""

    def problem(self) -> str:
        return ""

    def authorise(self, agent_id: str) -> None:
        """Every agent is a writer."""

    def writer_keys(self, lineage_id: str) -> Secret:
        return Secret(lineage_id.encode())

    def reader_keys(self, lineage_id: str) -> Secret:
        return Secret(lineage_id.encode())

    def grant(
        self, attempt: Attempt, manifest_digest: bytes, *, controller_epoch: int, job_keys: Secret
    ) -> SignedGrant:
        del attempt, job_keys
        return SignedGrant(controller_epoch=controller_epoch, signature=manifest_digest)
