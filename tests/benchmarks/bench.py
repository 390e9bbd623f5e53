"""How fast the agent's pipelines are beside tools that every administrator has: run with `make bench`.

Run: .venv/bin/python tests/benchmarks/bench.py [--folder FOLDER] [--mib N] [--pairs N]

One disk image (35 % holes, the rest half compressible) is backed up, changed, backed up again, restored
and read back: by the agent's own pipelines (sealed, decoded before they count, synced), and beside it,
in turns, by `qemu-img convert` to a compressed qcow2 and back. The last
line is JSON: each goal with its figure. Goals are ratios of wall time, ours against the peer's.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

TESTS = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(TESTS))

from holdfast_agent.pipelines.restore_disks import restore_disks  # noqa: E402 - the path comes first
from holdfast_agent.pipelines.verify_disks import verify_disks  # noqa: E402 - as above
from holdfast_common.extents import Extent  # noqa: E402 - as above
from holdfast_common.job_result import Outcome  # noqa: E402 - as above
from holdfast_common.units import MIB  # noqa: E402 - as above
from support.backup_jobs import Site, make_site, point_of  # noqa: E402 - as above

KEY = 2000
BLOCK_BYTES = 64 * 1024
HOLE_SHARE = 0.35
CHANGED_SHARE = 0.02
# First and restore against a compressed qcow2 of qemu-img, which keeps neither history nor secrets.
Result = TypeVar("Result")
GOALS = {"first": 1.0, "incremental": 10.0, "restore": 1.0, "verify": 1.0}


def main() -> int:
    """Print every round and the ratios; 0 also when a goal is missed: this is a measurement."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--mib", type=int, default=1024)
    parser.add_argument("--pairs", type=int, default=3)
    chosen = parser.parse_args()
    if shutil.which("qemu-img") is None:
        print("qemu-img is missing: apt-get install qemu-utils", file=sys.stderr)
        return 1
    rounds: dict[str, list[tuple[float, float]]] = {name: [] for name in GOALS}
    for number in range(chosen.pairs):
        with tempfile.TemporaryDirectory(dir=chosen.folder) as folder:
            for name, pair in one_round(Path(folder), chosen.mib * MIB, seed=number).items():
                rounds[name].append(pair)
                print(
                    f"round {number}: {name:<12} ours {pair[0]:6.2f} s, peer {pair[1]:6.2f} s",
                    flush=True,
                )
    figures = {}
    for name, goal in GOALS.items():
        ratio = statistics.median(peer / ours for ours, peer in rounds[name])
        figures[name] = {"figure": round(ratio, 2), "goal": goal, "met": ratio >= goal}
    print(json.dumps(figures))
    return 0


def one_round(folder: Path, capacity: int, *, seed: int) -> dict[str, tuple[float, float]]:
    """Ours and the peer's seconds for each kind of work, in turns, on the same image."""
    site = make_site(folder / "site")
    raw, changes = make_image(site, capacity, seed)
    compressed, back = folder / "peer.qcow2", folder / "peer.raw"
    to_qcow2 = ["qemu-img", "convert", "-c", "-f", "raw", "-O", "qcow2"]
    to_qcow2 += ["-o", "compression_type=zstd", str(raw), str(compressed)]
    found: dict[str, tuple[float, float]] = {}
    ours, first = timed(lambda: point_of(site.back_up()))
    peer, _ = timed(lambda: run(to_qcow2))
    found["first"] = (ours, peer)
    write_changes(raw, changes, seed)
    ours, second = timed(lambda: point_of(site.incremental(first, {KEY: changes})))
    peer, _ = timed(lambda: run(to_qcow2))  # it has no incremental: all of it again
    found["incremental"] = (ours, peer)
    ticket = site.file_ticket("back.vmdk")
    restore = site.spec(site.restore_work(second, {KEY: ticket}))
    ours, _ = timed(lambda: restore_disks(restore, site.context()))
    peer, _ = timed(
        lambda: run(["qemu-img", "convert", "-O", "raw", str(compressed), str(back)], sync=back)
    )
    found["restore"] = (ours, peer)
    verify = site.spec(site.verify_work(second, {KEY: ticket}))
    ours, result = timed(lambda: verify_disks(verify, site.context()))
    assert result.outcome is Outcome.DONE
    peer, _ = timed(lambda: run(["qemu-img", "compare", str(compressed), str(back)]))
    found["verify"] = (ours, peer)
    restored = folder / "site" / "restores" / "back-flat.vmdk"
    assert digest(restored) == digest(raw) == digest(back), "all restored images are the same"
    return found


def make_image(site: Site, capacity: int, seed: int) -> tuple[Path, list[Extent]]:
    """The disk's flat file, and the extents that change later."""
    site.make_disk(KEY, b"\x01" * BLOCK_BYTES)  # a descriptor and a file of our own writer
    raw = site.flat_file(KEY)
    chance = random.Random(seed)
    with raw.open("r+b") as file:
        file.truncate(capacity)
        for offset in range(0, capacity, MIB):
            if chance.random() < HOLE_SHARE:
                continue
            file.seek(offset)
            half = chance.randbytes(BLOCK_BYTES // 2)
            file.write((half + half[:512] * (BLOCK_BYTES // 1024)) * (MIB // BLOCK_BYTES))
    descriptor = raw.with_name(raw.name.replace("-flat.vmdk", ".vmdk"))
    text = descriptor.read_text()
    old = f"RW {BLOCK_BYTES // 512} "
    assert old in text
    descriptor.write_text(text.replace(old, f"RW {capacity // 512} "))
    site.disks[KEY] = capacity
    blocks = sorted(
        chance.sample(range(capacity // BLOCK_BYTES), int(capacity // BLOCK_BYTES * CHANGED_SHARE))
    )
    return raw, [Extent(offset=block * BLOCK_BYTES, length=BLOCK_BYTES) for block in blocks]


def write_changes(raw: Path, changes: list[Extent], seed: int) -> None:
    """As the guest."""
    chance = random.Random(seed + 1000)
    with raw.open("r+b") as file:
        for extent in changes:
            file.seek(extent.offset)
            file.write(chance.randbytes(extent.length))


def run(command: list[str], *, sync: Path | None = None) -> None:
    """A peer's command; what it wrote is synced, as ours is."""
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    target = str(sync) if sync is not None else command[-1]
    subprocess.run(["sync", target], check=True)


def timed(work: Callable[[], Result]) -> tuple[float, Result]:
    """Wall seconds and the result."""
    started = time.perf_counter()
    result = work()
    return time.perf_counter() - started, result


def digest(path: Path) -> str:
    """SHA-256 of a file, read in pieces."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


if __name__ == "__main__":
    sys.exit(main())
