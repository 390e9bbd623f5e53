"""A listener in a process of its own, which many clients may crash: ``python -m support.handshake_server FOLDER EVERY``.

The controller's TLS on a free port of the loopback, with another certificate after EVERY handshakes. What a client
needs is written to FOLDER; the port goes to standard output.
"""

from __future__ import annotations

import asyncio
import itertools
import sys
from pathlib import Path

import grpc

from holdfast_common.clock import SystemClock
from holdfast_common.identity import new_ulid
from holdfast_common.trust.authority import Credentials, create_authority
from holdfast_common.trust.channels import server_credentials
from holdfast_common.trust.peer import Role, Subject


async def serve(folder: Path, every: int) -> None:
    """Until the process is ended."""
    now = SystemClock().now()
    authority = create_authority(now=now)
    subject = Subject(role=Role.CONTROLLER, name=new_ulid())
    shown = [authority.issue_with_key(subject, now=now) for _ in range(8)]
    client = authority.issue_with_key(Subject(role=Role.PROXY, name=new_ulid()), now=now)
    (folder / "authority.pem").write_bytes(client.authority_pem)
    (folder / "client.pem").write_bytes(client.key_pem + client.certificate_pem)
    asked = itertools.count()

    def current() -> Credentials:
        return shown[next(asked) // every % len(shown)]

    server = grpc.aio.server()
    port = server.add_secure_port(
        "127.0.0.1:0", server_credentials(current, client_certificates=True)
    )
    await server.start()
    print(port, flush=True)
    await server.wait_for_termination()


if __name__ == "__main__":
    asyncio.run(serve(Path(sys.argv[1]), int(sys.argv[2])))
