"""Runs a program of Holdfast with every step counted: ``python -m support.traced_program holdfast …``.

The programs themselves have no hooks. Here the methods around which something lasting happens are
wrapped: the ledger, the states of jobs, the catalogue, every call to vSphere; at the agent every
object of the repository, every write to a restored disk, and what it promises the controller.
``HOLDFAST_TRACE`` names the folder; see `support.traced_steps`.
"""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from support.traced_steps import Tracer

FOLDER_VARIABLE = "HOLDFAST_TRACE"
RETRY_SECONDS = 0.2  # before another attempt of a job; five seconds in earnest

Namer = Callable[..., str]


def main() -> None:
    name, *arguments = sys.argv[1:]
    folder = Path(os.environ[FOLDER_VARIABLE])
    if name == "holdfast":
        trace_controller(Tracer(folder, "controller"))
        from holdfast_controller.main import run as run_controller

        sys.exit(run_controller(arguments))
    trace_agent(Tracer(folder, "agent"))
    from holdfast_agent.main import run as run_agent

    sys.exit(run_agent(arguments))


def wrap(tracer: Tracer, owner: type, method: str, namer: Namer) -> None:
    """A step before the method and one after it; ``namer`` gets the method's arguments."""
    original = getattr(owner, method)

    @functools.wraps(original)
    def wrapped(self: Any, *arguments: Any, **named: Any) -> Any:
        what = namer(self, *arguments, **named)
        tracer.step(f"{what}, before")
        result = original(self, *arguments, **named)
        tracer.step(f"{what}, after")
        return result

    setattr(owner, method, wrapped)


class TracingGate:
    """Every call to vSphere is a step before it leaves and one after its reply."""

    def __init__(self, tracer: Tracer) -> None:
        self._tracer = tracer

    def before(self, method: str, moref: str) -> None:
        del moref
        self._tracer.step(f"call {method}, before")

    def after(self, method: str, moref: str) -> None:
        del moref
        self._tracer.step(f"call {method}, after")


def trace_controller(tracer: Tracer) -> None:
    from holdfast_controller.runs.lifecycle import Lifecycle
    from holdfast_controller.service import daemon
    from holdfast_controller.store.catalogue import Catalogue
    from holdfast_controller.store.jobs import JobTable
    from holdfast_controller.store.ledger import LedgerTable

    def entry_namer(verb: str) -> Namer:
        def name(table: LedgerTable, entry_id: Any, *_: Any, **__: Any) -> str:
            return f"ledger {verb} {table.entry(entry_id).kind}"

        return name

    wrap(tracer, LedgerTable, "intend", lambda _, kind, **__: f"ledger intend {kind}")
    for verb in ("note", "made", "gone", "kept", "debt"):
        wrap(tracer, LedgerTable, verb, entry_namer(verb))
    wrap(tracer, JobTable, "advance", lambda _, __, event, *___: f"transition {event}")
    wrap(tracer, JobTable, "set_result", lambda *_, **__: "job result")
    wrap(tracer, Catalogue, "add", lambda *_: "catalogue add")
    wrap(tracer, Catalogue, "require_full", lambda *_: "catalogue full needed")
    defaults = Lifecycle.__init__.__kwdefaults__
    assert defaults is not None
    assert "retry_seconds" in defaults
    defaults["retry_seconds"] = RETRY_SECONDS
    gate = TracingGate(tracer)
    daemon.run_daemon = functools.partial(daemon.run_daemon, gate=gate)


def trace_agent(tracer: Tracer) -> None:
    from holdfast_agent import transport_table
    from holdfast_agent.daemon import AgentDaemon, DaemonTiming
    from holdfast_agent.ledger import AgentLedger
    from holdfast_agent.session import AgentTiming
    from holdfast_common.repository.directory_store import DirectoryStore
    from holdfast_common.repository.file_upload import FileUpload

    defaults = AgentDaemon.__init__.__kwdefaults__
    assert defaults is not None
    assert "timing" in defaults
    defaults["timing"] = DaemonTiming(session=AgentTiming(reconnect_min=0.2, reconnect_max=1.0))
    wrap(tracer, FileUpload, "commit", lambda _, name: f"put {name.partition('/')[0]}")
    wrap(tracer, DirectoryStore, "delete", lambda _, name: f"delete {name.partition('/')[0]}")
    wrap(tracer, AgentLedger, "accepted", lambda *_: "attempt accepted")
    wrap(tracer, AgentLedger, "write_result", lambda *_: "attempt result")
    wrap(tracer, AgentLedger, "acknowledged", lambda *_: "attempt acknowledged")
    transport_table.SINKS = {  # type: ignore[misc]  # a test's own program
        kind: _traced_sink(tracer, opener) for kind, opener in transport_table.SINKS.items()
    }


def _traced_sink(tracer: Tracer, opener: Callable[..., Any]) -> Callable[..., Any]:
    def opened(*arguments: Any, **named: Any) -> Any:
        tracer.step("disk open, before")
        return TracedSink(opener(*arguments, **named), tracer)

    return opened


class TracedSink:
    """A restored disk: a step before and after each write, its end, and its closing."""

    def __init__(self, sink: Any, tracer: Tracer) -> None:
        self._sink = sink
        self._tracer = tracer
        tracer.step("disk open, after")

    @property
    def capacity_bytes(self) -> int:
        found: int = self._sink.capacity_bytes
        return found

    def write(self, offset: int, data: memoryview) -> None:
        self._tracer.step("disk write, before")
        self._sink.write(offset, data)
        self._tracer.step("disk write, after")

    def finish(self) -> None:
        self._tracer.step("disk finish, before")
        self._sink.finish()
        self._tracer.step("disk finish, after")

    def close(self) -> None:
        self._sink.close()
        self._tracer.step("disk close, after")


if __name__ == "__main__":
    main()
