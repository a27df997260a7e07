"""Where things stand in a picture, in pixels: scales, and labels that do not lie upon one another."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable

CHARACTER, TALL = 6.1, 13.0
"""Pixels of a letter of a label, on average and rather too wide, and of its line."""
_LOG_FROM = 12.0


class Box(NamedTuple):
    """A rectangle in pixels; up is less."""

    left: float
    top: float
    right: float
    bottom: float

    def covers(self, other: Box) -> bool:
        """Whether the two share any of the picture."""
        return (
            self.left < other.right
            and other.left < self.right
            and self.top < other.bottom
            and other.top < self.bottom
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Scale:
    """From values to pixels and back: linear from zero, or logarithmic where the values span too much.

    Attributes
    ----------
    low, high : float
        The values at the ends.
    start, end : float
        Their pixels.
    """

    low: float
    high: float
    start: float
    end: float
    log: bool

    @classmethod
    def over(cls, values: Iterable[float], start: float, end: float, *, pad: float = 0.06) -> Scale:
        """Return a scale that holds all the values with some room on both sides."""
        known = [value for value in values if value > 0 and math.isfinite(value)] or [1.0]
        low, high = min(known), max(known)
        if high < _LOG_FROM * low:
            return cls(low=0.0, high=high * (1 + 2 * pad), start=start, end=end, log=False)
        room = (high / low) ** pad
        return cls(low=low / room, high=high * room, start=start, end=end, log=True)

    def pixel(self, value: float) -> float:
        """Return where a value is."""
        if self.log:
            part = math.log(max(value, self.low) / self.low) / math.log(self.high / self.low)
        else:
            part = (value - self.low) / (self.high - self.low)
        return self.start + part * (self.end - self.start)

    def value(self, pixel: float) -> float:
        """Return what value is there."""
        part = (pixel - self.start) / (self.end - self.start)
        if self.log:
            return self.low * float((self.high / self.low) ** part)
        return self.low + part * (self.high - self.low)

    def ticks(self, candidates: Iterable[float]) -> list[float]:
        """Return those of the candidates that are on the scale."""
        return [tick for tick in candidates if self.low <= tick <= self.high]


class Label(NamedTuple):
    """A label that found a place: anchor and alignment, its point, and whether a line leads there."""

    text: str
    x: float
    y: float
    align: str
    point: tuple[float, float]
    leads: bool


# Where a label may stand beside its point: to which side of it, how far across and down; the best first.
_BESIDE = [("left", 6, -14), ("left", 11, 0), ("left", 6, 14), ("right", -6, 14), ("right", -11, 0)]
_BESIDE += [("right", -6, -14), ("center", 0, -15), ("center", 0, 15)]
_FAR = [
    (align, sign * across, down)
    for down in (-28, 28, -43, 43, -58, 58, -73, 73, -92, 92, -112, 112)
    for across in (14, 34, 60)
    for align, sign in (("left", 1), ("right", -1))
]


def place(labels: Iterable[tuple[str, float, float, bool]], frame: Box, taken: Iterable[Box]) -> list[Label]:
    """Return where labels can stand, without those that find no room.

    The first choose first. None covers another, leaves the frame or lies upon what is taken.

    Parameters
    ----------
    labels : tuples
        Text, the pixels of its point, and whether a line may lead to it from further away.
    """
    obstacles, found = list(taken), []
    for text, x, y, leads in labels:
        width = CHARACTER * len(text)
        for number, (align, across, down) in enumerate([*_BESIDE, *(_FAR if leads else [])]):
            left = x + across - width * {"left": 0.0, "center": 0.5, "right": 1.0}[align]
            box = Box(left, y + down - TALL / 2, left + width, y + down + TALL / 2)
            led = number >= len(_BESIDE)
            line = _along((x, y), (x + across, y + down)) if led else []
            inside = box.left >= frame.left and box.right <= frame.right
            inside &= box.top >= frame.top and box.bottom <= frame.bottom
            words = [other for other in obstacles if other.bottom - other.top >= TALL]
            crossed = any(dot.covers(other) for dot in line for other in words)
            if inside and not crossed and not any(box.covers(other) for other in obstacles):
                obstacles += [box, *line]
                found.append(Label(text, x + across, y + down, align, (x, y), led))
                break
    return found


def _along(start: tuple[float, float], end: tuple[float, float]) -> list[Box]:
    """Return small boxes along a line, without its ends: of them others have to keep off."""
    (x, y), (x2, y2) = start, end
    steps = 8
    dots = [(x + (x2 - x) * n / steps, y + (y2 - y) * n / steps) for n in range(2, steps)]
    return [Box(across - 1, up - 2, across + 1, up + 2) for across, up in dots]


def flow(texts: Iterable[str], width: float, line: float, *, sign: float) -> list[tuple[float, float]]:
    """Return where words stand one after the other, each with its sign before it: left and middle."""
    places, x, y = [], 0.0, line / 2
    for text in texts:
        across = sign + CHARACTER * len(text)
        if x and x + across > width:
            x, y = 0.0, y + line
        places.append((x, y))
        x += across + 14
    return places
