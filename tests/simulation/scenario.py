"""What happens in a seed: how large its world is, which faults it knows, and when each comes.

Everything of a seed follows from its number, so a failing one is repeated by it; `shrinking` leaves out what it does not need.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Final

from simulation.virtual_disks import LIES

SECONDS: Final = 60.0  # until faults stop
READY_SECONDS: Final = 3.0  # agents have connected
KINDS_SHARE: Final = 0.35  # of all kinds of fault, in one seed

# What people and guests do. Every seed knows all of it that its world allows.
DEEDS: Final = ("backup", "write", "cancel", "look", "retry")
KEEPING: Final = (  # in seeds that keep points, and not all
    "hold",
    "unhold",
    "forget by hand",
    "forget by policies",
    "prune",
    "check a point",
    "a retention is edited",
    "the storage fails",
    "the clock jumps for a while",
    "the controller dies while it keeps",
    "a writer dies before a prune",
    "a backup reaches less",
)
KEEPING_SECONDS: Final = (
    150.0  # until faults stop in such a seed: its calendars come due each minute
)
KEEPS_SHARE: Final = 0.16  # of all seeds: they take twice as long as others
FAULTS: Final = (
    "crash the controller",
    "stop the controller",
    "crash an agent",
    "partition an agent",
    "lose answers",
    "repeat messages",
    "delay messages",
    "vCenter is down",
    "logins end",
    "replies are lost",
    "a task fails",
    "links stay",
    "tasks are slow",
    "the store fails before",
    "the store fails after",
    "the repository is full",
    "the clock jumps",
    "a VM is deleted",
    "a VM is reverted",
    "a user's snapshot",
    "a user removes his snapshot",
    "a disk is extended",
    "our snapshot is removed by hand",
    "a foreign snapshot",
    "a foreign disk",
    "a policy is edited",
    "pause and resume",
    "power is lost",
    "a disk is replaced",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """Something that happens. ``number``: whatever choice it leaves, for whoever does it."""

    at: float
    kind: str
    number: int

    def text(self) -> str:
        return f"{self.at:.1f} s: {self.kind} ({self.number})"


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenario:
    """A seed's world and events, in order. ``keep_last``: what its policy keeps of each VM; 0: nothing is forgotten.

    ``storage_tells_time``: whether the repository's storage has a clock that can be asked.
    """

    seed: int
    vm_sizes: tuple[tuple[int, ...], ...]
    proxies: int
    lies: frozenset[str]
    audit_share: float
    streams_max: int
    keep_last: int
    storage_tells_time: bool
    events: tuple[Event, ...]


def scenario_of(seed: int, *, lie: str = "") -> Scenario:
    """``lie``: the one thing that change tracking gets wrong; empty: as the seed says."""
    source = random.Random(seed * 2654435761 + 17)
    vms = source.choice((1, 1, 1, 2, 2, 3))
    sizes = tuple(
        tuple(source.randint(4, 10) for _ in range(source.choice((1, 1, 2)))) for _ in range(vms)
    )
    lies = frozenset({source.choice(LIES)} if source.random() < 0.2 else ())
    if lie:
        lies = frozenset({lie})
    known = [kind for kind in FAULTS if source.random() < KINDS_SHARE]
    events = [Event(at=READY_SECONDS, kind="backup", number=0)]
    events += [
        Event(
            at=source.uniform(READY_SECONDS, SECONDS),
            kind=source.choice(DEEDS),
            number=source.getrandbits(30),
        )
        for _ in range(source.randint(3, 6))
    ]
    events += [
        Event(
            at=source.uniform(READY_SECONDS, SECONDS), kind="backup", number=source.getrandbits(30)
        )
        for _ in range(source.randint(0, 2))
    ]
    if known:
        events += [
            Event(
                at=source.uniform(1.0, SECONDS / 2),
                kind=source.choice(known),
                number=source.getrandbits(30),
            )
            for _ in range(source.randint(1, 6))
        ]
    keep_last = source.choice((1, 1, 2)) if source.random() < KEEPS_SHARE else 0
    tells_time = source.random() < 0.3
    if keep_last:
        events += _of_keeping(source)
    return Scenario(
        seed=seed,
        vm_sizes=sizes,
        proxies=source.choice((1, 2)),
        lies=lies,
        audit_share=1.0 if lies else 0.25,
        streams_max=source.choice((1, 2, 3)),
        keep_last=keep_last,
        storage_tells_time=tells_time,
        events=tuple(sorted(events, key=lambda each: each.at)),
    )


def _of_keeping(source: random.Random) -> list[Event]:
    """Backups, so that there is something to forget, and what concerns keeping."""
    kinds = ["look", *(["backup"] * source.randint(1, 3))]
    kinds += [source.choice(KEEPING) for _ in range(source.randint(2, 5))]
    moments = [READY_SECONDS, *(source.uniform(READY_SECONDS, KEEPING_SECONDS) for _ in kinds[1:])]
    return [
        Event(at=at, kind=kind, number=source.getrandbits(30))
        for at, kind in zip(moments, kinds, strict=True)
    ]
