"""Cards: what is shown of plans and runs tells the truth, and what to do next."""

import polars as pl
import pytest
from running import a_plan, finished, reviews, simulator

import claudescale as cs
from claudescale.views import cards


def test_a_runs_line_counts_rows():
    """The one line has state, rows and dollars, and names only what there is."""
    with simulator() as api:
        line = cards.line(finished(a_plan(reviews(1_200)), api.client()))
    assert line.startswith("SIMULATED Run finished: 1,200 of 1,200 rows answered; 1,200 calls in ")
    assert line.endswith(".")
    for absent in ("failed", "missing", "reused"):
        assert absent not in line


def test_before_a_run_its_price_is_said():
    """What is going to be sent is said with dollars and time, and what the ledger has already."""
    with simulator() as api:
        run = finished(a_plan(reviews(5)), api.client())
        assert cards.before(run) == "SIMULATED, nothing is paid. 0 rows live on claude-haiku-5-5."


def test_a_resume_says_what_is_reused(tmp_path, capsys):
    """The line before a resume prices what is missing, and tells what was paid for."""
    with simulator() as api:
        finished(a_plan(reviews(30)), api.client(), ledger=tmp_path / "l")
        capsys.readouterr()
        cs.wait(a_plan(reviews(40)).run(api.client(), ledger=tmp_path / "l"))
    shown = capsys.readouterr().err
    assert "10 rows live on claude-haiku-5-5 (30 requests are in the ledger): about $" in shown
    assert "40/40" in shown


@pytest.mark.parametrize("kept", [True, False])
def test_what_the_same_cell_would_pay_again(tmp_path, kept):
    """With a ledger the same cell sends what is missing; without one it pays again, and that is said."""
    with simulator(faults={"spend_cap": 0.0005}) as api, pytest.raises(cs.RunStopped) as stopped:
        finished(a_plan(reviews(100), concurrency=4), api.client(), ledger=tmp_path / "l" if kept else None)
    words = "sends only what is missing" if kept else "pays for them again"
    assert words in str(stopped.value)
    assert words in repr(stopped.value.run)


def test_a_run_card_is_short_and_ends_with_what_to_type():
    """A card has at most twelve lines, and its last one can be typed."""
    with simulator() as api:
        run = finished(a_plan(reviews(3)), api.client())
    lines = repr(run).splitlines()
    assert len(lines) <= 12
    assert lines[-1] == "run.results"


def test_every_end_of_a_run_has_an_advice():
    """Whatever the verdicts call an end is explained, with something to do."""
    for error, advice in cards._ADVICE.items():
        assert advice.count(". ") + advice.endswith(".") >= 2, error


def test_a_plan_card_says_what_the_next_tier_gains():
    """One line, where there is a next tier; none for limits that are no tier's: something else sets them."""
    assert "\nThe next tier, build: gains nothing: latency limits it.\n" in repr(
        a_plan(reviews(5), tier="start")
    )
    for none in (a_plan(reviews(5), tier="scale"), a_plan(reviews(5))):
        assert "next tier" not in repr(none)
    with simulator(tier="start", requests_per_minute=500) as api:
        slow = cs.wait(a_plan(reviews(5), tier="start").learn_limits(api.client()))
    assert "next tier" not in repr(slow)
    assert "The API allows 500 requests a minute, not 1,000 as tier 'start' has" in repr(slow)


def test_a_tier_that_does_not_fit_the_answers_is_told_on_both_cards():
    """Of a run and of the plan it calibrates; where tier and answers agree nothing is said."""
    told = "those are the limits of tier='build'."
    for tier, shown in (("start", True), ("build", False)):
        with simulator(tier="build", speed=60) as api:
            plan = a_plan(reviews(5), tier=tier)
            run = finished(plan, api.client())
        for card in (repr(run), repr(plan.calibrate(run)), run._repr_html_()):
            assert ("The API allows" in card) is shown
        assert (told in repr(run)) is shown
        assert "Limits: the headers of the API&#x27;s answers, just now." in run._repr_html_()


def test_a_plan_card_is_short_whatever_there_is_to_tell():
    """At most twelve lines, with a deadline, a cache, a mismatch and a next tier."""
    system = "You read complaints of customers and answer in one word. " * 400
    plan = a_plan(reviews(50), tier="start", system=system, cache=True, mode="auto", deadline=90)
    with simulator(tier="build", speed=60) as api:
        lines = repr(cs.wait(plan.learn_limits(api.client()))).splitlines()
    assert len(lines) <= 12
    assert "In a batch 64% of the requests are taken to find the cache: 30% to 98% are usual." in lines
    assert lines[-1].startswith("pilot = ")
    assert "In a batch" not in repr(plan.replace(cache=False))


def test_a_card_reads_no_row_again():
    """What the next tier gains is computed from totals that are known."""
    reads = []
    frame = reviews(5).lazy().map_batches(lambda read: reads.append(1) or read, schema={"text": pl.String})
    plan = a_plan(frame, tier="start", mode="auto", deadline=90)
    first, again = repr(plan), repr(plan)
    assert first == again
    assert len(reads) == 1
