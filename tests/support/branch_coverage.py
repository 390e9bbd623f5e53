"""How much of the branches alone was covered, which a report of coverage mixes with lines.

Run: python -m support.branch_coverage REPORT.json
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

FILES_SHOWN_MAX = 10


def main(report: str) -> None:
    found = json.loads(Path(report).read_text())
    totals = found["totals"]
    covered, branches = totals["covered_branches"], totals["num_branches"]
    share = 100 * covered / branches
    files = {name: each["summary"]["missing_branches"] for name, each in found["files"].items()}
    for name in sorted(files, key=lambda name: -files[name])[:FILES_SHOWN_MAX]:
        print(f"{files[name]:5} branches of {name} are not covered")
    print(f"branches alone: {covered} of {branches} covered, {share:.1f} %")


if __name__ == "__main__":
    main(*sys.argv[1:])
