"""Our charts are Altair charts: they compose, carry the theme, and show themselves offline, anywhere."""

from __future__ import annotations

import base64
import importlib.util
import json
import struct

import altair as alt
import polars as pl
import pytest

from claudescale import views
from claudescale.views import theme
from claudescale.views.theme import Across, Down, Picture, chart, picture

VEGA_LITE = "application/vnd.vegalite.v5+json"


def drawn(**properties):
    """Return a small picture."""
    return picture(
        [chart(pl.DataFrame({"x": [1.0]})).mark_point().encode(x="x:Q")], "One point", **properties
    )


@pytest.mark.slow
def test_the_bundle_is_right_for_jupyter_for_github_and_for_a_terminal():
    """JupyterLab's Vega-Lite without a background, a PNG on white, and the sentence; no page, no network."""
    bundle = drawn()._repr_mimebundle_()
    assert set(bundle) == {VEGA_LITE, "image/png", "text/plain"}
    assert bundle[VEGA_LITE]["$schema"].endswith("v5.6.1.json")
    assert bundle[VEGA_LITE]["background"] == "transparent"
    png = base64.b64decode(bundle["image/png"])
    assert struct.unpack(">II", png[16:24]) > (300, 100)
    assert (bundle["text/plain"], repr(drawn())) == ("One point", "One point")


def test_without_the_png_maker_a_chart_still_shows(monkeypatch):
    """vl-convert is an extra: a browser draws the chart without it, and nothing complains."""
    there = importlib.util.find_spec
    monkeypatch.setattr(views, "find_spec", lambda name: None if name == "vl_convert" else there(name))
    assert set(drawn()._repr_mimebundle_()) == {VEGA_LITE, "text/plain"}


def test_charts_compose_and_keep_the_theme(tmp_path):
    """What Altair makes of a picture is a picture again: `.properties`, `.interactive`, `|`, `&`, `+`."""
    one, wide = drawn(), drawn().properties(width=300)
    kinds = {Picture: [wide, one + drawn(), one.interactive()], Across: [one | wide], Down: [one & wide]}
    for kind, made in kinds.items():
        for each in made:
            assert type(each) is kind
            assert each.to_dict()["config"]["axisX"]["grid"] is False
    assert wide.to_dict()["width"] == 300
    assert (one | wide).to_dict()["hconcat"][0]["description"] == "One point"
    assert isinstance(one, alt.LayerChart)
    wide.save(tmp_path / "chart.json")
    assert json.loads((tmp_path / "chart.json").read_text())["config"]["view"] == {"stroke": None}
    own = one.configure_axisX(grid=True).to_dict()["config"]
    assert own["axisX"]["grid"] is True


def test_the_users_altair_settings_are_neither_read_nor_changed():
    """A theme, a row limit or a transformer of the user's own leaves our pictures, and stays."""
    before = json.dumps(drawn().to_dict())
    with alt.theme.enable("dark"), alt.data_transformers.enable("default", max_rows=1):
        assert json.dumps(drawn().to_dict()) == before
        assert alt.theme.active == "dark"


def test_a_title_is_never_cut_off():
    """A long sentence is wrapped, and no limit of width is set on it."""
    sentence = "From a long and winding road to another. " * 6
    title = picture([chart().mark_point()], sentence, more=sentence).to_dict()["title"]
    assert " ".join(title["text"]) == " ".join(title["subtitle"]) == sentence.strip()
    assert max(map(len, title["text"])) <= theme.TITLE_CHARACTERS
    assert "limit" not in views.THEME["title"]
