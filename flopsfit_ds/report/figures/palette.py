"""Colours of the page and its figures, each in a light and a dark tone.

Budgets run along a ramp whose lightness falls steadily, so that it survives colour blindness and a grey printer; marker
shapes and direct labels say the same again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Tone:
    """One colour of the page.

    Attributes:
        name: Of its CSS variable, without the dashes.
        light: Hex on white paper; what a figure file holds.
        dark: Hex on dark paper.
    """

    name: str
    light: str
    dark: str


INK = Tone("ink", "#1c2026", "#e9e7e2")
MUTED = Tone("muted", "#5d6670", "#a0a7b0")
GRID = Tone("grid", "#e4e6e9", "#2d3239")
PAPER = Tone("paper", "#fffffe", "#15181c")
LAW = Tone("law", "#00796b", "#4fd1b8")
BAND = Tone("band", "#00796a", "#4fd1b7")
FIXED = (INK, MUTED, GRID, PAPER, LAW, BAND)

_LIGHT_RAMP = ("#d9820f", "#c8425f", "#7b2d8e", "#1f2a78")
_DARK_RAMP = ("#ffc25c", "#ff7f93", "#c78bf5", "#83a9ff")
MARKERS = ("o", "s", "D", "^", "v", "P", "X", "h")


def budget_tones(count: int) -> tuple[Tone, ...]:
    """A tone a budget, from the smallest to the largest."""
    shares = [0.5] if count == 1 else [k / (count - 1) for k in range(count)]
    return tuple(
        Tone(f"budget-{k}", _along(_LIGHT_RAMP, share), _along(_DARK_RAMP, share)) for k, share in enumerate(shares)
    )


def _along(ramp: Sequence[str], share: float) -> str:
    """The colour at a share of the way along a ramp."""
    place = share * (len(ramp) - 1)
    k = min(int(place), len(ramp) - 2)
    first, second = (_channels(ramp[i]) for i in (k, k + 1))
    mixed = (round(a + (place - k) * (b - a)) for a, b in zip(first, second, strict=True))
    return "#" + "".join(f"{channel:02x}" for channel in mixed)


def _channels(colour: str) -> tuple[int, int, int]:
    return int(colour[1:3], 16), int(colour[3:5], 16), int(colour[5:7], 16)


def css_variables(tones: Sequence[Tone], theme: str) -> str:
    """Declarations of all tones in the `light` or `dark` theme."""
    return " ".join(f"--{tone.name}: {getattr(tone, theme)};" for tone in tones)
