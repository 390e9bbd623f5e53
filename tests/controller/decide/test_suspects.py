from __future__ import annotations

from holdfast_controller.decide.suspects import PointReading, suspect_points


def point(name: str, *by_changes: int) -> PointReading:
    return PointReading(point_id=name, by_hint=frozenset(by_changes))


NEWEST_FIRST = [
    point("thursday", 2000, 2001),
    point("wednesday", 2000),  # 2001 was read whole
    point("tuesday", 2000, 2001),
    point("monday"),  # a full
    point("sunday", 2000, 2001),
]


def test_all_points_back_to_where_the_disk_was_last_read_whole_are_in_doubt() -> None:
    assert suspect_points(NEWEST_FIRST, [2000]) == ["thursday", "wednesday", "tuesday"]


def test_a_disk_that_was_read_whole_in_between_ends_the_doubt_of_itself_only() -> None:
    assert suspect_points(NEWEST_FIRST, [2001]) == ["thursday"]
    assert suspect_points(NEWEST_FIRST, [2000, 2001]) == ["thursday", "wednesday", "tuesday"]


def test_with_nothing_read_by_changes_nothing_is_in_doubt() -> None:
    assert suspect_points([point("full")], [2000]) == []
    assert suspect_points([], [2000]) == []
    assert suspect_points(NEWEST_FIRST, [7]) == []
