"""A crowd of TLS clients at one port, in a process of its own: ``python -m support.handshake_crowd FOLDER PORT``.

Threads that shake hands again and again; how many came to their end goes to standard output. See `handshake_server`.
"""

from __future__ import annotations

import socket
import ssl
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

CLIENTS = 16
TIMES = 30


def shake_hands(folder: Path, port: int) -> int:
    """How many came to their end: the server's first frame shows that."""
    context = ssl.create_default_context(cafile=str(folder / "authority.pem"))
    context.check_hostname = False
    context.load_cert_chain(folder / "client.pem")
    context.set_alpn_protocols(["h2"])
    done = 0
    for _ in range(TIMES):
        with (
            socket.create_connection(("127.0.0.1", port), timeout=20) as plain,
            context.wrap_socket(plain) as secured,
        ):
            done += len(secured.recv(1))
    return done


if __name__ == "__main__":
    with ThreadPoolExecutor(CLIENTS) as crowd:
        ends = crowd.map(shake_hands, [Path(sys.argv[1])] * CLIENTS, [int(sys.argv[2])] * CLIENTS)
        print(sum(ends))
