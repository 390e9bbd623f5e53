"""A session of ours at a lab's vSphere, with a gate that counts, fails and loses calls."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from holdfast_common.clock import SystemClock
from holdfast_common.errors import VsphereUnavailable
from holdfast_common.identity import JobId, RunId, new_ulid
from holdfast_common.logs import Secret
from holdfast_controller.ledger import JobLedger
from holdfast_controller.store.database import Database
from holdfast_controller.store.ledger import MIGRATIONS, LedgerTable
from holdfast_controller.vsphere.session import Account, VcenterAddress, VsphereSession
from holdfast_lab.server import RunningLab

# The loop that watches tasks makes these when it likes: they would make a count differ from run to run.
UNCOUNTED = frozenset(
    {
        "WaitForUpdatesEx",
        "CreatePropertyCollector",
        "DestroyPropertyCollector",
        "CreateFilter",
        "DestroyPropertyFilter",
        "CancelWaitForUpdates",
        "HttpNfcLeaseProgress",
        "CurrentTime",
    }
)


class CountingGate:
    """Counts calls; the ``fail_at``-th never leaves, of the ``lose_at``-th the reply is lost."""

    def __init__(self, *, fail_at: int = 0, lose_at: int = 0) -> None:
        self.fail_at = fail_at
        self.lose_at = lose_at
        self.calls: list[str] = []
        self._lock = threading.Lock()
        self._numbers: dict[int, int] = {}

    def before(self, method: str, moref: str) -> None:
        if method in UNCOUNTED:
            return
        with self._lock:
            self.calls.append(f"{method} {moref}")
            number = len(self.calls)
            self._numbers[threading.get_ident()] = number
        if number == self.fail_at:
            raise VsphereUnavailable("this call was made to fail", method=method)

    def after(self, method: str, moref: str) -> None:
        if method in UNCOUNTED:
            return
        with self._lock:
            number = self._numbers.get(threading.get_ident(), 0)
        if number == self.lose_at:
            raise VsphereUnavailable("this reply was made to be lost", method=method)

    def count(self, method: str) -> int:
        """How often a method was called."""
        return sum(1 for call in self.calls if call.split()[0] == method)


def address_of(lab: RunningLab) -> VcenterAddress:
    host, _, port = lab.address.rpartition(":")
    return VcenterAddress(host=host, port=int(port), certificate_sha256=lab.certificate.sha256)


def account_of(lab: RunningLab) -> Account:
    return Account(user_name=lab.user, password=Secret(lab.password.encode()))


@contextmanager
def session_at(
    lab: RunningLab, *, gate: CountingGate | None = None, patience_seconds: float = 20.0
) -> Iterator[VsphereSession]:
    session = VsphereSession(
        address_of(lab), account_of(lab), gate=gate, patience_seconds=patience_seconds
    )
    with session:
        yield session


def job_ledger(folder: Path, *, vcenter_id: str = "vc1") -> JobLedger:
    """A ledger in a real database, for one job."""
    database = Database(folder / f"ledger-{new_ulid()}.sqlite", [MIGRATIONS])
    return JobLedger(
        ledger=LedgerTable(database, SystemClock()),
        run_id=RunId(new_ulid()),
        job_id=JobId(new_ulid()),
        vcenter_id=vcenter_id,
    )


def open_facts(ledger: JobLedger) -> list[Mapping[str, str]]:
    return [entry.facts for entry in ledger.open_entries()]
