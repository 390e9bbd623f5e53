"""Our calls, judged by govmomi's simulator: one line for each call that the product makes."""

from __future__ import annotations

import json
import logging
import subprocess
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from holdfast_common.logs import Secret
from holdfast_controller.vsphere.pinning import fetch_certificate
from holdfast_controller.vsphere.session import Account, VcenterAddress
from referee.case_table import Case, Simulator, open_session
from referee.cases_of_tags import REST_CALLS
from referee.product_calls import calls_of_the_product
from referee.refereed_session import Outcomes
from referee.simulator_cases import all_cases, covered_methods
from referee.verdicts import CaseResult, Verdict, judge_calls

# More VMs than one answer of the inventory holds, so that it has pages: a cluster and a host.
MACHINES_OF_A_POOL: Final = 260
POOLS: Final = 2
USER: Final = "referee"
PASSWORD: Final = "no secret"
READY_SECONDS_MAX: Final = 60.0
WITHOUT_SOAP: Final = ("GET /folder", "PUT /folder")


def judge_our_calls(program: Path, *, single_host: bool = False) -> list[Verdict]:
    """Run every case against the simulator of a vCenter or host; judge every call of the product."""
    logging.getLogger("holdfast_controller").setLevel(logging.ERROR)
    with (
        tempfile.TemporaryDirectory(prefix="holdfast-referee-") as folder,
        _running(program, Path(folder), single_host=single_host) as simulator,
    ):
        results = [_run(each, simulator) for each in all_cases()]
        simulator.session.close()
        covered = covered_methods()
        # a single host has no tags and is not asked for any
        rest = () if single_host else REST_CALLS
        methods = [*calls_of_the_product(), *(each for each in WITHOUT_SOAP if each in covered)]
        methods += [each for each in rest if each in covered]
        return judge_calls(methods, results, simulator.outcomes)


def _run(case: Case, simulator: Simulator) -> CaseResult:
    try:
        case.work(simulator)
    except Exception as error:  # noqa: BLE001 - whatever a case ends with is its result
        return CaseResult(case=case, error=error)
    return CaseResult(case=case, error=None)


@contextmanager
def _running(program: Path, folder: Path, *, single_host: bool) -> Iterator[Simulator]:
    """The simulator until the block ends; it also ends by itself when we are gone."""
    machines = MACHINES_OF_A_POOL * (POOLS if single_host else 1)
    command = [str(program), "-user", USER, "-password", PASSWORD, "-machines", str(machines)]
    command += ["-esx"] if single_host else []
    with (folder / "vcsim.log").open("wb") as log:
        process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True
        )
    late = threading.Timer(READY_SECONDS_MAX, process.kill)
    late.start()
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        late.cancel()
        if not line:
            raise RuntimeError(f"vcsim ended: {(folder / 'vcsim.log').read_text()[-1000:]}")
        host, _, port = json.loads(line)["address"].rpartition(":")
        yield _simulator(host, int(port), folder, single_host=single_host)
    finally:
        late.cancel()
        process.kill()
        process.communicate()


def _simulator(host: str, port: int, folder: Path, *, single_host: bool) -> Simulator:
    shown = fetch_certificate(host, port)
    address = VcenterAddress(host=host, port=port, certificate_sha256=shown.sha256)
    account = Account(user_name=USER, password=Secret(PASSWORD.encode()))
    outcomes = Outcomes()
    return Simulator(
        address=address,
        account=account,
        session=open_session(address, account, outcomes),
        outcomes=outcomes,
        folder=folder,
        machines=MACHINES_OF_A_POOL * POOLS,
        single_host=single_host,
    )
