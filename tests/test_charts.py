"""The charts: what they say is true, and they show themselves anywhere, offline, without surprises."""

from __future__ import annotations

import base64
import json
import math
import random
import re
import struct
import subprocess
import sys
import zlib
from datetime import UTC, datetime, timedelta

import altair as alt
import polars as pl
import pytest
import vl_convert
from hypothesis import given, settings
from hypothesis import strategies as st

from claudescale.views import marks, run_charts

START = datetime(2026, 10, 8, 12, tzinfo=UTC)
RATES = ["requests_per_minute", "input_tokens_per_minute", "output_tokens_per_minute"]


def slices(count, slice_minutes=0.2, requests=1000.0):
    chance = random.Random(1)
    rows = []
    for number in range(count):
        rate = requests * min(1.0, (number + 1) / 5) * chance.uniform(0.9, 1.0)
        rows.append((number * slice_minutes, slice_minutes, rate, 350 * rate, 80 * rate, number % 7))
    schema = dict.fromkeys(["minute", "slice_minutes", *RATES], pl.Float64) | {"refused": pl.Int64}
    return pl.DataFrame(rows, schema=schema, orient="row")


def attempts(count, failed=0.02, slowest=1.0):
    chance = random.Random(2)
    rows = []
    for number in range(count):
        error = "overloaded_error" if chance.random() < failed else None
        seconds = 2 * math.exp(chance.gauss(0, 0.4)) * (slowest if number == count - 1 else 1)
        rows.append((START + timedelta(seconds=number / 20), seconds, error))
    schema = {"sent_at": pl.Datetime("us", "UTC"), "seconds": pl.Float64, "error": pl.String}
    return pl.DataFrame(rows, schema=schema, orient="row")


def spending(count, paid=4.2, otherwise=6.3):
    part = [number / max(1, count - 1) for number in range(count)]
    columns = {"minute": [30 * each for each in part], "dollars": [paid * each for each in part]}
    columns["counterfactual_dollars"] = [None if otherwise is None else otherwise * each for each in part]
    return pl.DataFrame(columns, schema=dict.fromkeys(columns, pl.Float64))


def counts(**rows):
    states = [state.replace("_", " ") for state in rows]
    return pl.DataFrame({"state": states, "rows": list(rows.values())}, schema=["state", "rows"]).cast(
        {"state": pl.String, "rows": pl.Int64}
    )


def savings(**dollars):
    parts = [part.replace("_", " ") for part in dollars]
    return pl.DataFrame({"part": parts, "dollars": list(dollars.values())}).cast(
        {"part": pl.String, "dollars": pl.Float64}
    )


FULL = counts(answered=812, failed=12, unsent=3, reused_from_the_ledger=140, to_do=533)
LIMITS = {"input_tokens_per_minute": 400_000.0, "output_tokens_per_minute": 80_000.0}
EMPTY = {
    "throughput": lambda: run_charts.throughput(slices(0), requests_per_minute=1000),
    "tokens": lambda: run_charts.tokens(slices(0), **LIMITS),
    "latency": lambda: run_charts.latency(attempts(0)),
    "spending": lambda: run_charts.spending(spending(0)),
    "progress": lambda: run_charts.progress(counts()),
    "progress, no rows": lambda: run_charts.progress(counts(answered=0)),
    "savings": lambda: run_charts.savings(savings()),
}
DRAWN = {
    "throughput": lambda: run_charts.throughput(slices(60), requests_per_minute=1000),
    "throughput, no limit": lambda: run_charts.throughput(slices(60), requests_per_minute=None),
    "throughput, far below": lambda: run_charts.throughput(slices(60), requests_per_minute=50_000),
    "throughput, one": lambda: run_charts.throughput(slices(1), requests_per_minute=1000),
    "throughput, a day": lambda: run_charts.throughput(slices(86_400, 1 / 60), requests_per_minute=1000),
    "tokens": lambda: run_charts.tokens(slices(60), **LIMITS),
    "tokens, millions": lambda: run_charts.tokens(slices(60, requests=4e4), **LIMITS),
    "tokens, one": lambda: run_charts.tokens(slices(1), **LIMITS),
    "latency": lambda: run_charts.latency(attempts(1200)),
    "latency, one": lambda: run_charts.latency(attempts(1, failed=0)),
    "latency, all failed": lambda: run_charts.latency(attempts(5, failed=1)),
    "latency, many": lambda: run_charts.latency(attempts(30_000)),
    "latency, one very slow": lambda: run_charts.latency(attempts(300, slowest=3000)),
    "spending": lambda: run_charts.spending(
        spending(300), estimate_dollars=4.4, estimate_p10_dollars=4.0, estimate_p90_dollars=5.0
    ),
    "spending, one": lambda: run_charts.spending(spending(1)),
    "spending, thousands": lambda: run_charts.spending(spending(30, 12_345, 12_346), estimate_dollars=0.01),
    "spending, cents": lambda: run_charts.spending(spending(3, 0.0001, None)),
    "progress": lambda: run_charts.progress(FULL),
    "progress, million": lambda: run_charts.progress(FULL.with_columns(pl.col("rows") * 1000)),
    "progress, one": lambda: run_charts.progress(counts(answered=1)),
    "savings": lambda: run_charts.savings(
        savings(live_no_cache_no_deduplication=12.3, batch=6.15, cache=2.1, replies_cut_off=-0.25, paid=4.3)
    ),
    "savings, one": lambda: run_charts.savings(savings(paid=0)),
}


def specification(shown):
    return run_charts.specification(shown.chart, shown.text)


def rows_with(shown, *names):
    """Return the rows of the one dataset of a chart that has these columns."""
    datasets = specification(shown)["datasets"].values()
    (found,) = [rows for rows in datasets if rows and set(names) == set(rows[0])]
    return found


def pixels_wide(png):
    return struct.unpack(">I", png[16:20])[0]


@pytest.mark.parametrize("name", [*DRAWN, *(f"empty {name}" for name in EMPTY)])
def test_every_chart_is_drawn_by_old_and_new_vega_lite_and_fits_the_page(name):
    """No frame makes an error, by JupyterLab's Vega-Lite or by today's, and none is cut off at 640 pixels."""
    shown = EMPTY[name.removeprefix("empty ")]() if name.startswith("empty ") else DRAWN[name]()
    drawing = specification(shown)
    for version in ("5.8", None):
        png = vl_convert.vegalite_to_png(drawing, vl_version=version)
        assert 300 < pixels_wide(png) <= 640, version
    assert shown.text == repr(shown) == drawing["description"]
    assert "nan" not in shown.text
    assert "None" not in shown.text


@pytest.mark.parametrize("name", DRAWN)
def test_no_label_shows_how_computers_write_numbers(name):
    """No axis or label reads 2e+3, NaN, null or undefined."""
    drawn = vl_convert.vegalite_to_svg(specification(DRAWN[name]()), vl_version="5.8")
    labels = re.findall(r"<text[^>]*>([^<]*)</text>", drawn)
    assert labels
    assert [label for label in labels if re.search(r"\de[+-]?\d|NaN|null|undefined|None", label)] == []


@pytest.mark.parametrize("name", EMPTY)
def test_an_empty_frame_says_that_nothing_was_sent(name):
    """A run that has not begun shows axes and the words for it."""
    shown = EMPTY[name]()
    assert shown.text == "nothing sent"
    assert '"text": "nothing sent"' in json.dumps(specification(shown))


@pytest.mark.parametrize("name", DRAWN)
def test_a_chart_holds_at_most_2000_marks_and_no_text_that_dark_mode_hides(name):
    """Large frames are aggregated, and nothing is black: the page's theme colours what we do not."""
    drawing = specification(DRAWN[name]())
    points = [rows for rows in drawing["datasets"].values() if rows != [{}]]
    assert sum(map(len, points)) <= 2_000
    assert "black" not in json.dumps(drawing)
    assert "#000" not in json.dumps(drawing)
    assert not {"labelColor", "titleColor"} & set(drawing["config"]["axis"])


@pytest.mark.parametrize("name", DRAWN)
def test_the_same_rows_make_the_same_picture(name):
    """Two drawings of one frame are equal to the byte, so that committed notebooks do not change."""
    first, second = (json.dumps(specification(DRAWN[name]())) for _ in range(2))
    assert first == second


def test_the_order_of_rows_does_not_matter():
    """A frame collected from concurrent calls draws the same picture in any order."""
    for frame, draw in (
        (slices(60), lambda frame: run_charts.throughput(frame, requests_per_minute=1000)),
        (slices(600), lambda frame: run_charts.tokens(frame, **LIMITS)),
        (attempts(3000), run_charts.latency),
        (spending(500), run_charts.spending),
    ):
        shuffled = frame.sample(fraction=1, shuffle=True, seed=3)
        assert not shuffled.equals(frame)
        assert specification(draw(shuffled)) == specification(draw(frame))


def test_the_bundle_is_right_for_jupyter_for_github_and_for_a_terminal():
    """Vega-Lite 5 without a background, a PNG on white, and the sentence."""
    shown = DRAWN["throughput"]()
    found = shown._repr_mimebundle_()
    assert list(found) == ["application/vnd.vegalite.v5+json", "image/png", "text/plain"]
    drawing = found["application/vnd.vegalite.v5+json"]
    assert drawing["$schema"] == "https://vega.github.io/schema/vega-lite/v5.6.1.json"
    assert drawing["background"] == "transparent"
    json.dumps(drawing, allow_nan=False)
    assert found["text/plain"] == shown.text
    png = base64.b64decode(found["image/png"])
    at, pixels = 8, b""
    while at < len(png):
        (length,) = struct.unpack(">I", png[at : at + 4])
        pixels += png[at + 8 : at + 8 + length] if png[at + 4 : at + 8] == b"IDAT" else b""
        at += 12 + length
    # Whatever the PNG's filter, the very first pixel is stored as it is.
    assert zlib.decompress(pixels)[1:4] == b"\xff\xff\xff"


def test_the_users_altair_settings_are_neither_read_nor_changed():
    """A theme, a row limit or a transformer of the user's own leaves our pictures, and stays."""
    plain = specification(DRAWN["latency, many"]())
    with alt.theme.enable("dark"), alt.data_transformers.enable("vegafusion"):
        assert specification(DRAWN["latency, many"]()) == plain
        assert alt.theme.active == "dark"
        assert alt.data_transformers.active == "vegafusion"
    with alt.data_transformers.enable("default", max_rows=5):
        assert specification(DRAWN["latency, many"]()) == plain
        assert alt.data_transformers.options == {"max_rows": 5}


def test_charts_compose_and_can_be_shown_again():
    """What Altair makes of our charts is an Altair chart, and `Shown` shows that one too."""
    upper, lower = DRAWN["throughput"](), DRAWN["spending"]()
    both = run_charts.Shown(chart=upper.chart & lower.chart, text="both")
    assert len(specification(both)["vconcat"]) == 2
    wider = run_charts.Shown(chart=upper.chart.configure_axis(labelFontSize=20), text="large")
    assert specification(wider)["config"]["axis"]["labelFontSize"] == 20


def test_importing_charts_leaves_altair_for_later():
    """The import of the package stays quick: neither Altair nor the PNG maker is loaded by it."""
    code = "import sys, claudescale.views.run_charts\n"
    code += "sys.exit(bool({'altair', 'vl_convert'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_throughput_shows_the_limit_the_mean_and_the_refused():
    """The limit is a labelled line, the mean is over time, no refused call is lost in the joining."""
    frame = slices(6000, 1 / 60)
    shown = run_charts.throughput(frame, requests_per_minute=1000)
    assert "limit 1,000 requests/min" in json.dumps(specification(shown))
    refused = frame["refused"].sum()
    assert f"{refused:,} calls refused" in shown.text
    assert f"{frame['requests_per_minute'].mean():,.0f} requests a minute on average" in shown.text
    signs = rows_with(shown, "bin", "refused", "start")
    assert sum(row["refused"] for row in signs) == refused
    drawn = rows_with(shown, "bin", "start", "end", "refused", *RATES)
    area = sum((row["end"] - row["start"]) * row["requests_per_minute"] for row in drawn)
    assert area == pytest.approx(frame["requests_per_minute"].sum() / 60, rel=1e-4)


def test_a_pause_is_drawn_as_a_pause():
    """Between two slices that do not touch the rate is zero, not a line from one to the other."""
    frame = slices(60).filter((pl.col("minute") < 4) | (pl.col("minute") > 8))
    steps = rows_with(run_charts.throughput(frame, requests_per_minute=None), "start", "rate")
    falls = [step["start"] for step in steps if step["rate"] == 0]
    assert falls == pytest.approx([4.0, 12.0])


def test_a_limit_far_away_is_named_but_not_drawn():
    """Ten calls under a limit of 50,000 are still seen: the axis ends near the calls."""
    shown = DRAWN["throughput, far below"]()
    text = json.dumps(specification(shown), ensure_ascii=False)
    assert "↑ limit 50,000 requests/min" in text
    assert "strokeDash" not in text


def test_tokens_say_which_share_of_each_limit_was_used():
    """Each share is the mean rate over its own limit."""
    frame = slices(60)
    shown = run_charts.tokens(frame, **LIMITS)
    used = [
        frame[f"{kind}_per_minute"].mean() / LIMITS[f"{kind}_per_minute"]
        for kind in ("input_tokens", "output_tokens")
    ]
    assert [f"({share:.0%} of the limit)" in shown.text for share in used] == [True, True]
    assert used[0] != used[1]


def test_latency_is_of_all_answers_and_of_no_failure():
    """Median, 90th percentile and histogram count every answer, also those not drawn, and no failure."""
    frame = attempts(30_000)
    answered = frame.filter(pl.col("error").is_null())["seconds"]
    shown = run_charts.latency(frame)
    assert f"median {answered.quantile(0.5, 'linear'):.2f} s" in shown.text
    assert f"p90 {answered.quantile(0.9, 'linear'):.2f} s" in shown.text
    assert f"{30_000 - answered.len():,} calls failed" in shown.text
    bars = rows_with(shown, "low", "high", "none", "answers")
    assert sum(bar["answers"] for bar in bars) == answered.len()
    assert "one answer in 20 drawn" in json.dumps(specification(shown))


def test_a_slow_answer_makes_the_scale_logarithmic_not_the_others_invisible():
    """Where the slowest takes many times the median, the axis is logarithmic and still holds it."""
    assert '"log"' not in json.dumps(specification(DRAWN["latency"]()))
    shown = DRAWN["latency, one very slow"]()
    text = json.dumps(specification(shown))
    assert '"log"' in text
    bars = rows_with(shown, "low", "high", "none", "answers")
    assert bars[-1]["answers"] == 1
    assert bars[-1]["high"] > attempts(300, slowest=3000)["seconds"].max()


def test_ninety_percent_of_nine_answers_is_not_claimed():
    """Below ten answers the 90th percentile is not shown; the median is."""
    assert "p90" not in run_charts.latency(attempts(9, failed=0)).text
    assert "p90" in run_charts.latency(attempts(10, failed=0)).text
    assert "median" in run_charts.latency(attempts(1, failed=0)).text


def test_spending_names_paid_estimate_and_counterfactual():
    """All three figures are on the picture and in its sentence; the last total is never sampled away."""
    shown = run_charts.spending(spending(10_001), estimate_dollars=4.4)
    assert shown.text == "$4.20 paid, $4.40 estimated; $6.30 without deduplication and cache"
    text = json.dumps(specification(shown))
    assert all(label in text for label in ("estimate $4.40", "$4.20 paid", "$6.30 without savings"))
    assert rows_with(shown, "at", "dollars")[-1]["dollars"] == 4.2
    unknown = run_charts.spending(spending(5, otherwise=None))
    assert unknown.text == "$4.20 paid"


def test_progress_counts_every_row_and_hides_no_failure():
    """The parts fill the bar, in order, and three of a million are still three pixels wide."""
    shown = run_charts.progress(counts(to_do=0, failed=3, answered=999_997, stuck=1))
    assert shown.text == "1,000,001 of 1,000,001 rows done (100.0%): 999,997 answered, 3 failed, 1 stuck"
    bars = rows_with(shown, "state", "rows", "start", "end", "color")
    assert [bar["state"] for bar in bars] == ["answered", "failed", "stuck"]
    assert bars[0]["start"] == 0
    assert bars[-1]["end"] == pytest.approx(1_000_001)
    assert all(bar["end"] - bar["start"] >= 0.99 * 1_000_001 * 3 / run_charts.WIDTH for bar in bars)


def test_savings_step_down_from_the_whole_price_to_what_was_paid():
    """Each part begins where the one before ended; a part that cost more goes up again."""
    shown = run_charts.savings(savings(plain=10.0, batch=5.0, cache=-1.0, paid=6.0))
    assert shown.text == "$6.00 paid instead of $10.00: $4.00 saved (40.0%)"
    bars = rows_with(shown, "part", "after", "dollars", "start", "end", "level", "right", "label", "color")
    assert [(bar["start"], bar["end"]) for bar in bars] == [(0, 10), (5, 10), (6, 5), (0, 6)]
    assert [bar["label"] for bar in bars] == [
        "$10.00",
        "\N{MINUS SIGN}$5.00 (50.0%)",
        "+$1.00 (10.0%)",
        "$6.00",
    ]


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (0, "$0.00"),
        (0.25, "$0.25"),
        (0.0123456, "$0.0123"),
        (0.000012, "$0.0000120"),
        (1234.5, "$1,234.50"),
        (-2, "-$2.00"),
        (-0.05, "-$0.0500"),
    ],
)
def test_dollars_read_like_money(value, shown):
    """Cents where there are any, three significant digits below, thousands apart."""
    assert marks.dollars(value) == shown


@settings(max_examples=60, deadline=None)
@given(st.lists(st.none() | st.floats(allow_nan=True, allow_infinity=True, width=32), max_size=12))
def test_no_number_breaks_a_chart(numbers):
    """Nulls, NaN and infinities in a frame give a picture with fewer marks, never an error."""
    numbers = pl.Series(numbers, dtype=pl.Float64)
    count = numbers.len()
    rates = slices(count).with_columns(numbers.alias(rate) for rate in RATES)
    drawn = [
        run_charts.throughput(rates, requests_per_minute=1000),
        run_charts.tokens(rates, **LIMITS),
        run_charts.latency(attempts(count).with_columns(seconds=numbers)),
        run_charts.spending(spending(count).with_columns(dollars=numbers, counterfactual_dollars=numbers)),
        run_charts.savings(
            pl.DataFrame(
                {"part": list("abcdefghijkl")[:count], "dollars": numbers},
                schema_overrides={"part": pl.String},
            )
        ),
    ]
    for shown in drawn:
        json.dumps(specification(shown), allow_nan=False)
