"""Every fsync beneath the production store fails, one after the other, until a run is clean: on a real mount.

Nothing acknowledged is lost, nothing half shows, the next backup works; and what that one stands on is on
the disk as well, although the kernel forgets after a failed fsync what it did not write.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count

import pytest

from support.crash_workloads import WORKLOADS, recording
from support.shared_work import shared_work
from support.sync_faults import run_with_sync_fault
from support.unsynced_files import SyncFailure, SyncFault
from support.unsynced_mount import UnsyncedMount, unsynced_mount

SYNCS_MAX = 2000
NAMES = sorted(WORKLOADS)


@pytest.fixture(scope="module")
def mount(tmp_path_factory: pytest.TempPathFactory) -> Iterator[UnsyncedMount]:
    with unsynced_mount(tmp_path_factory.mktemp("mount")) as mounted:
        yield mounted


@pytest.mark.parametrize("name", ["full", "prune beside backup"])
def test_a_sync_that_fails_loses_nothing_acknowledged(name: str, mount: UnsyncedMount) -> None:
    fail_each_sync(mount, name, SyncFailure.DROPPED, lasts=False, first=5, stride=12)


@pytest.mark.long
@pytest.mark.timeout(900)
@pytest.mark.parametrize("lasts", [False, True], ids=["once", "from then on"])
@pytest.mark.parametrize("failure", SyncFailure, ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_whichever_sync_fails_nothing_acknowledged_is_lost(
    name: str, failure: SyncFailure, lasts: bool, mount: UnsyncedMount
) -> None:
    fail_each_sync(mount, name, failure, lasts=lasts, first=0, stride=1)


def fail_each_sync(
    mount: UnsyncedMount,
    name: str,
    failure: SyncFailure,
    *,
    lasts: bool,
    first: int,
    stride: int,
) -> None:
    runs = failed = 0
    with shared_work():
        made = recording(name)
        for number in count(first, stride):
            assert number < SYNCS_MAX, "no run was clean"
            done = run_with_sync_fault(mount, made, SyncFault(failure, number, lasts))
            if not done.hit:
                assert done.error is None, "a run in which nothing failed"
                break
            runs += 1
            failed += done.error is not None
    print(f"{name}, {failure}, {'from then on' if lasts else 'once'}: {runs} syncs, {failed} told")
    assert failed > runs / 2
