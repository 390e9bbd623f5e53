from __future__ import annotations

import tomllib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from holdfast_common.errors import UsageError
from holdfast_controller.decide.policy_lines import PolicyLines, first_line, policy_lines
from holdfast_controller.decide.policy_text import read_policies

# What a field may be written as; some go over lines that look like something else.
VALUES = (
    '"plain"',
    "5",
    "\"a ''' b # c\"  # \"\"\" and ''' in a comment",
    "'C:\\'  # a backslash ends no text here",
    '"say \\"\\"\\" [["',
    '"""one line""" # [[policy]]',
    '"""\n[[policy]]\nfield0 = 1\n\\"""\n""" ',
    '"""ends with two quotes""\n"""""',
    "'''\n[policy.level]\nit''s \\\nfield1 = '''",
    '[\n  "field0 = 1",  # "\n  "[[policy]]",\n]',
    '[["a"],\n["b"]\n]',
    '{ a = [1,\n 2], "b" = "}" }',
)
COMMENTS = st.sampled_from(("", "# a", "# two\u2028lines\x85for some", "  # [[policy]]", "#'''"))
KEYS = ("field{}", '"field{}"', "'field{}'", " field{}")


@st.composite
def texts(draw: st.DrawFn) -> tuple[str, list[PolicyLines]]:
    """A text of policies, and where everything stands in it."""
    lines: list[str] = []
    found = []
    for _ in range(draw(st.integers(1, 3))):
        lines.append(draw(COMMENTS))
        lines.append(draw(st.sampled_from(("[[policy]]", " [[ policy ]] # '''"))))
        head, of_field = len(lines), dict[str, int]()
        tables = draw(st.sampled_from((("",), ("", "level"), ("", "level", "retention"))))
        for table in tables:
            if table:
                lines.append(f"[policy.{table}]")
                of_field[table] = len(lines)
            for number in range(draw(st.integers(0, 3))):
                lines.append(draw(COMMENTS))
                key = draw(st.sampled_from(KEYS)).format(number)
                value = f"{key} = {draw(st.sampled_from(VALUES))}".split("\n")
                of_field[f"{table}.field{number}".strip(".")] = len(lines) + 1
                lines += value
        found.append(PolicyLines(head=head, of_field=of_field))
    return draw(st.sampled_from(("\n", "\r\n"))).join(lines), found


@settings(max_examples=150)
@given(texts())
def test_every_policy_and_field_has_its_line_however_it_is_written(
    made: tuple[str, list[PolicyLines]],
) -> None:
    text, expected = made
    assert len(tomllib.loads(text)["policy"]) == len(expected)
    assert list(policy_lines(text)) == expected


def test_a_field_that_was_not_found_has_the_line_of_what_it_is_in() -> None:
    (lines,) = policy_lines('\n[[policy]]\nlevel = {full_days = 3}\nvms = ["a",\n"b"]\n')
    told = [lines.line(field) for field in ("level.full_days", "vms[1]", "window", "")]
    assert told == [3, 4, 2, 2]


def test_a_key_of_the_document_is_found_where_it_stands_first() -> None:
    text = 'a = """\nb = 1\n"""\nb = 2\n[c.d]\n'
    assert [first_line(text, key) for key in ("a", "b", "c", "d")] == [1, 4, 5, 0]


def test_a_text_that_ends_too_early_is_told_with_its_last_line() -> None:
    with pytest.raises(UsageError) as refused:
        read_policies('[[policy]]\nname = """\nvms\n', file="policies.toml")
    assert refused.value.facts == {"file": "policies.toml", "line": 4}
