"""Watching a run: what is said of it, and how its widgets live and end."""

import asyncio
import subprocess
import sys
import threading
import types
from collections import Counter

import pytest
from drawing import labels_of_what_fits
from running import a_plan, finished, reviews, simulator, until

import claudescale as cs
from claudescale import loops
from claudescale.ledger.records import Batch
from claudescale.running.batch_rules import Expected
from claudescale.running.job import Ends
from claudescale.running.meter import Meter, Slice
from claudescale.widgets import watch
from claudescale.widgets.watch import Watch

LIMITS = cs.Limits(requests_per_minute=1_000, input_tokens_per_minute=60_000, output_tokens_per_minute=9_000)


def going(*, state="running", minutes=0.0, latency=None, slices=(), flight=None, job=None, **counts):
    """Return what is read of a run under way: its counts, and what its job knows."""
    made = Meter()
    vars(made).update(counts)
    made.slices = lambda: (1, list(slices))
    made.latency = lambda quantile: latency and latency[quantile > 0.5]
    pacer = flight and types.SimpleNamespace(in_flight=flight[0], window=flight[1])
    known = dict.fromkeys(("estimate", "expected", "ends")) | {
        "simulated": False,
        "asked": "",
        "pacer": pacer,
    }
    known |= {"is_open": False, "clock": types.SimpleNamespace(speed=1.0), **(job or {})}
    return types.SimpleNamespace(
        state=state, minutes=minutes, counts=made, job=types.SimpleNamespace(**known)
    )


HALF = {"sent": 9_000, "answered": 1_234, "dollars": 0.12}
ENDS = {"ends": Ends(1.5, 2.0)}


@pytest.mark.parametrize(("changes", "words"), [
    ({"state": "starting"}, "Run starting: reading the rows."),
    ({**HALF, "job": {"estimate": {"dollars": 1.02}, **ENDS}},
     "Run running: 1,234 of 9,000 rows done, 1 m 30 s to 2 m 00 s left, $0.12 of about $1.02."),
    ({"sent": 9, "flight": (2, 4), "job": {"asked": "stop", **ENDS}},
     "Run stopping: 0 of 9 rows done, waiting for 2 calls in flight, $0."),
    ({"sent": 9, "job": {"expected": Expected(2, 1, 9, 2_400.0, 80_000.0)}},
     "Run running: 0 of 9 rows done, batches usually within 40 min and at the latest in 23 h, $0."),
])  # fmt: skip
def test_the_headline_tells_the_truth_in_one_line(changes, words):
    """State, rows, time left as a span, dollars against the estimate; or what a stop still waits for."""
    assert watch.headline(going(**changes)) == words


def test_figures_show_what_is_known_and_what_is_not():
    """Latency is there for live calls only, failures and batches by kind."""
    batch = Batch("n", "api", "claude-haiku-5-5", 500, 0.0, "in_progress", "b")
    followed = [types.SimpleNamespace(record=batch)] * 2
    batches, clock = types.SimpleNamespace(followed=followed), types.SimpleNamespace(speed=10.0)
    run = going(
        plain_dollars=1.0, requests=5, flight=(3, 16), latency=(1.25, 12.3), minutes=2.0,
        refusals=Counter(rate_limit_error=2), errors=Counter(timeout_error=1, overloaded_error=12),
        job={"is_open": True, "batches": batches, "clock": clock},
    )  # fmt: skip
    text = watch.figures(run).text()
    for words in ("$1.00", "1.2 s", "12 s", "3 / 16", "2 m 00 s", "10 times as fast", "2 in progress"):
        assert words in text
    assert "Errors: 12 overloaded_error, 1 timeout_error. Refused (429): 2 rate_limit_error." in text
    assert "latency" not in watch.figures(going()).text()


def requests(**changes):
    """Return the rows of the requests in the live picture, which is drawn whole."""
    drawing = watch.drawn(going(**changes), LIMITS)
    labels_of_what_fits(drawing | {"background": "white"})
    return [row for row in drawing["data"]["values"] if row["of"] == "Requests per minute, limit 1,000"]


def test_the_newest_slices_are_drawn_when_their_calls_are_answered():
    """A call is known when it is answered, so the picture ends a slow answer ago; a far limit is no line."""
    seen = {"minutes": 20 / 60, "latency": (1.0, 4.5), "slices": [Slice(requests=10)] * 20}
    assert {(row["rate"], row["limit"]) for row in requests(**seen)} == {(600.0, 1_000)}
    assert [row["end"] for row in requests(**seen)][-1] == pytest.approx(15 / 60)
    assert len(requests(**seen, state="finished")) == 20
    assert [row["limit"] for row in requests(minutes=1 / 60, slices=[Slice(requests=1)])] == [None]
    assert [row["rate"] for row in requests()] == [0]


@pytest.mark.slow
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
    first, *others = done.stdout.splitlines()
    assert first.startswith(("Run starting", "SIMULATED Run"))
    assert sum("SIMULATED Run finished: 60 of 60 rows answered" in line for line in others) == 1
    assert "ipywidgets" not in done.stderr


def test_only_a_run_can_be_watched():
    """What is not a run, nor a limited client, is refused with what to type."""
    with pytest.raises(TypeError, match=r"plan\.start\(client\).*cs\.limit\(client\).*not this str"):
        cs.watch("run")


# in a notebook: the browser tests have JupyterLab, these a page that keeps what it is given


class Page:
    """A notebook's page in place of JupyterLab, which draws whatever it is told."""

    def __init__(self, monkeypatch):
        self.shown, self.updates = [], []
        monkeypatch.setattr(loops, "in_notebook", lambda: True)
        monkeypatch.setattr(watch, "_display", self._display)
        monkeypatch.setattr(watch, "REFRESH_SECONDS", 0.1)

    def _display(self, bundle):
        self.shown.append(bundle)
        place = len(self.shown)
        return types.SimpleNamespace(update=lambda bundle, raw: self.updates.append((place, bundle)))


@pytest.fixture
def page(monkeypatch):
    """Stand in for a notebook, with the real widgets."""
    return Page(monkeypatch)


def followers():
    """Return the threads of watchers."""
    return [each for each in threading.enumerate() if each.name == "claudescale-watch"]


def follow(steps, rows=4_000, latency=2.0, faults=None, **options):
    """Start a run that lasts, and return it when `steps` have ended, and its watchers with them."""

    async def go(client):
        plan = a_plan(reviews(rows), **{"concurrency": 4, **options})
        run = plan.start(client, ledger=None, progress=False)
        await steps(run)
        await run
        await until(lambda: not followers())
        return run

    with simulator(latency=latency, faults=faults) as server:
        return asyncio.run(go(server.client()))


@pytest.mark.slow
def test_a_run_is_followed_and_gives_way_to_a_table_and_a_picture(page, monkeypatch):
    """New figures, also after the interrupt of another cell; then what is saved, and the widgets close."""
    raised, real, made = [], watch.drawn, []

    def drawn(*given, **named):
        if len(raised) < 2 and threading.current_thread().name == "claudescale-watch":
            raised.append(1)
            raise KeyboardInterrupt  # as Polars does in whatever thread is collecting
        return real(*given, **named)

    monkeypatch.setattr(watch, "drawn", drawn)

    async def steps(run):
        made[:] = Watch(run), Watch(run)
        await until(lambda: len(raised) == 2 and all(each.refreshes > 2 for each in made))
        run.stop()
        await run
        assert "Run stopped" in str(made[0]._stays[0])  # there when the cell ends

    follow(steps)
    assert len(page.shown) == 4
    assert {place for place, _ in page.updates} == {1, 2, 3, 4}
    table, picture = (dict(page.updates)[place] for place in (1, 2))
    assert "of 4,000 rows answered" in table["text/html"]
    assert "application/vnd.jupyter.widget-view+json" not in {*table, *picture}
    assert {"application/vnd.vegalite.v5+json", "image/png", "text/plain"} == set(picture)
    assert made[0]._panel.box.comm is None


@pytest.mark.slow
def test_a_finished_run_is_shown_at_once(page):
    """There is nothing to follow: no widget, no thread; as the last line of its cell it is shown once."""
    with simulator() as server:
        watcher = cs.watch(finished(a_plan(reviews(3)), server.client()))
    watcher._ipython_display_()
    assert [set(each) & {"text/html", "image/png"} for each in page.shown] == [{"text/html"}, {"image/png"}]
    assert (watcher.refreshes, followers()) == (0, [])


STUCK = {"rows": 5, "mode": "batch", "tier": "start", "concurrency": None, "faults": {"batch_stuck": 1.0}}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "names", "words", "state"),
    [({}, ["stop"], "Send nothing", "stopped"), (STUCK, ["stop", "leave"], "continue at the API", "left")],
)
def test_a_button_stops_the_run_or_leaves_its_batches(page, options, names, words, state):
    """A live run has Stop; one with batches has a second button, which leaves them at the API."""

    async def steps(run):
        panel = Watch(run)._panel
        await (run.submitted() if options else until(lambda: run.counts.answered))
        assert list(panel.buttons) == names
        button = panel.buttons[names[-1]]
        assert words in button.tooltip
        button.click()
        assert run.job.asked == names[-1]

    assert follow(steps, **options).state == state
    assert f"Run {state}" in dict(page.updates)[1]["text/html"]


@pytest.mark.slow
def test_a_watcher_can_be_closed(page):
    """Closed, it leaves a table and a picture of how the run stood; the run goes on."""

    async def steps(run):
        watcher = Watch(run)
        await until(lambda: watcher.refreshes > 1 and run.state == "running")
        watcher.close()
        await until(lambda: not followers())
        assert run.state == "running"
        run.stop()

    follow(steps)
    assert "Run running: " in dict(page.updates)[1]["text/html"]
