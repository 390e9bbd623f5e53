"""How sure it is that a point lacks nothing that change tracking kept back."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from holdfast_common.errors import FormatError
from holdfast_common.point_record import DiskRecord
from holdfast_controller.decide.confidence import (
    DiskEvidence,
    Evidence,
    confidence_number,
    confidence_text,
    evidence_of_text,
    evidence_text,
    point_confidence,
    point_evidence,
)

BY_CHANGES = "changes since the previous point"
WEB = (2000, "6000C29")


def disk(
    seen: int | None, *, audited: int = 0, reason: str = BY_CHANGES, key: int = 2000
) -> DiskRecord:
    return DiskRecord(
        device_key=key,
        uuid="6000C29",
        label="Hard disk 1",
        capacity_bytes=1000,
        level_reason=reason,
        audited_bytes=audited,
        seen_bytes=seen,
    )


def chain(*disks: DiskRecord) -> Evidence:
    """The evidence of the last of points that stand on each other."""
    found: Evidence | None = None
    for each in disks:
        found = point_evidence([each], found)
    assert found is not None
    return found


WHOLE = disk(1000, reason="there is no previous point")


def test_a_disk_that_was_read_whole_is_proven() -> None:
    evidence = chain(WHOLE)
    assert evidence[WEB].is_proven
    assert point_confidence(evidence) == 1.0
    # so it is when an audit read all that tracking called unchanged
    assert chain(WHOLE, disk(1000, audited=900))[WEB].is_proven


def test_without_audits_nothing_would_have_been_found() -> None:
    evidence = chain(WHOLE, disk(100), disk(100))
    assert point_confidence(evidence) == 0.0
    assert not evidence[WEB].is_proven


def test_audits_count_for_every_backup_since_the_disk_was_proven() -> None:
    # 100 of 1000 changed; of the 900 that were taken over a half was read again
    assert point_confidence(chain(WHOLE, disk(550, audited=450))) == pytest.approx(0.5)
    twice = point_confidence(chain(WHOLE, disk(550, audited=450), disk(550, audited=450)))
    assert twice == pytest.approx((0.75 + 0.5) / 2)


def test_a_full_of_what_tracking_calls_allocated_is_not_proven_and_audits_make_up_for_it() -> None:
    allocated = disk(300, reason="there is no previous point")
    assert point_confidence(chain(allocated)) == 0.0
    assert point_confidence(chain(WHOLE, allocated)) == 0.0  # it stands on nothing
    later = point_confidence(chain(allocated, disk(550, audited=450)))
    assert later == pytest.approx(0.5)


def test_what_is_not_known_is_not_claimed() -> None:
    assert point_confidence(point_evidence([disk(100)], None)) is None
    assert point_confidence(chain(disk(None, reason="a full was asked for"), disk(100))) is None
    assert point_confidence(chain(disk(None, reason="a full was asked for"), WHOLE)) == 1.0
    both = point_evidence([WHOLE, disk(None, key=2001)], None)
    assert point_confidence(both) is None


def test_the_least_proven_disk_counts() -> None:
    first = point_evidence([WHOLE, disk(1000, key=2001, reason="")], None)
    second = point_evidence([disk(1000, audited=900), disk(550, audited=450, key=2001)], first)
    assert point_confidence(second) == pytest.approx(0.5)


evidences = st.dictionaries(
    st.tuples(st.integers(0, 1 << 31), st.text()),
    st.builds(
        DiskEvidence,
        shares=st.lists(st.floats(0, 1)).map(tuple),
        is_known=st.booleans(),
    ),
)


@given(evidences)
def test_evidence_is_kept_as_it_is(evidence: Evidence) -> None:
    assert evidence_of_text(evidence_text(evidence)) == evidence


@pytest.mark.parametrize("text", ["", "{", '{"a": 1}', "[[1]]", '[["x", "y", true]]', "[1]"])
def test_evidence_that_cannot_be_read_is_an_error(text: str) -> None:
    with pytest.raises(FormatError):
        evidence_of_text(text)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=40))
def test_it_is_a_probability_and_another_audit_never_lowers_it(shares: list[float]) -> None:
    number = DiskEvidence(shares=tuple(shares)).confidence
    assert number is not None
    assert 0 <= number <= 1
    better = [min(1.0, share + 0.1) for share in shares]
    after = DiskEvidence(shares=tuple(better)).confidence
    assert after is not None
    assert after >= number - 1e-12


def test_the_number_is_what_a_lie_at_a_random_backup_would_meet() -> None:
    chance = random.Random(7)
    shares = (0.0, 0.1, 0.25, 0.05, 0.1)
    found = 0
    for _ in range(20_000):
        lied_at = chance.randrange(len(shares))
        found += any(chance.random() < share for share in shares[lied_at:])
    assert DiskEvidence(shares=shares).confidence == pytest.approx(found / 20_000, abs=0.01)


def test_only_what_is_proven_is_told_as_1() -> None:
    assert confidence_text(1.0).startswith("1: ")
    assert confidence_text(0.9999).startswith("0.99 at least")
    assert confidence_text(0.0).startswith("0.00 at least")
    assert confidence_text(None).startswith("not known")


def test_the_number_alone_is_never_rounded_up() -> None:
    assert [confidence_number(each) for each in (None, 0.0, 0.999, 1.0)] == [
        "?",
        "0.00",
        "0.99",
        "1",
    ]
