"""When a pack counts as proven last, when a check shall read those that were proven longest ago."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from holdfast_common.repository.proof import NOBODY, ProofTimes
from holdfast_common.repository.subset import Share, chosen_packs

ALICE, BOB, PACK = b"A" * 32, b"B" * 32, b"p" * 32


def last(
    times: dict[bytes, str], *, writers: frozenset[bytes], reader: bytes, pack: bytes = PACK
) -> str:
    found = ProofTimes(of_prover={who: {PACK: when} for who, when in times.items()})
    return found.last(pack, writers=writers, reader=reader)


def test_what_a_proxy_says_of_its_own_pack_counts_for_nobody_who_can_say_more() -> None:
    own = {ALICE: "2026-03-09"}
    assert last(own, writers=frozenset({ALICE}), reader=BOB) == ""
    both = own | {BOB: "2026-03-01"}
    assert last(both, writers=frozenset({ALICE}), reader=BOB) == "2026-03-01"
    assert last(both, writers=frozenset({BOB}), reader=ALICE) == "2026-03-09"


def test_who_reads_what_he_wrote_himself_goes_by_any_proof() -> None:
    """His reading counts for nothing, so without that he would read the same packs every time."""
    assert last({ALICE: "2026-03-09"}, writers=frozenset({ALICE}), reader=ALICE) == "2026-03-09"


def test_of_a_pack_of_two_writers_each_part_has_its_own_time() -> None:
    both = frozenset({ALICE, BOB})
    assert last({ALICE: "2026-03-09"}, writers=both, reader=b"C" * 32) == ""
    assert last({ALICE: "2026-03-09", BOB: "2026-03-02"}, writers=both, reader=b"") == "2026-03-02"
    assert last({ALICE: "2026-03-09"}, writers=both, reader=ALICE) == "2026-03-09"


def test_a_pack_that_no_index_names_goes_by_any_proof() -> None:
    for writers in (frozenset[bytes](), frozenset({NOBODY})):
        assert last({ALICE: "2026-03-09"}, writers=writers, reader=BOB) == "2026-03-09"
        assert last({ALICE: "2026-03-09"}, writers=writers, reader=BOB, pack=b"q" * 32) == ""


@given(
    st.lists(st.sampled_from([{0}, {1}, {0, 1}, {0, 2}, set[int]()]), min_size=4, max_size=12),
    st.lists(st.integers(0, 1), min_size=1, max_size=4),
)
def test_whoever_reads_a_share_again_and_again_has_read_all_in_time(
    written: list[set[int]], before: list[int]
) -> None:
    """Alone for long enough, every reader comes to every pack, whoever wrote it and whoever read before."""
    keys = [ALICE, BOB, b"C" * 32]
    packs = {bytes([number]) * 32: 100 for number in range(len(written))}
    writers = {
        pack: frozenset(keys[each] for each in who)
        for pack, who in zip(packs, written, strict=True)
    }
    times: dict[bytes, dict[bytes, str]] = {}

    def checked(day: int, reader: bytes) -> list[bytes]:
        found = ProofTimes(of_prover=times)
        proven_at = {pack: found.last(pack, writers=writers[pack], reader=reader) for pack in packs}
        chosen = chosen_packs(packs, Share(percent=25), proven_at=proven_at)
        times.setdefault(reader, {}).update(dict.fromkeys(chosen, f"day {day:04}"))
        return chosen

    for day, reader in enumerate(before):
        checked(day, keys[reader])
    seen: set[bytes] = set()
    for day in range(4):
        seen.update(checked(100 + day, BOB))
    assert seen == set(packs)
