"""Descriptors that an attacker would write: each is refused, and no other file is opened."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from holdfast_common.errors import SourceFailed
from holdfast_common.formats.vmdk_descriptor import CreateType, ExtentKind, ExtentLine
from holdfast_common.formats.vmdk_descriptor_text import descriptor_text
from support.vmdk_hostile import assert_refused, read_everything

MIB = 1 << 20
EXTENT = 'RW 2048 VMFS "disk-flat.vmdk"'

EVIL_NAMES = [
    "/etc/passwd",
    "/dev/null",
    "/dev/sda",
    "/proc/self/mem",
    "/vmfs/volumes/other/vm/vm-flat.vmdk",
    "//server/share/x.vmdk",
    "../secret-flat.vmdk",
    "../../../../etc/shadow",
    "..",
    ".",
    "./disk-flat.vmdk",
    "sub/disk-flat.vmdk",
    "disk-flat.vmdk/",
    "disk-flat.vmdk/../../x",
    "..\\secret-flat.vmdk",
    "C:\\secret.vmdk",
    "C:secret.vmdk",
    "\\\\.\\PhysicalDrive0",
    "nbd://127.0.0.1:10809/x",
    "nbd:unix:/run/x.sock",
    "http://169.254.169.254/latest/meta-data",
    "https://example.org/x.vmdk",
    "ssh://root@host/x",
    "file:/etc/passwd",
    "file:///etc/passwd",
    "fd:3",
    "fd:/dev/fd/3",
    "fat:rw:/etc",
    "blkdebug::/etc/passwd",
    'json:{"driver":"file"}',
    "json:{'driver':'host_device','filename':'/dev/sda'}",
    "vsan://52ab-01/x",
    "vvol:naa.6",
    "rbd:pool/image",
    "host_device:/dev/sda",
    "disk-flat.vmdk\0/etc/passwd",
    "disk\x01-flat.vmdk",
    "disk\x1b[2J-flat.vmdk",
    "disk\x7f-flat.vmdk",
    "disk\t-flat.vmdk:x",
    "",
    "a" * 256,
    "ä" * 200,
    "a" * 100_000,
]

EVIL_EXTENT_LINES = {
    "no size": 'RW VMFS "disk-flat.vmdk"',
    "negative size": 'RW -2048 VMFS "disk-flat.vmdk"',
    "hexadecimal size": 'RW 0x800 VMFS "disk-flat.vmdk"',
    "size zero": 'RW 0 VMFS "disk-flat.vmdk"',
    "size with sign": 'RW +2048 VMFS "disk-flat.vmdk"',
    "size in another script": 'RW ٢٠٤٨ VMFS "disk-flat.vmdk"',
    "huge size": 'RW 999999999999999999 VMFS "disk-flat.vmdk"',
    "overflowing size": 'RW 18446744073709551617 VMFS "disk-flat.vmdk"',
    "above 64 TiB": 'RW 137438953473 VMFS "disk-flat.vmdk"',
    "no access": 'NOACCESS 2048 VMFS "disk-flat.vmdk"',
    "unknown access": 'WR 2048 VMFS "disk-flat.vmdk"',
    "raw device": 'RW 2048 VMFSRDM "disk-rdm.vmdk"',
    "raw device passed through": 'RW 2048 VMFSRAW "/vmfs/devices/disks/naa.6"',
    "unknown kind": 'RW 2048 EVIL "disk-flat.vmdk"',
    "kind of another disk": 'RW 2048 SPARSE "disk-flat.vmdk"',
    "kind of a redo log": 'RW 2048 VMFSSPARSE "disk-flat.vmdk"',
    "kind of a flat disk": 'RW 2048 FLAT "disk-flat.vmdk" 0',
    "zero extent": "RW 2048 ZERO",
    "no name": "RW 2048 VMFS",
    "unquoted name": "RW 2048 VMFS disk-flat.vmdk",
    "name in other quotes": "RW 2048 VMFS 'disk-flat.vmdk'",
    "name not ended": 'RW 2048 VMFS "disk-flat.vmdk',
    "two names": 'RW 2048 VMFS "disk-flat.vmdk" "x"',
    "something after it": 'RW 2048 VMFS "disk-flat.vmdk" 0 partitionUUID /dev/sda',
    "negative offset": 'RW 2048 VMFS "disk-flat.vmdk" -1',
    "offset past the file": 'RW 2048 VMFS "disk-flat.vmdk" 1',
    "offset beyond all": 'RW 2048 VMFS "disk-flat.vmdk" 999999999999999999',
    "longer than its file": 'RW 2049 VMFS "disk-flat.vmdk"',
    "missing": "",
    "sum above 64 TiB": 'RW 100000000000 VMFS "disk-flat.vmdk"\n' * 2,
    "more than 1024": 'RW 1 VMFS "disk-flat.vmdk"\n' * 1025,
}

EVIL_HEADERS = {
    "no magic": ("# Disk DescriptorFile", "# Not a Descriptor"),
    "unknown version": ("version=1", "version=9"),
    "version not a number": ("version=1", "version=one"),
    "no version": ("version=1\n", ""),
    "no id": ("CID=fffffffe\n", ""),
    "id too long": ("CID=fffffffe", "CID=fffffffe0"),
    "id not hexadecimal": ("CID=fffffffe", "CID=evil"),
    "two ids": ("CID=fffffffe", "CID=fffffffe\nCID=00000001"),
    "no parent id": ("parentCID=ffffffff\n", ""),
    "a parent that is not given": ("parentCID=ffffffff", "parentCID=00000001"),
    "no kind": ('createType="vmfs"\n', ""),
    "two kinds": ('createType="vmfs"', 'createType="vmfs"\ncreateType="custom"'),
    "kind custom": ('createType="vmfs"', 'createType="custom"'),
    "kind fullDevice": ('createType="vmfs"', 'createType="fullDevice"'),
    "kind partitionedDevice": ('createType="vmfs"', 'createType="partitionedDevice"'),
    "kind vmfsRaw": ('createType="vmfs"', 'createType="vmfsRaw"'),
    "kind vmfsRDM": ('createType="vmfs"', 'createType="vmfsRDM"'),
    "kind vmfsPassthroughRawDeviceMap": (
        'createType="vmfs"',
        'createType="vmfsPassthroughRawDeviceMap"',
    ),
    "kind vmfsRawDeviceMap": ('createType="vmfs"', 'createType="vmfsRawDeviceMap"'),
    "kind of a monolithic disk": ('createType="vmfs"', 'createType="monolithicSparse"'),
    "kind of a stream": ('createType="vmfs"', 'createType="streamOptimized"'),
    "kind with a path": ('createType="vmfs"', 'createType="../vmfs"'),
    "unknown key": ("version=1", 'version=1\nevilKey="x"'),
    "unknown line": ("version=1", "version=1\nhello"),
    "a line of a shell": ("version=1", "version=1\n$(touch /tmp/x)"),
    "value not ended": ('encoding="UTF-8"', 'encoding="UTF-8'),
    "property without quotes": ('ddb.encoding = "UTF-8"', "ddb.encoding = UTF-8"),
    "property with a bad key": ('ddb.encoding = "UTF-8"', 'ddb.en coding = "UTF-8"'),
    "two values of a property": (
        'ddb.encoding = "UTF-8"',
        'ddb.encoding = "UTF-8"\nddb.encoding = "x"',
    ),
    "hint too long": ("version=1", 'version=1\nparentFileNameHint="' + "a" * 5000 + '"'),
    "line too long": ("version=1", "version=1\n#" + "a" * 9000),
    "NUL in the text": ("version=1", "version=1\n\0"),
    "text after NULs": ("#DDB", "#DDB\0\0\0RW"),
    "another line end": ("version=1\n", "version=1\x0b"),
}


def good_descriptor() -> str:
    extent = ExtentLine(kind=ExtentKind.VMFS, length=MIB, file_name="disk-flat.vmdk")
    text = descriptor_text(create_type=CreateType.VMFS, extents=[extent])
    assert EXTENT in text
    return text


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with a good flat disk, beside a secret that no descriptor may reach."""
    (tmp_path / "secret-flat.vmdk").write_bytes(b"secret" * 200_000)
    folder = tmp_path / "vm"
    folder.mkdir()
    (folder / "disk-flat.vmdk").write_bytes(b"d" * MIB)
    (folder / "disk.vmdk").write_text(good_descriptor())
    return folder


def test_the_unchanged_descriptor_is_read(folder: Path) -> None:
    read_everything([folder / "disk.vmdk"])


@pytest.mark.parametrize("name", EVIL_NAMES, ids=lambda name: repr(name)[:40])
def test_an_extent_cannot_name_anything_but_a_file_beside_it(folder: Path, name: str) -> None:
    text = good_descriptor().replace("disk-flat.vmdk", name)
    (folder / "disk.vmdk").write_bytes(text.encode())
    assert_refused([folder / "disk.vmdk"])


@pytest.mark.parametrize("case", EVIL_EXTENT_LINES)
def test_a_malformed_extent_is_refused(folder: Path, case: str) -> None:
    text = good_descriptor().replace(EXTENT, EVIL_EXTENT_LINES[case])
    (folder / "disk.vmdk").write_text(text)
    assert_refused([folder / "disk.vmdk"])


@pytest.mark.parametrize("case", EVIL_HEADERS)
def test_a_malformed_header_is_refused(folder: Path, case: str) -> None:
    old, new = EVIL_HEADERS[case]
    text = good_descriptor()
    assert old in text
    (folder / "disk.vmdk").write_text(text.replace(old, new, 1))
    assert_refused([folder / "disk.vmdk"])


EVIL_FILES = {
    "empty": b"",
    "one byte": b"#",
    "only NULs": bytes(4096),
    "random": bytes(range(256)) * 16,
    "not UTF-8": good_descriptor().encode() + b"\xff\xfe",
    "UTF-16": good_descriptor().encode("utf-16"),
    "larger than 1 MiB": good_descriptor().encode() + b"\n" * MIB,
    "qcow2 with a backing file": b"QFI\xfb\0\0\0\3" + bytes(100) + b"/etc/passwd",
    "magic of a redo log": b"COWD" + bytes(2044),
    "magic of SE sparse": b"\xbe\xba\xfe\xca" + bytes(508),
    "only the sparse magic": b"KDMV",
}


@pytest.mark.parametrize("case", EVIL_FILES)
def test_what_is_no_descriptor_is_refused(folder: Path, case: str) -> None:
    (folder / "disk.vmdk").write_bytes(EVIL_FILES[case])
    assert_refused([folder / "disk.vmdk"])


@pytest.mark.parametrize("name", ["disk.vmdk", "disk-flat.vmdk"])
@pytest.mark.parametrize("what", ["link to a file", "link beside it", "fifo", "folder", "socket"])
def test_only_regular_files_are_opened(
    folder: Path, name: str, what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = folder / name
    kept = folder / "kept"
    path.rename(kept)
    if what == "link to a file":
        path.symlink_to(folder.parent / "secret-flat.vmdk")
    elif what == "link beside it":
        path.symlink_to("kept")
    elif what == "fifo":
        os.mkfifo(path)
    elif what == "folder":
        path.mkdir()
    else:
        monkeypatch.chdir(folder)  # a socket's path is short
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(name)
    if what == "socket":
        with pytest.raises(SourceFailed, match="cannot be opened"):
            read_everything([folder / "disk.vmdk"])
    else:
        assert_refused([folder / "disk.vmdk"])


def test_a_device_is_not_read_as_an_extent(folder: Path) -> None:
    (folder / "disk-flat.vmdk").unlink()
    try:
        os.mknod(folder / "disk-flat.vmdk", 0o600 | 0o020000, os.makedev(1, 5))
    except PermissionError:
        pytest.skip("needs root to make a device node")
    assert_refused([folder / "disk.vmdk"], "no regular file")


def test_the_parent_hint_is_never_followed(folder: Path) -> None:
    text = good_descriptor().replace("parentCID=ffffffff", "parentCID=00000001")
    text = text.replace("version=1", 'version=1\nparentFileNameHint="/etc/passwd"')
    (folder / "disk.vmdk").write_text(text)
    assert_refused([folder / "disk.vmdk"], "has a parent itself")


def test_the_errors_name_the_line(folder: Path) -> None:
    text = good_descriptor().replace("disk-flat.vmdk", "/etc/passwd")
    (folder / "disk.vmdk").write_text(text)
    line = text.split("\n").index('RW 2048 VMFS "/etc/passwd"') + 1
    assert_refused([folder / "disk.vmdk"], f"line {line}: not a bare file name")


def test_strace_sees_no_other_file(folder: Path, tmp_path: Path) -> None:
    """The audit hook sees Python's opens; strace sees all of them."""
    if shutil.which("strace") is None:
        pytest.skip("needs strace: install it to run this")
    folders = []
    for number, name in enumerate(EVIL_NAMES):
        one = tmp_path / f"case{number}"
        one.mkdir()
        text = good_descriptor().replace("disk-flat.vmdk", name)
        (one / "disk.vmdk").write_bytes(text.encode())
        folders.append(str(one))
    program = (
        "import sys\n"
        "from pathlib import Path\n"
        "import holdfast_common.formats.vmdk_chain as chain\n"
        "from holdfast_common.errors import FormatError\n"
        "try:\n"
        "    open('/start-of-the-test')\n"
        "except OSError:\n"
        "    pass\n"
        "refused = 0\n"
        "for folder in sys.argv[1:]:\n"
        "    try:\n"
        "        chain.open_chain_at([Path(folder) / 'disk.vmdk'])\n"
        "    except FormatError:\n"
        "        refused += 1\n"
        "print(refused)\n"
    )
    trace = tmp_path / "trace"
    done = subprocess.run(
        [
            *("strace", "-f", "-e", "trace=open,openat,openat2,connect", "-o", str(trace)),
            *(sys.executable, "-c", program, *folders),
        ],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    if "ptrace" in done.stderr:
        pytest.skip("this machine does not let us trace")
    assert done.stdout.split() == [str(len(EVIL_NAMES))], done.stderr
    calls = trace.read_text().split("start-of-the-test", 1)[1].splitlines()[1:]
    assert not [line for line in calls if "connect(" in line]
    opened = [line.split('"')[1] for line in calls if "open" in line and '"' in line]
    assert opened
    assert set(opened) <= {"disk.vmdk", *folders}
