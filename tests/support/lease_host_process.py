"""The host of transfer leases in a process of its own, so that its memory is nobody else's."""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path

from support.lease_host import lease_host

_SECONDS_MAX = 120.0


@dataclass(frozen=True)
class LeaseHostProcess:
    """Its one disk's URL, and what it shall serve or keep."""

    url: str
    certificate_sha256: str
    _pipe: Connection

    def serve(self, path: Path) -> None:
        """From now on a download gives this file."""
        self._ask("serve", path)

    def keep_upload(self, path: Path) -> None:
        """Write what was uploaded to the end. Fails when nothing was."""
        self._ask("keep", path)

    def _ask(self, verb: str, path: Path) -> None:
        self._pipe.send((verb, str(path)))
        assert self._pipe.poll(_SECONDS_MAX), "the host of leases does not answer"
        answer = self._pipe.recv()
        assert answer == "done", answer


@contextmanager
def lease_host_process() -> Iterator[LeaseHostProcess]:
    """A running host."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_run, args=(theirs,))
    process.start()
    theirs.close()
    try:
        with ours:
            assert ours.poll(_SECONDS_MAX), "the host of leases does not start"
            url, digest = ours.recv()
            yield LeaseHostProcess(url, digest, ours)
    finally:
        process.join(10)  # it ends with its pipe
        if process.is_alive():
            process.kill()
            process.join(10)


def _run(pipe: Connection) -> None:
    with pipe, lease_host() as host:
        pipe.send((host.url, host.certificate_sha256))
        while True:
            try:
                verb, path = pipe.recv()
            except EOFError:
                return
            if verb == "serve":
                host.body = Path(path).read_bytes()
                pipe.send("done")
            elif host.uploaded is None:
                pipe.send("nothing was uploaded to its end")
            else:
                Path(path).write_bytes(host.uploaded)
                host.uploaded = None
                pipe.send("done")
