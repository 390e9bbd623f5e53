"""Join tokens carry the authority's certificate."""

from __future__ import annotations

import contextlib
import datetime as dt

import pytest
from hypothesis import given
from hypothesis import strategies as st

from holdfast_common.errors import UsageError
from holdfast_common.trust.authority import create_authority
from holdfast_common.trust.join_token import (
    new_join_token,
    parse_join_token,
    token_hash,
    token_text,
)

AUTHORITY_PEM = create_authority(now=dt.datetime(2030, 1, 1, tzinfo=dt.UTC)).certificate_pem


def test_a_token_comes_back_whole_also_over_several_lines() -> None:
    token = new_join_token(enrolment_port=9441, authority_pem=AUTHORITY_PEM)
    text = token_text(token)
    assert parse_join_token(text) == token
    assert parse_join_token(f"  {text[:50]}\n{text[50:]}\n") == token
    assert len(token.secret) == 32
    assert len(text) < 700


def test_a_token_does_not_show_its_secret() -> None:
    token = new_join_token(enrolment_port=1, authority_pem=AUTHORITY_PEM)
    assert token.secret.hex() not in repr(token)
    assert str(token.secret) not in repr(token)
    assert token_hash(token.secret) != token.secret.hex()


@given(st.text() | st.binary().map(lambda content: "hf1." + content.hex()))
def test_anything_else_is_refused_without_repeating_it(text: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_join_token(text)
    assert str(caught.value) == "not a join token"


@given(st.integers(min_value=0), st.integers(min_value=1, max_value=255))
def test_a_damaged_token_is_refused_or_another_one(position: int, change: int) -> None:
    text = token_text(new_join_token(enrolment_port=9441, authority_pem=AUTHORITY_PEM))
    position %= len(text)
    damaged = text[:position] + chr(ord(text[position]) ^ (change & 0x7F)) + text[position + 1 :]
    with contextlib.suppress(UsageError):
        parse_join_token(damaged)
