"""Every damage to every kind of object: check finds it and says its loss exactly; no wrong byte comes back."""

from __future__ import annotations

import pytest

from support.damage_summary import PROPERTY
from support.damaged_worlds import WORLDS, Lost
from support.damages import FREE_TO_GO, KINDS, Damage, drawn
from support.shared_work import shared_work

SEEDS = 20  # times 18 kinds, times 6 damages: 2,160
SEEDS_LONG = 197  # 21,276


def judge(kind: str, damage: Damage, seed: int) -> str:
    """One damage before both judges; what they say that they should not, or nothing."""
    damaged = drawn(kind, damage, seed)
    world, store = damaged.world, damaged.store
    report = world.check(store)
    lost = world.lost(store)
    told = [f"{each.name}: {each.reason}" for each in report.damaged]
    reported = world.reported(report)
    wrong = []
    if reported != lost:
        wrong.append(
            f"not told {reported.missing(lost)}, told for nothing {lost.missing(reported)}"
        )
    if not world.opens(store):  # of keys there are two copies
        wrong.append("the recovery sheet does not open it")
    if (kind, damage) in FREE_TO_GO:
        if not report.is_clean or lost != Lost():
            wrong.append("it may go, and harms")
    elif not any(
        names_it(each.name, kind=kind, damage=damage, name=damaged.name) for each in report.damaged
    ):
        wrong.append("not found")
    return f"{damaged.told}: {wrong}, check says {told}" if wrong else ""


def names_it(told: str, *, kind: str, damage: Damage, name: str) -> bool:
    """Whether that is the object which was damaged, as far as anybody can know its name.

    An index object that no manifest names (a repair's) is missed, but not by its name; a merged one by the
    names of those that it contained. Of a file and its digest beside it nobody can say which one changed:
    the file is named.
    """
    if kind == "description":
        return told in (name, name.removesuffix(".sha256"))
    if (kind, damage) == ("index", Damage.REMOVE):
        return told.startswith("index/")
    return told == name


def row(kind: str, seeds: range, request: pytest.FixtureRequest) -> None:
    wrong = []
    for damage in Damage:
        with shared_work():
            told = [text for seed in seeds if (text := judge(kind, damage, seed))]
        wrong += told
        found = 0 if (kind, damage) in FREE_TO_GO else len(seeds) - len(told)
        request.node.user_properties.append((PROPERTY, [kind, damage.value, len(seeds), found]))
    if wrong:
        pytest.fail(
            f"{len(wrong)} of {len(seeds) * len(Damage)}: " + "\n".join(wrong[:20]), pytrace=False
        )


@pytest.mark.parametrize("world", WORLDS, ids=["first", "second", "third", "fourth"])
def test_a_whole_repository_is_clean_and_restores(world: object) -> None:
    assert callable(world)
    found = world()
    report = found.check(found.store)
    assert report.is_clean, report
    assert report.packs == report.packs_decoded == len(report.proven_packs)
    assert found.lost(found.store) == Lost()
    assert found.opens(found.store)


@pytest.mark.repeats
@pytest.mark.parametrize("kind", KINDS)
def test_every_damage_is_found_and_its_loss_said_exactly(
    kind: str, request: pytest.FixtureRequest
) -> None:
    row(kind, range(SEEDS), request)


@pytest.mark.long
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("kind", KINDS)
def test_many_more_damages_are_found_and_their_loss_said_exactly(
    kind: str, request: pytest.FixtureRequest
) -> None:
    row(kind, range(SEEDS, SEEDS + SEEDS_LONG), request)
