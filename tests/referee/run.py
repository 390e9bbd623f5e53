"""`make referee`: programs that know nothing of Holdfast judge its calls and its lab.

Exit code 0: nothing failed. 1: something did, or nothing here can judge (no Go, no modules and no
package); with HOLDFAST_REFEREE_OPTIONAL=1 a missing judge is said and forgiven.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from referee.against_lab import judge_the_lab
from referee.against_simulator import judge_our_calls
from referee.go_programs import NoReferee, build_referees
from referee.verdicts import Ending, Verdict


def main() -> int:
    """Build the judges, hear them, print one line for each verdict and the sum at the end."""
    optional = os.environ.get("HOLDFAST_REFEREE_OPTIONAL", "") not in ("", "0")
    started = time.monotonic()
    try:
        referees = build_referees()
    except NoReferee as error:
        print(f"referee: nothing here can judge: {error}", file=sys.stderr)
        print("referee: calls 0 passed 0 simulator's faults 0 failed 0 (not refereed)")
        return 0 if optional else 1
    print(f"referee: {referees.origin}, built in {time.monotonic() - started:.0f} s", flush=True)
    calls = judge_our_calls(referees.vcsim)
    _show("our calls against the simulator of a vCenter", calls)
    on_host = judge_our_calls(referees.vcsim, single_host=True)
    _show("the same against the simulator of a single host", on_host)
    lab = judge_the_lab(referees)
    _show("stock clients against the lab", lab)
    if referees.govc is None:
        print("stock govc is missing: only its modules have it", file=sys.stderr)
    seconds = time.monotonic() - started
    print(f"referee: stock clients {len(lab)} {_sum(lab)}")
    print(
        f"referee: calls at a single host {len(on_host)} {_sum(on_host)} ({seconds:.0f} s in all)"
    )
    print(f"referee: calls {len(calls)} {_sum(calls)}")
    bad = any(each.ending is Ending.FAILED for each in (*calls, *on_host, *lab))
    return 1 if bad or (referees.govc is None and not optional) else 0


def _show(title: str, verdicts: list[Verdict]) -> None:
    print(f"{title}:")
    for each in verdicts:
        print(f"  {each.line()}")
    sys.stdout.flush()


def _sum(verdicts: list[Verdict]) -> str:
    counts = {ending: sum(1 for each in verdicts if each.ending is ending) for ending in Ending}
    return (
        f"passed {counts[Ending.PASSED]} simulator's faults {counts[Ending.SIMULATORS_FAULT]}"
        f" failed {counts[Ending.FAILED]}"
    )


if __name__ == "__main__":
    sys.exit(main())
