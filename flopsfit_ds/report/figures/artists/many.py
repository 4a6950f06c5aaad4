"""Marks and lines of a whole figure as one artist, each with an id of its own in the SVG.

As `Axes.plot` would draw them, but limits of axes must be set: these artists do not ask for room.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.artist import Artist, allow_rasterization
from matplotlib.colors import to_rgba
from matplotlib.markers import MarkerStyle
from matplotlib.path import Path
from matplotlib.transforms import Affine2D, IdentityTransform

from flopsfit_ds.report.figures.svg import TOGETHER

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.backend_bases import GraphicsContextBase, RendererBase
    from numpy.typing import ArrayLike


@dataclass(frozen=True)
class Look:
    """Of marks that are alike.

    Attributes:
        marker: By matplotlib's name.
        size: Points.
        face: Colour.
        edge: Colour of the outline.
        edge_width: Points.
    """

    marker: str
    size: float
    face: str
    edge: str
    edge_width: float


@dataclass(frozen=True)
class Mark:
    """One point.

    Attributes:
        x: In units of the axes.
        y: As above.
        gid: Its id.
        look: How it is drawn.
    """

    x: float
    y: float
    gid: str
    look: Look


@dataclass(frozen=True)
class Line:
    """One line.

    Attributes:
        xs: In units of the axes.
        ys: As above.
        gid: Its id.
        colour: Of it.
        width: Points.
        alpha: Opacity.
    """

    xs: Sequence[float]
    ys: Sequence[float]
    gid: str
    colour: str
    width: float
    alpha: float


class _Many(Artist):
    """What both have in common: a place in the axes, cut off at their frame."""

    def __init__(self, ax: Axes, zorder: float) -> None:
        super().__init__()
        self.set_zorder(zorder)
        ax.add_artist(self)
        self.set_clip_path(ax.patch)

    def pixels(self, xs: ArrayLike, ys: ArrayLike) -> np.ndarray:
        """Where values of the axes lie on the figure, (points, 2)."""
        assert self.axes is not None
        return self.axes.transData.transform(np.stack([np.asarray(xs), np.asarray(ys)], axis=1))

    def context(self, renderer: RendererBase, colour: Any, width: float) -> GraphicsContextBase:
        """How a stroke is made."""
        context = renderer.new_gc()
        self._set_gc_clip(context)  # pyright: ignore[reportAttributeAccessIssue]
        context.set_linewidth(width)
        context.set_foreground(colour, isRGBA=True)
        return context


class Marks(_Many):
    """Points, added one by one."""

    def __init__(self, ax: Axes, zorder: float) -> None:
        """An artist without any.

        Args:
            ax: The axes.
            zorder: Higher is drawn later.
        """
        super().__init__(ax, zorder)
        self.marks: list[Mark] = []

    @allow_rasterization
    def draw(self, renderer: RendererBase) -> None:
        """Draw those within the figure; neighbours that look alike by one call."""
        places = self.pixels([mark.x for mark in self.marks], [mark.y for mark in self.marks])
        inside = (places > 0).all(axis=1) & (places < renderer.get_canvas_width_height()).all(axis=1)
        order = np.flatnonzero(inside)
        for look, numbers in itertools.groupby(order, key=lambda number: self.marks[number].look):
            members = list(numbers)
            marker, width = MarkerStyle(look.marker), float(np.asarray(renderer.points_to_pixels(look.size)))
            context = self.context(renderer, to_rgba(look.edge), look.edge_width)
            threshold = marker.get_snap_threshold()
            context.set_snap(None if threshold is None else width >= threshold)
            context.set_joinstyle(marker.get_joinstyle())
            context.set_capstyle(marker.get_capstyle())
            renderer.open_group("marks", TOGETHER + " ".join(self.marks[number].gid for number in members))
            shape, spot = marker.get_path(), Path(places[members])
            scaled = marker.get_transform() + Affine2D().scale(width)
            renderer.draw_markers(context, shape, scaled, spot, IdentityTransform(), to_rgba(look.face))
            renderer.close_group("marks")
            context.restore()


class Lines(_Many):
    """Lines, all given at once."""

    def __init__(self, ax: Axes, zorder: float, lines: Sequence[Line]) -> None:
        """An artist of these.

        Args:
            ax: The axes.
            zorder: Higher is drawn later.
            lines: At least one.
        """
        super().__init__(ax, zorder)
        self.lines = lines

    @allow_rasterization
    def draw(self, renderer: RendererBase) -> None:
        """Draw all of them."""
        places = self.pixels(
            np.concatenate([line.xs for line in self.lines]), np.concatenate([line.ys for line in self.lines])
        )
        ends = np.cumsum([len(line.xs) for line in self.lines])
        for line, part in zip(self.lines, np.split(places, ends[:-1]), strict=True):
            context = self.context(renderer, to_rgba(line.colour, line.alpha), line.width)
            context.set_joinstyle("round")
            context.set_capstyle("round")
            renderer.open_group("line2d", line.gid)
            renderer.draw_path(context, Path(part), IdentityTransform())
            renderer.close_group("line2d")
            context.restore()
