"""What `strace` says that a program did to the files below one folder, in the words of `recorded_files`."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

TRACED = (
    "openat,open,creat,write,pwrite64,writev,pwritev,pwritev2,fsync,fdatasync,sync_file_range,syncfs,"
    "rename,renameat,renameat2,link,linkat,unlink,unlinkat,rmdir,mkdir,mkdirat,ftruncate,truncate,"
    "fallocate,copy_file_range,newfstatat"
)
_LINE = re.compile(r"^\d+ +(\w+)\((.*)\) += (\d+)(?:<(.*)>)?$")
_DESCRIPTOR = re.compile(r"^(?:\d+|AT_FDCWD)<([^>]*)>")
_NAME = re.compile(r'"([^"]*)"')
_NAMES = re.compile(r'(?:\d+|AT_FDCWD)<([^>]*)>, "([^"]*)"')
_UNFINISHED = " <unfinished ...>"
_RESUMED = re.compile(r"^\d+ +<\.\.\. \w+ resumed>(.*)$")
_FLAGS_OF_NO_CHANGE = ("O_CREAT", "O_TRUNC")
_NAMED = {
    "mkdir": "mkdir",
    "mkdirat": "mkdir",
    "rmdir": "rmdir",
    "renameat2": "rename",
    "linkat": "link",
    "unlink": "unlink",
    "unlinkat": "unlink",
}


def changes(lines: Sequence[str], *, below: Path, after: str) -> Iterator[tuple[str, ...]]:
    """Each successful call that changed something ``below``, behind the first look at ``after``.

    A call that is traced and has no word here is given under its own name, so that no comparison passes.
    """
    begin = next(number for number, line in enumerate(lines) if after in line)
    for line in _joined(lines[begin + 1 :]):
        found = _LINE.match(line)
        if found is None or str(below) not in line:
            continue
        name, arguments, result, _ = found.groups()
        if name == "newfstatat":
            continue
        if name in ("openat", "open") and not any(f in arguments for f in _FLAGS_OF_NO_CHANGE):
            continue
        yield _told(name, arguments, result)


def _joined(lines: Sequence[str]) -> Iterator[str]:
    """Calls that another thread's line cut in two are whole again, where they ended."""
    begun: dict[str, str] = {}
    for line in lines:
        thread = line.partition(" ")[0]
        if line.endswith(_UNFINISHED):
            begun[thread] = line.removesuffix(_UNFINISHED)
        elif (resumed := _RESUMED.match(line)) is not None:
            yield begun.pop(thread) + resumed[1]
        else:
            yield line


def _told(name: str, arguments: str, result: str) -> tuple[str, ...]:
    if name == "openat" and "O_TRUNC" not in arguments:
        return ("create", _paths(arguments)[0])
    if name == "unlinkat" and "AT_REMOVEDIR" in arguments:
        return ("rmdir", *_paths(arguments))
    if name in _NAMED:
        return (_NAMED[name], *_paths(arguments))
    descriptor = _DESCRIPTOR.match(arguments)
    assert descriptor is not None, f"a call without a descriptor: {name}({arguments})"
    if name == "fsync":
        return ("sync", descriptor[1])
    if name == "pwrite64":
        return ("pwrite", descriptor[1], arguments.rpartition(", ")[2], result)
    if name == "write":
        return ("write", descriptor[1], result)
    return (name, arguments)


def _paths(arguments: str) -> tuple[str, ...]:
    pairs = _NAMES.findall(arguments)
    if not pairs:  # an absolute name, without a descriptor
        return tuple(_NAME.findall(arguments))
    return tuple(name if name.startswith("/") else f"{base}/{name}" for base, name in pairs)
