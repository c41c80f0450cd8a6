"""Durations as they are typed and printed."""

import pytest
from google.protobuf.duration_pb2 import Duration
from hypothesis import given
from hypothesis import strategies as st

from adjourn.cli.output import duration
from adjourn.cli.policy import parse_duration


@given(st.integers(min_value=0, max_value=400 * 86_400_000))
def test_what_is_printed_can_be_typed(milliseconds: int):
    seconds, rest = divmod(milliseconds, 1_000)
    printed = duration(Duration(seconds=seconds, nanos=rest * 1_000_000))
    assert parse_duration(printed) == pytest.approx(milliseconds / 1_000)


@pytest.mark.parametrize(
    ("seconds", "printed"), [(0, "0s"), (90, "1m30s"), (3_600, "1h"), (86_400, "1d"), (93_784, "1d2h3m4s")]
)
def test_a_duration_is_printed_in_its_units(seconds: int, printed: str):
    assert duration(Duration(seconds=seconds)) == printed


@pytest.mark.parametrize("text", ["", "5", "s", "5 s", "-5s", "5s5", "1e3s", "5w", "١s"])
def test_what_is_no_duration_is_refused(text: str):
    with pytest.raises(ValueError, match="is not a duration"):
        parse_duration(text)
