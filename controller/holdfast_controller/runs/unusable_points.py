"""Points that are to go and have no usable manifest: missing, never counted, not readable now, or given up."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace
from datetime import datetime
from typing import Final

from holdfast_common.errors import NotFound, PointVoided, RevokedWriter
from holdfast_common.identity import PointId
from holdfast_common.repository.forget import HELD, ForgetPlan, PointName
from holdfast_common.repository.giving_up import plan_give_up
from holdfast_common.repository.key_sets import KeyRing
from holdfast_common.repository.object_store import ObjectStore
from holdfast_common.repository.points import PointList

UNREAD: Final = (
    "its manifest is there and cannot be used: repair the repository first (`holdfast repo repair --from COPY`);"
    " if no copy has it, `holdfast point delete POINT --give-up`"
)


def lost_names(
    listed: PointList,
    known: Mapping[str, PointId],
    asked: Collection[PointId],
    *,
    give_up: Collection[PointId],
) -> list[str]:
    """Manifests' names of the points in ``asked``, which have no usable one. ``known``: the catalogue's, by name.

    The catalogue need not know those in ``give_up``. Raises: NotFound: nor does the repository.
    """
    lost = {name for name, point_id in known.items() if point_id in asked}
    given_up = set(give_up) & set(asked)
    lost |= {name for name in _unread(listed) if _id_of(name) in given_up}
    if strange := given_up - {_id_of(name) for name in lost}:
        raise NotFound(
            "there is no such restore point",
            point=min(strange),
            advice="see `holdfast point list` and `holdfast check`",
        )
    return sorted(lost)


def with_unusable(
    plan: ForgetPlan, lost: Collection[str], *, listed: PointList, held: Collection[str]
) -> ForgetPlan:
    """The plan, and points without a usable manifest: what is not there, or never counts, is only dropped."""
    unread = _unread(listed)
    kept, gone = [], []
    for name in lost:
        point = PointName(name=name, digest=b"")
        if name in held:
            kept.append((point, HELD))
        elif name in unread:
            kept.append((point, UNREAD))
        else:
            gone.append(point)
    return replace(plan, kept=(*plan.kept, *kept), gone=tuple(gone))


def with_given_up(
    plan: ForgetPlan,
    give_up: Collection[PointId],
    *,
    store: ObjectStore,
    ring: KeyRing,
    now: datetime,
) -> ForgetPlan:
    """The plan, in which those go that stay only because their manifest is damaged. Raises: RepositoryFailed."""
    names = {
        item.name for item, reason in plan.kept if reason == UNREAD and _id_of(item.name) in give_up
    }
    if not names:
        return plan
    given = plan_give_up(store, ring, sorted(names), now=now)
    kept = tuple(each for each in plan.kept if each[0].name not in names)
    return replace(plan, kept=(*kept, *given.kept), given_up=given.given_up)


def _unread(listed: PointList) -> set[str]:
    """Names of the manifests that are there and are no points now; not of those that never count."""
    void = (PointVoided.code, RevokedWriter.code)
    return {item.name for item in listed.unusable if item.code not in void} | set(listed.unopened)


def _id_of(name: str) -> PointId:
    return PointId(name.rpartition("/")[2])
