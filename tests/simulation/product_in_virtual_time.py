"""The product's modules see virtual threads, time and randomness, and models, as long as a simulation runs."""

from __future__ import annotations

import functools
import logging
import random
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, Final

from holdfast_common import identity, own_host, retry
from holdfast_common.repository import (
    hang_watch,
    lease,
    lease_survey,
    live_chunks,
    points,
    prune,
    writers,
)
from holdfast_controller import ledger
from holdfast_controller.decide import calendar
from holdfast_controller.runs import (
    free_space_watch,
    own_machines,
    repository_care,
    vcenters,
    vm_blobs,
)
from holdfast_controller.runs.vm_blobs import VmBlobs
from holdfast_controller.vsphere import configuration as vm_configuration
from holdfast_controller.vsphere import devices, inventory, properties
from simulation import virtual_pruning, virtual_session, virtual_writers
from simulation.virtual_keys import WRITERS
from simulation.virtual_storage import VirtualStorage
from simulation.virtual_threading import VirtualThreading
from simulation.virtual_time import BEGIN, Kernel
from simulation.virtual_vsphere import VirtualVsphere


class VirtualRandom:
    """What the product uses of `random`, `secrets`, `os` and `time` where that would make two runs differ."""

    def __init__(self, kernel: Kernel, seed: int) -> None:
        self._kernel = kernel
        self._random = random.Random(seed * 104729 + 5)

    def uniform(self, low: float, high: float) -> float:
        return self._random.uniform(low, high)

    def token_hex(self, length: int) -> str:
        return self._random.randbytes(length).hex()

    def urandom(self, length: int) -> bytes:
        return self._random.randbytes(length)

    def time_ns(self) -> int:
        moment = BEGIN + timedelta(seconds=self._kernel.now + self._kernel.wall_offset)
        return int(moment.timestamp() * 1000) * 1_000_000

    def monotonic(self) -> float:
        return self._kernel.now


MISSED_COUNT_MAX: Final = 10  # when a clock jumps by years; in the product it takes its time
_PRUNING: Final[tuple[tuple[str, object], ...]] = (
    ("survey_packs", virtual_pruning.survey_packs),
    ("copy_needed", virtual_pruning.copy_needed),
    ("keep_reserve", virtual_pruning.keep_reserve),
    ("rewrite_indexes", virtual_pruning.no_names),
    ("proven_packs", virtual_pruning.no_proofs),
    ("merge_while_many", virtual_pruning.nothing),
    ("remove_finished_replacements", virtual_pruning.nothing),
)


def _carried_out(work: Callable[[], Any], *, gave_up: object = None) -> Any:
    """In place of `hang_watch.while_it_answers`: nothing hangs here."""
    del gave_up
    return work()


def _disks_as_they_are(found: Any, around: object) -> tuple[Any, ...]:
    del around
    return tuple(found)


@contextmanager
def product_in_virtual_time(
    kernel: Kernel, model: VirtualVsphere, storage: VirtualStorage, seed: int
) -> Iterator[None]:
    """The product's modules see virtual threads, time and randomness, and the model, until the block ends."""
    threads, chance = VirtualThreading(kernel), VirtualRandom(kernel, seed)
    changes: list[tuple[object, str, object]] = [
        (module, "threading", threads) for module in _with_threads()
    ]
    changes += [
        (calendar, "MISSED_COUNT_MAX", MISSED_COUNT_MAX),
        (lease, "LEASE_SECONDS", virtual_writers.LEASE_SECONDS),
        (lease_survey, "LEASE_SECONDS", virtual_writers.LEASE_SECONDS),
        (lease_survey, "LEASE_MARGIN_SECONDS", virtual_writers.LEASE_MARGIN_SECONDS),
        (repository_care, "DirectoryStore", virtual_pruning.StorageAsFolder(storage)),
        (repository_care, "check_answers", virtual_pruning.nothing),
        *((prune, name, instead) for name, instead in _PRUNING),
        (identity, "os", chance),
        (identity, "time", chance),
        (identity, "_last", 0),
        (retry, "random", chance),
        (ledger, "secrets", chance),
        (vcenters, "time", chance),
        (vcenters, "VsphereSession", virtual_session.VirtualSession.of(kernel, model)),
    ]
    replaced: list[tuple[Any, object]] = [
        (inventory.read_inventory, virtual_session.read_inventory(model)),
        (vcenters.read_tags, lambda *_: None),
        (own_machines.addresses_of, lambda *_, **__: ()),
        (own_host.bios_uuid, lambda: ""),
        (own_host.mac_addresses, lambda: ()),
        (properties.read_one, virtual_session.read_one),
        (properties.read_many, virtual_session.read_many),
        (properties.read_everything, virtual_session.read_everything),
        (inventory.read_vm, virtual_session.read_vm),
        (inventory.read_vm_around, virtual_session.read_vm_around),
        (devices.disk_facts, _disks_as_they_are),
        (vm_configuration.configuration_json, lambda _: "{}"),
        (vm_blobs.read_blobs, lambda *_: VmBlobs(blobs=(), warnings=())),
        (vm_blobs.with_ovf, lambda found, _: found),
        (free_space_watch.free_space_watched, virtual_session.nothing_watched),
        (points.list_points, virtual_pruning.list_points),
        (live_chunks.find_needed, virtual_pruning.find_needed),
        (hang_watch.while_it_answers, _carried_out),
        (hang_watch.watched_files, virtual_pruning.nothing),
        (writers.load_writers, lambda *_: WRITERS),
    ]
    changes += [
        (module, name, instead)
        for original, instead in replaced
        for module, name in _wherever(original)
    ]
    disabled = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with in_place_of(changes):
            yield
    finally:
        logging.disable(disabled)


@functools.cache
def _wherever(original: object) -> list[tuple[object, str]]:
    """Every module of the product that knows this function, and by which name."""
    return [
        (module, name)
        for path, module in sorted(sys.modules.items())
        if path.startswith("holdfast_")
        for name, value in sorted(vars(module).items())
        if value is original
    ]


@functools.cache
def _with_threads() -> list[object]:
    """Modules of the product that say `threading`, but for those whose threads are not simulated."""
    wanted = ("holdfast_controller.runs.", "holdfast_controller.vsphere.")
    found: list[object] = [
        module
        for name, module in sorted(sys.modules.items())
        if name.startswith(wanted) and hasattr(module, "threading") and "task_watcher" not in name
    ]
    return [*found, sys.modules["holdfast_common.pulses"]]


@contextmanager
def in_place_of(changes: list[tuple[object, str, object]]) -> Iterator[None]:
    """Attributes of modules, put back at the end."""
    before = [(module, name, getattr(module, name)) for module, name, _ in changes]
    try:
        for module, name, value in changes:
            setattr(module, name, value)
        yield
    finally:
        for module, name, value in reversed(before):
            setattr(module, name, value)
