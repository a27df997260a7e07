"""What the tests of charts share."""

import re

import vl_convert


def labels_of_what_fits(drawing):
    """Return the words of a picture, drawn by old and new Vega-Lite and no wider than the page."""
    for version in ("5.8", None):
        png = vl_convert.vegalite_to_png(drawing, vl_version=version)
        assert 300 < int.from_bytes(png[16:20], "big") <= 640, version
    drawn = vl_convert.vegalite_to_svg(drawing, vl_version="5.8")
    return re.findall(r"<text[^>]*>([^<]*)</text>", drawn)
