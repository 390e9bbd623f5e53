"""How many files this process may have open: every agent's connection is one, every thread's database three.

A process that may open no more crashes inside of gRPC, and a shell gives only 1,024.
"""

from __future__ import annotations

import logging
import resource
from typing import Final

log = logging.getLogger(__name__)

OPEN_FILES_WANTED: Final = 65_536  # as the unit has it: ten thousand agents, and strangers who dial


def allow_many_open_files() -> int:
    """Take as many as the machine allows, as far as we want them; how many that are."""
    allowed, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    bounded = most != resource.RLIM_INFINITY
    wanted = max(allowed, min(most, OPEN_FILES_WANTED) if bounded else OPEN_FILES_WANTED)
    resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, most))
    if wanted < OPEN_FILES_WANTED:
        log.warning(
            "this process may open fewer files than a large site needs", extra={"files": wanted}
        )
    return wanted
