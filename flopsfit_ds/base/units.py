"""Quantities as people write them: `1e18`, `300B`, `80GiB`, `90m`; and back."""

from __future__ import annotations

import math
import re

from flopsfit_ds.base.text import shown

# By IEC 80000-13
GIB = 2**30
MIB = 2**20

# SI, and B for billions as in 300B
_COUNT_SUFFIXES = {"": 1.0, "k": 1e3, "M": 1e6, "G": 1e9, "B": 1e9, "T": 1e12, "P": 1e15, "E": 1e18, "Z": 1e21}
_BYTE_SUFFIXES = {
    "": 1, "B": 1,
    "kB": 10**3, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12,
    "KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "TiB": 2**40,
}  # fmt: skip
_SECOND_SUFFIXES = {"": 1.0, "s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0, "d": 86400.0}  # by definition
_LONGEST_NUMBER = 60
"""Characters: no number takes more, and a file may hold a value of any length."""
_NUMBER = re.compile(r"\s*([+-]?(?:\d[\d_]*\.?\d*|\.\d+)(?:[eE][+-]?\d+)?)\s*([A-Za-z]*)\s*")


def _parse(value: object, suffixes: dict[str, float] | dict[str, int], kind: str, example: str) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        raise ValueError(f"{shown(value)} is not a {kind}; write for example {example}")
    if isinstance(value, str):
        match = _NUMBER.fullmatch(value) if len(value) <= _LONGEST_NUMBER else None
        if match is None:
            raise ValueError(f"{shown(value)} is not a {kind}; write for example {example}")
        number, suffix = match.groups()
        if suffix not in suffixes:
            known = ", ".join(s for s in suffixes if s)
            raise ValueError(f"{shown(value)}: unknown unit {suffix!r}; a {kind} takes {known} or nothing")
        result = float(number.replace("_", "")) * suffixes[suffix]
    else:
        try:
            result = float(value)
        except OverflowError:
            result = math.inf
    if not math.isfinite(result):
        raise ValueError(f"{shown(value)} is not finite; write for example {example}")
    return result


def parse_quantity(value: object) -> float:
    """Read a number of FLOPs, tokens or parameters, such as `1e18`, `"300B"` or `"1.5M"`.

    Raises:
        ValueError: The value is no finite number with one of the suffixes k, M, G, B, T, P, E, Z.
    """
    return _parse(value, _COUNT_SUFFIXES, "quantity", '1e18 or "300B"')


def parse_count(value: object) -> int:
    """Read a whole number, such as `65536`, `"2M"` or `1e6`.

    Raises:
        ValueError: The value is no whole number.
    """
    number = parse_quantity(value)
    if number != round(number):
        raise ValueError(f"{shown(value)} is not a whole number")
    return round(number)


def parse_bytes(value: object) -> int:
    """Read a number of bytes: `"80GiB"` (powers of two), `"80GB"` (powers of ten) or a plain number.

    Raises:
        ValueError: The value is no whole, finite number of bytes.
    """
    number = _parse(value, _BYTE_SUFFIXES, "number of bytes", '"80GiB"')
    return round(number)


def parse_seconds(value: object) -> float:
    """Read a duration in seconds: `90`, `"90s"`, `"15m"`, `"2h"`, `"1d"`.

    Raises:
        ValueError: The value is no finite duration.
    """
    return _parse(value, _SECOND_SUFFIXES, "duration", '90, "15m" or "2h"')


def _trim(number: float, digits: int = 3) -> str:
    return f"{number:#.{digits}g}".rstrip("0").rstrip(".") if abs(number) < 10**digits else f"{number:.0f}"


def format_things(number: int, noun: str) -> str:
    """`1 file`, `2,000 files`."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def format_count(count: float) -> str:
    """Write a number of parameters or tokens with three digits: `1.35B`, `96.4k`, `310`."""
    for suffix, scale in (("T", 1e12), ("B", 1e9), ("M", 1e6), ("k", 1e3)):
        if abs(count) >= 0.9995 * scale:
            return _trim(count / scale) + suffix
    return _trim(count)


def format_flops(flops: float) -> str:
    """Write FLOPs with three digits: `1e18`, `3.16e+12` as `3.16e12`."""
    if flops == 0:
        return "0"
    exponent = math.floor(math.log10(abs(flops)))
    mantissa = flops / 10.0**exponent
    text = _trim(mantissa)
    if text == "10":
        text, exponent = "1", exponent + 1
    return f"{text}e{exponent}"


def format_ratio(ratio: float) -> str:
    """Write how many times as large with three digits: `1.03`, `12,300`, `3e7`."""
    return f"{float(f'{ratio:.3g}'):,g}" if ratio < 1e6 else format_flops(ratio)


def format_bytes(num_bytes: float) -> str:
    """Write bytes in binary units: `74.5 GiB`, `512 B`."""
    for suffix, scale in (("TiB", 2**40), ("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if abs(num_bytes) >= scale:
            return f"{num_bytes / scale:.1f} {suffix}"
    return f"{num_bytes:.0f} B"


def format_seconds(seconds: float) -> str:
    """Write a duration for people: `0.4 s`, `48 s`, `12m 05s`, `3h 20m`, `2d 04h`."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60}m {whole % 60:02d}s"
    if whole < 86400:
        return f"{whole // 3600}h {whole % 3600 // 60:02d}m"
    return f"{whole // 86400}d {whole % 86400 // 3600:02d}h"


def known_seconds(seconds: float | None) -> str:
    """The same, and `-` where no time is known."""
    return "-" if seconds is None else format_seconds(seconds)
