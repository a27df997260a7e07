"""What all pictures share: Altair charts that carry our theme and show offline, in light and in dark.

`Picture`, `Across` and `Down` are Altair's own charts: ``.properties``, ``.save``, ``|``, ``&`` and ``+``
work and keep the theme. The user's Altair settings are neither read nor changed. Altair takes 2 s to import,
so this module, and those with charts, are imported only where something is drawn.
"""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING, Any

import altair as alt
import polars as pl
import polars.selectors as columns

from claudescale.errors import printable
from claudescale.views import CLOCK, DASHED, GREY, HEIGHT, VERMILION, WIDTH, bundle, themed

if TYPE_CHECKING:
    from collections.abc import Sequence

TITLE_CHARACTERS = 84  # of the title's font, as wide as a chart with its axis and what stands beside it
DOLLARS = (  # the labels of an axis: whole ones, cents, or what is less
    "format(datum.value, abs(datum.value - round(datum.value)) < 1e-6 ? '$,.0f' : "
    "abs(100 * datum.value - round(100 * datum.value)) < 1e-6 ? '$,.2f' : '$,.7~f')"
)
MOMENTS = [n / 60 for n in (0.1, 0.5, 1, 2, 5, 10, 20, 30)] + [1, 2, 5, 10, 20, 30]
MOMENTS += [60 * n for n in (1, 2, 4, 6, 12, 24, 48, 120, 240, 720)]
SUMS = [n * 10.0**power for power in range(-7, 8) for n in (1, 2, 5)]
MOST_TICKS, MOST_LABELS = 6, 8
FAR, FAR_LOG = 5, 12  # from so many times the largest value on, a wish is beyond the picture
SIGN = "\N{NO-BREAK SPACE}(\N{BLACK DOWN-POINTING TRIANGLE})"  # of calls that went wrong
FAILED: dict[str, Any] = {"shape": "triangle-down", "filled": True, "color": VERMILION, "opacity": 1}


class Themed:
    """Makes an Altair chart carry our theme, show itself offline, and say in a terminal what it shows."""

    def to_dict(self, validate: bool = True, *, context: Any = None, **options: Any) -> dict[str, Any]:  # noqa: FBT001, FBT002
        """Return the Vega-Lite specification. Spends: nothing."""
        made: Any = super()
        if context and context.get("top_level") is False:  # a part of a larger chart
            return made.to_dict(validate, context=context, **options)  # type: ignore[no-any-return]
        # As if it were a part: so Altair leaves out the user's theme and data transformer.
        datasets: dict[str, Any] = {}
        part = {"top_level": False, "datasets": datasets, "pre_transform": False}
        return themed(made.to_dict(validate, context=part, **options), datasets=datasets)

    def _repr_mimebundle_(self, include: object = None, exclude: object = None) -> dict[str, Any]:
        del include, exclude  # IPython itself leaves out what was not asked for
        return bundle(self.to_dict())

    def __repr__(self) -> str:
        return printable(self.to_dict().get("description", ""))

    def __or__(self: Any, other: Any) -> Across:
        return Across(hconcat=[self, other])

    def __and__(self: Any, other: Any) -> Down:
        return Down(vconcat=[self, other])

    def __add__(self: Any, other: Any) -> Picture:
        return Picture(layer=[self, other])


class Picture(Themed, alt.LayerChart):
    """Layers in one frame."""


class Across(Themed, alt.HConcatChart):
    """Charts side by side."""


class Down(Themed, alt.VConcatChart):
    """Charts below each other."""


def picture(layers: Sequence[alt.Chart], sentence: str, *, more: str = "", **properties: Any) -> Picture:
    """Return layers as a picture that says one sentence, and perhaps one more below it."""
    size = {"width": WIDTH, "height": HEIGHT}
    return Picture(layer=[*layers]).properties(**size | said(sentence, more) | properties)


def panels(parts: Sequence[Sequence[alt.Chart]], sentence: str) -> Down:
    """Return the layers of several low charts below each other as a picture that says one sentence."""
    low = [alt.layer(*layers).properties(width=WIDTH, height=84) for layers in parts]
    return Down(vconcat=low, spacing=30).properties(**said(sentence))


def said(sentence: str, more: str = "") -> dict[str, Any]:
    """Return title and description of a chart that says a sentence; a title is never cut off."""
    title = alt.Title(textwrap.wrap(sentence, TITLE_CHARACTERS))
    if more:
        title.subtitle = textwrap.wrap(more, TITLE_CHARACTERS + 8)  # of a lighter font
    return {"title": title, "description": ". ".join(filter(None, [sentence, more]))}


def nothing(why: str) -> Picture:
    """Return the picture that has nothing to show, and says why."""
    words = chart().mark_text(text=why, fontSize=13).encode(x=alt.value(WIDTH / 2), y=alt.value(20))
    return Picture(layer=[words]).properties(width=WIDTH, height=40, description=why)


def finite(frame: pl.DataFrame) -> pl.DataFrame:
    """Return figures of six digits, with null for NaN and the infinities.

    Sums over a million rows differ in the last digits from time to time.
    """
    numbers = columns.float()
    six = numbers.round_sig_figs(6).fill_nan(0.0)  # Polars rounds 0.0 to six digits as NaN
    return frame.with_columns(pl.when(numbers.is_finite()).then(six))


def chart(frame: pl.DataFrame | None = None) -> alt.Chart:
    """Return a chart with the rows of a frame inside it: no data transformer, so no limit of rows."""
    rows: list[dict[str, Any]] = [{}] if frame is None else finite(frame).to_dicts()
    return alt.Chart(alt.InlineData(values=rows))


def highest(frame: pl.DataFrame, *names: str) -> float:
    """Return the largest figure in some columns; 0 where there is none."""
    most = frame.select(pl.max_horizontal(pl.col(names).max())).item() if frame.height else None
    return float(most or 0.0)


def thin(frame: pl.DataFrame, most: int) -> pl.DataFrame:
    """Return every n-th row, the last one among them, so that there are at most `most`."""
    every = max(1, -(-frame.height // most))
    return frame.reverse().gather_every(every).reverse()


def area(color: str) -> dict[str, Any]:
    """Return how the area below a line looks."""
    return {"color": color, "fillOpacity": 0.3, "line": {"color": color}}


def tips(**formats: str) -> list[alt.Tooltip]:
    """Return the lines of a tooltip: columns with their formats, empty for words."""
    return [
        alt.Tooltip(f"{name}:{'Q' if form else 'N'}", title=name.replace("_", " ").capitalize(), format=form)
        for name, form in formats.items()
    ]


def limit(
    label: str, *, x: float | None = None, y: float | None = None, far: bool = False
) -> list[alt.Chart]:
    """Return a dashed line with its label outside the frame, where nothing overprints it.

    Where the line lies `far` beyond the picture, the label has an arrow to it.
    """
    name, value = ("x", x) if y is None else ("y", y)
    place: dict[str, Any] = {"x": alt.value("width"), "y": alt.value(0)}
    if not far:
        place[name] = alt.datum(value)
    rule = chart().mark_rule(**DASHED, clip=True).encode(**{name: alt.datum(value)})
    look: dict[str, Any] = {"align": "right" if far else "center", "baseline": "bottom", "dy": -4}
    words = f"{label} \N{RIGHTWARDS ARROW}" if far else label
    if name == "y":
        look = {"align": "left", "baseline": "middle", "dx": 6}
        words = f"\N{UPWARDS ARROW} {label}" if far else label
    return [rule, chart().mark_text(text=words, lineBreak="\n", color=GREY, **look).encode(**place)]


def reach(largest: float, wish: float | None) -> tuple[float, bool]:
    """Return what an axis must show, and whether a wish is so far away that it would press the rest flat."""
    far = wish is not None and 0 < largest * FAR < wish
    return max(largest, 0.0 if far else wish or 0.0), far


def axis_to(top: float, **options: Any) -> dict[str, Any]:
    """Return the scale of an axis from zero to a little above the largest value, and its look."""
    return {"scale": alt.Scale(domain=[0, top * 1.05 or 1.0], nice=False), "axis": alt.Axis(**options)}


def log_axis(
    values: list[float], title: str, labels: str, *, wish: float | None = None, ticks: Sequence[float] = SUMS
) -> tuple[dict[str, Any], bool]:
    """Return a logarithmic axis round all values, and whether what is wished for lies too far away."""
    low, high = min(values), max(values)
    far = wish is not None and not low / FAR_LOG <= wish <= high * FAR_LOG
    if wish is not None and not far:
        low, high = min(low, wish), max(high, wish)
    low, high = low / 1.8, high * 1.6
    values = [tick for tick in ticks if low <= tick <= high]
    values = values[:: -(-len(values) // MOST_LABELS) or 1]
    axis = alt.Axis(values=values, labelExpr=labels, tickCount=len(values))  # else Vega drops some
    scale = alt.Scale(type="log", domain=[low, high], nice=False)
    return {"title": f"{title}, log scale", "scale": scale, "axis": axis}, far


def time_axis(
    field: str, until: float, title: str = "Time since the start", *, is_last: bool = True
) -> alt.X:
    """Return a horizontal axis of minutes, from zero; of charts below each other only the last has labels."""
    until = until or 1 / 60
    step = next((moment for moment in MOMENTS if until / moment <= MOST_TICKS), until / 4)
    axis = alt.Axis(values=[step * n for n in range(MOST_TICKS + 1) if step * n <= until], labelExpr=CLOCK)
    axis.labels = axis.ticks = is_last
    return alt.X(
        f"{field}:Q",
        title=title if is_last else None,
        scale=alt.Scale(domain=[0, until], nice=False),
        axis=axis,
    )
