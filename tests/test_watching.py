"""Watching a run: what is known of it at a fixed cost, what is said of it, when it is said again."""

import asyncio
import contextlib
import datetime as dt
import io
import logging
import math
import subprocess
import sys
import threading
import types
from collections import Counter
from dataclasses import replace

import polars as pl
import pytest
from drawing import labels_of_what_fits
from hypothesis import given
from hypothesis import strategies as st
from running import WIDE_LIMITS, a_plan, finished, reviews, simulator, until

import claudescale as cs
from claudescale.api import prices
from claudescale.ledger.batchfile import Batch
from claudescale.ledger.ledger import ATTEMPTS, Attempt
from claudescale.planning import estimates
from claudescale.planning.estimates import Line, Measured
from claudescale.running import meter as meters
from claudescale.running import minutes, pulses
from claudescale.running.batch_rules import Expected
from claudescale.running.meter import MOST_SLICES, Meter, Slice
from claudescale.running.minutes import Sums
from claudescale.running.pulses import Ends, Pulse
from claudescale.views.rates import THROUGHPUT
from claudescale.views.theme import specification
from claudescale.widgets import watch, watchcharts, watchframe, watchpanel
from claudescale.widgets.watch import Cell, Watch
from claudescale.widgets.watchpanel import Panel

MODEL = "claude-haiku-5-5"
PULSE = Pulse(state="running", errors={}, refusals={})
LIMITS = cs.Limits(requests_per_minute=1_000, input_tokens_per_minute=60_000, output_tokens_per_minute=9_000)


def attempt(number=0, *, sent=0.0, seconds=1.0, status=200, error=None, tokens=100, dollars=None):
    """Return one live call; `sent` is in seconds since 1970."""
    price = prices.price(MODEL)
    paid = price.dollars(input_tokens=tokens, output_tokens=tokens) if status == 200 else 0.0
    return Attempt(
        key=f"{number:032x}", run="r", mode="live", batch_id=None, model=MODEL, sent_at=sent, seconds=seconds,
        status=status, error=error, message=None, request_id=None, stop_reason=None, reply=None,
        input_tokens=tokens if paid else 0, cache_write_5m_input_tokens=0, cache_write_1h_input_tokens=0,
        cache_read_input_tokens=0, output_tokens=tokens if paid else 0, thinking_tokens=0,
        dollars=paid if dollars is None else dollars, simulated=True,
    )  # fmt: skip


def meter(rows=10, **options):
    """Return a meter of a run over that many different rows, started at second 0."""
    made = Meter(model=MODEL, **options)
    made.begin(pl.Series("key", [f"{number:032x}" for number in range(rows)]))
    return made


# what is known of a run


@given(st.lists(st.tuples(st.floats(0, 200_000), st.floats(0, 900), st.booleans()), max_size=60))
def test_slices_stay_few_and_lose_nothing(calls):
    """However long a run lasts there are at most 280 slices, and every call, answer and token is in one."""
    made = meter(len(calls))
    for number, (sent, seconds, refused) in enumerate(calls):
        status, error = (429, "rate_limit_error") if refused else (200, None)
        made.add(attempt(number, sent=sent, seconds=seconds, status=status, error=error), final=not refused)
    width, slices = made.slices()
    good = sum(not refused for *_, refused in calls)
    assert len(slices) <= MOST_SLICES
    assert [sum(column) for column in zip(Slice(), *slices, strict=True)] == [
        len(calls), len(calls) - good, good, 100 * good, 100 * good,
    ]  # fmt: skip
    latest = max((sent + (seconds) for sent, seconds, _ in calls), default=0.0)
    assert not calls or (len(slices) - 1) * width <= latest < len(slices) * width


@given(st.lists(st.floats(0.002, 600), min_size=1, max_size=200), st.sampled_from([0.5, 0.95]))
def test_quantiles_of_latency_are_true_to_a_fortieth(latencies, quantile):
    """The quantile that is kept in classes is the one of the latencies themselves, by nearest rank."""
    made = meter(len(latencies))
    for number, seconds in enumerate(latencies):
        made.add(attempt(number, seconds=seconds), final=True)
    exact = sorted(latencies)[max(math.ceil(quantile * len(latencies)) - 1, 0)]
    assert made.latency(quantile) == pytest.approx(exact, rel=0.026)


def test_what_it_would_have_cost_is_what_the_savings_say():
    """Row by row, and for many results at once, the sum is the counterfactual of `bills.savings`."""
    keys = ["a", "b", "b", "c", "c", "c"]
    row = {name: [0] * 3 for name in ATTEMPTS if name.endswith("tokens")}
    row |= {"key": ["a", "b", "c"], "input_tokens": [10, 20, 30], "cache_read_input_tokens": [500, 0, 700]}
    row |= {"output_tokens": [5, 6, 7], "model": [MODEL] * 3, "error": [None, None, "max_tokens"]}
    today = dt.datetime.now(dt.UTC)
    row |= {"sent_at": [today] * 3, "seconds": [1.0] * 3, "status": [200] * 3}
    row |= {"run": ["r"] * 3, "simulated": [True] * 3}
    row |= {"web_search_requests": [0] * 3}
    row |= dict.fromkeys(("answering_model", "inference_geo", "speed", "refusal_category"), [None] * 3)
    row |= dict.fromkeys(("batch_id", "message", "request_id", "stop_reason", "reply"), [None] * 3)
    for mode in ("live", "batch"):
        counts = [{name: row[name][n] for name in prices.COLUMNS.values()} for n in range(3)]
        paid = [prices.price(MODEL, mode=mode).dollars(**each) for each in counts]
        frame = pl.DataFrame(row | {"mode": [mode] * 3, "dollars": paid}, schema=ATTEMPTS)
        repeats = pl.DataFrame({"key": ["a", "b", "c"], "duplicates": [0, 1, 2]})
        wanted = prices.savings(frame, duplicates=repeats)["dollars_without"][0]
        made = Meter(model=MODEL)
        made.begin(pl.Series("key", keys))
        if mode == "batch":
            final = frame.with_columns(final=pl.lit(value=True))
            made.extend(final, final)
        for one in frame.iter_rows(named=True) if mode == "live" else ():
            made.add(Attempt(**one | {"sent_at": 0.0}), final=True)
        assert made.plain_dollars == pytest.approx(wanted)
        assert made.open_requests == 0


def test_failures_are_counted_by_kind():
    """A 429 is counted apart from other failures, each by the API's error type."""
    made = meter()
    for status, error in [(429, "rate_limit_error"), (429, "ramp_limit_exceeded"), (529, "overloaded_error")]:
        made.add(attempt(status=status, error=error), final=False)
    made.add(attempt(error="max_tokens"), final=True)
    assert made.refusals == Counter(rate_limit_error=1, ramp_limit_exceeded=1)
    assert made.errors == Counter(overloaded_error=1, max_tokens=1)


def test_many_threads_read_and_write_one_meter():
    """Calls counted on two threads while a third reads are all there at the end."""
    made = meter(4_000)
    done = threading.Event()

    def write(first):
        for number in range(first, first + 2_000):
            made.add(attempt(number, sent=number / 7), final=True)

    def read():
        while not done.is_set():
            width, slices = made.slices()
            assert width * len(slices) >= 0
            made.latency(0.5)

    writers = [threading.Thread(target=write, args=[first]) for first in (0, 2_000)]
    reader = threading.Thread(target=read)
    for thread in (reader, *writers):
        thread.start()
    for thread in writers:
        thread.join()
    done.set()
    reader.join()
    assert sum(each.requests for each in made.slices()[1]) == made.replies == 4_000
    assert made.open_requests == 0


# when it ends


def pacer(limits=LIMITS, *, in_flight=0, window=16):
    """Return as much of a pacer as the time left is reckoned from."""
    return types.SimpleNamespace(limits=limits, in_flight=in_flight, window=window)


def rest(rows, tokens=50.0):
    """Return requests that are missing."""
    return pl.DataFrame({"estimated_tokens": [tokens] * rows})


def test_before_any_answer_the_time_left_is_that_of_the_plan():
    """The first estimate is the closed form over limits that the plan itself uses."""
    plan = a_plan(reviews(600), tier=LIMITS)
    expected = plan.expected
    tokens = 600 * (50 * expected.input_ratio + expected.input_overhead_tokens - expected.cached_tokens)
    output = 600 * min(expected.output_tokens, 64.0)
    wanted = estimates.live_finish(
        LIMITS, expected, requests=600, input_tokens=tokens, output_tokens=output
    ).seconds
    ends = pulses.live_ends(plan, pacer(), rest(600), meter(600), 0.0)
    assert ends.usual_minutes == pytest.approx(wanted / 60)
    assert ends.latest_minutes > ends.usual_minutes


def test_what_was_measured_replaces_what_was_guessed():
    """After twenty replies the rest is taken to need as many tokens as those did, in proportion."""
    made = meter(600)
    for number in range(100):
        made.add(attempt(number, tokens=90, seconds=2.0), final=True)
    ends = pulses.live_ends(a_plan(reviews(600), tier=LIMITS), pacer(), rest(600), made, 0.0)
    output = {"requests": 500, "input_tokens": 0, "output_tokens": 500 * 90}
    wanted = estimates.live_finish(LIMITS, Measured(latency=Line(2.0)), **output)
    assert ends.usual_minutes == pytest.approx(wanted.seconds / 60)


def test_rows_that_are_left_count_by_their_length():
    """Where the long texts come last, they are what is left, and the input tokens bind."""
    made = meter(200)
    for number in range(100):
        made.add(attempt(number, tokens=10, seconds=0.5), final=True)
    frame = pl.concat([rest(100, 10.0), rest(100, 10_000.0)])
    ends = pulses.live_ends(a_plan(reviews(200), tier=LIMITS), pacer(), frame, made, 0.0)
    assert ends.usual_minutes == pytest.approx(100 * 10_000 / 60_000, rel=0.03)


def test_a_window_that_is_full_holds_the_run_back():
    """With as many calls in flight as may be, and slow answers, it is their latency that counts."""
    made = meter(600)
    for number in range(100):
        made.add(attempt(number, tokens=10, seconds=30.0), final=True)
    plan = a_plan(reviews(600), tier=LIMITS)
    full = pulses.live_ends(plan, pacer(in_flight=4, window=4), rest(600), made, 0.0)
    free = pulses.live_ends(plan, pacer(in_flight=3, window=4), rest(600), made, 0.0)
    assert full.usual_minutes == pytest.approx((500 / 4) * 30 / 60)
    assert free.usual_minutes < 2


def test_a_run_that_is_slower_than_its_limits_says_so():
    """The span ends where the pace of the last minute would; with no answer in it, nobody knows."""
    plan, made = a_plan(reviews(600), tier=LIMITS), meter(600)
    for number in range(60):
        made.add(attempt(number, sent=float(number), seconds=0.5, tokens=10), final=True)
    slow = pulses.live_ends(plan, pacer(), rest(600), made, 1.0)
    assert slow.latest_minutes == pytest.approx(540 / 60)
    assert slow.usual_minutes < 1
    assert pulses.live_ends(plan, pacer(), rest(600), made, 10.0).latest_minutes == math.inf
    assert pulses.live_ends(plan, pacer(), rest(600), meter(0), 1.0) == Ends(0.0, 0.0)


@pytest.mark.parametrize(
    ("width", "answers", "minutes_so_far", "wanted"),
    [
        (1, [5] * 9, 9 / 60, None),
        (1, [5] * 10, 10 / 60, 300),
        (1, [9] * 40 + [1] * 60, 100 / 60, 60),
        (1, [1] * 60 + [99], 60.5 / 60, 60),
        (128, [128] * 10, 10 * 128 / 60, 60),
    ],
)
def test_the_pace_is_that_of_whole_slices_of_the_last_minute(width, answers, minutes_so_far, wanted):
    """A slice that is not over does not count, nor what is longer ago, nor ten seconds of youth."""
    assert pulses.pace(width, [Slice(answers=count) for count in answers], minutes_so_far) == wanted


# what is said


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"state": "starting"}, "Run starting: the rows are read."),
        (
            {"rows": 9_000, "done": 1_234, "dollars": 0.12, "estimate_dollars": 1.02, "ends": Ends(1.5, 2.0)},
            "Run running: 1,234 of 9,000 rows done, 1 m 30 s to 2 m 00 s left, $0.12 of about $1.02.",
        ),
        (
            {"ends": Ends(0.1, math.inf)},
            "Run running: 0 of 0 rows done, more than 6 s left: nothing was answered in the last minute, $0.",
        ),
        (
            {"rows": 9, "asked": "stop", "in_flight": 2, "ends": Ends(1.5, 2.0)},
            "Run stopping: 0 of 9 rows done, waits for 2 calls in flight, $0.",
        ),
        (
            {"rows": 9, "asked": "stop", "expected": Expected(1, 0, 9, 60.0, 90.0)},
            "Run stopping: 0 of 9 rows done, waits for 1 batch to be canceled, $0.",
        ),
        (
            {"rows": 9, "asked": "leave", "in_flight": 1, "expected": Expected(1, 0, 9, 60.0, 90.0)},
            "Run leaving: 0 of 9 rows done, waits for 1 call in flight, $0.",
        ),
        (
            {"rows": 9, "expected": Expected(2, 1, 9, 2_400.0, 80_000.0)},
            "Run running: 0 of 9 rows done, batches usually within 40 min and at the latest in 23 h, $0.",
        ),
        (
            {"rows": 9, "expected": Expected(2, 1, 9, None, 80_000.0)},
            "Run running: 0 of 9 rows done, batches at the latest in 23 h, $0.",
        ),
    ],
)
def test_the_headline_tells_the_truth_in_one_line(changes, said):
    """State, rows, time left as a span, dollars against the estimate; or what a stop still waits for."""
    assert watchframe.headline(replace(PULSE, **changes)) == said


def test_the_bar_is_read_out():
    """Whoever hears the page instead of seeing it is told how far the run is."""
    shown = watchframe.bar(replace(PULSE, rows=40, done=10))
    assert 'value="10" max="40"' in shown
    assert 'aria-label="10 of 40 rows done, 25.0%"' in shown


def test_figures_say_what_is_known_and_what_is_not():
    """Latency and tokens a second are there for live calls only, failures by kind, times of a simulator."""
    pulse = replace(
        PULSE, speed=10.0, dollars=0.5, plain_dollars=1.0, requests=5, in_flight=3, most_in_flight=16,
        median_seconds=1.25, slow_seconds=12.3, output_tokens_per_second=81.2, minutes=2.0,
        errors={"timeout_error": 1, "overloaded_error": 12}, refusals={"rate_limit_error": 2},
    )  # fmt: skip
    text = watchframe.figures(pulse, title="T").text().replace("\N{NO-BREAK SPACE}", " ")
    for told in ("$0.50", "$1.00", "1.2 s", "12 s", "81", "3 / 16", "2 m 00 s", "10 times as fast"):
        assert told in text
    assert "Errors: 12 overloaded_error, 1 timeout_error. Refused (429): 2 rate_limit_error." in text
    assert "latency" not in watchframe.figures(PULSE).text()


def test_batches_are_listed_while_they_are_out():
    """Each has its state, size and age, and when it ends; of many the newest are shown."""
    out = Batch("n", "api", MODEL, 500, 0.0, "in_progress", "b", created_at=600.0)
    over = out._replace(state="collected", ended_at=1_200.0)
    pulse = replace(PULSE, minutes=20.0, batches=[over, out], expected=Expected(1, 1, 500, 600.0, 8e4))
    card = watchframe.batches(pulse)
    rows = [[cell.replace("\N{NO-BREAK SPACE}", " ") for cell in row] for row in card.rows]
    assert rows == [
        ["batch 1", "collected", "500", "10 m 00 s", "", ""],
        ["batch 2", "in progress", "500", "10 m 00 s", "10 min", "24 h"],
    ]
    many = watchframe.batches(replace(pulse, batches=[out] * 20))
    assert (len(many.rows), many.notes) == (8, ["12 earlier batches are not shown"])
    assert watchframe.batches(PULSE) is None


def test_slices_become_the_frame_of_rates():
    """The rates of slices are those of `Run.throughput`; the last slice is as long as it has lasted."""
    frame = watchframe.rates(2, [Slice(10, 1, 9, 90, 45), Slice(4, 0, 4, 40, 20)], 3 / 60)
    assert frame.schema == THROUGHPUT
    assert frame["requests_per_minute"].to_list() == pytest.approx([300, 240])
    assert (frame["output_tokens_per_minute"] * frame["slice_minutes"]).sum() == pytest.approx(65)
    assert watchframe.rates(1, [], 0.0).height == 0


def test_the_newest_slices_are_drawn_when_their_calls_are_answered():
    """A call is known when it is answered, so that the picture ends a slow answer ago."""
    slices = [Slice(requests=10)] * 20
    pulse = replace(PULSE, minutes=20 / 60, slow_seconds=4.5)
    drawn = watchframe.drawn(pulse, 1, slices, LIMITS, number=7)
    assert (drawn["number"], drawn["unit"], len(drawn["starts"])) == (7, "Seconds since the start", 16)
    assert drawn["requests"]["rates"] == [600.0] * 15
    assert drawn["requests"]["limit"] == 1_000
    assert drawn["until"] == pytest.approx(20)
    none = watchframe.drawn(PULSE, 1, [], LIMITS, number=1)
    assert none["starts"] == [0.0]


def test_a_limit_far_away_is_named_and_not_drawn():
    """Rates far below their limit fill the picture; its name stands above them."""
    far = watchframe.drawn(replace(PULSE, minutes=1.0), 60, [Slice(requests=10)], LIMITS, number=1)[
        "requests"
    ]
    assert far["far"]
    assert far["top"] == pytest.approx(12.5)
    assert far["words"] == "\N{UPWARDS ARROW} limit 1,000 requests/min"


@pytest.mark.parametrize(
    ("unheard", "wanted"), [(0.0, 0.5), (0.1, 2.0), (59.0, 2.0), (60.0, 5.0), (9_000.0, 5.0)]
)
def test_a_page_that_does_not_answer_is_told_less_often(unheard, wanted):
    """Where nobody confirms what was drawn, the pictures come one in two seconds, later one in five."""
    assert watchframe.pause_seconds(unheard, 0.5) == wanted
    assert watchframe.pause_seconds(unheard, 10.0) == 10.0


def test_the_picture_that_stays():
    """All three rates with their limits and units, no wider than the page, drawn by old and new Vega."""
    frame = watchframe.rates(1, [Slice(15, 0, 15, 900, 140)] * 50, 50 / 60)
    labels = labels_of_what_fits(specification(watchcharts.still(frame, LIMITS).chart, "text"))
    for wanted in ("Requests per minute", "Input tokens per minute", "Output tokens per minute"):
        assert wanted in labels
    assert "limit 1,000 requests/min" in labels
    assert "Seconds since the start" in labels
    assert watchcharts.still(THROUGHPUT.to_frame(), LIMITS).text == "nothing sent"


# the lifecycle


def test_a_watched_run_outside_a_notebook_prints_lines():
    """A script gets plain lines while the run goes on, and the figures at its end, also of the process."""
    code = """
import sys
sys.path.insert(0, "tests")
import claudescale as cs
from running import a_plan, reviews, simulator
with simulator(latency=1.0) as server:
    run = a_plan(reviews(60)).start(server.client(), ledger=None, progress=False)
    watcher = cs.watch(run)
    cs.wait(run)
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120
    )
    first, *rest_of_it = done.stdout.splitlines()
    assert first.startswith(("Run starting", "SIMULATED Run"))
    assert "SIMULATED Run finished: 60 of 60 rows answered" in done.stdout
    assert sum("Run finished" in line for line in rest_of_it) == 1
    assert "ipywidgets" not in done.stderr


def test_only_a_run_can_be_watched():
    """What is not a run, and refreshes that are no sense, are told at once, with what to type."""
    with pytest.raises(TypeError, match=r"plan\.start\(client\)"):
        cs.watch("run")
    with simulator() as server, contextlib.redirect_stdout(io.StringIO()):
        run = finished(a_plan(reviews(1)), server.client())
        with pytest.raises(ValueError, match="at most 4"):
            cs.watch(run, refreshes_per_second=50)


def test_a_watcher_says_where_its_run_stands():
    """Shown as text, a watcher of a finished run has the facts of the run and the next thing to type."""
    with simulator() as server, contextlib.redirect_stdout(io.StringIO()):
        watcher = cs.watch(finished(a_plan(reviews(5)), server.client()))
        text = repr(watcher)
        watcher.close()
    assert text.startswith("SIMULATED Run finished: 5 of 5 rows answered")
    assert text.endswith("run.results")


class Page:
    """A notebook's page that keeps what it is told, in place of JupyterLab: the browser tests have that."""

    def __init__(self, monkeypatch):
        watchcharts.live()  # what is slow the first time
        self.cell = Cell("cell", "first")
        self.shown, self.updates = [], []
        monkeypatch.setattr(watch.loops, "in_notebook", lambda: True)
        monkeypatch.setattr(watch, "_cell", lambda: self.cell)
        monkeypatch.setattr(watch, "_display", self._display)
        monkeypatch.setattr(watch, "LINGER_SECONDS", 0.0)
        for name in ("EMBED_SECONDS", "LONGEST_EMBED_SECONDS"):
            monkeypatch.setattr(watchpanel, name, 0.0)
        told = Panel.show

        def show(panel, pulse, drawn):
            if not panel.embedded:
                panel._chart.params.heard = 0  # the page has made the picture
            sent = told(panel, pulse, drawn)
            if sent:
                panel._chart.params.heard = drawn["number"]
            return sent

        monkeypatch.setattr(Panel, "show", show)

    def _display(self, shown, *, text=""):
        self.shown.append(shown)
        place = len(self.shown)
        return types.SimpleNamespace(update=lambda bundle, raw: self.updates.append((place, bundle)))


@pytest.fixture
def page(monkeypatch):
    """Stand in for a notebook, with the real widgets."""
    return Page(monkeypatch)


def followers():
    """Return the threads of watchers."""
    return [each for each in threading.enumerate() if each.name == "claudescale-watch"]


async def watched(run, *watchers, refreshes=3):
    """Stop a run when each watcher has shown it so often; return when the watchers have ended."""
    await until(lambda: all(each.refreshes >= refreshes for each in watchers))
    run.stop()
    await run
    await until(lambda: not followers())


def long_run(client):
    """Return a run under way that nobody waits for."""
    return a_plan(reviews(4_000), concurrency=4).start(client, ledger=None, progress=False)


def test_a_run_is_followed_and_gives_way_to_a_table_and_a_picture(page):
    """The widgets are told new figures; then what is saved takes their places, and they close."""

    async def go(client):
        run = long_run(client)
        one, two = Watch(run, 0.05), Watch(run, 0.05)
        await watched(run, one, two)
        return one

    with simulator(latency=2.0) as server:
        one = asyncio.run(go(server.client()))
    assert one.busy_seconds > 0
    assert len(page.shown) == 4
    assert sorted(place for place, _ in page.updates) == [1, 2, 3, 4]
    table, picture = (dict(page.updates)[place] for place in (1, 2))
    assert "of 4,000 rows answered" in table["text/html"]
    assert "application/vnd.jupyter.widget-view+json" not in {*table, *picture}
    assert {"application/vnd.vegalite.v5+json", "image/png", "text/plain"} == set(picture)
    assert page.shown[0].comm is None


def test_a_finished_run_is_shown_at_once(page):
    """There is nothing to follow: no widget, no thread, the table and the picture."""
    with simulator() as server:
        watcher = cs.watch(finished(a_plan(reviews(3)), server.client()))
    assert [set(each) & {"text/html", "image/png"} for each in page.shown] == [{"text/html"}, {"image/png"}]
    assert watcher.refreshes == 0
    assert followers() == []


def test_a_run_that_cannot_go_on_is_told_why(page):
    """A run that fails leaves its reason and what to do on the page."""

    async def go(client):
        run = a_plan(reviews(3)).start(client, ledger=None, progress=False)
        Watch(run, 0.05)
        with pytest.raises(cs.RunStopped):
            await run
        await until(lambda: not followers())

    with simulator(faults={401: 1.0}) as server:
        asyncio.run(go(server.client()))
    assert "does not accept the key" in dict(page.updates)[1]["text/html"]


def test_the_stop_button_stops(page):
    """A click on Stop stops the run: it says so at once, the button cannot be pressed again."""

    async def go(client):
        run = long_run(client)
        watcher = Watch(run, 0.05)
        await until(lambda: run.counts.answered)
        (button,) = watcher._panel._buttons.values()
        assert (button.description, bool(button.tooltip)) == ("Stop", True)
        button.click()
        assert run.pulse.asked == "stop"
        await run
        await until(lambda: not followers())
        return run

    with simulator(latency=2.0) as server:
        run = asyncio.run(go(server.client()))
    assert run.state == "stopped"
    assert run.counts.missing > 0
    assert "Run stopped" in dict(page.updates)[1]["text/html"]


def test_a_batch_can_be_left(page):
    """A run with batches has two buttons, each with words that say what becomes of them."""

    async def go(client):
        run = a_plan(reviews(5), mode="batch", tier="start").start(client, ledger=None, progress=False)
        watcher = Watch(run, 0.05)
        await run.submitted()
        stop, leave = watcher._panel._buttons.values()
        assert "cancel the batches" in stop.tooltip
        assert "go on at the API" in leave.tooltip
        leave.click()
        await run
        await until(lambda: not followers())
        return run

    with simulator(faults={"batch_stuck": 1.0}) as server:
        run = asyncio.run(go(server.client()))
    assert run.state == "left"
    assert "in\N{NO-BREAK SPACE}progress" in dict(page.updates)[1]["text/html"]


def test_a_cell_that_is_run_again_is_watched_once(page):
    """The watchers of a cell's earlier run end without a word; those of other cells go on."""

    async def go(client):
        run = long_run(client)
        first, beside = Watch(run, 0.05), Watch(run, 0.05)
        page.cell = Cell("another", "second")
        other = Watch(run, 0.05)
        page.cell = Cell("cell", "third")
        again = Watch(run, 0.05)
        assert (first._dropped, beside._dropped, other._dropped, again._dropped) == (True, True, False, False)
        await watched(run, other, again)

    with simulator(latency=2.0) as server:
        asyncio.run(go(server.client()))
    assert sorted(place for place, _ in page.updates) == [5, 6, 7, 8]


def test_a_watcher_as_the_last_line_is_shown_once(page):
    """In the cell that made it nothing is shown again; in another it is followed anew."""
    with simulator() as server:
        watcher = cs.watch(finished(a_plan(reviews(3)), server.client()))
    watcher._ipython_display_()
    assert len(page.shown) == 2
    page.cell = Cell("another", "second")
    watcher._ipython_display_()
    assert len(page.shown) == 4


def test_a_watcher_can_be_closed(page):
    """Closed, it leaves a table and a picture of how the run stood; the run goes on."""

    async def go(client):
        run = long_run(client)
        watcher = Watch(run, 0.05)
        await until(lambda: watcher.refreshes > 1 and run.state == "running")
        watcher.close()
        await until(lambda: not followers())
        state = run.state
        await watched(run)
        return state

    with simulator(latency=2.0) as server:
        assert asyncio.run(go(server.client())) == "running"
    assert "Run running: " in dict(page.updates)[1]["text/html"]


def test_an_interrupt_of_another_cell_does_not_end_it(page, monkeypatch):
    """Polars may raise the kernel's interrupt in the watcher's thread: it goes on."""
    raised = []

    def drawn(*given, **named):
        if len(raised) < 2:
            raised.append(1)
            raise KeyboardInterrupt
        return real(*given, **named)

    real = watchframe.drawn

    async def go(client):
        run = long_run(client)
        watcher = Watch(run, 0.05)
        monkeypatch.setattr(watch.watchframe, "drawn", drawn)
        await watched(run, watcher, refreshes=5)

    with simulator(latency=2.0) as server:
        asyncio.run(go(server.client()))
    assert len(raised) == 2
    assert "of 4,000 rows answered" in dict(page.updates)[1]["text/html"]


# the log


def test_a_minute_is_a_line_of_rates():
    """The line says what was done since the last one, per minute, whatever time has passed."""
    before = Sums(1.0, 100, 1_000, 500, 3)
    assert minutes.line(before, Sums(3.0, 300, 5_000, 900, 4)) == (
        "minute 3.0: 100 requests/min, 2,000 input tokens/min, 200 output tokens/min, 1 refused"
    )


def test_a_run_is_logged_by_the_minute_for_whoever_asks(caplog):
    """At the level INFO there is a line a minute and one at the end, with no text and no key.

    A machine that is busy may be late with a line: it then tells of more than a minute.
    """
    limits = replace(WIDE_LIMITS, requests_per_minute=200)
    with simulator(speed=60, bucket_seconds=1, tier=(200, 10**8, 10**8)) as server:
        with caplog.at_level(logging.INFO, logger="claudescale"):
            run = finished(a_plan(reviews(300), tier=limits), server.client())
        lines = [record.getMessage() for record in caplog.records if record.name == "claudescale"]
        caplog.clear()
        finished(a_plan(reviews(5)), server.client())
    assert 1 < len(lines) <= math.floor(run.minutes) + 1
    assert all(line.startswith("minute ") for line in lines)
    assert lines[-1].endswith("300 of 300 rows done")
    assert not any("parcel" in line or "key" in line for line in lines)
    assert [record for record in caplog.records if record.name == "claudescale"] == []


def test_throughput_is_a_row_per_minute():
    """`Run.throughput` has one row per API minute, and its rates add up to the calls made."""
    with simulator(speed=60, tier=(200, 10**8, 10**8)) as server:
        run = finished(
            a_plan(reviews(300), tier=replace(WIDE_LIMITS, requests_per_minute=200)), server.client()
        )
        frame = run.throughput
    assert frame["minute"].to_list() == [float(minute) for minute in range(frame.height)]
    assert frame.height == math.floor(run.minutes) + 1
    assert (frame["requests_per_minute"] * frame["slice_minutes"]).sum() == pytest.approx(run.counts.requests)
    assert meters.MOST_SLICES == watchcharts._SLICES
