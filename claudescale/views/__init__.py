"""Frames into pictures and cards. Here is the look of all pictures, without Altair: its import is slow."""

from __future__ import annotations

import base64
from importlib.util import find_spec
from typing import Any

# Okabe and Ito's palette: told apart by colour-blind readers, on white and on black.
BLUE, ORANGE, GREEN, VERMILION = "#0072B2", "#E69F00", "#009E73", "#D55E00"
PURPLE, SKY = "#CC79A7", "#56B4E9"
PALETTE = [BLUE, ORANGE, GREEN, VERMILION, PURPLE, SKY]
BUCKETS = {"requests": BLUE, "input_tokens": ORANGE, "output_tokens": GREEN}
GREY = "#888888"  # a mid tone: read on white and on black
WIDTH, HEIGHT = 500, 220
DASHED: dict[str, Any] = {"strokeDash": [5, 4], "strokeWidth": 1.5, "color": GREY}
NUMBERS = "format(datum.value, datum.value < 1e4 ? ',~f' : '.3~s')"
CLOCK = (  # of minutes: "20 s", "1 min 20 s", "2 min", "1 h 30 min"
    "datum.value < 0.9999 ? format(datum.value * 60, '.3~f') + ' s' : datum.value < 59.99 ? "
    "floor(datum.value + 1e-6) + ' min' + (datum.value % 1 > 0.01 && datum.value % 1 < 0.99 ? "
    "format(datum.value % 1 * 60, ' .0f') + ' s' : '') : format(floor(datum.value / 60 + 1e-6), ',d') + ' h'"
    " + (datum.value % 60 > 0.5 && datum.value % 60 < 59.5 ? format(datum.value % 60, ' .0f') + ' min' : '')"
)
# Labels and titles of axes get no colour here: the light or dark theme of the page gives it.
# fmt: off
THEME: dict[str, Any] = {
    "view": {"stroke": None},
    "range": {"category": PALETTE},
    "axis": {
        "gridColor": GREY, "gridOpacity": 0.25, "domainColor": GREY, "tickColor": GREY, "labelPadding": 5,
        "labelFontSize": 11, "labelLimit": 190, "titleFontSize": 12, "titleFontWeight": "normal",
    },
    "axisX": {"grid": False, "titlePadding": 8, "labelFlush": False, "tickCount": 6, "labelSeparation": 8},
    "axisYQuantitative": {  # its title stands level above it, from its left edge
        "domain": False, "ticks": False, "tickCount": 4, "minExtent": 44,
        "titleAngle": 0, "titleAlign": "left", "titleBaseline": "bottom", "titleX": -44, "titleY": -9,
    },
    "axisYBand": {"domain": False, "ticks": False},
    "legend": {"orient": "bottom", "columns": 6, "title": None, "labelLimit": 0, "symbolBaseFillColor": GREY,
               "symbolOpacity": 1},
    "text": {"color": GREY, "fontSize": 11},
    "title": {
        "anchor": "start", "frame": "bounds", "offset": 12, "fontSize": 13, "fontWeight": 600,
        "subtitleFontSize": 12, "subtitlePadding": 4,
    },
}
# fmt: on


def themed(specification: dict[str, Any], **more: Any) -> dict[str, Any]:
    """Return the Vega-Lite specification of a whole chart with our theme."""
    return {
        "$schema": "https://vega.github.io/schema/vega-lite/v5.6.1.json",  # JupyterLab's; warns of others
        "background": "transparent",
        **specification,
        "config": {**THEME, **specification.get("config", {})},
        **more,
    }


def bundle(specification: dict[str, Any], *, png: bool = True) -> dict[str, Any]:
    """Return what a notebook shows and saves of a chart, by MIME type.

    JupyterLab and VS Code draw the first and follow the dark theme. GitHub and exported pages show the PNG,
    on white as it may stand on any page; without vl-convert there is none. A terminal shows the sentence.
    """
    shown = {
        "application/vnd.vegalite.v5+json": specification,
        "text/plain": specification.get("description", ""),
    }
    if png and find_spec("vl_convert"):
        import vl_convert  # noqa: PLC0415  # large, and an extra

        image = vl_convert.vegalite_to_png({**specification, "background": "white"}, scale=1)
        shown["image/png"] = base64.b64encode(image).decode()
    return shown
