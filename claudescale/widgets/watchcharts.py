"""The pictures of a watched run: one that is sent once and then only told new numbers, and one that stays.

The live picture is an Altair `JupyterChart` whose only data are two of its parameters: ``state``, which the
kernel sets, and ``heard``, the number of the state that the page has drawn, which comes back by itself.
"""
# ruff: noqa: PLC0415  # altair takes 2 s to import, and many runs are never drawn

from __future__ import annotations

import threading
from functools import lru_cache
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from claudescale.api.limits import BUCKETS

if TYPE_CHECKING:
    import altair as alt
    import polars as pl

    from claudescale.api.limits import Limits
    from claudescale.views.theme import Down, Picture

PANELS = dict(zip(BUCKETS, (84, 64, 64), strict=True))
"""What is drawn, and how many pixels high."""
_SPACING = 30
_EMPTY = {"number": 0, "until": 1.0, "unit": "Seconds since the start", "starts": [0.0]}
_NONE = {"rates": [], "top": 1.0, "limit": 0.0, "far": True, "words": ""}
_SLICES = 280
_LABEL = "datum.value >= 20000 ? format(datum.value, '.3~s') : format(datum.value, ',~f')"
_TEXT = "Requests, input tokens and output tokens per minute against their limits, while the run goes on"
_preparing = threading.Lock()


@lru_cache(maxsize=1)
def _offline() -> type[alt.JupyterChart]:
    """Return a JupyterChart that brings its scripts along; the user's own class stays as it is."""
    import altair as alt

    class OfflineChart(alt.JupyterChart):
        """A JupyterChart that asks no other machine for anything."""

    if find_spec("vl_convert"):  # without it the scripts come from the network
        OfflineChart.enable_offline()
    return OfflineChart


def prepare() -> None:
    """Do, once in a process, what would stop all other threads for seconds while calls are in flight.

    Spends: nothing.
    """
    with _preparing:  # `lru_cache` alone would let two threads do it at the same time
        _prepared()


@lru_cache(maxsize=1)
def _prepared() -> None:
    """Import, bundle scripts, draw a first PNG: vl-convert keeps the interpreter's lock all the while."""
    import altair as alt
    import ipywidgets  # noqa: F401

    from claudescale.views import theme

    _offline()
    _template()
    theme.Picture(layer=[alt.Chart(alt.sequence(2)).mark_point()])._repr_mimebundle_()


def live() -> alt.JupyterChart:
    """Return the live picture, empty. Set ``params.state`` to what `watchframe.drawn` gives.

    Spends: nothing.
    """
    prepare()
    return _offline()(_template(), embed_options={"actions": False})


@lru_cache(maxsize=1)
def _template() -> alt.VConcatChart:
    """Return the chart that every live picture shows. It is checked once: Altair takes half a second."""
    import altair as alt

    from claudescale.views import theme

    panels = [_panel(name, height) for name, height in PANELS.items()]
    made = theme.Down(vconcat=panels, spacing=_SPACING, description=_TEXT).to_dict()
    # The page may be light or dark and the kernel does not know: a mid tone is read on both.
    readable = {"labelColor": theme.GREY, "titleColor": theme.GREY}
    made["config"] = {**made["config"], "axis": {**made["config"]["axis"], **readable}}
    made["$schema"] = "https://vega.github.io/schema/vega-lite/v6.json"  # that of the scripts it brings along
    state = _EMPTY | dict.fromkeys(PANELS, _NONE)
    made["params"] = [{"name": "state", "value": state}, {"name": "heard", "expr": "state.number"}]

    class Template(alt.VConcatChart):
        """A chart that is a finished specification."""

        def to_dict(self, *_: object, **__: object) -> dict[str, Any]:
            return made

    template = Template(vconcat=[])
    template.params = [alt.VariableParameter(**each) for each in made["params"]]
    return template


def _panel(name: str, height: int) -> alt.LayerChart | alt.FacetChart:
    """Return one rate over time in steps, with its limit; all its numbers come from ``state``."""
    import altair as alt

    from claudescale.views import theme
    from claudescale.views.run_charts import COLORS
    from claudescale.views.theme import GREY, WIDTH

    color = COLORS[name]
    own = f"state.{name}"
    noun = name.replace("_", " ")
    last = name == BUCKETS[-1]
    steps = alt.Chart(alt.sequence(0, _SLICES, as_="n")).transform_calculate(
        start="state.starts[datum.n]",
        end="state.starts[datum.n + 1]",
        rate=f"{own}.rates[min(datum.n, length({own}.rates) - 1)]",  # a step ends where the next begins
        known=f"{own}.rates[datum.n]",
    )
    scale = alt.Scale(domainMin=0, domainMax=alt.ExprRef("state.until"), nice=False)
    axis = alt.Axis(tickCount=6, labels=last, ticks=last)
    x = alt.X("start:Q", title=None, scale=scale, axis=axis)
    y = alt.Y(
        "rate:Q",
        title=f"{noun.capitalize()} per minute",
        scale=alt.Scale(domainMin=0, domainMax=alt.ExprRef(f"{own}.top"), nice=False),
        axis=alt.Axis(labelExpr=_LABEL, tickCount=3),
    )
    line = {"color": color, "strokeWidth": 1.5}
    area = steps.transform_filter("isValid(datum.start) && isValid(datum.rate)").mark_area(
        interpolate="step-after", color=color, fillOpacity=0.3, line=line
    )
    tips = theme.tips(start=",.2f", known=",.0f")
    hover = steps.transform_filter("isValid(datum.known)").mark_rect(opacity=0)
    one = theme.chart().transform_calculate(limit=f"{own}.limit", words=f"{own}.words")
    rule = one.transform_filter(f"!{own}.far").mark_rule(strokeDash=[5, 4], strokeWidth=1.5, color=GREY)
    words = one.mark_text(align="left", baseline="bottom", dy=-3, color=GREY)
    layers: list[alt.Chart] = [
        area.encode(x, y),
        rule.encode(y="limit:Q"),
        words.encode(x=alt.value(4), y=alt.Y("limit:Q"), text="words:N"),
        hover.encode(x="start:Q", x2="end:Q", tooltip=tips),
    ]
    if last:
        unit = theme.chart().transform_calculate(unit="state.unit").mark_text(color=GREY, fontSize=12)
        layers.append(unit.encode(x=alt.value(WIDTH / 2), y=alt.value(height + 32), text="unit:N"))
    return alt.layer(*layers).properties(width=WIDTH, height=height)


def still(rates: pl.DataFrame, limits: Limits) -> Down | Picture:
    """Return the picture that stays: the three rates over the whole run, each with its limit.

    Spends: nothing.

    Parameters
    ----------
    rates : pl.DataFrame
        Of `claudescale.running.rates.THROUGHPUT`.
    limits : Limits
        As far as the run could use them.
    """
    from claudescale.views import run_charts

    return run_charts.tokens(rates, limits=dict(zip(BUCKETS, limits.per_minute, strict=True)))
