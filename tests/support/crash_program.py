"""Judges workloads until there is a loss and prints the worst: ``python -m support.crash_program FOLDER NAME…``.

For copies of the product in which something was planted; as many disks as `make test` judges. ``FOLDER`` is
the copy, and nothing else may be what is tested.
"""

from __future__ import annotations

import json
import logging
import sys
from itertools import count
from pathlib import Path

import holdfast_common
from support.crash_judge import Harm, Loss, judge_workload
from support.crash_workloads import IMAGES

WORST = (Harm.LOST, Harm.UNOPENABLE, Harm.HALF)


def main() -> None:
    folder, *names = sys.argv[1:]
    for module in (holdfast_common.__file__, __file__):
        assert module is not None
        assert Path(module).is_relative_to(folder), f"{module} is not the copy's"
    logging.disable(logging.CRITICAL)
    order = [*WORST, Harm.DAMAGE, Harm.STUCK, Harm.RUN]
    losses: list[Loss] = []
    images = 0
    for name in names:
        tally = judge_workload(
            name,
            seeds=count(),
            images_max=IMAGES[name],
            enough=lambda loss: loss.harm in WORST,
        )
        losses += tally.losses
        images += tally.images
    worst = min(losses, key=lambda loss: order.index(loss.harm), default=None)
    told = (
        [worst.workload, worst.harm, f"seed {worst.seed}, {worst.state}", worst.what]
        if worst
        else []
    )
    print(json.dumps({"images": images, "losses": len(losses), "worst": told}))


if __name__ == "__main__":
    main()
