from __future__ import annotations

import os
import subprocess
import sys

from holdfast_common.repository.forgetting import overwrite, overwrite_ends


def test_a_secret_is_overwritten_where_it_stands() -> None:
    for length in (2, 16, 32, 5000):
        secret = os.urandom(length)
        overwrite(secret)
        assert secret == bytes(length)


def test_of_much_data_the_ends_are_overwritten() -> None:
    for length in (10, 4096, 5000, 8192, 20000):
        data = os.urandom(length)
        before = bytearray(data)
        overwrite_ends(data)
        assert data[:4096] == bytes(min(length, 4096))
        assert data[-4096:] == bytes(min(length, 4096))
        assert data[4096:-4096] == before[4096:-4096]


FREED = """
import os, sys
from holdfast_common.repository.forgetting import give_back_freed_memory, keep_one_heap
if sys.argv[1] == "kept":
    keep_one_heap()
import threading
def resident():
    return int(open("/proc/self/statm").read().split()[1]) * 4096
def work():
    held = [os.urandom(100_000) for _ in range(400)]
    pins.append(bytes(50_000))
pins = []
threads = [threading.Thread(target=work) for _ in range(4)]
before = resident()
for thread in threads: thread.start()
for thread in threads: thread.join()
give_back_freed_memory()
print(resident() - before)
"""


def test_what_threads_freed_goes_back_to_the_kernel() -> None:
    """Forty megabytes each, below which something lives on."""
    done = subprocess.run(
        [sys.executable, "-c", FREED, "kept"],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert int(done.stdout) < 8 << 20
