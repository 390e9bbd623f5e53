"""Stock govc, which shares no code with us, against a lab."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from holdfast_lab.server import RunningLab
from referee.go_programs import NoReferee, build_referees

_SECONDS_MAX = 120


def stock_govc() -> Path:
    """The program; skips the test where it cannot be built."""
    try:
        govc = build_referees().govc
    except NoReferee as error:
        pytest.skip(f"nothing can judge here: {error}")
    if govc is None:
        pytest.skip("Debian's package has no govc: Go's module proxy is needed")
    return govc


def run_govc(govc: Path, lab: RunningLab, *arguments: str) -> str:
    """What it says; fails when it does."""
    done = subprocess.run(
        [str(govc), *arguments],
        env={
            **os.environ,
            "GOVC_URL": lab.url,
            "GOVC_USERNAME": lab.user,
            "GOVC_PASSWORD": lab.password,
            "GOVC_INSECURE": "1",
            "GOVC_PERSIST_SESSION": "false",
        },
        capture_output=True,
        text=True,
        check=False,
        timeout=_SECONDS_MAX,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout
