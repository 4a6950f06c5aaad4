"""Figures as SVG: one form that stands alone, one that lives in the page and follows its colours."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree

from flopsfit_ds.report.figures.palette import PAPER, Tone

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

TOGETHER = "each-"
"""The id of a group of marks that were drawn at once begins so; then come theirs, with a space between."""
_SVG = "http://www.w3.org/2000/svg"
_XLINK_HREF = "{http://www.w3.org/1999/xlink}href"
_DOTS_PER_INCH = 300  # what journals ask of figures
_FONT = "'Helvetica Neue', Helvetica, Arial, 'Liberation Sans', sans-serif"
_FINER = re.compile(r"(\.\d\d)\d+")
"""Decimals of a coordinate beyond a hundredth of a point, which nobody sees and every curve would carry."""
_REFERENCE = re.compile(r"url\(#")
_FAMILY = re.compile(r"(font-family: |font: [^;]*?px )[^;]*")
RC: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "flopsfit-ds",
    "font.size": 10.0,
    "axes.unicode_minus": True,
    "lines.solid_capstyle": "round",
}
"""Settings of matplotlib: text stays text, ids do not change from run to run."""


@dataclass
class Drawing:
    """A figure being drawn.

    Attributes:
        name: Of its file, without the ending.
        title: What it shows, for those who do not see it.
        figure: The figure.
        tones: Colours that follow the page's theme.
        tips: Id of a mark -> what to show when pointed at.
        plane: The axes whose scale the page needs, where one reads values off the figure.
    """

    name: str
    title: str
    figure: Figure
    tones: tuple[Tone, ...]
    tips: dict[str, str] = field(default_factory=dict)
    plane: Axes | None = None

    def tip(self, text: str) -> str:
        """Note a tip; the id to give to the mark."""
        key = f"tip-{len(self.tips)}"
        self.tips[key] = text
        return key


@dataclass(frozen=True)
class Plane:
    """Where the axes of a figure lie, in units of its view box, and what their ends stand for.

    Attributes:
        left: Where x begins.
        right: Where it ends.
        top: Where y ends.
        bottom: Where it begins.
        x: Values at left and right.
        y: Values at bottom and top.
    """

    left: float
    right: float
    top: float
    bottom: float
    x: tuple[float, float]
    y: tuple[float, float]


@dataclass(frozen=True)
class Svg:
    """A finished figure.

    Attributes:
        name: Of its file, without the ending.
        standalone: A file of its own, in the light theme.
        inline: For the page: colours are variables of the page.
        plane: Of its axes, where one reads values off it.
        png: For programs that take no SVG; empty where it was not asked for.
    """

    name: str
    standalone: str
    inline: str
    plane: Plane | None = None
    png: bytes = b""

    def _repr_svg_(self) -> str:
        """What a notebook shows."""
        return self.standalone


def render(drawing: Drawing, *, with_png: bool = False) -> Svg:
    """All forms of a drawing; the same drawing gives the same bytes. To be called within `RC`."""
    stream = io.StringIO()
    drawing.figure.savefig(stream, format="svg", metadata={"Date": None, "Creator": None}, facecolor=PAPER.light)
    root = ElementTree.fromstring(stream.getvalue())
    _tidy(root, drawing)
    standalone = _text(root, inline=False)
    _follow_theme(root, drawing.tones)
    return Svg(drawing.name, standalone, _text(root, inline=True), _plane(drawing), _png(drawing) if with_png else b"")


def _png(drawing: Drawing) -> bytes:
    stream = io.BytesIO()
    drawing.figure.savefig(stream, format="png", dpi=_DOTS_PER_INCH, facecolor=PAPER.light, metadata={"Software": None})
    return stream.getvalue()


def _plane(drawing: Drawing) -> Plane | None:
    """Of a figure that has been drawn."""
    if drawing.plane is None:
        return None
    box, height = drawing.plane.get_window_extent(), drawing.figure.bbox.height
    x, y = drawing.plane.get_xlim(), drawing.plane.get_ylim()
    return Plane(
        box.x0, box.x1, height - box.y1, height - box.y0, (float(x[0]), float(x[1])), (float(y[0]), float(y[1]))
    )


def rendered(make: Callable[[], Sequence[Drawing]], *, with_png: bool = False) -> tuple[list[Svg], tuple[Tone, ...]]:
    """Drawings made and rendered under `RC`, and the colours they use."""
    import matplotlib

    with matplotlib.rc_context():
        matplotlib.rcdefaults()  # a user's own style must not change the bytes
        matplotlib.rcParams.update(RC)
        drawings = make()
        tones = tuple(dict.fromkeys(tone for drawing in drawings for tone in drawing.tones))
        return [render(drawing, with_png=with_png) for drawing in drawings], tones


def _tidy(root: ElementTree.Element, drawing: Drawing) -> None:
    """Drop what a renderer adds, name the figure, and make ids unique on a page of several figures."""
    for metadata in root.findall(f"{{{_SVG}}}metadata"):
        root.remove(metadata)
    for key in ("width", "height"):
        root.attrib.pop(key, None)
    prefix = f"{drawing.name}-"
    for group in [element for element in root.iter() if element.get("id", "").startswith(TOGETHER)]:
        _part(group)
    for element in root.iter():
        key = element.get("id")
        if key is not None:
            if key in drawing.tips:
                tip = ElementTree.Element(f"{{{_SVG}}}title")
                tip.text = drawing.tips[key]
                element.insert(0, tip)
                element.set("class", "mark")
            element.set("id", prefix + key)
        for name, value in list(element.attrib.items()):
            if name in ("href", _XLINK_HREF):
                del element.attrib[name]
                element.set("href", f"#{prefix}{value[1:]}")
            elif "url(#" in value:
                element.set(name, _REFERENCE.sub(f"url(#{prefix}", value))
        path = element.get("d")
        if path is not None:
            element.set("d", _FINER.sub(r"\1", path))
        style = element.get("style")
        if style is not None and "font" in style:
            element.set("style", _FAMILY.sub(rf"\1{_FONT}", style))
    title = ElementTree.Element(f"{{{_SVG}}}title")
    title.text = drawing.title
    title.set("id", f"{prefix}title")
    root.insert(0, title)
    root.set("role", "img")
    root.set("aria-labelledby", f"{prefix}title")


def _part(group: ElementTree.Element) -> None:
    """Give each member of a group that was drawn at once a group and an id of its own."""
    keys = group.attrib.pop("id")[len(TOGETHER) :].split(" ")
    clipped = group.find(f"{{{_SVG}}}g")
    assert clipped is not None
    members = list(clipped)
    for member in members:
        clipped.remove(member)
    for key, member in zip(keys, members, strict=True):
        ElementTree.SubElement(clipped, f"{{{_SVG}}}g", {"id": key}).append(member)


def _follow_theme(root: ElementTree.Element, tones: Sequence[Tone]) -> None:
    names = {tone.light: f"var(--{tone.name})" for tone in reversed(tones)}  # of two tones alike the first counts
    colours = re.compile("|".join(map(re.escape, names)))
    for element in root.iter():
        style = element.get("style")
        if style is not None:
            element.set("style", colours.sub(lambda found: names[found.group()], style))


def _text(root: ElementTree.Element, *, inline: bool) -> str:
    ElementTree.register_namespace("", _SVG)
    text = ElementTree.tostring(root, encoding="unicode")
    if inline:  # HTML knows the namespace
        return text.replace(f' xmlns="{_SVG}"', "", 1)
    return f'<?xml version="1.0" encoding="utf-8"?>\n{text}\n'
