"""How many calls go at once: found out from answers, narrowed where that helps and only there."""

import pytest
from engine import through_desk

from claudescale.pacing.concurrency import Window

AT = 100.0
"""When the calls of these tests are sent, in seconds; nothing was judged before."""


def told(window, outcomes, sent=AT, now=AT + 1):
    """Tell a window that calls went at once and how each ended: "+" is an answer."""
    for nth in range(1, len(outcomes) + 1):
        window.went(nth)
    for nth, outcome in enumerate(outcomes, 1):
        left = len(outcomes) - nth
        if outcome == "+":
            window.succeeded(nth, sent, left)
        else:
            window.failed(nth, sent, now, left)
    return window


def test_it_grows_by_each_answer_while_it_is_used():
    """One more for each answer of a full window; none for those of an idle one."""
    assert told(Window(1_000), "+" * 16).calls == 22  # the later ones find it half empty
    idle = Window(1_000)
    for number in range(50):
        idle.succeeded(1, AT + number, 0)
    assert idle.calls == 16
    assert told(Window(20), "+" * 16).calls == 20


def test_failures_together_cut_once():
    """Of calls that went together any number of failures cuts once, and three are enough."""
    seen = []
    window = Window(1_000)
    for nth in range(1, 17):
        window.went(nth)
    for nth in range(1, 11):
        window.failed(nth, AT, AT + 1, 16 - nth)
        seen.append(window.calls)
    assert seen == [16, 16, *[12] * 8]


def test_a_cut_is_judged_by_answers():
    """As long as nothing was answered since a cut, nobody knows whether fewer still would be borne."""
    window = told(Window(1_000), "-" * 16)
    assert told(window, "-" * 12, sent=AT + 2, now=AT + 3).calls == 12
    assert told(window, "++++" + "-" * 8, sent=AT + 4, now=AT + 5).calls < 12


def test_what_was_borne_is_not_cut():
    """Where the last of many is refused, it is cut to the many."""
    window = told(Window(1_000), "+" * 22, sent=AT - 10)
    assert told(window, "+" * 24 + "-" * 6).calls == 24


def test_failures_by_chance_cut_nothing():
    """Where calls fail that went when few were in flight, fewer would fail as often."""
    window = told(Window(1_000), "+" * 16, sent=AT - 10)
    before = window.calls
    assert told(window, "+-++" * 6).calls >= before


def test_where_most_fail_fewer_go_whichever_they_are():
    """Three of four and more are no chance."""
    window = told(Window(1_000), "+" * 16, sent=AT - 10)
    before = window.calls
    window.trouble = 1.0  # as after very many
    assert told(window, "+" * 5 + "-" * 15).calls < before


def test_calls_that_grew_too_fast_are_cut():
    """A refusal for the pace of growth cuts, once for all that were sent before."""
    window = told(Window(1_000), "+" * 16, sent=AT - 10)
    for nth in range(1, 17):
        window.went(nth)
    window.grew_too_fast(AT, AT + 1, 15)
    cut = window.calls
    window.grew_too_fast(AT, AT + 1, 14)
    assert cut == window.calls == 12


def study(rows, **desk):
    """Return what 97 of 100 rows took, 32 at once, at a desk with room for everything; and the failures.

    The last rows are those that failed by chance again and again, and wait.
    """
    options = {} if "overload_above" in desk.get("faults", {}) else {"concurrency": 32}
    engine = through_desk(rows, options, latency=0.5, tier=(1e7, 1e10, 1e10), **desk)
    assert len(engine.finals) == rows
    sent = sorted(attempt.sent_at for attempt in engine.attempts if attempt.dollars)
    return sent[rows * 97 // 100] - sent[0], len(engine.attempts) - rows


@pytest.mark.parametrize("seed", range(3))
def test_errors_by_chance_hardly_slow_a_run_down(seed):
    """With one call in five failing, whatever one does, a run takes little longer than for its calls."""
    plain, _ = study(3_000, seed=seed)
    struck, failed = study(3_000, seed=seed, faults={529: 0.2})
    assert failed > 500
    assert struck < 1.35 * plain


@pytest.mark.parametrize(("most", "refused"), [(4, 0.5), (40, 0.1)])
def test_a_hidden_limit_is_found_and_kept(most, refused):
    """An API that bears so many calls at once gets about as many, and few more."""
    rows = 100 * most
    seconds, failed = study(rows, faults={"overload_above": most})
    assert seconds < 1.1 * rows / most * 0.5 + 5
    assert failed < refused * rows
