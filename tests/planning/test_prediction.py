"""Predictions after a pilot of 50 rows, held against what the whole run then took."""

import polars as pl
import pytest
from predicted import KINDS, PILOT_ROWS, held, notebooks, resampled, workload

pytestmark = pytest.mark.slow

ROWS = {
    "requests, one length": 900,
    "requests, enum, sorted": 900,
    "requests, repeated rows": 1_200,
    "requests, refusals and cuts": 900,
    "input, Opus, two lengths": 300,
    "input, typed": 300,
    "input, cached system": 500,
    "input, limits by the second": 300,
    "output": 1_000,
    "output, translated": 300,
    "8 at once": 400,
    "8 at once, translated": 400,
}
SEED = 5


@pytest.fixture(scope="module")
def found():
    """Return three predictions of each workload, as parts of what it took."""
    each = [
        held(workload(kind, rows, SEED + place), 3, SEED + place)
        for place, (kind, rows) in enumerate(ROWS.items())
    ]
    return pl.concat(each)


def off(found, name):
    """Return by how much predictions are off."""
    return (found[name] - 1).abs()


def test_minutes_are_within_5_percent(found):
    """The median error of the minutes is below 5% in each kind of workload, whichever limit binds."""
    medians = found.select("kind", error=off(found, "minutes")).group_by("kind").median()
    assert medians.filter(pl.col("error") > 0.05).rows() == []
    assert set(found["binding"]) == {"requests", "input_tokens", "output_tokens", "concurrency"}


def test_dollars_are_within_3_percent(found):
    """The median error of the dollars is below 3%, live and by batch, and none is far off."""
    assert off(found, "dollars").median() < 0.03
    assert off(found, "batch").drop_nulls().median() < 0.03
    assert off(found, "dollars").max() < 0.15


@pytest.mark.parametrize("name", ["1 guess and summary", "6 kind, Opus", "8 guess, build", "long tail"])
def test_the_p90_holds_nine_times_in_ten(name):
    """Over seeded pilots of 20 and of 50 rows of notebooks' plans and a long tail: dollars in 85% to 95%.

    Bounds are wider by what so few pilots leave open; the benchmark has 400. A run that a limit paces takes
    the same time each time: its minutes are all below a 90th percentile, which then is hardly above them.
    """
    for found in resampled(notebooks()[name], 4, 12, (20, PILOT_ROWS)):
        dollars, minutes = ((found[f"{figure}_p90"] >= 1).mean() for figure in ("dollars", "minutes"))
        assert dollars >= 0.75
        assert minutes >= 0.75
        widest = 1.5 if name == "long tail" else 1.15
        assert found["minutes_p90"].median() < widest
        assert (found["dollars_p90"] / found["dollars"]).median() < widest
        assert found["dollars"].median() == pytest.approx(1, abs=0.05)


@pytest.mark.parametrize("kind", ["overloaded, 5%, 8 at once", "answers lost, 3%"])
def test_calls_that_fail_are_in_the_estimate(kind):
    """What a pilot loses to failed calls is in the minutes; their 90th percentile covers a bad day."""
    found = held(workload(kind, 600, SEED), 3, SEED)
    assert found.filter(pl.col("minutes_p90") < 1).height <= 1


def test_every_kind_has_a_name_of_its_own():
    """The workloads of the benchmark can be told apart, and those here are among them."""
    assert set(ROWS) <= set(KINDS)
