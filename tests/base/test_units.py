"""Quantities: what people write is read, what is printed can be read again, and nonsense is refused."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flopsfit_ds.base import units

SUFFIXES = {"k": 1e3, "M": 1e6, "G": 1e9, "B": 1e9, "T": 1e12, "P": 1e15, "E": 1e18, "Z": 1e21}
finite = st.floats(min_value=1e-300, max_value=1e300)


@given(finite)
def test_any_float_survives_as_number_and_as_text(number):
    assert units.parse_quantity(number) == number
    assert units.parse_quantity(repr(number)) == number
    assert units.parse_quantity(f"  {number!r} ") == number


@given(st.floats(min_value=1e-3, max_value=1e6), st.sampled_from(sorted(SUFFIXES)))
def test_a_suffix_multiplies(number, suffix):
    assert units.parse_quantity(f"{number!r}{suffix}") == pytest.approx(number * SUFFIXES[suffix], rel=1e-15)
    assert units.parse_quantity(f"{number!r} {suffix}") == units.parse_quantity(f"{number!r}{suffix}")


@given(st.floats(min_value=1, max_value=1e15))
def test_printed_counts_are_read_back_within_three_digits(count):
    assert units.parse_quantity(units.format_count(count)) == pytest.approx(count, rel=5.1e-3)


@given(st.floats(min_value=1e-3, max_value=1e30))
def test_printed_flops_are_read_back_within_three_digits(flops):
    text = units.format_flops(flops)
    assert units.parse_quantity(text) == pytest.approx(flops, rel=5.1e-3)
    assert 1 <= float(text.partition("e")[0]) < 10


@given(st.integers(min_value=1024, max_value=2**50))
def test_printed_bytes_are_read_back_to_one_decimal(num_bytes):
    assert units.parse_bytes(units.format_bytes(num_bytes)) == pytest.approx(num_bytes, rel=0.051)


@given(st.integers(min_value=0, max_value=10**15))
def test_whole_numbers_are_counts_exactly(count):
    assert units.parse_count(count) == count
    assert units.parse_count(str(count)) == count
    assert units.parse_count(f"{count:_}") == count


def test_binary_and_decimal_bytes_differ():
    assert units.parse_bytes("80GiB") == 80 * 2**30
    assert units.parse_bytes("80GB") == 80 * 10**9
    assert units.parse_bytes("1.5 KiB") == 1536
    assert units.parse_bytes(7) == 7


def test_yaml_reads_1e18_as_text_and_it_is_a_number_all_the_same():
    assert units.parse_quantity("1e18") == 1e18
    assert units.parse_count("1e6") == 10**6


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("90", 90), (90, 90), ("90s", 90), ("15m", 900), ("2h", 7200), ("1.5d", 129600)],
)
def test_durations(text, seconds):
    assert units.parse_seconds(text) == seconds


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.4, "0.4 s"), (48, "48 s"), (59.7, "1m 00s"), (725, "12m 05s"), (3599.8, "1h 00m"), (187200, "2d 04h")],
)
def test_durations_for_people(seconds, text):
    assert units.format_seconds(seconds) == text


@pytest.mark.parametrize("parse", [units.parse_quantity, units.parse_count, units.parse_bytes, units.parse_seconds])
@pytest.mark.parametrize("value", [True, None, [], {}, "", "many", "--1", "1 000", "0x10", ".", "e5", b"1"])
def test_what_is_no_quantity_is_refused_with_an_example(parse, value):
    with pytest.raises(ValueError, match="for example"):
        parse(value)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, "1e400", "9e307k"])
def test_infinite_quantities_are_refused(value):
    with pytest.raises(ValueError, match="not finite"):
        units.parse_quantity(value)


def test_an_unknown_unit_is_answered_with_the_known_ones():
    with pytest.raises(ValueError, match=r"unknown unit 'Q'.*k, M, G, B, T, P, E, Z"):
        units.parse_quantity("5Q")
    with pytest.raises(ValueError, match=r"unknown unit 'gb'.*GiB"):
        units.parse_bytes("80gb")


@given(st.floats(min_value=1e-6, max_value=1e9).filter(lambda number: number != round(number)))
def test_a_fraction_is_no_count(number):
    with pytest.raises(ValueError, match="not a whole number"):
        units.parse_count(number)


@pytest.mark.parametrize("count", [999.4, 999.7, 999_400, 999_700, 9.994e8, 9.996e8, 9.996e11])
def test_rounding_up_moves_to_the_next_unit(count):
    text = units.format_count(count)
    assert not text.startswith("1000"), text
    assert units.parse_quantity(text) == pytest.approx(count, rel=1e-3)


@pytest.mark.parametrize(
    ("count", "text"), [(1.5e6, "1.5M"), (999_700, "1M"), (999_400, "999k"), (1.2e12, "1.2T")], ids=str
)
def test_counts_take_the_unit_that_a_reader_would(count, text):
    assert units.format_count(count) == text


def test_a_mantissa_that_rounds_to_ten_moves_the_exponent():
    assert units.format_flops(9.999e17) == "1e18"


@pytest.mark.parametrize(
    ("ratio", "said"), [(1.034, "1.03"), (10.0, "10"), (1e4, "10,000"), (12345.0, "12,300"), (3e7, "3e7")]
)
def test_ratios_are_written_without_exponents_that_people_do_not_read(ratio: float, said: str) -> None:
    assert units.format_ratio(ratio) == said
