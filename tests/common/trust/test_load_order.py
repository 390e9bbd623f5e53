"""TLS 1.2 must not come back by the order of somebody's imports."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest


def python(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    kept = {name: text for name, text in os.environ.items() if not name.startswith("GRPC_")}
    return subprocess.run(
        [sys.executable, "-c", code],
        env={**kept, **environment},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.mark.parametrize("package", ["holdfast_common", "holdfast_agent", "holdfast_controller"])
def test_grpc_is_never_loaded_before_its_cipher_suites_are_set(package: str) -> None:
    code = f"import {package}, os; print(os.environ['GRPC_SSL_CIPHER_SUITES'])"
    for set_before in ({}, {"GRPC_SSL_CIPHER_SUITES": "ECDHE-ECDSA-AES256-GCM-SHA384"}):
        done = python(code, **set_before)
        assert (done.returncode, done.stdout.strip()) == (0, "ECDHE-RSA-AES256-GCM-SHA384")


def test_a_program_that_loads_grpc_first_does_not_get_ours() -> None:
    done = python("import grpc, holdfast_agent.main")
    assert done.returncode != 0
    assert "import holdfast_common before grpc" in done.stderr
    assert python("import holdfast_common, grpc, holdfast_agent.main").returncode == 0
