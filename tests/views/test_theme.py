"""Our charts are Altair charts: they compose, carry the theme, and display offline, anywhere."""

import base64
import json
import struct

import altair as alt
import polars as pl
import pytest

from claudescale import views
from claudescale.views.theme import Across, Down, Picture, chart, picture

VEGA_LITE = "application/vnd.vegalite.v5+json"


def drawn():
    """Return a small picture."""
    return picture([chart(pl.DataFrame({"x": [1.0]})).mark_point().encode(x="x:Q")], "One point")


@pytest.mark.slow
def test_the_bundle_is_right_for_jupyter_for_github_and_for_a_terminal(monkeypatch):
    """It has JupyterLab's Vega-Lite without a background, a PNG on white, the sentence, and no HTML page.

    vl-convert is an extra: without it a browser draws the chart, and there is no warning.
    """
    bundle = drawn()._repr_mimebundle_()
    assert set(bundle) == {VEGA_LITE, "image/png", "text/plain"}
    assert bundle[VEGA_LITE]["$schema"].endswith("v5.6.1.json")
    assert bundle[VEGA_LITE]["background"] == "transparent"
    width, height = struct.unpack(">II", base64.b64decode(bundle["image/png"])[16:24])
    assert (width > 300, height > 100) == (True, True)
    assert (bundle["text/plain"], repr(drawn())) == ("One point", "One point")
    monkeypatch.setattr(views, "find_spec", lambda _: None)
    assert set(drawn()._repr_mimebundle_()) == {VEGA_LITE, "text/plain"}


def test_charts_compose_and_keep_the_theme(tmp_path):
    """Altair turns a picture into a picture again: `.properties`, `.interactive`, `|`, `&`, `+`."""
    one, wide = drawn(), drawn().properties(width=300)
    pictures = [wide, one + drawn(), one.interactive(), one | wide, one & wide]
    assert [type(made) for made in pictures] == [Picture, Picture, Picture, Across, Down]
    assert {made.to_dict()["config"]["axisX"]["grid"] for made in pictures} == {False}
    assert (one | wide).to_dict()["hconcat"][0]["description"] == "One point"
    assert isinstance(one, alt.LayerChart)
    wide.save(tmp_path / "chart.json")
    assert json.loads((tmp_path / "chart.json").read_text())["width"] == 300
    assert one.configure_axisX(grid=True).to_dict()["config"]["axisX"]["grid"] is True


def test_the_users_altair_settings_are_neither_read_nor_changed():
    """The user's theme, row limit or transformer never affects our pictures, and stays in force."""
    before = json.dumps(drawn().to_dict())
    with alt.theme.enable("dark"), alt.data_transformers.enable("default", max_rows=1):
        assert json.dumps(drawn().to_dict()) == before
        assert alt.theme.active == "dark"
