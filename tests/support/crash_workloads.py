"""What a repository is doing when the machine crashes: each workload prepares one, then is recorded.

A new workload is a function that prepares, one that runs, and a line in `WORKLOADS`.
"""

from __future__ import annotations

import contextlib
import copy
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import timedelta

from holdfast_common.errors import HoldfastError, LeaseExpired, NotFound, RepositoryFailed
from holdfast_common.repository.file_system import FileSystem
from holdfast_common.repository.key_changes import (
    add_recipient,
    recipients_of,
    remove_recipient,
    rotate,
)
from holdfast_common.repository.keys import RepositoryKeys
from holdfast_common.repository.points import confirm_point, find_job_point
from holdfast_common.repository.recipients import public_key_recipient
from support.crash_rig import (
    BLOCKS,
    FIRST_FRAME,
    MAIL,
    ROOT,
    TWO_FRAMES,
    WEB,
    Rig,
    changed,
    small_image,
)
from support.faulty_files import CallFault, FaultKind, FaultyFiles
from support.interleaving import Turns
from support.memory_files import Image, MemoryFiles
from support.recorded_files import Recorded, RecordingFiles
from support.repositories import BLOCK, FixedClock

_NEVER = CallFault(FaultKind.IO_ERROR, sys.maxsize)
AT_ONCE = timedelta(0)


@dataclass(frozen=True)
class Workload:
    """``prepare`` is not recorded; ``run`` is."""

    prepare: Callable[[Rig], None]
    run: Callable[[Rig], None]


@dataclass(frozen=True)
class Recording:
    """A workload that was run."""

    name: str
    start: Rig  # as it was prepared
    rig: Rig  # as it was left
    before: Image
    promised: tuple[str, ...]  # before it was recorded
    inodes: Mapping[str, int]
    log: tuple[Recorded, ...]
    error: str = ""  # why it did not get to its end


def recording(name: str, *, seed: int = 0) -> Recording:
    """Run a workload on a disk in memory, every call written down."""
    clock = FixedClock()
    memory = MemoryFiles(now=clock.seconds_since_1970)
    promised: list[str] = []
    rig = Rig(files=memory, root=ROOT, seed=seed, mark=promised.append, clock=clock)
    WORKLOADS[name].prepare(rig)
    before = memory.image()
    start = replace(rig, originals=dict(rig.originals), clock=copy.copy(rig.clock))
    turns = Turns(seed)
    files = RecordingFiles(memory, before=turns.step)
    inodes = {path: files.inode_of(path) for path in sorted(before.files)}
    rig = rig.on(files, mark=files.mark, turns=turns, clock=clock)
    error = ""
    try:
        WORKLOADS[name].run(rig)
    except HoldfastError as raised:  # a product in which something was planted
        error = f"{type(raised).__name__}: {raised}"
    return Recording(
        name=name,
        start=start,
        rig=rig,
        before=before,
        promised=tuple(promised),
        inodes=inodes,
        log=tuple(files.log),
        error=error,
    )


def record_on(name: str, rig: Rig, *, paths: Iterable[str]) -> list[Recorded]:
    """Run a workload on files of any kind. ``paths``: the files that are there, to be numbered."""
    turns = Turns(rig.seed)
    files = RecordingFiles(rig.files, before=turns.step)
    for path in paths:
        files.inode_of(path)
    WORKLOADS[name].run(rig.on(files, mark=files.mark, turns=turns, clock=rig.clock))
    return files.log


def _nothing(rig: Rig) -> None:
    """There is no repository yet."""


def _with_one_point(rig: Rig) -> None:
    rig.create()
    rig.back_up("web-1", small_image(f"{rig.seed}-web"))


def _full(rig: Rig) -> None:
    lineages = [WEB, MAIL]
    rig.chance_of("order").shuffle(lineages)
    for number, lineage in enumerate(lineages):
        rig.back_up(f"full-{number}", small_image(f"{rig.seed}-{lineage}"), lineage=lineage)


def _incremental(rig: Rig) -> None:
    chance = rig.chance_of("changes")
    image = rig.image_of("web-1")
    for number in (2, 3, 4):
        blocks = sorted(chance.sample(range(BLOCKS), chance.randint(0, 2)))
        for block in blocks:
            changed(image, block, f"{rig.seed}-{number}-{block}")
        if chance.random() < 0.3:
            image[5 * BLOCK :] = bytes(len(image) - 5 * BLOCK)
            blocks = [*blocks, 5, 6]
        told = None if chance.random() < 0.4 else sorted(set(blocks))
        rig.back_up(f"web-{number}", image, base=f"web-{number - 1}", blocks=told)


def _two_writers(rig: Rig) -> None:
    chance = rig.chance_of("changes")

    def web() -> None:
        block = chance.randrange(BLOCKS)
        image = changed(rig.image_of("web-1"), block, f"{rig.seed}-second")
        rig.back_up("web-2", image, base="web-1", blocks=[block])

    def mail() -> None:
        # mostly the same content as another proxy's: what may be taken for known is decided here
        image = changed(rig.image_of("web-1"), chance.randrange(BLOCKS), f"{rig.seed}-mail")
        rig.back_up("mail-1", image, lineage=MAIL, proxy=2)

    rig.turns.run([web, mail])


def _key_rotation(rig: Rig) -> None:
    used = rig.used()
    site = public_key_recipient(bytes([9]) * 32, label="the other site")

    def became(keys: RepositoryKeys) -> None:
        used.keys = keys
        rig.mark(f"keys {keys.generation}")

    became(add_recipient(used.store, used.keys, site, clock=rig.clock))
    became(rotate(used.store, used.keys))
    last = recipients_of(used.store, used.keys)[-1]
    became(remove_recipient(used.store, used.keys, last.recipient_id))
    image = changed(rig.image_of("web-1"), 2, f"{rig.seed}-rotated")
    rig.back_up("web-2", image, base="web-1", blocks=[2])


def _with_half_a_pack_dead(rig: Rig) -> None:
    """A forgotten point, half of whose pack another one needs."""
    rig.create()
    image = small_image(f"{rig.seed}-web", used=TWO_FRAMES)
    rig.back_up("web-1", image)
    for block in FIRST_FRAME:
        changed(image, block, f"{rig.seed}-second-{block}")
    rig.back_up("web-2", image, base="web-1", blocks=FIRST_FRAME)
    rig.back_up("mail-1", small_image(f"{rig.seed}-mail"), lineage=MAIL)
    rig.forget("web-1")


def _with_something_doomed(rig: Rig) -> None:
    """The same, with a first fence that calls it dead."""
    _with_half_a_pack_dead(rig)
    rig.prune("prune-0")
    rig.next_day()


def _prune_beside_backup(rig: Rig) -> None:
    chance = rig.chance_of("changes")

    def web() -> None:
        block = chance.choice(TWO_FRAMES)
        image = changed(rig.image_of("web-2"), block, f"{rig.seed}-third")
        rig.back_up("web-3", image, base="web-2", blocks=[block])

    rig.turns.run([web, lambda: rig.prune("prune-1")])
    rig.next_day()
    rig.forget("mail-1")
    mail = rig.image_of("mail-1")  # the same again: its data stands in a pack that dies meanwhile

    def prunes() -> None:
        for number in (2, 3, 4):
            rig.prune(f"prune-{number}", grace=AT_ONCE)

    rig.turns.run([lambda: rig.back_up("mail-2", mail, lineage=MAIL), prunes])


def _suspended_writer(rig: Rig) -> None:
    """A writer sleeps just before its point shows, until its lease is over and what it stands on is pruned."""
    rig.forget("mail-1")

    def meanwhile() -> None:
        for number in (1, 2, 3):
            rig.next_day()
            rig.prune(f"prune-{number}")

    with contextlib.suppress(LeaseExpired):
        rig.back_up("mail-2", rig.image_of("mail-1"), lineage=MAIL, meanwhile=meanwhile)


def _older_writers(rig: Rig) -> None:
    """Prune meets writers that began before its fences: one at work, then one that it gave up."""
    rig.forget("mail-1")
    mail = rig.image_of("mail-1")
    # the same again: it takes all of its data from a pack that no point needs just now
    with rig.begun("mail-2", mail, lineage=MAIL) as publish:
        rig.prune("prune-1", grace=AT_ONCE)
        rig.prune("prune-2", grace=AT_ONCE, before_its_fence=publish)
        publish()
    rig.forget("mail-2")
    with rig.begun("mail-3", mail, lineage=MAIL, is_suspended=True) as publish:

        def wakes() -> None:
            with contextlib.suppress(LeaseExpired):
                publish()

        rig.next_day()
        rig.prune("prune-3")
        rig.next_day()
        rig.prune("prune-4", before_its_fence=wakes)
        wakes()


def _repack(rig: Rig) -> None:
    first = rig.image_of("web-1")
    rig.keep_index()
    for number in range(1, 4):
        rig.prune(f"prune-{number}")
        rig.next_day()
    # what the pruned pack held comes back, by a proxy that remembers where it lay
    image = rig.image_of("web-2")
    image[: len(FIRST_FRAME) * BLOCK] = first[: len(FIRST_FRAME) * BLOCK]
    rig.back_up("web-3", image, base="web-2", blocks=FIRST_FRAME)


class _DyingFiles(FaultyFiles):
    """A program's that dies as soon as its manifest has its name: nothing that it calls happens after that."""

    def __init__(self, inner: FileSystem) -> None:
        super().__init__(inner, _NEVER, slow=lambda: None)

    def rename(self, source: str, target: str, *, at: int) -> None:
        super().rename(source, target, at=at)
        if target.startswith("points/"):
            self.fail_from_now_on()


def _found_by_another(rig: Rig) -> None:
    """A writer dies before the name of its manifest is on the disk; who looks for the point acknowledges it."""
    chance = rig.chance_of("changes")
    image = rig.image_of("web-1")
    for number in (2, 3):
        name = f"web-{number}"
        block = chance.randrange(BLOCKS)
        changed(image, block, f"{rig.seed}-{name}")
        dying = replace(rig, files=_DyingFiles(rig.files), mark=lambda _: None)
        with contextlib.suppress(RepositoryFailed):
            dying.back_up(name, image, base=f"web-{number - 1}", blocks=[block])
        used = rig.used()
        point = find_job_point(used.store, used.keys.reader_keys(WEB), name)
        if point is None:
            raise NotFound("the writer died too early", point=name)
        confirm_point(used.store, point)
        rig.mark(f"point {name}")


def _with_two_points(rig: Rig) -> None:
    _with_one_point(rig)
    rig.back_up("mail-1", small_image(f"{rig.seed}-mail"), lineage=MAIL)


WORKLOADS: Mapping[str, Workload] = {
    "init": Workload(_nothing, Rig.create),
    "found by another": Workload(_with_one_point, _found_by_another),
    "full": Workload(Rig.create, _full),
    "incremental": Workload(_with_one_point, _incremental),
    "key rotation": Workload(_with_one_point, _key_rotation),
    "older writers": Workload(_with_two_points, _older_writers),
    "prune beside backup": Workload(_with_something_doomed, _prune_beside_backup),
    "repack": Workload(_with_half_a_pack_dead, _repack),
    "suspended writer": Workload(_with_two_points, _suspended_writer),
    "two writers": Workload(_with_one_point, _two_writers),
}

# Distinct disks to judge in `make test`: 5,000 in all, the more where more may go wrong.
IMAGES: Mapping[str, int] = {
    "init": 400,
    "found by another": 300,
    "full": 500,
    "incremental": 600,
    "key rotation": 500,
    "older writers": 300,
    "prune beside backup": 700,
    "repack": 600,
    "suspended writer": 400,
    "two writers": 700,
}
