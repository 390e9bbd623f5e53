"""Pruning in tests: one listed pruner, and rounds with the time in between."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace
from datetime import timedelta

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from holdfast_common.repository.object_store import ObjectStore
from holdfast_common.repository.points import Point
from holdfast_common.repository.prune import prune
from holdfast_common.repository.prune_report import PruneLimits, PruneReport
from holdfast_common.repository.writers import ROLE_PRUNE
from support.repositories import Repository

LIMITS = PruneLimits(reserve_bytes=0)
GRACE_SECONDS = LIMITS.grace.total_seconds()


@dataclass
class Pruner:
    """Prunes a repository of `support.repositories` by its clock."""

    repository: Repository
    signing_key: Ed25519PrivateKey

    @classmethod
    def of(cls, repository: Repository) -> Pruner:
        signing_key = Ed25519PrivateKey.from_private_bytes(repository.randomness.draw(32))
        repository.keys.authorise_writer(
            repository.store,
            signing_key.public_key().public_bytes_raw(),
            agent_id="controller",
            clock=repository.clock,
            roles=(ROLE_PRUNE,),
        )
        return cls(repository, signing_key)

    def round(
        self,
        *,
        store: ObjectStore | None = None,
        limits: PruneLimits = LIMITS,
        expected: Collection[str] = (),
        **changes: object,
    ) -> PruneReport:
        return prune(
            store if store is not None else self.repository.store,
            self.repository.keys,
            signing_key=self.signing_key,
            clock=self.repository.clock,
            limits=replace(limits, **changes),  # type: ignore[arg-type]  # fields of the limits
            last_seen=self.repository.clock.now(),
            expected_points=expected,
            randomness=self.repository.randomness,
        )

    def until_done(self, *, rounds_max: int = 6, limits: PruneLimits = LIMITS) -> list[PruneReport]:
        """Rounds a day apart, until one finds nothing to do."""
        reports = []
        for _ in range(rounds_max):
            reports.append(self.round(limits=limits))
            if not reports[-1].fence and not reports[-1].deleted:
                return reports
            self.repository.clock.advance(GRACE_SECONDS + timedelta(minutes=1).total_seconds())
        raise AssertionError(f"pruning never ends: {reports[-1]}")


def forget(repository: Repository, point: Point) -> None:
    """As the product's `forget` does in the end."""
    repository.store.delete(point.name)
