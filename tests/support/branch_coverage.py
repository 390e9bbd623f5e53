"""How much of the branches alone was covered, which a report of coverage mixes with lines; too little fails.

Run: python -m support.branch_coverage REPORT.json PERCENT
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

FILES_SHOWN_MAX = 10


def main(report: str, percent: str) -> int:
    found = json.loads(Path(report).read_text())
    totals = found["totals"]
    covered, branches = totals["covered_branches"], totals["num_branches"]
    share = 100 * covered / branches
    files = {name: each["summary"]["missing_branches"] for name, each in found["files"].items()}
    for name in sorted(files, key=lambda name: -files[name])[:FILES_SHOWN_MAX]:
        print(f"{files[name]:5} branches of {name} are not covered")
    print(f"branches alone: {covered} of {branches} covered, {share:.1f} %")
    return 0 if share >= float(percent) else 1


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
