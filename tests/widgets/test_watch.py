"""Watching a run: its live picture, and the life and end of its widgets."""

import asyncio
import threading
import types

import pytest
from drawing import check_drawn_whole, under_way
from running import a_plan, finished, reviews, simulator, until

import claudescale as cs
from claudescale import loops
from claudescale.running.meter import Slice
from claudescale.widgets import watch
from claudescale.widgets.watch import Watch

LIMITS = cs.Limits(requests_per_minute=1_000, input_tokens_per_minute=60_000, output_tokens_per_minute=9_000)


def requests(*counts, latency=0.0, state="running"):
    """Return the requests per minute in the live picture of a run with that many calls in each second."""
    slices = [Slice(requests=count) for count in counts]
    run = under_way(
        state=state, minutes=len(counts) / 60, latency=lambda _: latency, slices=lambda *_, **__: (1, slices)
    )
    drawing = watch.drawn(run, LIMITS)
    check_drawn_whole(drawing)
    return [row["requests_per_minute"] for row in drawing["data"]["values"]], drawing["vconcat"][0]["layer"]


def test_the_newest_slices_are_drawn_when_their_calls_are_answered():
    """A call is known when answered, so the picture ends one slow answer ago; a far limit has no line."""
    rates, layers = requests(*[10] * 20, latency=4.5)
    assert rates == [600.0] * 15
    assert layers[1]["encoding"]["y"] == {"datum": 1_000}
    assert len(requests(*[10] * 20, latency=4.5, state="finished")[0]) == 20
    assert len(requests(1)[1]) == 1
    assert requests()[0] == []


def test_only_a_run_can_be_watched():
    """Anything but a run or a limited client is refused with what to type."""
    with pytest.raises(TypeError, match=r"plan\.start\(client\).*cs\.limit\(client\).*not this str"):
        cs.watch("run")


@pytest.fixture
def page(monkeypatch):
    """Stand in for a notebook that records displays and updates, with the real widgets."""
    page = types.SimpleNamespace(shown=[], updates=[])

    def display(bundle):
        page.shown.append(bundle)
        place = len(page.shown)
        return types.SimpleNamespace(update=lambda bundle, raw: page.updates.append((place, bundle)))

    monkeypatch.setattr(loops, "in_notebook", lambda: True)
    monkeypatch.setattr(watch, "_display", display)
    monkeypatch.setattr(watch, "REFRESH_SECONDS", 0.1)
    return page


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
def test_a_watched_run_outside_a_notebook_prints_lines(capsys):
    """A script gets plain lines during the run, and its card once at the end."""

    async def steps(run):
        cs.watch(run)

    follow(steps, rows=20, latency=1.0)
    first, *others = capsys.readouterr().out.splitlines()
    assert first.startswith(("Run starting", "SIMULATED Run running"))
    assert sum("SIMULATED Run finished: 20 of 20 rows answered" in line for line in others) == 1


@pytest.mark.slow
def test_a_run_is_followed_and_gives_way_to_a_table_and_a_picture(page, monkeypatch):
    """New figures, also after the interrupt of another cell; then saved output, and the widgets close.

    A closed watcher leaves a table and a picture of the run at that moment, and the run continues. What a
    watcher takes is imported before the first call.
    """
    interrupts, real, watchers, prepared = iter([KeyboardInterrupt] * 2), watch.drawn, [], []

    def drawn(*given):
        if threading.current_thread().name == "claudescale-watch":
            for interrupt in interrupts:
                raise interrupt  # as Polars does in any thread that is collecting
        return real(*given)

    monkeypatch.setattr(watch, "drawn", drawn)
    monkeypatch.setattr(watch, "prepare", lambda: prepared.append("imports"))

    async def steps(run):
        assert (prepared, run.counts.requests) == (["imports"], 0)
        watchers.extend([Watch(run), Watch(run)])
        await until(lambda: run.counts.answered and all(watcher.refreshes > 2 for watcher in watchers))
        watchers[1].close()
        await until(lambda: len(followers()) == 1)
        assert run.state == "running"
        run.stop()
        await run
        assert "Run stopped" in dict(page.updates)[1]["text/html"]  # present when the cell ends

    follow(steps)
    assert [watcher._panel.box.comm for watcher in watchers] == [None, None]
    assert len(page.shown) == 4
    first, picture, second, _ = (dict(page.updates)[place] for place in (1, 2, 3, 4))
    assert "of 4,000 rows answered" in first["text/html"]
    assert "Run running: " in second["text/html"]
    assert "application/vnd.jupyter.widget-view+json" not in {*first, *picture}
    assert {"application/vnd.vegalite.v5+json", "image/png", "text/plain"} == set(picture)


@pytest.mark.slow
def test_a_finished_run_is_shown_at_once(page):
    """It has nothing to follow: no widget, no thread; it is shown once, against its share of the limits."""
    with simulator() as server:
        run = finished(a_plan(reviews(3), share=0.5), server.client())
    watcher = cs.watch(run)
    watcher._ipython_display_()
    table, picture = page.shown
    assert (set(table), watcher.refreshes, followers()) == ({"text/html", "text/plain"}, 0, [])
    half = f"limit {run.limits.requests_per_minute / 2:,.0f}"
    assert half in picture["application/vnd.vegalite.v5+json"]["vconcat"][0]["title"]["text"]


STUCK = {"rows": 5, "mode": "batch", "tier": "start", "concurrency": None, "faults": {"batch_stuck": 1.0}}


@pytest.mark.slow
@pytest.mark.parametrize(("options", "names", "words"), [
    ({}, ["stop"], "Send nothing"), (STUCK, ["stop", "leave"], "continue at the API"),
])  # fmt: skip
def test_a_button_stops_the_run_or_leaves_its_batches(page, options, names, words):
    """A live run has Stop; one with batches has a second button, which leaves them at the API."""

    async def steps(run):
        panel = Watch(run)._panel
        await (run.submitted() if options else until(lambda: run.counts.answered))
        assert list(panel.buttons) == names
        assert words in panel.buttons[names[-1]].tooltip
        panel.buttons[names[-1]].click()

    state = {"stop": "stopped", "leave": "left"}[names[-1]]
    assert follow(steps, **options).state == state
    assert f"Run {state}" in dict(page.updates)[1]["text/html"]
