"""The streams of transfer leases: ``/nfc/<token>/disk-0.vmdk``, sent or received.

A disk is sent as streamOptimized version 3 in HTTP chunks, sequential and whole. An upload is
decoded while it arrives, straight into the disk's flat file; with qemu-img on the machine the stream
is kept aside too, and qemu must find the same content.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from holdfast_lab.call_log import DataStream
from holdfast_lab.disk_backings import datastore_of
from holdfast_lab.faults import ConnectionCut, SoapFault
from holdfast_lab.http_exchange import HttpExchange
from holdfast_lab.lab import Lab
from holdfast_lab.machine import Machine
from holdfast_lab.method_registry import http_route
from holdfast_lab.misbehaviour import Rule
from holdfast_lab.storage.errors import StreamCut, StreamRefused
from holdfast_lab.storage.stream_decoder import check_with_qemu, decode_stream
from holdfast_lab.storage.stream_encoder import stream_optimized
from holdfast_lab.transfer_lease import LeasedFile, TransferLease, flat_file, lease_with

DISK_TYPE = "application/x-vnd.vmware-streamVmdk"
SPACE_CHECK_BYTES = 4 << 20  # how often an upload asks whether the datastore is full
NVRAM_BYTES_MAX = 4 << 20


@http_route("/nfc")
def answer_nfc(lab: Lab, exchange: HttpExchange) -> None:
    """Send or receive one file of a lease. No login: the token in the path is the right."""
    parts = exchange.path.removeprefix("/nfc/").split("/")
    with lab.lock:
        lease = lease_with(lab, parts[0]) if len(parts) == 2 else None
        file = (
            next((each for each in lease.files if each.name == parts[1]), None) if lease else None
        )
        usable = lease is not None and lease.state == "ready"
    if lease is None or file is None or lease.machine is None:
        exchange.reply(404, b"no such lease or file")
    elif not usable:
        exchange.reply(500, b"the lease has ended")
    elif exchange.method in ("GET", "HEAD") and lease.direction == "export":
        _send(lab, exchange, lease, lease.machine, file)
    elif exchange.method in ("PUT", "POST") and lease.direction == "import":
        _receive(lab, exchange, lease, lease.machine, file)
    else:
        exchange.reply(405, b"not with this lease")


class _Guard:
    """Ends a stream when its lease ends, or where misbehaviour says so."""

    def __init__(self, lease: TransferLease, rule: Rule | None) -> None:
        self._lease = lease
        self._cut_at = None if rule is None else rule.number("bytes", 0)
        self._moved = 0

    def passing(self, length: int) -> None:
        """Called before more bytes pass. Raises: ConnectionCut."""
        if self._lease.ended.is_set():
            raise ConnectionCut("the lease has ended")
        self._moved += length
        if self._cut_at is not None and self._moved > self._cut_at:
            raise ConnectionCut("the stream is cut")


def _facts(machine: Machine, file: LeasedFile, lab: Lab) -> dict[str, str]:
    place = file.device.descriptor if file.device else machine.vmx
    return {
        "vm": machine.name,
        "disk": file.device.disk.base_name if file.device else "",
        "datastore": datastore_of(lab, place).name,
        "direction": "read",
    }


def _send(
    lab: Lab, exchange: HttpExchange, lease: TransferLease, machine: Machine, file: LeasedFile
) -> None:
    if exchange.method == "HEAD":
        exchange.reply(200, content_type=DISK_TYPE)
        return
    if file.device is None:
        content = machine.nvram.read_bytes()
        exchange.reply(200, content, content_type="application/octet-stream")
        _note(file, hashlib.sha1(content, usedforsecurity=False).hexdigest(), len(content), 0)
        return
    facts = _facts(machine, file, lab)
    guard = _Guard(lease, lab.misbehaviour.due("cut_stream", **facts))
    digest = hashlib.sha1(usedforsecurity=False)
    with (
        file.device.disk.reader_at(file.device.descriptor, reason=lease.moid) as reader,
        lab.calls.stream(
            transport="nfc",
            host=machine.host.name,
            datastore=facts["datastore"],
            vm=machine.name,
            direction="read",
            file=file.device.descriptor.name,
        ) as stream,
    ):
        populated = sum(area.length for area in reader.allocated())
        with lab.lock:
            file.started = True
        exchange.respond(
            200,
            length=None,
            headers={"Content-Type": DISK_TYPE, "Transfer-Encoding": "chunked"},
        )
        for piece in stream_optimized(reader, name=file.name):
            guard.passing(len(piece))
            digest.update(piece)
            exchange.write(b"%x\r\n%b\r\n" % (len(piece), piece))
            stream.bytes_moved += len(piece)
    _note(file, digest.hexdigest(), stream.bytes_moved, populated)
    exchange.write(b"0\r\n\r\n")  # last, so that the client's next call finds all given back


def _note(file: LeasedFile, sha1: str, stream_bytes: int, populated_bytes: int) -> None:
    file.sha1, file.stream_bytes = sha1, stream_bytes
    file.populated_bytes = populated_bytes
    file.started = file.finished = True


def _receive(
    lab: Lab, exchange: HttpExchange, lease: TransferLease, machine: Machine, file: LeasedFile
) -> None:
    with lab.lock:
        file.started, file.finished = True, False
    if file.device is None:
        content = exchange.whole_body(NVRAM_BYTES_MAX)
        machine.nvram.write_bytes(content)
        _note(file, hashlib.sha1(content, usedforsecurity=False).hexdigest(), len(content), 0)
        exchange.reply(201)
        return
    facts = {**_facts(machine, file, lab), "direction": "write"}
    try:
        with lab.calls.stream(
            transport="nfc",
            host=machine.host.name,
            datastore=facts["datastore"],
            vm=machine.name,
            direction="write",
            file=file.device.descriptor.name,
        ) as stream:
            _decode(lab, exchange, lease, file, stream=stream, facts=facts)
    except StreamCut as error:
        exchange.reply(500, str(error).encode())
    except StreamRefused as error:
        lab.calls.event("upload_refused", **facts, reason=str(error))
        exchange.reply(500, str(error).encode())
    except SoapFault as fault:
        exchange.reply(500, fault.message.encode())
    else:
        exchange.reply(201)


def _decode(
    lab: Lab,
    exchange: HttpExchange,
    lease: TransferLease,
    file: LeasedFile,
    *,
    stream: DataStream,
    facts: dict[str, str],
) -> None:
    """Take one stream in. Raises: StreamRefused, ConnectionCut, SoapFault (NoDiskSpace)."""
    device = file.device
    assert device is not None
    flat = flat_file(device)
    guard = _Guard(lease, lab.misbehaviour.due("cut_stream", **facts))
    datastore = datastore_of(lab, flat)
    digest = hashlib.sha1(usedforsecurity=False)
    judged_by_qemu = shutil.which("qemu-img") is not None
    checked_at = 0
    os.truncate(flat, 0)  # what an interrupted upload left behind
    with _kept_aside(lab.state / "uploads" / f"{lease.moid}-{file.name}") as aside:
        with aside.open("wb") as copy:

            def read(length: int) -> bytes:
                nonlocal checked_at
                data = exchange.body.read(length)
                guard.passing(len(data))
                digest.update(data)
                if judged_by_qemu:
                    copy.write(data)
                stream.bytes_moved += len(data)
                if stream.bytes_moved >= checked_at:
                    datastore.check_space(len(data))
                    checked_at = stream.bytes_moved + SPACE_CHECK_BYTES
                return data

            try:
                decode_stream(read, flat, capacity_bytes=device.disk.capacity_bytes)
            finally:
                os.truncate(flat, device.disk.capacity_bytes)
        if judged_by_qemu:
            check_with_qemu(aside, flat)
    device.disk.content_replaced()
    lab.calls.event(
        "upload", **facts, bytes=stream.bytes_moved, judge="qemu-img" if judged_by_qemu else "lab"
    )
    _note(file, digest.hexdigest(), stream.bytes_moved, flat.stat().st_blocks * 512)


@contextmanager
def _kept_aside(path: Path) -> Iterator[Path]:
    """A place for the stream, removed at the end."""
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        yield path
    finally:
        path.unlink(missing_ok=True)
