"""``/folder``: files of datastores over HTTPS, read by ranges, written whole.

It takes a session's cookie, a service ticket (good for one request) or basic authentication. As on
ESXi it sends no Accept-Ranges, yet honours Range; a file that somebody has open for writing is
answered 500: a running VM's tip does not open, the links under a snapshot do.
"""

from __future__ import annotations

import base64
import binascii
import os
import re
import secrets
import urllib.parse
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from holdfast_lab.datastore_files import check_files_unused
from holdfast_lab.disk_locks import locked, uses_of
from holdfast_lab.faults import ConnectionCut, SoapFault
from holdfast_lab.file_locks import FileBusy
from holdfast_lab.http_exchange import HttpExchange
from holdfast_lab.inventory import inventory_path
from holdfast_lab.lab_object import ManagedEntity
from holdfast_lab.method_registry import http_route
from holdfast_lab.storage.extent_file import read_exactly

if TYPE_CHECKING:
    from holdfast_lab.datastores import Datastore
    from holdfast_lab.lab import Lab

PIECE_BYTES = 256 * 1024
SPACE_CHECK_BYTES = 4 << 20  # how often an upload asks whether the datastore is full
ONE_RANGE = re.compile(r"bytes=(\d*)-(\d*)")
BINARY = "application/octet-stream"


@http_route("/folder")
def answer_folder(lab: Lab, exchange: HttpExchange) -> None:
    """One request for a file."""
    if not _may(lab, exchange):
        exchange.reply(401, headers={"WWW-Authenticate": 'Basic realm="VMware HTTP server"'})
        return
    try:
        with lab.lock:
            found = _file(lab, exchange)
        if found is None:
            exchange.reply(404, b"no such datacenter, datastore or file")
        elif exchange.method in ("GET", "HEAD"):
            _send(lab, exchange, *found)
        elif exchange.method == "PUT":
            _receive(lab, exchange, *found)
        elif exchange.method == "DELETE":
            _delete(lab, exchange, *found)
        else:
            exchange.reply(405)
    except SoapFault as fault:
        exchange.reply(500, fault.message.encode())


def _may(lab: Lab, exchange: HttpExchange) -> bool:
    if exchange.session() is not None:
        return True
    ticket = exchange.ticket()
    if ticket is not None:
        wanted = f"http{exchange.method.capitalize()}"
        path = urllib.parse.unquote(urllib.parse.urlsplit(ticket.path).path)  # it was given an URL
        return path == exchange.path and ticket.method in (wanted, exchange.method)
    scheme, _, given = exchange.header("Authorization").partition(" ")
    if scheme.lower() != "basic":
        return False
    try:
        name, _, password = base64.b64decode(given).decode().partition(":")
    except (binascii.Error, UnicodeDecodeError):
        return False
    with lab.lock:
        user = lab.users.get(name)
    return user is not None and secrets.compare_digest(user.password.encode(), password.encode())


def _file(lab: Lab, exchange: HttpExchange) -> tuple[Datastore, Path] | None:
    """The datastore and the file that the address names. Needs ``Lab.lock``."""
    name = exchange.query.get("dsName", "")
    datastore = next((each for each in lab.datastores() if each.name == name), None)
    if datastore is None:
        return None
    path = exchange.query.get("dcPath")
    if path is not None and not _is_above(datastore, path):
        return None
    _, local = lab.resolve(f"[{name}] {exchange.path.removeprefix('/folder').strip('/')}")
    return datastore, local


def _is_above(datastore: Datastore, path: str) -> bool:
    above: ManagedEntity | None = datastore
    while above is not None:
        if above.parent is not None and inventory_path(above) == path.strip("/"):
            return True
        above = above.parent
    return False


# reading ------------------------------------------------------------------------------------


def _send(lab: Lab, exchange: HttpExchange, datastore: Datastore, local: Path) -> None:
    """Send a file or a range of it.

    The last piece is sent when the file has been given back: a client that has read all may remove
    the snapshot at once.
    """
    if not local.is_file():
        exchange.reply(404, b"no such file")
        return
    with ExitStack() as opened:
        with lab.lock:
            _open_to_read(lab, local, opened)
        file = opened.enter_context(local.open("rb"))
        size = os.fstat(file.fileno()).st_size
        chosen = _range(exchange.header("Range"), size)
        if chosen is None:
            exchange.reply(416, headers={"Content-Range": f"bytes */{size}"})
            return
        start, end, partial = chosen
        headers = {"Content-Type": BINARY}
        if partial:
            headers["Content-Range"] = f"bytes {start}-{end - 1}/{size}"
        exchange.respond(206 if partial else 200, length=end - start, headers=headers)
        if exchange.method == "HEAD":
            return
        last = _send_range(lab, exchange, datastore, local, file=file.fileno(), ends=(start, end))
    exchange.write(last)


def _send_range(
    lab: Lab,
    exchange: HttpExchange,
    datastore: Datastore,
    local: Path,
    *,
    file: int,
    ends: tuple[int, int],
) -> bytes:
    """Send all but the last piece, which is returned. Raises: ConnectionCut."""
    start, end = ends
    vm = _owner(lab, local)
    facts = {"vm": vm, "disk": local.name, "datastore": datastore.name, "direction": "read"}
    rule = lab.misbehaviour.due("cut_stream", **facts)
    cut_at = end if rule is None else min(end, start + rule.number("bytes", 0))
    buffer = bytearray(PIECE_BYTES)
    piece = memoryview(buffer)[:0]
    with lab.calls.stream(
        transport="folder",
        host=datastore.any_host().name,
        datastore=datastore.name,
        vm=vm,
        direction="read",
        file=local.name,
    ) as stream:
        at = start
        while at < cut_at:
            exchange.write(piece)
            piece = memoryview(buffer)[: min(PIECE_BYTES, cut_at - at)]
            read_exactly(file, at, piece)
            at += len(piece)
            stream.bytes_moved += len(piece)
    if cut_at < end:
        exchange.write(piece)
        raise ConnectionCut("the stream is cut")
    return bytes(piece)


def _open_to_read(lab: Lab, local: Path, opened: ExitStack) -> None:
    """Claim a file for reading; a link of a disk cannot be merged meanwhile.

    Needs ``Lab.lock``. Raises: SoapFault (FileLocked).
    """
    resolved = local.resolve()
    for disk in lab.disks.known():
        for link in disk.all_links:
            if all(file.resolve() != resolved for file in disk.files(link)):
                continue
            if any(use.writes for use in uses_of(lab, disk, link)):
                raise locked(lab, local, "a running VM has it open")
            opened.callback(disk.let_go, disk.hold(link, "read over /folder"))
    try:
        opened.enter_context(
            lab.file_locks.take([local], holder="/folder", kind="folder", exclusive=False)
        )
    except FileBusy as busy:
        raise locked(lab, local, f"it is in use by {busy.holder}") from busy


def _range(header: str, size: int) -> tuple[int, int, bool] | None:
    """``[start, end)`` and whether it is a part; None when the range cannot be satisfied.

    Several ranges at once are not understood, and the whole file is sent, as HTTP allows.
    """
    match = ONE_RANGE.fullmatch(header.replace(" ", ""))
    if match is None or match[0] == "bytes=-":
        return 0, size, False
    if not match[1]:
        length = min(int(match[2]), size)
        return (size - length, size, True) if length else None
    start = int(match[1])
    end = min(int(match[2]) + 1, size) if match[2] else size
    if start >= size:
        return None
    return (0, size, False) if end <= start else (start, end, True)


def _owner(lab: Lab, local: Path) -> str:
    with lab.lock:
        for machine in lab.machines():
            folders = {machine.directory, *(each.disk.directory for each in machine.disks())}
            if local.parent in folders:
                return machine.name
    return ""


# writing ------------------------------------------------------------------------------------


def _receive(lab: Lab, exchange: HttpExchange, datastore: Datastore, local: Path) -> None:
    """Write a whole file; it takes its name when it is whole, and an interrupted one is gone."""
    if local == datastore.root or local.is_dir() or not local.parent.is_dir():
        exchange.reply(404, b"no such folder")
        return
    with lab.lock:
        if local.exists():
            check_files_unused(lab, local)
        try:
            held = lab.file_locks.take([local], holder="/folder", kind="folder", exclusive=True)
        except FileBusy as busy:
            raise locked(lab, local, f"it is in use by {busy.holder}") from busy
    existed = local.exists()
    facts = {"disk": local.name, "datastore": datastore.name, "direction": "write"}
    rule = lab.misbehaviour.due("cut_stream", vm="", **facts)
    checked_at = 0
    partial = local.with_name(f".{local.name}.{secrets.token_hex(4)}.part")
    with (
        held,
        lab.calls.stream(
            transport="folder",
            host=datastore.any_host().name,
            datastore=datastore.name,
            vm="",
            direction="write",
            file=local.name,
        ) as stream,
    ):
        try:
            with partial.open("wb") as file:
                while data := exchange.body.read(PIECE_BYTES):
                    if stream.bytes_moved >= checked_at:
                        datastore.check_space(len(data))
                        checked_at = stream.bytes_moved + SPACE_CHECK_BYTES
                    file.write(data)
                    stream.bytes_moved += len(data)
                    if rule is not None and stream.bytes_moved > rule.number("bytes", 0):
                        raise ConnectionCut("the stream is cut")
            partial.replace(local)
        finally:
            partial.unlink(missing_ok=True)
    exchange.reply(200 if existed else 201)


def _delete(lab: Lab, exchange: HttpExchange, datastore: Datastore, local: Path) -> None:
    if local == datastore.root or not local.is_file():
        exchange.reply(404, b"no such file")
        return
    with lab.lock:
        check_files_unused(lab, local)
        local.unlink()
    exchange.reply(204)
