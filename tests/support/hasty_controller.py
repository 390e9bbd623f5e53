"""`holdfast` whose controller soon gives up an agent that is away: ``python -m support.hasty_controller``.

In earnest it waits 15 seconds after a lease's end, and 30 for the answer to a start. Nothing else differs.
"""

from __future__ import annotations

import sys

WAITS = {"lost_after_lease": 2.0, "start_answer": 8.0}  # seconds


def main() -> None:
    from holdfast_controller.main import main as run_controller
    from holdfast_controller.service.session_timing import SessionTiming

    defaults = SessionTiming.__init__.__kwdefaults__
    assert defaults is not None
    assert set(WAITS) <= set(defaults)
    defaults.update(WAITS)
    sys.argv[0] = "holdfast"
    run_controller()


if __name__ == "__main__":
    main()
