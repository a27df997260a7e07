"""What the tests of charts share."""

import json
import re

import vl_convert

UNREADABLE = re.compile(r"\de[+-]?\d|NaN|null|undefined|\N{HORIZONTAL ELLIPSIS}")
"""A number as computers write it, what is no number, or a label that is cut off."""


def labels_of_what_fits(drawing):
    """Return the words of a picture, drawn by Vega-Lite as old as JupyterLab's and no wider than the page."""
    drawn = vl_convert.vegalite_to_svg(drawing, vl_version="5.8")
    assert 300 < float(re.search(r'width="([\d.]+)"', drawn)[1]) <= 640
    return re.findall(r"<(?:text|tspan)[^>]*>([^<]+)<", drawn)


def rows_of(chart, *names):
    """Return the rows inside a chart that have all these columns."""
    datasets = chart.to_dict()["datasets"].values()
    return [row for rows in datasets for row in rows if set(names) <= set(row)]


def words_of(chart):
    """Return the words that a chart writes as they are: the labels of its lines."""
    return re.findall(r'"text": "([^"]*)"', json.dumps(chart.to_dict(), ensure_ascii=False))


def check_drawn_whole(chart):
    """Fail where a picture is cut off, has a label nobody can read, or is black, which dark pages hide."""
    drawing = chart.to_dict()
    for label in labels_of_what_fits(drawing | {"background": "white"}):
        assert not UNREADABLE.search(label), label
    assert "black" not in json.dumps(drawing)
