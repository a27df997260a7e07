"""Pictures and cards of frames. This file holds the look of all pictures and never imports slow Altair."""

from __future__ import annotations

import base64
from importlib.util import find_spec
from typing import Any

# Okabe and Ito's palette: color-blind readers can tell the colors apart, on white and on black.
BLUE, ORANGE, GREEN, VERMILION = "#0072B2", "#E69F00", "#009E73", "#D55E00"
PURPLE, SKY = "#CC79A7", "#56B4E9"
PALETTE = [BLUE, ORANGE, GREEN, VERMILION, PURPLE, SKY]
BUCKETS = {"requests": BLUE, "input_tokens": ORANGE, "output_tokens": GREEN}
GREY = "#888888"  # a mid tone: readable on white and on black
WIDTH, HEIGHT = 500, 220
DASHED: dict[str, Any] = {"strokeDash": [5, 4], "strokeWidth": 1.5, "color": GREY}
NUMBERS = "format(datum.value, datum.value < 1e4 ? ',~f' : '.3~s')"
CLOCK = (  # formats minutes: "20 s", "1 min 20 s", "2 min", "1 h 30 min"
    "datum.value < 0.9999 ? format(datum.value * 60, '.3~f') + ' s' : datum.value < 59.99 ? "
    "floor(datum.value + 1e-6) + ' min' + (datum.value % 1 > 0.01 && datum.value % 1 < 0.99 ? "
    "format(datum.value % 1 * 60, ' .0f') + ' s' : '') : format(floor(datum.value / 60 + 1e-6), ',d') + ' h'"
    " + (datum.value % 60 > 0.5 && datum.value % 60 < 59.5 ? format(datum.value % 60, ' .0f') + ' min' : '')"
)
# Labels and titles of axes get no color here: it comes from the light or dark theme of the page.
# fmt: off
THEME: dict[str, Any] = {
    "view": {"stroke": None},
    "range": {"category": PALETTE},
    "axis": {
        "gridColor": GREY, "gridOpacity": 0.25, "domainColor": GREY, "tickColor": GREY, "labelPadding": 5,
        "labelFontSize": 11, "labelLimit": 190, "titleFontSize": 12, "titleFontWeight": "normal",
    },
    "axisX": {"grid": False, "titlePadding": 8, "labelFlush": False, "tickCount": 6, "labelSeparation": 8},
    "axisYQuantitative": {  # its title is horizontal above it, from its left edge
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
    """Return the Vega-Lite specification of a complete chart with our theme."""
    return {
        "$schema": "https://vega.github.io/schema/vega-lite/v5.6.1.json",  # JupyterLab warns of others
        "background": "transparent",
        **specification,
        "config": {**THEME, **specification.get("config", {})},
        **more,
    }


def bundle(specification: dict[str, Any], *, png: bool = True) -> dict[str, Any]:
    """Return the forms of a chart that a notebook shows and saves, by MIME type."""
    # JupyterLab and VS Code draw the first one and follow the dark theme. GitHub and exported pages show the
    # PNG, white since the page may have any color. A terminal shows the sentence.
    shown = {
        "application/vnd.vegalite.v5+json": specification,
        "text/plain": specification.get("description", ""),
    }
    if png and find_spec("vl_convert"):
        import vl_convert  # noqa: PLC0415  # large, and an extra

        image = vl_convert.vegalite_to_png({**specification, "background": "white"}, scale=1)
        shown["image/png"] = base64.b64encode(image).decode()
    return shown
