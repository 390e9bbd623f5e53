"""How fast Holdfast's agent is beside the newest restic and borg: run with `make bench`.

Run: PYTHONPATH=tests .venv/bin/python -m benchmarks.bench [--folder FOLDER] [--mib N] [--rounds N] [--phases]

In each round every tool has a new repository and does the same work on the same disk image in the same cache
state (warm), in turns; the order changes from round to round. Ours is an installed agent with a session, as
users run it: writer lease, sealing, everything decoded before the commit, everything synced. An incremental
reads 1 % of what did not change besides, as by default, in an agent that is up, as proxies are; a cold figure, with the agent's start, stands beside it.
Goals are ratios against the better peer in the same round, and the median of the rounds. The rows are kept
in build/bench/rows.jsonl; the last line printed is JSON, each goal with its figure.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field, replace
from pathlib import Path

from benchmarks.disk_image import DiskImage, change_image, described, file_sha256, make_image
from benchmarks.figures import Rows, print_table, summary
from benchmarks.our_proxy import OurProxy, Timed, make_empty_disk, our_proxy
from benchmarks.peers import Borg, Peer, PeerPrograms, Restic, prepared_peers
from benchmarks.phases import print_phases
from holdfast_common.extents import Extent
from holdfast_common.identity import PointId
from holdfast_common.job_spec import AreaSource, TrackingAudit
from holdfast_common.units import MIB
from support.backup_jobs import point_of

BUILD = Path(__file__).resolve().parents[2] / "build"
KEY = 2000
IMAGE_MIB = 4096
AUDIT = TrackingAudit(share_millionths=10_000)  # what a controller asks for by default
ROUNDS = 5
SEED = 1
DAYS = 4  # the first backup's image, and one for each incremental kind of work


@dataclass
class Images:
    """One image for each day; ``changed[n]`` is what changed from day n-1 to day n."""

    days: list[DiskImage] = field(default_factory=list)
    changed: list[list[Extent]] = field(default_factory=list)


def main() -> int:
    """Print every round's rows, the table and the goals; 0 also when a goal is missed: this is a measurement."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, help="where images and repositories are made")
    parser.add_argument("--mib", type=int, default=IMAGE_MIB)
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument(
        "--phases",
        action="store_true",
        help="no peers: the CPU seconds of each phase of our engine",
    )
    chosen = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # the images go then too
    if chosen.phases:
        with tempfile.TemporaryDirectory(dir=chosen.folder) as folder:
            print_phases(Path(folder), chosen.mib * MIB, level=3)
        return 0
    programs = prepared_peers(BUILD / "peers")
    print("\n".join(programs.versions()))
    with tempfile.TemporaryDirectory(dir=chosen.folder) as folder:
        images = make_images(Path(folder), chosen.mib * MIB)
        rows = Rows(BUILD / "bench" / "rows.jsonl")
        for number in range(chosen.rounds):
            one_round(Path(folder) / "round", images, programs, rows, number=number)
    print_table(rows)
    print(json.dumps(summary(rows)))
    return 0


def make_images(folder: Path, capacity_bytes: int) -> Images:
    """All days' images, told about."""
    images = Images()
    paths = [folder / f"day{day}.img" for day in range(DAYS)]
    make_image(paths[0], capacity_bytes, seed=SEED)
    images.changed.append([])
    for day in range(1, DAYS):
        images.changed.append(change_image(paths[day - 1], paths[day], seed=SEED + day))
    for day, path in enumerate(paths):
        image = described(path)
        images.days.append(image)
        changed = sum(extent.length for extent in images.changed[day])
        print(
            f"day {day}: {image.capacity_bytes / MIB:.0f} MiB, {image.hole_share:.1%} holes,"
            f" zstd -3 makes 1/{image.zstd_ratio:.2f} of the rest; changed"
            f" {len(images.changed[day])} places, {changed / MIB:.1f} MiB",
            flush=True,
        )
    return images


def one_round(
    folder: Path, images: Images, programs: PeerPrograms, rows: Rows, *, number: int
) -> None:
    """Every tool once; who begins changes."""
    rows.begin_round(number)
    tools = [
        lambda: ours(folder / "holdfast", images, rows),
        lambda: peer(
            Restic(programs.restic, made(folder / "restic")), folder / "restic", images, rows
        ),
        lambda: peer(Borg(programs.borg, made(folder / "borg")), folder / "borg", images, rows),
    ]
    for turn in range(len(tools)):
        tools[(turn + number) % len(tools)]()
        shutil.rmtree(folder)
    dd(made(folder), images.days[1], rows)
    shutil.rmtree(folder)


def peer(tool: Peer, folder: Path, images: Images, rows: Rows) -> None:
    """First backup, the next day's, restore and verification."""
    image = folder / "disk.img"
    put(images.days[0], image)
    rows.add(tool.name, "first", tool.first(image))
    first = stored_bytes(tool.repository)
    rows.add(tool.name, "first_size", first)
    put(images.days[1], image)
    rows.add(tool.name, "again", tool.again(image))
    rows.add(tool.name, "again_bytes", stored_bytes(tool.repository) - first)
    settle()
    warm(tool.repository)
    seconds, restored = tool.restore(made(folder / "restored"))
    rows.add(tool.name, "restore", seconds)
    check_equal(restored, images.days[1])
    settle()
    warm(tool.repository)
    rows.add(tool.name, "verify", tool.verify())
    for name, command in tool.commands.told.items():
        rows.tell(f"{tool.name} {name}: {command}")


def ours(folder: Path, images: Images, rows: Rows) -> None:
    """All kinds of work; memory is the peak above what an idle agent takes."""
    with our_proxy(made(folder / "level1")) as proxy:
        proxy.start()
        rows.add("holdfast", "level1", backup(proxy, images, 0, level=1).seconds)
        rows.add("holdfast", "level1_size", stored_bytes(proxy.site.repository.folder))
    shutil.rmtree(folder / "level1")
    with our_proxy(made(folder / "level3")) as proxy:
        proxy.start()
        idle = proxy.forget_peak()
        first = backup(proxy, images, 0)
        rows.add("holdfast", "first", first.seconds)
        size = stored_bytes(proxy.site.repository.folder)
        rows.add("holdfast", "first_size", size)
        second = backup(proxy, images, 1, previous=first, areas=AreaSource.CHANGED)
        rows.add("holdfast", "incremental", second.seconds)
        rows.add("holdfast", "incremental_bytes", stored_bytes(proxy.site.repository.folder) - size)
        settle()
        warm(proxy.site.repository.folder)
        restore(proxy, point_of(second.result), images.days[1], rows)
        settle()
        warm(proxy.site.repository.folder)
        rows.add("holdfast", "verify", proxy.check_all().seconds)
        scanned = backup(proxy, images, 2, previous=second, areas=AreaSource.EVERYTHING)
        rows.add("holdfast", "scan", scanned.seconds)
        rows.add("holdfast", "memory", proxy.peak_bytes() - idle)
        proxy.stop()
        put(images.days[3], proxy.site.flat_file(KEY))
        settle()
        began = time.perf_counter()
        proxy.start()
        backup(proxy, images, 3, previous=scanned, areas=AreaSource.CHANGED)
        rows.add("holdfast", "cold incremental", time.perf_counter() - began)


def backup(
    proxy: OurProxy,
    images: Images,
    day: int,
    *,
    previous: Timed | None = None,
    areas: AreaSource = AreaSource.EVERYTHING,
    level: int = 3,
) -> Timed:
    """A backup of one day's image."""
    site = proxy.site
    if KEY not in site.disks:
        make_empty_disk(site, KEY, images.days[0].capacity_bytes)
    put(images.days[day], site.flat_file(KEY))
    settle()
    disk = site.disk_to_back_up(KEY, areas=areas, areas_reason="benchmark")
    work = site.backup_work(
        [disk],
        previous=None if previous is None else point_of(previous.result),
        level="full" if previous is None else "incremental",
    )
    work = replace(work, compression_level=level, audit=AUDIT)
    return proxy.work(work, changed=images.changed[day])


def restore(proxy: OurProxy, point: PointId, image: DiskImage, rows: Rows) -> None:
    """To a flat file, equal to the image."""
    ticket = proxy.site.file_ticket("restored.vmdk")
    done = proxy.work(proxy.site.restore_work(point, {KEY: ticket}))
    rows.add("holdfast", "restore", done.seconds)
    rows.add("holdfast", "restore_rate", image.allocated_bytes / done.seconds)
    check_equal(proxy.site.root / "restores" / "restored-flat.vmdk", image)


def dd(folder: Path, image: DiskImage, rows: Rows) -> None:
    """What the disk takes: as many bytes as the image has allocated, written past the cache and synced."""
    source = folder / "source"
    with source.open("wb") as file:
        for data in image.allocated():
            file.write(data)
    settle()
    began = time.perf_counter()
    command = [
        "dd",
        f"if={source}",
        f"of={folder / 'target'}",
        "bs=4M",
        "oflag=direct",
        "conv=fsync",
    ]
    subprocess.run(command, check=True, capture_output=True)
    rows.add("dd", "restore_rate", source.stat().st_size / (time.perf_counter() - began))
    rows.tell("dd if=ALLOCATED of=TARGET bs=4M oflag=direct conv=fsync")


def put(image: DiskImage, path: Path) -> None:
    """The image under another name, without a copy: nobody writes to it."""
    path.unlink(missing_ok=True)
    os.link(image.path, path)


def settle() -> None:
    """Nobody pays for what another one left to be written."""
    os.sync()


def warm(folder: Path) -> None:
    """All of a repository into the page cache: we write past it, the others through it."""
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                while file.read(16 * MIB):
                    pass


def made(folder: Path) -> Path:
    folder.mkdir(parents=True)
    return folder


def stored_bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def check_equal(path: Path, image: DiskImage) -> None:
    if file_sha256(path) != image.sha256:
        raise RuntimeError(f"{path} is not equal to {image.path}")
    path.unlink()


if __name__ == "__main__":
    sys.exit(main())
