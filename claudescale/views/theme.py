"""How a chart shows itself: one theme, one bundle, in a notebook, on a page and in a terminal, offline.

The theme joins when a chart is shown, not when it is made, so that `Shown.chart` composes with ``|``, ``&``
and ``+`` like any other. The user's own Altair settings are neither read nor changed.
"""

from __future__ import annotations

import base64
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from claudescale.errors import printable

if TYPE_CHECKING:
    import altair as alt

GREY = "#888888"  # a mid tone: read on white and on black
# Labels and titles of axes get no colour here: the light or dark theme of the page gives it.
# fmt: off
THEME: dict[str, Any] = {
    "view": {"stroke": None},
    "axis": {
        "gridColor": GREY, "gridOpacity": 0.25, "domainColor": GREY, "tickColor": GREY, "labelPadding": 5,
        "labelFontSize": 11, "labelLimit": 190, "titleFontSize": 12, "titleFontWeight": "normal",
    },
    "axisX": {"grid": False, "titlePadding": 8, "labelFlush": False},
    "axisYQuantitative": {  # its title stands level above it, from its left edge
        "domain": False, "ticks": False, "tickCount": 4, "minExtent": 44,
        "titleAngle": 0, "titleAlign": "left", "titleBaseline": "bottom", "titleX": -44, "titleY": -9,
    },
    "text": {"color": GREY, "fontSize": 11},
    "title": {
        "anchor": "start", "frame": "bounds", "offset": 12, "limit": 630, "fontSize": 13, "fontWeight": 600,
    },
}
# fmt: on


@dataclass(frozen=True, eq=False, repr=False, slots=True, kw_only=True)
class Shown:
    """A chart that shows itself in a notebook, with no network, in light and in dark.

    To go on from it, change `chart` with Altair and wrap what comes out again:
    ``Shown(chart=shown.chart.properties(width=400), text=shown.text)``.

    Spends: nothing.

    Parameters
    ----------
    chart : altair.TopLevelMixin
        The chart, without a theme: free to be layered and concatenated.
    text : str
        One sentence that says what the picture says; shown where pictures cannot be.
    """

    chart: alt.TopLevelMixin
    text: str

    def __repr__(self) -> str:
        return printable(self.text)

    def _repr_mimebundle_(self, include: object = None, exclude: object = None) -> dict[str, Any]:
        del include, exclude  # IPython itself leaves out what was not asked for
        return bundle(self.chart, self.text)


def specification(chart: alt.TopLevelMixin, text: str) -> dict[str, Any]:
    """Return the Vega-Lite specification of `chart` in our theme, described by `text`.

    Spends: nothing.
    """
    datasets: dict[str, Any] = {}
    # As if it were part of a larger chart: so Altair leaves out the user's theme and data transformer.
    inner = chart.to_dict(context={"datasets": datasets, "top_level": False, "pre_transform": False})
    return {
        "$schema": "https://vega.github.io/schema/vega-lite/v5.6.1.json",  # JupyterLab's; warns of others
        "description": text,
        "background": "transparent",
        **inner,
        "config": {**THEME, **inner.get("config", {})},
        "datasets": datasets,
    }


def bundle(chart: alt.TopLevelMixin, text: str) -> dict[str, Any]:
    """Return what a notebook shows and saves of `chart`, by MIME type: Vega-Lite 5, a PNG and `text`.

    JupyterLab and VS Code draw the first and follow the dark theme; GitHub and exported pages show the
    picture, on white because it may stand on any page; a terminal shows the sentence. For a display
    handle: ``handle.update(bundle(...), raw=True)``.

    Spends: nothing.
    """
    import vl_convert  # noqa: PLC0415  # large, and needed only where a chart is shown

    drawing = specification(chart, text)
    png = vl_convert.vegalite_to_png({**drawing, "background": "white"}, scale=1)
    return {
        "application/vnd.vegalite.v5+json": drawing,
        "image/png": base64.b64encode(png).decode(),
        "text/plain": text,
    }
