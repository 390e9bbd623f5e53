"""What a check says: of structure alone, of parts of the data, without a key, where there are second copies.

(`test_damage` has every damage of every kind of object.)
"""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from holdfast_common.errors import HoldfastError, Interrupted
from holdfast_common.repository.check import RepositoryCheck, check_data, check_structure
from holdfast_common.repository.layout import pack_name
from holdfast_common.repository.repair import RepairReport, describe
from holdfast_common.repository.scrub import scrub
from holdfast_common.repository.subset import Share, Subset, chosen_packs, parsed_subset
from support.damaged_worlds import OTHER, first_world
from support.damages import Damage, drawn
from support.memory_store import MemoryStore
from support.repositories import BLOCK, authorise, new_repository, patterned

SEEDS = range(12)


def test_a_whole_repository_is_clean() -> None:
    world = first_world()
    assert check_structure(world.store, world.repository.keys).is_clean
    assert scrub(world.store) == []


def test_a_removed_fence_is_missed_by_the_points_behind_it() -> None:
    store = first_world().store.copy()
    del store.objects["fences/0000000001"]
    report = first_world().check(store)
    assert [item.name for item in report.damaged] == ["fences/0000000001"]


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("damage", [Damage.REMOVE, Damage.TRUNCATE])
def test_structure_finds_missing_and_truncated_packs_without_reading_data(
    damage: Damage, seed: int
) -> None:
    damaged = drawn("pack", damage, seed)
    report = check_structure(damaged.store, damaged.world.repository.keys)
    assert damaged.name in {item.name for item in report.damaged}


def test_a_scrub_needs_no_key_and_names_the_blobs_that_are_hit() -> None:
    name = pack_name(first_world().originals[0].point.manifest.packs[0])
    store = first_world().store.copy()
    data = bytearray(store.objects[name])
    data[2000] ^= 1
    store.objects[name] = bytes(data)
    (found,) = scrub(store)
    assert found.name == name
    assert "blobs hit: 0" in found.reason


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("kind", ["pack", "segment header", "blob", "plain footer", "trailer"])
def test_a_scrub_finds_whatever_happened_to_the_bytes_of_a_pack(kind: str, seed: int) -> None:
    for damage in set(Damage) - {Damage.REMOVE}:
        damaged = drawn(kind, damage, seed)
        assert damaged.name in {item.name for item in scrub(damaged.store)}, damaged.told


def test_subsets_cover_every_pack_once() -> None:
    keys = first_world().repository.keys
    decoded = 0
    for number in (1, 2, 3):
        report = check_data(
            first_world().store, keys, segment_keys=keys, subset=Subset(number=number, of=3)
        )
        assert report.is_clean
        decoded += report.packs_decoded
    assert decoded == report.packs
    with pytest.raises(HoldfastError):
        Subset(number=4, of=3)


def test_a_share_takes_what_is_proven_longest_ago_and_goes_round() -> None:
    packs = {bytes([number]) * 32: 100 for number in range(10)}
    proven_at: dict[bytes, str] = {}
    rounds = []
    for day in range(4):
        chosen = chosen_packs(packs, Share(percent=25), proven_at=proven_at)
        proven_at |= dict.fromkeys(chosen, f"2026-03-0{day + 1}")
        rounds.append(set(chosen))
    assert [len(each) for each in rounds] == [3, 3, 3, 3]
    assert set.union(*rounds) == set(packs)
    assert chosen_packs(packs, None, proven_at={}) == list(packs)


@pytest.mark.parametrize("text", ["0/3", "4/3", "x", "101%", "0%", "5", "1/0", "%", "-1%"])
def test_what_is_no_subset_is_refused(text: str) -> None:
    with pytest.raises(HoldfastError):
        parsed_subset(text)


def test_a_subset_is_said_in_words_of_the_command_line() -> None:
    assert parsed_subset("") is None
    assert parsed_subset("3/30") == Subset(number=3, of=30)
    assert parsed_subset("2.5%") == Share(percent=2.5)


def test_of_more_lost_ranges_than_a_report_lists_all_are_counted() -> None:
    store = MemoryStore()
    repository = new_repository(store)
    image = b"".join(patterned(BLOCK, str(n)) + bytes(BLOCK) for n in range(9))
    first = repository.backup(image)
    second = repository.backup(image)
    for name in [name for name in store.objects if name.startswith("packs/")]:
        del store.objects[name]
    check = RepositoryCheck(store, repository.keys)
    check.check_objects(())
    whole = check.report(ranges_max=None)
    assert [item.extent.offset for item in whole.lost_ranges] == [
        2 * n * BLOCK for n in range(9)
    ] * 2
    assert all(item.extent.length == BLOCK for item in whole.lost_ranges)
    assert whole.unlisted == ()
    for ranges_max in (0, 1, 9, 12, 18):
        report = check.report(ranges_max=ranges_max)
        assert report.lost_ranges == whole.lost_ranges[:ranges_max]
        left = {item.point_id: (item.ranges, item.length) for item in report.unlisted}
        counts = {first.point_id: 9 - min(9, ranges_max), second.point_id: 18 - max(9, ranges_max)}
        assert left == {point: (n, n * BLOCK) for point, n in counts.items() if n}
        assert not report.is_clean
        assert report.damaged == whole.damaged
    chosen = check.report(points=[second.point_id], ranges_max=5)
    assert {item.point_id for item in chosen.lost_ranges} == {second.point_id}
    assert (len(chosen.lost_ranges), chosen.unlisted[0].ranges) == (5, 4)
    told = describe(RepairReport(before=chosen, after=chosen))
    assert any("and 4 more ranges, together 262144 bytes" in line for line in told)


def test_a_check_that_is_cut_off_has_told_what_it_had_proven(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("holdfast_common.repository.check.PROVEN_PACKS", 2)
    keys = first_world().repository.keys
    told: list[bytes] = []

    def proven(packs: Sequence[bytes]) -> None:
        told.extend(packs)
        if len(told) == 4:
            raise Interrupted("stop")

    with pytest.raises(Interrupted):
        check_data(first_world().store, keys, segment_keys=keys, proven=proven)
    assert len(told) == 4


def test_a_chunk_with_a_second_good_copy_is_not_lost() -> None:
    """Two writers stored the same frames, each for itself; one copy rots."""
    store = MemoryStore()
    repository = new_repository(store)
    image = patterned(4 * BLOCK, "twice")
    first = repository.backup(image)
    key = Ed25519PrivateKey.generate()
    authorise(repository, key, agent_id="proxy-2")
    repository.backup(image, signing_key=key, lineage=OTHER)
    name = pack_name(first.manifest.packs[0])
    for damaged in (store.objects[name][:1000], flipped(store.objects[name], 2000)):
        broken = store.copy()
        broken.objects[name] = damaged
        report = check_data(broken, repository.keys, segment_keys=repository.keys)
        assert not report.is_clean
        assert not report.lost_ranges
        assert repository.restored(first, store=broken) == image


def flipped(data: bytes, position: int) -> bytes:
    return data[:position] + bytes([data[position] ^ 1]) + data[position + 1 :]
