"""How many calls go at once: found out from answers, narrowed where that helps and only there."""

import pytest
from engine import through_desk

from claudescale.pacing.pacer import Window

AT = 100.0
"""When calls are sent, in seconds; nothing was judged before."""


def told(window, outcomes, sent=AT, now=AT + 1):
    """Tell a window that calls went at once and how each ended: "+" is an answer, "f" one sent too fast."""
    for nth, outcome in enumerate(outcomes, 1):
        left = len(outcomes) - nth
        match outcome:
            case "+":
                window.succeeded(nth, sent, left)
            case "-":
                window.failed(nth, sent, now, left)
            case _:
                window.cut(sent, now, left)
    return window


@pytest.mark.parametrize(
    ("outcomes", "calls"),
    [
        ("+" * 16, 22),  # one more for each answer, until the window is half empty
        ("--" + "+" * 14, 21),  # two failures cut nothing
        ("-" * 16, 12),  # and any number of one round cuts once
        ("f" * 16, 12),
    ],
)
def test_a_round_of_calls_widens_or_cuts_once(outcomes, calls):
    """The window grows by answers while it is used, and a round of failures cuts it once."""
    assert told(Window(1_000), outcomes).calls == calls


def test_a_cut_is_judged_by_answers():
    """As long as nothing was answered since a cut, nobody knows whether fewer still would be borne."""
    window = told(Window(1_000), "-" * 16)
    assert told(window, "-" * 12, sent=AT + 2, now=AT + 3).calls == 12
    assert told(window, "++++" + "-" * 8, sent=AT + 4, now=AT + 5).calls < 12


@pytest.mark.slow
def test_errors_by_chance_hardly_slow_a_run_down():
    """With one call in five failing, whatever one does, a run takes little longer than for its calls."""
    plain, struck = (
        through_desk(600, {"concurrency": 32}, latency=0.5, tier=(1e7, 1e10, 1e10), faults=faults)
        for faults in ({}, {529: 0.2})
    )
    assert len(struck.attempts) > 700
    assert struck.seconds < 1.5 * plain.seconds + 10


@pytest.mark.slow
@pytest.mark.parametrize(("most", "refused"), [(4, 0.5), (20, 0.3)])
def test_a_hidden_limit_is_found_and_kept(most, refused):
    """An API that bears so many calls at once gets about as many, and few more."""
    rows = 50 * most
    engine = through_desk(rows, latency=0.5, tier=(1e7, 1e10, 1e10), faults={"overload_above": most})
    assert engine.seconds < 1.2 * rows / most * 0.5 + 10
    assert len(engine.attempts) - rows < refused * rows
