"""Cards: what is shown of plans and runs tells the truth, and what to do next."""

import pytest
from running import a_plan, finished, reviews, simulator

import claudescale as cs
from claudescale import cards


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
