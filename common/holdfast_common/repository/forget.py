"""Forgetting restore points: the manifests that a plan names are removed, and nothing else.

What only they needed is found by the next prune. `plan_forget` decides, without I/O.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

from holdfast_common.errors import ObjectMissing, Refused
from holdfast_common.repository.fence import Fences
from holdfast_common.repository.holds import held_points
from holdfast_common.repository.object_store import ObjectStore
from holdfast_common.repository.repair_staging import remove_replacement

HELD = "it is held"
FENCE_UNKNOWN = "the newest fence cannot be used; repair the repository, or prune it once, before anything is forgotten"
TOO_NEW = "it is newer than the last prune, whose work must be finished first"


@dataclass(frozen=True, slots=True, kw_only=True)
class PointName:
    """A point as its object names it."""

    name: str
    digest: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class ForgetPlan:
    """``kept``: asked for, but not to be forgotten now, with the reason. ``gone``: not there any more."""

    forgotten: tuple[PointName, ...]
    kept: tuple[tuple[PointName, str], ...]
    gone: tuple[PointName, ...] = ()
    given_up: tuple[tuple[PointName, str], ...] = ()  # damaged, with why


def plan_forget(
    chosen: Sequence[PointName], *, held: Collection[str], fences: Fences
) -> ForgetPlan:
    """What of the chosen points may go.

    Between two fences only points go that the first one counted. A younger one may stand on what that
    fence calls dead; as long as it is there, the next fence sees that it is not, and so does who builds on it.
    """
    newest = fences.newest
    forgotten, kept = [], []
    for point in chosen:
        if point.name in held:
            kept.append((point, HELD))
        elif fences.newest_problem:
            kept.append((point, FENCE_UNKNOWN))
        elif (
            newest is not None
            and newest.tombstones
            and newest.census.get(point.name) != point.digest
        ):
            kept.append((point, TOO_NEW))
        else:
            forgotten.append(point)
    return ForgetPlan(forgotten=tuple(forgotten), kept=tuple(kept))


def forget_point(
    store: ObjectStore, point: PointName, *, check: Callable[[], None] = lambda: None
) -> None:
    """Remove one manifest that a plan names; harmless when it is gone.

    ``check``: called right before; raises when nothing is to be removed any more.
    Raises: Refused when it was held meanwhile; RepositoryFailed.
    """
    if point.name in held_points(store):
        raise Refused("the point is held", point=point.name)
    check()
    remove_replacement(store, point.name)
    with contextlib.suppress(ObjectMissing):
        store.delete(point.name)
