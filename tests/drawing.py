"""Helpers shared by the tests of charts, cards and widgets."""

import json
import re
import types

import vl_convert
from running import WIDE_LIMITS, a_plan, reviews

from claudescale.clock import Clock
from claudescale.running.meter import Meter
from claudescale.running.runs import Run

UNREADABLE = re.compile(r"\de[+-]?\d|NaN|null|undefined|\N{HORIZONTAL ELLIPSIS}")
"""A number as computers write it, what is no number, or a label that is cut off."""


def check_drawn_whole(drawing):
    """Fail if a picture overflows the page, has an unreadable label, or uses black, invisible on a dark page.

    Vega-Lite draws it in the same version as JupyterLab's.
    """
    drawn = vl_convert.vegalite_to_svg(drawing | {"background": "white"}, vl_version="5.8")
    assert 300 < float(re.search(r'width="([\d.]+)"', drawn)[1]) <= 640
    labels = re.findall(r"<(?:text|tspan)[^>]*>([^<]+)<", drawn)
    assert [label for label in labels if UNREADABLE.search(label)] == []
    assert "black" not in json.dumps(drawing)


def rows_of(chart, *names):
    """Return the rows inside a chart that have all these columns."""
    datasets = chart.to_dict()["datasets"].values()
    return [row for rows in datasets for row in rows if set(names) <= set(row)]


def words_of(chart):
    """Return the literal texts of a chart: the labels of its lines."""
    return re.findall(r'"text": "([^"]*)"', json.dumps(chart.to_dict(), ensure_ascii=False))


def under_way(*, state="running", minutes=0.0, in_flight=None, job=(), **counts):
    """Return a run in progress with these counts and job fields; nothing is sent."""
    run, meter = Run.__new__(Run), Meter()
    vars(meter).update(counts)
    knows = dict.fromkeys(["estimate", "expected", "ends", "pacer"]) | {"simulated": False, "asked": ""}
    knows |= {"clock": Clock(), "limits": WIDE_LIMITS, "meter": meter, "minutes": minutes}
    if in_flight:
        knows["pacer"] = types.SimpleNamespace(in_flight=in_flight[0], window=in_flight[1])
    run.plan, run.path, run.state, run.stopped_by = a_plan(reviews(9)), None, state, None
    run.job = types.SimpleNamespace(**knows | dict(job))
    return run
