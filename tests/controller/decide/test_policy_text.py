from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from holdfast_common.errors import UsageError
from holdfast_controller.decide.policy import LevelRule, Policy, WhenNotReached
from holdfast_controller.decide.policy_text import field_texts, policies_text, read_policies
from holdfast_controller.decide.retention import RetentionRule
from support.policies import policies, policy

GOLDEN = Path(__file__).parent / "golden" / "policies.toml"
FILE = "policies.toml"

PAGE = Path(__file__).parents[3] / "docs" / "policies.md"

# In the golden file, whose text stays readable as these for ever.
GOLD = Policy(
    name="gold",
    description='Die "Wichtigen": hourly\nand at night',
    vms=("folder:/Berlin/prod", "db*"),
    exclude=("power:off", "*-scratch"),
    start="30 22 * * mon-fri",
    time_zone="Europe/Berlin",
    window="mon-fri 22:00-06:00; sat,sun 00:00-24:00",
    promise="26h",
    level=LevelRule(full_days=14, full="0 22 * * sun"),
    consistency="filesystem",
    when_not_reached=WhenNotReached.RETRY,
    retention=RetentionRule(
        keep_last=3,
        keep_hourly=24,
        keep_daily=14,
        keep_weekly=8,
        keep_monthly=12,
        keep_yearly=3,
        keep_within="48h",
        time_zone="Europe/Berlin",
    ),
    transport="hotadd",
    priority=80,
    attempts_max=3,
)
LEAST = Policy(name="rest", vms=("*",), start="0 3 * * *")
LONG = Policy(
    name="named",
    vms=tuple(f"machine-with-a-long-name-{number}" for number in range(5)),
    start="0 */4 * * *",
    enabled=False,
    level=LevelRule(full_days=0),
    retention=RetentionRule(keep_daily=7, time_zone="America/New_York"),
)


def written(*made: Policy, file: str = "") -> list[Policy]:
    return [each.policy for each in read_policies(policies_text(made), file=file)]


def test_the_golden_file_is_read_as_it_was_meant_and_written_as_it_is() -> None:
    assert [each.policy for each in read_policies(GOLDEN.read_text())] == [GOLD, LEAST, LONG]
    assert policies_text([GOLD, LEAST, LONG]) == GOLDEN.read_text()


@settings(max_examples=30)
@given(st.lists(policies(), min_size=1, max_size=3, unique_by=lambda each: each.name))
def test_what_is_written_is_read_as_the_same_policies(made: list[Policy]) -> None:
    text = policies_text(made)
    assert all(line.isprintable() for line in text.split("\n"))
    assert [each.policy for each in read_policies(text, file=FILE)] == made
    shown = policies_text(made, with_examples=True)
    assert [each.policy for each in read_policies(shown)] == made


@settings(max_examples=30)
@given(policies())
def test_every_field_that_is_written_has_its_line(made: Policy) -> None:
    text = policies_text([made])
    (read,) = read_policies(text, file=FILE)
    lines = text.splitlines()
    assert lines[read.lines.head - 1] == "[[policy]]"
    assert lines[read.lines.line("start") - 1].startswith("start = ")
    assert lines[read.lines.line("vms[0]") - 1].startswith("vms = ")
    assert lines[read.lines.line("level.full_days") - 1].startswith("full_days = ")


def test_comments_and_other_ways_to_write_toml_are_read() -> None:
    text = """
# of the whole house
[[policy]]  # the first
"name" = 'gold'
description = \"\"\"
[[policy]]
start = this is a text
\"\"\"
vms = [
    "a",  # its first
    "b",
]
start = "0 22 * * *"
level.full_days = 7
retention = { keep_daily = 7, keep_within = "48h" }
"""
    (read,) = read_policies(text, file=FILE)
    assert read.policy == policy(
        vms=("a", "b"),
        description="[[policy]]\nstart = this is a text\n",
        level=LevelRule(full_days=7),
        retention=RetentionRule(keep_daily=7, keep_within="48h"),
    )
    assert [read.lines.line(field) for field in ("name", "start", "level.full_days")] == [4, 13, 14]
    assert read.lines.line("retention.keep_within") == 15


def test_policies_in_one_line_are_read_without_lines() -> None:
    text = 'policy = [{name = "a", vms = ["x"], start = "0 1 * * *"}]\n'
    (read,) = read_policies(text, file=FILE)
    assert read.lines.line("start") == 0


HEAD = '[[policy]]\nname = "gold"\nvms = ["*"]\nstart = "0 22 * * *"\n'


@pytest.mark.parametrize(
    ("text", "facts"),
    [
        (HEAD + "prioritie = 5\n", {"line": 5, "policy": "gold", "field": "prioritie"}),
        (HEAD + "[policy.level]\nful = 1\n", {"line": 6, "policy": "gold", "field": "level.ful"}),
        (HEAD + "level.ful = 1\n", {"line": 5, "field": "level.ful"}),
        (HEAD + "retention = {keep = 1}\n", {"line": 5, "field": "retention.keep"}),
        (HEAD + "[policy.lanes]\nx = 1\n", {"line": 5, "field": "lanes"}),
        (HEAD + "priority = 500\n", {"line": 5, "field": "priority", "value": 500}),
        (HEAD + 'priority = "high"\n', {"line": 5, "field": "priority"}),
        (HEAD + 'exclude = ["a",\n  5]\n', {"line": 5, "field": "exclude[1]"}),
        (HEAD + 'window = "at night"\n', {"line": 5, "field": "window"}),
        (HEAD + 'level.full = "0 0 30 2 *"\n', {"line": 5, "field": "level.full"}),
        (HEAD + HEAD, {"line": 6, "policy": "gold", "field": "name"}),
        (HEAD + '[[policy]]\nname = "b"\n', {"line": 5, "policy": "b", "field": "vms"}),
        (HEAD + "[[policy]]\n", {"line": 5, "policy": "number 2", "field": "name"}),
        (HEAD + "[[policy]\n", {"line": 5}),
        (HEAD + 'start = "1 1 * * *"\n', {"line": 5}),
        (HEAD + "when = 1979-05-27T07:32:00Z\n", {"line": 5, "field": "when"}),
        (HEAD + "[policies]\n", {"line": 5, "field": "policies"}),
        ("version = 1\n" + HEAD, {"line": 1, "field": "version"}),
        ('[policy]\nname = "gold"\n', {}),
        ("policy = 5\n", {}),
        ("# nothing\n", {}),
        ("", {}),
        ("a = " + "[" * 5000, {}),
        (HEAD + "priority = 1" + "0" * 5000 + "\n", {}),
    ],
)
def test_what_is_wrong_is_told_with_file_policy_field_and_line(
    text: str, facts: dict[str, object]
) -> None:
    with pytest.raises(UsageError) as refused:
        read_policies(text, file=FILE)
    told = refused.value.facts
    assert {name: told.get(name) for name in facts} == facts
    assert told["file"] == FILE


def test_what_is_wrong_in_each_policy_of_a_text_is_told_together() -> None:
    text = "".join(f'[[policy]]\nname = "p{number}"\nvms = ["*"]\n' for number in range(30))
    with pytest.raises(UsageError) as refused:
        read_policies(text, file=FILE)
    assert refused.value.facts["line"] == 1
    told = refused.value.advice.splitlines()
    assert [line for line in told if "line=4," in line and "policy=p1," in line]
    assert len(told) == 21
    assert told[-1] == "and 9 more"


def test_without_a_file_no_line_is_told() -> None:
    with pytest.raises(UsageError) as refused:
        read_policies(HEAD + "priority = 500\n")
    assert not {"file", "line"} & set(refused.value.facts)


@settings(max_examples=30)
@given(st.text(max_size=200) | st.text("[]=.\"'#\npolicynamevs ", max_size=200))
def test_any_text_is_read_or_refused(text: str) -> None:
    for each in (text, HEAD + text):
        told = [FILE]
        try:
            assert read_policies(each, file=FILE)
        except UsageError as error:
            told.append(str(error.facts["file"]))
        assert set(told) == {FILE}


def test_too_many_policies_and_too_long_a_text_are_refused() -> None:
    many = "".join(f'[[policy]]\nname = "p{number}"\n' for number in range(1001))
    with pytest.raises(UsageError, match="too many"):
        read_policies(many)
    with pytest.raises(UsageError, match="too long"):
        read_policies("#" * (1 << 20) + "\n")


def test_what_the_page_about_policies_shows_can_be_applied() -> None:
    shown = PAGE.read_text().split("```toml\n")[1:]
    assert shown
    for text in shown:
        read = read_policies(text.partition("```")[0], file=FILE)
        assert all(each.lines.line("start") for each in read)


def test_the_page_about_policies_names_every_field() -> None:
    page = PAGE.read_text()
    assert [name for name in field_texts(GOLD) if f"`{name}`" not in page] == []
