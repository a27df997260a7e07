"""The basis of all pictures: Altair charts that carry our theme and display offline, in light and in dark.

`Picture`, `Across` and `Down` are Altair's own charts: ``.properties``, ``.save``, ``|``, ``&`` and ``+``
work and keep the theme. The user's Altair settings are neither read nor changed. Altair takes 2 s to import,
so this module and those with charts are imported only to draw something.
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

TITLE_CHARACTERS = 84  # in the title's font, as wide as a chart with its axis and the labels beside it
DOLLARS = (  # the labels of an axis: whole dollars, cents, or smaller amounts
    "format(datum.value, abs(datum.value - round(datum.value)) < 1e-6 ? '$,.0f' : "
    "abs(100 * datum.value - round(100 * datum.value)) < 1e-6 ? '$,.2f' : '$,.7~f')"
)
MOMENTS = [n / 60 for n in (0.1, 0.5, 1, 2, 5, 10, 20, 30)] + [1, 2, 5, 10, 20, 30]
MOMENTS += [60 * n for n in (1, 2, 4, 6, 12, 24, 48, 120, 240, 720)]
SUMS = [n * 10.0**power for power in range(-7, 8) for n in (1, 2, 5)]
MOST_TICKS, MOST_LABELS = 6, 8
FAR, FAR_LOG = 5, 12  # a target that many times above the largest value is outside the picture
SIGN = "\N{NO-BREAK SPACE}(\N{BLACK DOWN-POINTING TRIANGLE})"  # marks failed calls
FAILED: dict[str, Any] = {"shape": "triangle-down", "filled": True, "color": VERMILION, "opacity": 1}


class Themed:
    """Makes an Altair chart carry our theme, display offline, and print its sentence in a terminal."""

    def to_dict(self, validate: bool = True, *, context: Any = None, **options: Any) -> dict[str, Any]:  # noqa: FBT001, FBT002
        """Return the Vega-Lite specification. Spends: nothing."""
        made: Any = super()
        if context and context.get("top_level") is False:  # a part of a larger chart
            return made.to_dict(validate, context=context, **options)  # type: ignore[no-any-return]
        # Rendered as a part of a chart, so that Altair omits the user's theme and data transformer.
        datasets: dict[str, Any] = {}
        part = {"top_level": False, "datasets": datasets, "pre_transform": False}
        return themed(made.to_dict(validate, context=part, **options), datasets=datasets)

    def _repr_mimebundle_(self, include: object = None, exclude: object = None) -> dict[str, Any]:
        del include, exclude  # IPython itself drops unrequested types
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
    """Return layers as a picture titled with a sentence and, if given, a second one below it."""
    size = {"width": WIDTH, "height": HEIGHT}
    return Picture(layer=[*layers]).properties(**size | said(sentence, more) | properties)


def panels(parts: Sequence[Sequence[alt.Chart]], sentence: str) -> Down:
    """Return several low charts, each of some layers, stacked as a picture titled with a sentence."""
    low = [alt.layer(*layers).properties(width=WIDTH, height=84) for layers in parts]
    return Down(vconcat=low, spacing=30).properties(**said(sentence))


def said(sentence: str, more: str = "") -> dict[str, Any]:
    """Return title and description of a chart with this sentence; a title is wrapped, never cut off."""
    title = alt.Title(textwrap.wrap(sentence, TITLE_CHARACTERS))
    if more:
        title.subtitle = textwrap.wrap(more, TITLE_CHARACTERS + 8)  # its font is lighter
    return {"title": title, "description": ". ".join(filter(None, [sentence, more]))}


def nothing(why: str) -> Picture:
    """Return an empty picture that says why it is empty."""
    words = chart().mark_text(text=why, fontSize=13).encode(x=alt.value(WIDTH / 2), y=alt.value(20))
    return Picture(layer=[words]).properties(width=WIDTH, height=40, description=why)


def finite(frame: pl.DataFrame) -> pl.DataFrame:
    """Return figures rounded to six digits, with null for NaN and the infinities."""
    # Rounded, as sums over a million rows vary in their last digits from run to run.
    numbers = columns.float()
    six = numbers.round_sig_figs(6).fill_nan(0.0)  # Polars rounds 0.0 to six digits as NaN
    return frame.with_columns(pl.when(numbers.is_finite()).then(six))


def chart(frame: pl.DataFrame | None = None) -> alt.Chart:
    """Return a chart with a frame's rows inlined, which avoids data transformers and their row limit."""
    rows: list[dict[str, Any]] = [{}] if frame is None else finite(frame).to_dicts()
    return alt.Chart(alt.InlineData(values=rows))


def highest(frame: pl.DataFrame, *names: str) -> float:
    """Return the largest figure in some columns, or 0 without one."""
    most = frame.select(pl.max_horizontal(pl.col(names).max())).item() if frame.height else None
    return float(most or 0.0)


def thin(frame: pl.DataFrame, most: int) -> pl.DataFrame:
    """Return every n-th row including the last, at most `most` in total."""
    every = max(1, -(-frame.height // most))
    return frame.reverse().gather_every(every).reverse()


def area(color: str) -> dict[str, Any]:
    """Return the style of the area below a line."""
    return {"color": color, "fillOpacity": 0.3, "line": {"color": color}}


def tips(**formats: str) -> list[alt.Tooltip]:
    """Return the lines of a tooltip: columns with their formats, empty for text."""
    return [
        alt.Tooltip(f"{name}:{'Q' if form else 'N'}", title=name.replace("_", " ").capitalize(), format=form)
        for name, form in formats.items()
    ]


def limit(
    label: str, *, x: float | None = None, y: float | None = None, far: bool = False
) -> list[alt.Chart]:
    """Return a dashed line with its label outside the frame, or a label with an arrow if it is `far` away."""
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
    """Return the largest value an axis must show, and whether a target is too far away to be shown."""
    far = wish is not None and 0 < largest * FAR < wish
    return max(largest, 0.0 if far else wish or 0.0), far


def axis_to(top: float, **options: Any) -> dict[str, Any]:
    """Return the scale of an axis from zero to slightly above the largest value, and its style."""
    return {"scale": alt.Scale(domain=[0, top * 1.05 or 1.0], nice=False), "axis": alt.Axis(**options)}


def log_axis(
    values: list[float], title: str, labels: str, *, wish: float | None = None, ticks: Sequence[float] = SUMS
) -> tuple[dict[str, Any], bool]:
    """Return a logarithmic axis around all values, and whether a target is too far away to be shown."""
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
    """Return a horizontal axis of minutes from zero; in stacked charts only the last one has labels."""
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
