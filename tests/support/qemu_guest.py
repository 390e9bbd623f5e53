"""A small guest that boots from its own disk: MBR, GRUB, Debian's kernel, ext4; and qemu that boots it.

The disk is a raw image of a file system made without mounts. It sits on VMware's paravirtual SCSI
controller, so whatever boots it needs nothing that the VM did not have.
"""

from __future__ import annotations

import gzip
import subprocess
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from support.qemu_guest_parts import GuestParts, tool

MIB: Final = 1 << 20
SECTOR_BYTES: Final = 512
PARTITION_OFFSET: Final = MIB
BOOT_CODE_BYTES: Final = 440  # what lies before them in an MBR is the table's
MARKER: Final = "GUEST-IS-UP"
END: Final = "GUEST-IS-DONE"
BOOT_SECONDS_MAX: Final = 240.0
# What GRUB 2.06 can read; newer mkfs.ext4 would add more by itself.
EXT4_FEATURES: Final = (
    "none,has_journal,ext_attr,resize_inode,dir_index,filetype,extent,flex_bg,sparse_super,"
    "large_file,huge_file,dir_nlink,extra_isize,metadata_csum,64bit"
)
GRUB_MODULES: Final = ("biosdisk", "part_msdos", "ext2", "linux", "gzio", "boot", "echo")
GRUB_COMMANDS: Final = """\
linux (hd0,msdos1)/boot/vmlinuz console=ttyS0 panic=-1 quiet
initrd (hd0,msdos1)/boot/initrd.gz
boot
"""
# Runs from the initial file system: loads the disk's drivers and goes on from the disk itself.
FIRST_INIT: Final = """\
#!/bin/busybox sh
/bin/busybox mkdir -p /proc /sys /dev /disk
/bin/busybox mount -t devtmpfs none /dev
for module in $(/bin/busybox cat /modules/order); do
  /bin/busybox insmod /modules/$module.ko
done
tries=0
while [ ! -b /dev/sda1 ] && [ $tries -lt 200 ]; do
  /bin/busybox usleep 100000
  tries=$((tries + 1))
done
/bin/busybox mount -t ext4 /dev/sda1 /disk || /bin/busybox poweroff -f
/bin/busybox mount -t devtmpfs none /disk/dev
exec /bin/busybox switch_root /disk /bin/busybox sh /etc/boot.sh
"""
# Runs from the disk: what a test wants to know goes to the serial line.
DISK_INIT: Final = f"""\
exec </dev/ttyS0 >/dev/ttyS0 2>&1
/bin/busybox mount -t proc none /proc
echo {MARKER}
cd /srv && for file in *; do echo "SHA256 $(/bin/busybox sha256sum "$file")"; done
/bin/busybox sync
echo {END}
/bin/busybox poweroff -f
"""


@dataclass(frozen=True, kw_only=True)
class Booted:
    """What a guest said on its serial line."""

    serial: str

    @property
    def is_up(self) -> bool:
        """It came up from its disk and went on to the end of its script."""
        lines = [line.strip() for line in self.serial.splitlines()]
        return MARKER in lines and END in lines

    @property
    def checksums(self) -> Mapping[str, str]:
        """SHA-256 by name of what lies in ``/srv``, computed by the guest."""
        found = {}
        for line in self.serial.splitlines():
            words = line.split()
            if len(words) == 3 and words[0] == "SHA256":
                found[words[2]] = words[1]
        return found


def make_guest_image(
    parts: GuestParts, folder: Path, *, capacity_bytes: int, files: Mapping[str, bytes]
) -> Path:
    """A raw, sparse, bootable disk with these files in ``/srv``."""
    tree = folder / "tree"
    for name in ("bin", "boot", "dev", "etc", "proc", "srv", "sys", "tmp"):
        (tree / name).mkdir(parents=True)
    (tree / "bin/busybox").write_bytes(parts.busybox.read_bytes())
    (tree / "bin/busybox").chmod(0o755)
    (tree / "boot/vmlinuz").write_bytes(parts.kernel.read_bytes())
    (tree / "boot/initrd.gz").write_bytes(first_file_system(parts))
    (tree / "etc/boot.sh").write_text(DISK_INIT, encoding="utf-8")
    for name, content in files.items():
        (tree / "srv" / name).write_bytes(content)
    image = folder / "guest.raw"
    with image.open("wb") as disk:
        disk.truncate(capacity_bytes)
    kib = (capacity_bytes - PARTITION_OFFSET) // 4096 * 4
    options = ("-q", "-F", "-b", "4096", "-O", EXT4_FEATURES)
    extended = f"root_owner=0:0,offset={PARTITION_OFFSET}"
    mkfs = str(tool("mkfs.ext4", "e2fsprogs"))
    _run([mkfs, *options, "-E", extended, "-d", str(tree), str(image), f"{kib}k"])
    _write_loader(parts, folder, image, sectors=kib * 2)
    return image


def first_file_system(parts: GuestParts) -> bytes:
    """The initial file system: busybox, the disk's drivers, and `FIRST_INIT`; compressed."""
    order = "\n".join(parts.modules) + "\n"
    members: dict[str, tuple[int, bytes]] = {
        "bin": (0o040755, b""),
        "dev": (0o040755, b""),
        "modules": (0o040755, b""),
        "bin/busybox": (0o100755, parts.busybox.read_bytes()),
        "init": (0o100755, FIRST_INIT.encode()),
        "modules/order": (0o100644, order.encode()),
    }
    for name, content in parts.modules.items():
        members[f"modules/{name}.ko"] = (0o100644, content)
    packed = b"".join(
        _member(number, name, mode, content)
        for number, (name, (mode, content)) in enumerate(members.items(), start=1)
    )
    return gzip.compress(packed + _member(0, "TRAILER!!!", 0, b""), compresslevel=1)


def _member(number: int, name: str, mode: int, content: bytes) -> bytes:
    """One member of a cpio archive in the format that the kernel reads ("newc")."""
    path = name.encode() + b"\0"
    fields = (number, mode, 0, 0, 1, 0, len(content), 0, 0, 0, 0, len(path), 0)
    header = b"070701" + b"".join(b"%08x" % field for field in fields) + path
    return _padded(header) + _padded(content)


def _padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % 4)


def _write_loader(parts: GuestParts, folder: Path, image: Path, *, sectors: int) -> None:
    """GRUB's first sector into the MBR, the rest of it between the MBR and the partition."""
    commands, core = folder / "grub.cfg", folder / "core.img"
    commands.write_text(GRUB_COMMANDS, encoding="utf-8")
    options = ("-O", "i386-pc", "-p", "(hd0,msdos1)/boot/grub", "-c", str(commands))
    sources = ("-d", str(parts.grub_folder), "-o", str(core))
    _run([str(parts.grub_mkimage), *options, *sources, *GRUB_MODULES])
    loader = core.read_bytes()
    assert SECTOR_BYTES + len(loader) <= PARTITION_OFFSET, "GRUB is too large"
    first = PARTITION_OFFSET // SECTOR_BYTES
    entry = b"\x80\xfe\xff\xff\x83\xfe\xff\xff" + first.to_bytes(4, "little")
    entry += sectors.to_bytes(4, "little")
    boot_code = (parts.grub_folder / "boot.img").read_bytes()[:BOOT_CODE_BYTES]
    table = (b"GUES\0\0" + entry).ljust(70, b"\0") + b"\x55\xaa"
    with image.open("r+b") as disk:
        disk.write(boot_code.ljust(BOOT_CODE_BYTES, b"\0") + table)
        disk.seek(SECTOR_BYTES)
        disk.write(loader)


def boot(disk: Path, *, disk_format: str, seconds: float = BOOT_SECONDS_MAX) -> Booted:
    """Boot a disk without KVM until the guest powers off. The disk itself is not changed."""
    command = [
        *(str(tool("qemu-system-x86_64", "qemu-system-x86")), "-accel", "tcg", "-m", "256"),
        *("-display", "none", "-monitor", "none", "-no-reboot", "-nic", "none", "-snapshot"),
        *("-serial", "stdio", "-device", "pvscsi"),
        *("-drive", f"if=none,id=disk,format={disk_format},file={disk}"),
        *("-device", "scsi-hd,drive=disk"),
    ]
    process = subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    late = threading.Timer(seconds, process.kill)
    late.start()
    try:
        output, _ = process.communicate()
    finally:
        late.cancel()
        process.kill()
        process.wait()
    return Booted(serial=output.decode("utf-8", "replace").replace("\r", ""))


def file_system_complaints(raw: Path, folder: Path) -> str:
    """What ``e2fsck -fn`` says about the one partition of a raw disk; empty when it is clean."""
    length = raw.stat().st_size - PARTITION_OFFSET
    partition = folder / "partition.ext4"
    with raw.open("rb") as source, partition.open("wb") as target:
        source.seek(PARTITION_OFFSET)
        for _ in range(0, length, MIB):
            piece = source.read(MIB)
            if any(piece):
                target.write(piece)
            else:
                target.seek(len(piece), 1)
        target.truncate(length // 4096 * 4096)
    done = subprocess.run(
        [str(tool("e2fsck", "e2fsprogs")), "-fn", str(partition)],
        capture_output=True,
        text=True,
        check=False,
        timeout=BOOT_SECONDS_MAX,
    )
    partition.unlink()
    return "" if done.returncode == 0 else done.stdout + done.stderr


def _run(command: list[str]) -> None:
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, timeout=BOOT_SECONDS_MAX
    )
    assert done.returncode == 0, f"{command[0]}: {done.stderr}"
