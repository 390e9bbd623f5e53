"""What happened: one JSON line for each call, task, attach, detach and stream, and counters.

``<state>/calls.jsonl`` is for people and tests; the last lines are kept in memory too.
"""

from __future__ import annotations

import json
import threading
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from pyVmomi import VmomiSupport

from holdfast_lab.lab_clock import monotonic_seconds, utc_now

if TYPE_CHECKING:
    from holdfast_lab.tasks import LabTask

EVENTS_KEPT_MAX = 20_000  # in memory; the file has all
SUMMARY_CHARACTERS_MAX = 400
Fact = str | int | float | bool | None


@dataclass(slots=True)
class Counter:
    """Streams of one host or one datastore."""

    open_now: int = 0
    open_at_most: int = 0
    opened: int = 0
    bytes_read: int = 0
    bytes_written: int = 0

    def add(self, stream: DataStream) -> None:
        """What a transfer has moved."""
        if stream.direction == "read":
            self.bytes_read += stream.bytes_moved
        else:
            self.bytes_written += stream.bytes_moved


@dataclass(slots=True, kw_only=True)
class DataStream:
    """One transfer of disk data; whoever moves the bytes adds them to ``bytes_moved``."""

    transport: str
    host: str
    datastore: str
    vm: str
    direction: str  # "read" is away from the datastore
    file: str
    bytes_moved: int = 0


@dataclass(slots=True)
class StreamCounters:
    """Counters by host and by datastore."""

    hosts: dict[str, Counter] = field(default_factory=dict)
    datastores: dict[str, Counter] = field(default_factory=dict)


class CallLog:
    """The log of one lab. Thread-safe by a lock of its own."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.counters = StreamCounters()
        self.kept: deque[dict[str, object]] = deque(maxlen=EVENTS_KEPT_MAX)
        self._lock = threading.Lock()
        self._open: list[DataStream] = []
        self._number = 0
        self._file = path.open("a", encoding="utf-8", buffering=1)

    def event(self, event: str, **facts: Fact) -> int:
        """Write one line; returns its number, which counts from 1."""
        with self._lock:
            self._number += 1
            line: dict[str, object] = {
                "n": self._number,
                "time": utc_now().isoformat(timespec="milliseconds"),
                "event": event,
                **facts,
            }
            self.kept.append(line)
            if not self._file.closed:
                self._file.write(json.dumps(line) + "\n")
            return self._number

    def note_task(self, task: LabTask) -> None:
        """A task ended."""
        self.event(
            "task",
            task=task.moid,
            description=task.description_id,
            entity=task.entity.name,
            vm=task.subject,
            state=task.state,
            fault=task.fault.name if task.fault else None,
            message=task.fault.message if task.fault else None,
        )

    def note_bug(self, where: str, trace: str) -> None:
        """The lab itself failed; the trace is for whoever mends it."""
        self.event("lab_bug", where=where, trace=trace)

    @contextmanager
    def stream(
        self, *, transport: str, host: str, datastore: str, vm: str, direction: str, file: str
    ) -> Iterator[DataStream]:
        """Count a transfer while it goes on: `with lab.calls.stream(...) as stream`."""
        stream = DataStream(
            transport=transport,
            host=host,
            datastore=datastore,
            vm=vm,
            direction=direction,
            file=file,
        )
        facts: dict[str, Fact] = {
            "transport": transport,
            "host": host,
            "datastore": datastore,
            "vm": vm,
            "direction": direction,
            "file": file,
        }
        number = self.event("stream_open", **facts)
        with self._lock:
            self._open.append(stream)
            for counter in self._counters(stream):
                counter.open_now += 1
                counter.opened += 1
                counter.open_at_most = max(counter.open_at_most, counter.open_now)
        started = monotonic_seconds()
        try:
            yield stream
        finally:
            with self._lock:
                self._open = [each for each in self._open if each is not stream]
                for counter in self._counters(stream):
                    counter.open_now -= 1
                    counter.add(stream)
            seconds = round(monotonic_seconds() - started, 6)
            self.event(
                "stream_close", opened=number, bytes=stream.bytes_moved, seconds=seconds, **facts
            )

    def events(self, *, after: int = 0, event: str | None = None) -> list[dict[str, object]]:
        """The kept lines with a number above ``after``, of one kind when named."""
        with self._lock:
            return [
                line
                for line in self.kept
                if int(str(line["n"])) > after and event in (None, line["event"])
            ]

    def counted(self) -> dict[str, dict[str, dict[str, int]]]:
        """The counters as plain values; streams that are open count with what they have moved so far."""
        with self._lock:
            hosts = {name: replace(each) for name, each in self.counters.hosts.items()}
            datastores = {name: replace(each) for name, each in self.counters.datastores.items()}
            for stream in self._open:
                hosts[stream.host].add(stream)
                datastores[stream.datastore].add(stream)
        return {
            "hosts": {name: _plain(each) for name, each in hosts.items()},
            "datastores": {name: _plain(each) for name, each in datastores.items()},
        }

    def close(self) -> None:
        """Close the file; later events stay in memory only."""
        with self._lock:
            self._file.close()

    def _counters(self, stream: DataStream) -> list[Counter]:
        return [
            self.counters.hosts.setdefault(stream.host, Counter()),
            self.counters.datastores.setdefault(stream.datastore, Counter()),
        ]


def _plain(counter: Counter) -> dict[str, int]:
    return {name: getattr(counter, name) for name in Counter.__slots__}


def summary(values: Mapping[str, object]) -> str:
    """Arguments in one short line; passwords are masked."""
    parts = []
    for name, value in values.items():
        if value is None or (isinstance(value, list) and not value):
            continue
        shown = "***" if name in ("password", "token") else short(value)
        parts.append(f"{name}={shown}")
    return ", ".join(parts)[:SUMMARY_CHARACTERS_MAX]


def short(value: object) -> str:
    """One value in a few words: references as ids, objects as their set properties."""
    if isinstance(value, VmomiSupport.ManagedObject):
        return str(value._moId)
    if isinstance(value, VmomiSupport.DataObject):
        given = {prop.name: getattr(value, prop.name) for prop in value._GetPropertyList()}
        return f"{value._wsdlName}({summary(given)})"
    if isinstance(value, list):
        return "[" + ", ".join(short(item) for item in value[:20]) + "]"
    return str(value)[:120]


def result_summary(value: object) -> str:
    """An answer in a word or two: an id, a type, a count."""
    if value is None:
        return ""
    if isinstance(value, VmomiSupport.DataObject):
        return str(value._wsdlName)
    if isinstance(value, list):
        return f"{len(value)} items"
    return short(value)
