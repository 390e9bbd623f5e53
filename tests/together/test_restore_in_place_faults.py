"""Restore in place: whatever call or write goes wrong, the VM has its old disks or its restored ones, whole."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from holdfast_common.job_spec import TransportKind
from support.restoring import MODES, READING, Chance, InPlace, Tally, in_place_rig
from support.restoring_summary import PROPERTY

SEED = 7
PARTS = 2  # of one sweep, so that two processes share it
TRANSPORTS = (TransportKind.DIRECT, TransportKind.HOTADD, TransportKind.NFC)


@pytest.fixture
def rig(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[InPlace]:
    with in_place_rig(tmp_path, monkeypatch) as ready:
        yield ready


@pytest.fixture
def tally(record_property: Callable[[str, object], None]) -> Iterator[Tally]:
    """How the test's runs ended; told with all others' at the end."""
    found = Tally()
    yield found
    record_property(PROPERTY, found.facts())


def assert_whole(tally: Tally) -> None:
    assert not tally.broken, "\n".join(tally.broken)
    assert tally.calls + tally.writes == tally.old + tally.restored > 0


def counted(rig: InPlace, transport: TransportKind, chance: Chance) -> list[str]:
    """What a run without faults does, in order."""
    rig.guest_writes(0)
    chance.arm(0, "")
    assert rig.run(transport) == ""
    return list(chance.seen)


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_a_few_calls_and_writes_that_go_wrong_leave_old_disks_or_restored_ones(
    rig: InPlace, tally: Tally, transport: TransportKind
) -> None:
    chosen = random.Random(f"{SEED} {transport}")
    calls = counted(rig, transport, rig.gate.calls)
    changing = [at for at, call in enumerate(calls, 1) if call.partition(" ")[0] not in READING]
    for number, mode in ((chosen.choice(changing), "lost"), (chosen.choice(changing), "refused")):
        rig.gate.calls.arm(number, mode)
        assert rig.once(number, transport, rig.gate.calls, tally)
        tally.calls += 1
    rig.writes.arm(1, chosen.choice(("refused", "lost")))
    assert rig.once(1000, transport, rig.writes, tally)
    tally.writes += 1
    assert_whole(tally)


@pytest.mark.long
@pytest.mark.timeout(1800)  # hundreds of whole restores, on a machine that may be busy
@pytest.mark.parametrize("transport", TRANSPORTS)
@pytest.mark.parametrize("part", range(PARTS))
@pytest.mark.parametrize("mode", MODES)
def test_every_call_that_goes_wrong_leaves_old_disks_or_restored_ones(
    rig: InPlace, tally: Tally, transport: TransportKind, part: int, mode: str
) -> None:
    calls = counted(rig, transport, rig.gate.calls)
    for number in itertools.count(1 + part, PARTS):
        is_known = number <= len(calls)
        if is_known and not is_tried(calls[number - 1], transport, mode):
            continue
        rig.gate.calls.arm(number, mode)
        if not rig.once(number, transport, rig.gate.calls, tally):
            break  # a run that made fewer calls than this: every one of them had its turn
        tally.calls += 1
    assert_whole(tally)


def is_tried(call: str, transport: TransportKind, mode: str) -> bool:
    """What only reads changes nothing, so that it is enough when every such call is refused.

    Where its request or its reply is lost it is simply read again: tried with one transport.
    """
    if call.partition(" ")[0] not in READING or mode == "refused":
        return True
    return mode == "lost" and transport is TransportKind.DIRECT


@pytest.mark.long
@pytest.mark.timeout(1800)  # hundreds of whole restores, on a machine that may be busy
@pytest.mark.parametrize("transport", TRANSPORTS)
@pytest.mark.parametrize("mode", ["refused", "lost"])
def test_every_write_that_goes_wrong_leaves_old_disks_or_restored_ones(
    rig: InPlace, tally: Tally, transport: TransportKind, mode: str
) -> None:
    for number in itertools.count(1):
        rig.writes.arm(number, mode)
        if not rig.once(number, transport, rig.writes, tally):
            break
        tally.writes += 1
    assert_whole(tally)


@pytest.mark.long
@pytest.mark.timeout(1800)  # hundreds of whole restores, on a machine that may be busy
def test_every_lost_answer_about_a_task_leaves_old_disks_or_restored_ones(
    rig: InPlace, tally: Tally
) -> None:
    """The loop that waits for tasks makes its calls when it likes, so their number differs a little."""
    for number in itertools.count(1):
        rig.gate.watching.arm(number, "lost")
        if not rig.once(number, TransportKind.DIRECT, rig.gate.watching, tally):
            break
        tally.calls += 1
    assert_whole(tally)
