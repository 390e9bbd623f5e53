"""The product's modules see virtual threads, time and randomness, and models, as long as a simulation runs."""

from __future__ import annotations

import functools
import logging
import random
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

from holdfast_common import identity, own_host, retry
from holdfast_controller import ledger
from holdfast_controller.runs import free_space_watch, own_machines, vcenters, vm_blobs
from holdfast_controller.runs.vm_blobs import VmBlobs
from holdfast_controller.vsphere import configuration as vm_configuration
from holdfast_controller.vsphere import devices, inventory, properties
from simulation import virtual_session
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


def _disks_as_they_are(found: Any, around: object) -> tuple[Any, ...]:
    del around
    return tuple(found)


@contextmanager
def product_in_virtual_time(kernel: Kernel, model: VirtualVsphere, seed: int) -> Iterator[None]:
    """The product's modules see virtual threads, time and randomness, and the model, until the block ends."""
    threads, chance = VirtualThreading(kernel), VirtualRandom(kernel, seed)
    changes: list[tuple[object, str, object]] = [
        (module, "threading", threads) for module in _with_threads()
    ]
    changes += [
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
