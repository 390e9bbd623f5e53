"""Judges a disk that a crash left, with the production code: nothing promised is lost, nothing half is seen.

Every distinct disk is opened, listed, checked, and all its points are restored and compared; then the next
backup runs on it, and what it made is restored and checked as well.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Final

from holdfast_common.errors import HoldfastError, NoRepository, PointVoided
from holdfast_common.repository.check import CheckReport, check_data, check_structure
from holdfast_common.repository.key_changes import settle
from holdfast_common.repository.keys import open_repository
from holdfast_common.repository.points import Point, list_points
from holdfast_common.repository.recipients import RecoveryUnlock
from support.crash_rig import READY, ROOT, Rig, changed, small_image
from support.crash_states import CrashState, crash_states
from support.crash_workloads import Recording, recording
from support.memory_files import Image, MemoryFiles
from support.repositories import DEVICE_KEY, FixedClock, authorise
from support.shared_work import shared_work

SEEDS_TOGETHER: Final = 4  # so that the first few hundred disks are not all of one recording

_Visible = frozenset[tuple[str, bytes]]  # paths and contents, without temporary files


class Harm(StrEnum):
    """What a crash did."""

    UNOPENABLE = "the repository cannot be opened"
    LOST = "an acknowledged point is gone"
    HALF = "a point is visible that is not whole"
    DAMAGE = "check finds damage"
    STUCK = "the next backup or prune fails"
    RUN = "the workload itself fails"


@dataclass(frozen=True)
class Loss:
    """A disk on which something is wrong."""

    workload: str
    seed: int
    harm: Harm
    state: str
    what: str

    def __str__(self) -> str:
        return f"{self.workload}, seed {self.seed}, {self.state}: {self.harm}: {self.what}"


@dataclass
class Tally:
    """What a workload's states came to."""

    workload: str
    states: int = 0
    images: int = 0
    visible_images: int = 0  # told apart by what a store sees: without temporary files
    losses: list[Loss] = field(default_factory=list)

    def counts(self) -> str:
        """For `crash_summary`."""
        numbers = (self.states, self.images, self.visible_images, len(self.losses))
        return ",".join([self.workload, *map(str, numbers)])


class BadState(Exception):
    """What is wrong with a disk, for people."""

    def __init__(self, harm: Harm, what: str) -> None:
        super().__init__(f"{harm}: {what}")
        self.harm = harm
        self.what = what


@contextmanager
def _harm(harm: Harm) -> Iterator[None]:
    """What the production code raises within means this."""
    try:
        yield
    except (HoldfastError, OSError, AssertionError) as error:
        raise BadState(harm, f"{type(error).__name__}: {error}") from error


def judge_workload(
    name: str,
    *,
    seeds: Iterable[int],
    images_max: int = 1 << 62,
    enough: Callable[[Loss], bool] = lambda _: False,
    is_mine: Callable[[CrashState], bool] = lambda _: True,
) -> Tally:
    """Every distinct disk that a crash of this workload could leave.

    Ends after ``images_max`` of them, or at a loss that is ``enough``. ``is_mine``: which disks are judged
    here, when several processes share the same seeds.
    """
    tally = Tally(name)
    seen: set[int] = set()
    visible: set[_Visible] = set()
    with shared_work():
        for made, state, shown in _distinct_disks(name, seeds, tally, is_mine):
            seen.add(state.digest)
            visible.add(shown)
            tally.images, tally.visible_images = len(seen), len(visible)
            loss = _loss(made, state)
            tally.losses += [loss] if loss is not None else []
            if len(seen) >= images_max or (loss is not None and enough(loss)):
                break
    return tally


def _distinct_disks(
    name: str, seeds: Iterable[int], tally: Tally, is_mine: Callable[[CrashState], bool]
) -> Iterator[tuple[Recording, CrashState, _Visible]]:
    """Of some seeds at a time: first disks that differ in what a store looks at, then all others.

    A disk that an earlier seed left, with the same promises, comes once: it is nearly empty.
    """
    others: list[tuple[Recording, CrashState, _Visible]] = []
    known: set[tuple[int, tuple[str, ...]]] = set()
    for number, seed in enumerate(seeds, 1):
        made = recording(name, seed=seed)
        known_visible: set[tuple[_Visible, tuple[str, ...]]] = set()
        for state in crash_states(
            made.log, made.before, made.inodes, promised=made.promised, seed=seed
        ):
            if not is_mine(state):
                continue
            tally.states += 1
            if (state.digest, state.promised) in known:
                continue
            known.add((state.digest, state.promised))
            shown = _seen_by_a_store(state.image)
            if (shown, state.promised) in known_visible:
                others.append((made, state, shown))
            else:
                known_visible.add((shown, state.promised))
                yield made, state, shown
        if made.error:
            tally.losses.append(Loss(name, seed, Harm.RUN, "without a crash", made.error))
            break
        if number % SEEDS_TOGETHER == 0:
            yield from others
            others = []
    yield from others


def _loss(made: Recording, state: CrashState) -> Loss | None:
    """What is wrong with one disk."""
    try:
        judge_image(made, state.image, promised=state.promised)
    except BadState as bad:
        return Loss(made.name, made.start.seed, bad.harm, state.told, bad.what)
    return None


def judge_image(
    made: Recording, image: Image, *, promised: Collection[str], clock: FixedClock | None = None
) -> None:
    """Open, restore, check, go on, at that time (None: when the workload ended). Raises: BadState."""
    clock = copy.copy(clock or made.rig.clock)
    disk = MemoryFiles.of(image, now=clock.seconds_since_1970)
    judge_files(replace(made.rig, repository=None).on(disk, clock=clock), made, promised=promised)


def judge_files(
    rig: Rig, made: Recording, *, promised: Collection[str], after: str = "after"
) -> None:
    """The same on the rig's files. ``after``: the next backup's point. Raises: BadState."""
    assert rig.sheet is not None
    try:
        store = rig.open_store(after)
        with _harm(Harm.UNOPENABLE):
            keys = open_repository(
                store,
                RecoveryUnlock(rig.sheet),
                generation_min=max([1, *_numbers(promised, "keys")]),
                randomness=rig.chance(f"keys {after}"),
            )
    except (NoRepository, BadState) as error:
        is_absent = isinstance(error, NoRepository) or isinstance(error.__cause__, NoRepository)
        if READY in promised or not is_absent:
            raise BadState(Harm.UNOPENABLE, str(error)) from error
        rig.seed += 1_000_000  # another program with other random bytes
        with _harm(Harm.UNOPENABLE):
            rig.create()  # nobody was told that there is one: it is made now
    else:
        used = made.rig.used()
        rig.repository = replace(
            used, store=store, keys=keys, clock=rig.clock, randomness=rig.chance(after)
        )
        with _harm(Harm.HALF):
            _judge_points(rig, promised=promised)
        with _harm(Harm.DAMAGE):
            report = check_data(store, keys, segment_keys=keys, workers=1)
            _judge_report(report)
        with _harm(Harm.STUCK):
            settle(store, keys)  # as a controller does when it starts
            authorise(rig.repository, used.signing_key, agent_id="proxy-1")
    with _harm(Harm.STUCK):
        _run_on(rig, after)


def _judge_points(rig: Rig, *, promised: Collection[str]) -> None:
    used = rig.used()
    listed = list_points(used.store, used.keys)
    for bad in listed.unusable:
        if bad.code != PointVoided.code:
            raise BadState(Harm.HALF, f"{bad.name}: {bad.reason}")
    found = {point.point_id for point in listed.points}
    for mark in promised:
        kind, _, name = mark.partition(" ")
        if kind == "point" and name not in found and f"forget {name}" not in promised:
            raise BadState(Harm.LOST, name)
    _judge_restores(rig, listed.points)


def _judge_restores(rig: Rig, points: Iterable[Point]) -> None:
    for lineage, of_lineage in itertools.groupby(
        sorted(points, key=lambda point: point.manifest.lineage_id),
        key=lambda point: point.manifest.lineage_id,
    ):
        with rig.used().reader(lineage) as reader:
            for point in of_lineage:
                original = rig.originals.get(point.point_id)
                if original is None or original.lineage != lineage:
                    raise BadState(Harm.HALF, f"nobody began the point {point.point_id}")
                source = reader.open_disk(point, DEVICE_KEY)
                image = bytearray(source.capacity_bytes)
                source.read_into(0, memoryview(image))
                source.close()
                if image != original.image:
                    raise BadState(Harm.HALF, f"the point {point.point_id} restores to other bytes")
                if reader.blob(point, "vmx") != point.point_id.encode():
                    raise BadState(
                        Harm.HALF, f"a blob of the point {point.point_id} is another one"
                    )


def _judge_report(report: CheckReport) -> None:
    if report.lost_points or report.lost_ranges or report.lost_blobs:
        raise BadState(Harm.DAMAGE, f"losses: {report}")
    for damaged in report.damaged:
        # the second copy comes after the first; the next change of the list puts it right
        if not (damaged.name.endswith("-copy") and "is missing" in damaged.reason):
            raise BadState(Harm.DAMAGE, f"{damaged.name}: {damaged.reason}")


def _run_on(rig: Rig, after: str) -> None:
    """The next backup, as the next program would make it."""
    used = rig.used()
    listed = list_points(used.store, used.keys).points
    rig.clock.advance(3600)
    rig.orders += 1000
    if listed:
        last = listed[-1]
        lineage = last.manifest.lineage_id
        image = changed(rig.image_of(last.point_id), 0, after)
        rig.back_up(after, image, lineage=lineage, base=last.point_id, blocks=[0])
    else:
        rig.back_up(after, small_image(after))
    made = [point for point in list_points(used.store, used.keys).points if point.point_id == after]
    if not made:
        raise BadState(Harm.STUCK, "the next backup's point is not there")
    _judge_restores(rig, made)
    rig.next_day()
    rig.prune(f"prune {after}")
    _judge_restores(rig, list_points(used.store, used.keys).points)
    _judge_report(check_structure(used.store, used.keys))


def _numbers(promised: Iterable[str], kind: str) -> list[int]:
    return [int(mark.split(" ")[1]) for mark in promised if mark.startswith(f"{kind} ")]


def _seen_by_a_store(image: Image) -> _Visible:
    temporary = f"{ROOT}/tmp/"
    return frozenset(
        (path, data) for path, data in image.files.items() if not path.startswith(temporary)
    )
