"""docs/doctor.md says which rights an account needs: the very ones that `doctor` looks at."""

import re
from pathlib import Path

from holdfast_controller.decide.privileges import NEEDED_RIGHTS

PAGE = Path(__file__).parents[2] / "docs" / "doctor.md"


def test_the_page_names_every_right_on_what_and_what_for() -> None:
    rows = re.findall(r"^\| `([^`]+)` \| ([^|]+) \| ([^|]+) \|$", PAGE.read_text(), re.MULTILINE)
    assert [(right.privilege, str(right.on), right.purpose) for right in NEEDED_RIGHTS] == rows
