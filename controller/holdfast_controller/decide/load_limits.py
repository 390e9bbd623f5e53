"""How many streams anything may carry at once: what a job weighs on, and how much of it there is. Pure.

A stream weighs one on each thing that it touches. A gate is a thing that is either open, for any number, or shut:
a window, a pause, a proxy that is away, a vCenter that was not looked after yet, a datastore whose reads take too long.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum


class LoadKind(StrEnum):
    """What a stream weighs on. The order is the one in which they are asked: the narrowest first."""

    LATENCY = "latency of datastore"  # shut while reads from it take too long
    DATASTORE = "datastore"
    NFC = "NFC connections of host"  # a host has buffers for some 50; every client of it counts
    HOST = "host"
    CLUSTER = "cluster"
    AGENT = "connection of proxy"  # shut while its agent is away
    PROXY = "proxy"
    REPOSITORY = "repository"
    WORK = "limit on all"  # backups in all, restores in all
    VCENTER = "vCenter"
    WINDOW = "window of policy"
    KEEPING = "window of keeping's"  # and the name of a task
    PAUSE = "pause"


GATES = frozenset(
    {
        LoadKind.LATENCY,
        LoadKind.AGENT,
        LoadKind.VCENTER,
        LoadKind.WINDOW,
        LoadKind.KEEPING,
        LoadKind.PAUSE,
    }
)
# Lanes of one VM are streams of their own there; each has datastores of its own, and all are one backup.
SHARED_BY_LANES = frozenset(
    {LoadKind.NFC, LoadKind.HOST, LoadKind.CLUSTER, LoadKind.PROXY, LoadKind.REPOSITORY}
)
ORDER: Mapping[LoadKind, int] = {kind: position for position, kind in enumerate(LoadKind)}


@dataclass(frozen=True, slots=True)
class LoadKey:
    """One thing that bears streams. ``name``: for people, and for limits of its own; ``key`` alone tells two apart."""

    kind: LoadKind
    key: str
    name: str = field(default="", compare=False)

    @property
    def text(self) -> str:
        """As people read it."""
        name = self.name or self.key
        return f"{self.kind} {name}".strip()


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadLimits:
    """Streams at once. ``each``: of everything of a kind; ``named``: of one thing by its kind and name. No entry: no limit."""

    each: Mapping[LoadKind, int] = field(default_factory=dict)
    named: Mapping[tuple[LoadKind, str], int] = field(default_factory=dict)

    def streams_max(self, load: LoadKey) -> int | None:
        """None: as many as come."""
        found = self.named.get((load.kind, load.name))
        return self.each.get(load.kind) if found is None else found


class LoadBook:
    """What is carried now, and which gates are shut. Not thread-safe: its owner has a lock."""

    def __init__(self, limits: LoadLimits) -> None:
        self.limits = limits
        self._carried: Counter[LoadKey] = Counter()
        self._shut: set[LoadKey] = set()
        self._shut_kinds: set[LoadKind] = set()
        self._kept: frozenset[LoadKey] = frozenset()

    def carried(self, load: LoadKey) -> int:
        """Streams that it carries now."""
        return self._carried[load]

    def has_room(self, load: LoadKey) -> bool:
        """Whether one more may come."""
        if load.kind in GATES:
            return load.kind not in self._shut_kinds and load not in self._shut
        streams_max = self.limits.streams_max(load)
        return streams_max is None or self._carried[load] + (load in self._kept) < streams_max

    def keep(self, loads: Iterable[LoadKey]) -> None:
        """Keep a place on each of these free, and on no other; gates have no places."""
        self._kept = frozenset(load for load in loads if load.kind not in GATES)

    @property
    def kept(self) -> frozenset[LoadKey]:
        """On what a place is kept free."""
        return self._kept

    def first_full(self, loads: Iterable[LoadKey]) -> LoadKey | None:
        """The first of them that has no room; None: all have."""
        return next((load for load in loads if not self.has_room(load)), None)

    def room_for_lanes(
        self, loads: Iterable[LoadKey], lanes_max: int
    ) -> tuple[int, LoadKey | None]:
        """How many lanes may run at once where one may, and what has no room for more; None: as many as are wanted."""
        lanes, narrow = lanes_max, None
        for load in loads:
            streams_max = self.limits.streams_max(load) if load.kind in SHARED_BY_LANES else None
            if streams_max is None:
                continue
            room = streams_max - self._carried[load] - (load in self._kept)
            if room < lanes:
                lanes, narrow = max(1, room), load
        return lanes, narrow

    def take(self, loads: Iterable[LoadKey], *, lanes: int = 1) -> None:
        """One backup more on each, with so many lanes."""
        for load in loads:
            self._carried[load] += _streams(load, lanes)

    def give_back(self, loads: Iterable[LoadKey], *, lanes: int = 1) -> None:
        """The same less on each."""
        for load in loads:
            assert self._carried[load] >= _streams(load, lanes), f"{load.text} carries nothing"
            self._carried[load] -= _streams(load, lanes)
            if not self._carried[load]:
                del self._carried[load]

    def shut(self, gate: LoadKey) -> None:
        """Nothing passes it from now on."""
        self._shut.add(gate)

    def open(self, gate: LoadKey) -> None:
        """Everything passes it."""
        self._shut.discard(gate)

    def shut_all(self, kind: LoadKind) -> None:
        """Every gate of this kind, also those that nobody named yet."""
        self._shut_kinds.add(kind)

    def shut_only(self, kind: LoadKind, keys: Iterable[LoadKey]) -> None:
        """These gates of the kind, and no other."""
        self._shut_kinds.discard(kind)
        self._shut = {gate for gate in self._shut if gate.kind is not kind} | set(keys)


def _streams(load: LoadKey, lanes: int) -> int:
    return lanes if load.kind in SHARED_BY_LANES else 1


def in_order(loads: Iterable[LoadKey]) -> tuple[LoadKey, ...]:
    """Each once, the narrowest first."""
    return tuple(sorted(set(loads), key=lambda load: (ORDER[load.kind], load.key)))
