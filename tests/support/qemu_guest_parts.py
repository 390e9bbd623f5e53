"""What a bootable guest is made of: Debian's kernel, its modules, busybox and GRUB, unpacked.

Nothing is installed and nobody needs to be root: packages are downloaded and unpacked once into
``build/guest``. Without them, or without qemu, the tests that boot are skipped and say so.
"""

from __future__ import annotations

import fcntl
import lzma
import re
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import pytest

CACHE: Final = Path(__file__).parents[2] / "build" / "guest"
KERNEL_PACKAGE: Final = "linux-image-cloud-amd64"  # small, and it has VMware's pvscsi
GRUB_PACKAGES: Final = ("grub-pc-bin", "grub-common")
SEARCH: Final = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
DOWNLOAD_SECONDS: Final = 300
DEPENDS: Final = re.compile(rb"\0depends=([^\0]*)\0")
DISK_MODULES: Final = ("vmw_pvscsi", "sd_mod")


@dataclass(frozen=True, kw_only=True)
class GuestParts:
    """Where the parts are. ``modules``: kernel modules by name, in the order they are loaded in."""

    kernel: Path
    modules: Mapping[str, bytes]
    busybox: Path
    grub_mkimage: Path
    grub_folder: Path


def tool(name: str, package: str) -> Path:
    """A program of this machine, or a skip that names its package."""
    found = shutil.which(name, path=SEARCH)
    if found is None:
        pytest.skip(f"{name} is not installed: apt-get install {package}")
    return Path(found)


def guest_parts() -> GuestParts:
    """Everything, unpacked; skips when something cannot be had."""
    tool("qemu-system-x86_64", "qemu-system-x86")
    busybox = tool("busybox", "busybox-static")
    if not _is_static(busybox):
        pytest.skip("busybox is not the static one: apt-get install busybox-static")
    root = _unpacked()
    kernels = sorted((root / "boot").glob("vmlinuz-*"))
    if not kernels:
        pytest.skip(f"{KERNEL_PACKAGE} has no kernel in it")
    version = kernels[-1].name.removeprefix("vmlinuz-")
    grub = shutil.which("grub-mkimage", path=SEARCH)
    return GuestParts(
        kernel=kernels[-1],
        modules=_modules(_folder_of(root, f"lib/modules/{version}")),
        busybox=busybox,
        grub_mkimage=Path(grub) if grub else root / "usr/bin/grub-mkimage",
        grub_folder=_folder_of(root, "usr/lib/grub/i386-pc"),
    )


def _folder_of(root: Path, name: str) -> Path:
    """A folder of the packages, or of packages with everything below ``usr``."""
    for folder in (root / name, root / "usr" / name):
        if folder.is_dir():
            return folder
    pytest.skip(f"the packages have no {name}")


def _is_static(program: Path) -> bool:
    return b"ld-linux" not in program.read_bytes()[:4096]


def _unpacked() -> Path:
    """The folder that the packages were unpacked to, made whole or not at all."""
    root = CACHE / "root"
    CACHE.mkdir(parents=True, exist_ok=True)
    with (CACHE / "lock").open("w") as lock:
        # several workers of one test run may want it at once
        fcntl.flock(lock, fcntl.LOCK_EX)
        return root if root.is_dir() else _unpack(root)


def _unpack(root: Path) -> Path:
    for program, package in (("apt-get", "apt"), ("apt-cache", "apt"), ("dpkg-deb", "dpkg")):
        tool(program, package)
    archives = CACHE / "archives"
    archives.mkdir(parents=True, exist_ok=True)
    options: tuple[str, ...] = ()
    kernel = _kernel_package(options)
    if not kernel:
        options = _private_lists()
        kernel = _kernel_package(options)
    if not kernel:
        pytest.skip(f"Debian's {KERNEL_PACKAGE} is not to be had: are its package lists reachable?")
    _run(["apt-get", *options, "download", kernel, *GRUB_PACKAGES], archives)
    new = CACHE / "root.new"
    shutil.rmtree(new, ignore_errors=True)
    for archive in sorted(archives.glob("*.deb")):
        _run(["dpkg-deb", "-x", str(archive), str(new)], archives)
    shutil.rmtree(archives)
    return new.rename(root)


def _kernel_package(options: tuple[str, ...]) -> str:
    """The real package behind the name that stays; empty when the lists do not have it."""
    done = subprocess.run(
        ["apt-cache", *options, "depends", KERNEL_PACKAGE],
        capture_output=True,
        text=True,
        check=False,
        timeout=DOWNLOAD_SECONDS,
    )
    found = re.findall(r"Depends: (linux-image-\S+)", done.stdout)
    return str(found[0]) if found else ""


def _private_lists() -> tuple[str, ...]:
    """Package lists of our own, for a machine that has none and a user who may not fetch them."""
    state = CACHE / "apt"
    for name in ("lists/partial", "cache/archives/partial"):
        (state / name).mkdir(parents=True, exist_ok=True)
    options = (
        "-o",
        f"Dir::State::lists={state / 'lists'}",
        "-o",
        f"Dir::Cache={state / 'cache'}",
    )
    _run(["apt-get", *options, "update", "-qq"], state)
    return options


def _run(command: list[str], folder: Path) -> None:
    done = subprocess.run(
        command,
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
        timeout=DOWNLOAD_SECONDS,
        stdin=subprocess.DEVNULL,
    )
    if done.returncode != 0:
        pytest.skip(f"{' '.join(command[:3])} failed: {done.stderr.strip()[-300:]}")


def _modules(folder: Path) -> dict[str, bytes]:
    """The modules of `DISK_MODULES` with all that they need, the needed first."""
    files = {
        path.name.partition(".ko")[0].replace("-", "_"): path
        for path in folder.rglob("*.ko*")
        if path.suffix in (".ko", ".xz")
    }
    found: dict[str, bytes] = {}

    def add(name: str) -> None:
        if name in found or name not in files:
            return  # not there: it is built into the kernel
        path = files[name]
        content = path.read_bytes()
        if path.suffix == ".xz":
            content = lzma.decompress(content)
        match = DEPENDS.search(content)
        for needed in (match[1].decode() if match else "").split(","):
            add(needed.strip().replace("-", "_"))
        found[name] = content

    for name in DISK_MODULES:
        add(name)
    return found
