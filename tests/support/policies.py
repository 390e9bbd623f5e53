"""Policies for tests: one by its changed fields, and any at all."""

from __future__ import annotations

from hypothesis import strategies as st

from holdfast_controller.decide.policy import LevelRule, Policy, WhenNotReached
from holdfast_controller.decide.retention import RetentionRule


def policy(name: str = "gold", **changed: object) -> Policy:
    """Nightly, of everything in a folder."""
    values: dict[str, object] = {"vms": ("folder:/prod",), "start": "0 22 * * *"}
    return Policy(name=name, **{**values, **changed})  # type: ignore[arg-type]  # tests give what they mean


ZONES = st.sampled_from(("UTC", "Europe/Berlin", "America/New_York", "Australia/Lord_Howe"))
CALENDARS = st.sampled_from(("0 22 * * *", "*/20 2 * * mon-fri", "0 0 l * *", "15 4 1,15 * *"))
COUNTS = st.integers(min_value=0, max_value=1000)
_TEXTS = st.text(st.characters(codec="utf-8"), max_size=60)
_SELECTORS = st.lists(
    _TEXTS.filter(bool).filter(lambda text: ":" not in text)
    | st.sampled_from(("folder:/a b/c", "power:off", "web*", "vc1/db?", "pool:gold")),
    min_size=1,
    max_size=4,
).map(tuple)


def policies() -> st.SearchStrategy[Policy]:
    """Any policy, with texts of every kind where texts are free."""
    level = st.builds(LevelRule, full_days=st.integers(0, 3650), full=st.just("") | CALENDARS)
    rule = st.builds(
        RetentionRule,
        keep_last=COUNTS,
        keep_hourly=COUNTS,
        keep_daily=COUNTS,
        keep_weekly=COUNTS,
        keep_monthly=COUNTS,
        keep_yearly=COUNTS,
        keep_within=st.sampled_from(("", "48h", "14d", "8w")),
        time_zone=ZONES,
    )
    return st.builds(
        Policy,
        name=st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,20}", fullmatch=True),
        vms=_SELECTORS,
        exclude=st.just(()) | _SELECTORS,
        start=CALENDARS,
        description=_TEXTS,
        enabled=st.booleans(),
        level=level,
        consistency=st.sampled_from(("crash", "filesystem", "cold")),
        when_not_reached=st.sampled_from(WhenNotReached),
        time_zone=ZONES,
        window=st.sampled_from(("", "mon-fri 22:00-06:00; sat,sun 00:00-24:00")),
        promise=st.sampled_from(("", "26h", "2d")),
        retention=rule,
        transport=st.sampled_from(("", "direct", "hotadd", "nfc")),
        priority=st.integers(0, 100),
        attempts_max=st.integers(1, 10),
        lanes=st.integers(1, 8),
        disks=st.just(()) | st.just(("disk:2000", 'disk:"Hard disk ?"')),
        exclude_disks=st.just(()) | st.just(("disk:scratch*",)),
    )
