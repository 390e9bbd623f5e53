"""The agent, on a machine whose disk changes one byte of a restored file: ``python -m support.flipping_agent …``.

The agent itself has no hook. Between the write and the read-back, when the file is opened again, the byte
at the offset that ``HOLDFAST_FLIP`` (a file with ``<path> <offset>``) names is changed, once.
"""

from __future__ import annotations

import functools
import os
import sys
from pathlib import Path
from typing import Any

from holdfast_common.job_spec import FileTicket

VARIABLE = "HOLDFAST_FLIP"


def main() -> None:
    import dataclasses

    from holdfast_agent import transport_table
    from holdfast_agent.main import run
    from holdfast_common.job_spec import TransportKind

    openers: Any = transport_table.OPENERS
    found = openers[TransportKind.FILE]
    openers[TransportKind.FILE] = dataclasses.replace(found, open=flipping(found.open))
    sys.exit(run(sys.argv[1:]))


def flipping(open_source: Any) -> Any:
    """Opens a file after its byte was changed."""

    @functools.wraps(open_source)
    def opened(ticket: FileTicket, *arguments: Any, **named: Any) -> Any:
        order = Path(os.environ[VARIABLE])
        if order.exists():
            path, offset = order.read_text().rsplit(" ", 1)
            flip(Path(path), int(offset))
            order.unlink()
        return open_source(ticket, *arguments, **named)

    return opened


def flip(path: Path, offset: int) -> None:
    """Change one byte of a file for good."""
    with path.open("r+b") as file:
        file.seek(offset)
        byte = file.read(1)
        file.seek(offset)
        file.write(bytes([byte[0] ^ 0xFF]))
        file.flush()
        os.fsync(file.fileno())


if __name__ == "__main__":
    main()
