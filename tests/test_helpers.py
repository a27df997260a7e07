"""Level 1: `map`, `batch`, `price` and `spend` are thin wrappers around level 2."""

import polars as pl
import pytest
from polars.testing import assert_frame_equal

import claudescale as cs

FRAME = pl.DataFrame({"text": ["late again", "works", None, "works"]})
PROMPT = "Is this a complaint? {text}"
GIVEN = {"model": "claude-haiku-5-5", "max_tokens": 50}


@pytest.mark.parametrize(("helper", "mode"), [(cs.map, "live"), (cs.batch, "batch")])
def test_a_helper_gives_what_its_plan_gives(helper, mode, path, capsys):
    """The results equal those of a plan with the same arguments and ledger: nothing is sent again.

    The most recently connected client is the default, and nothing new is started.
    """
    cs.connect(simulate=True, speed=600)
    capsys.readouterr()
    results = cs.wait(helper(FRAME, PROMPT, ledger=path, progress=False, **GIVEN))
    run = cs.wait(cs.plan(FRAME, PROMPT, mode=mode, **GIVEN).run(ledger=path, progress=False))
    assert_frame_equal(results, run.results)
    assert run.counts.requests == 0
    assert results["reply"].null_count() == 1
    assert "imulat" not in capsys.readouterr().out


def test_price_shows_all_that_is_sold_the_cheapest_first():
    """Every model on sale, tier and mode has a row with the plan's own figures; no client is needed.

    Models that do not support an option are left out; if none does, it says why.
    """
    prices = cs.price(FRAME, PROMPT)
    assert prices["dollars"].is_sorted()
    assert prices.select("model", "tier", "mode").is_unique().all()
    assert {"claude-haiku-5-5", "claude-sonnet-5-5", "claude-opus-5-5"} <= set(prices["model"])
    assert set(prices["mode"]) == {"live", "batch"}
    assert set(prices["tier"]) == {"start", "build", "scale"}
    one = cs.price(FRAME, PROMPT, tier="build", mode="batch", **GIVEN)
    own = cs.plan(FRAME, PROMPT, tier="build", **GIVEN).options.filter(mode="batch")
    assert_frame_equal(one.select(own.columns), own)
    assert set() < set(cs.price(FRAME, PROMPT, effort="max")["model"]) < set(prices["model"])
    with pytest.raises(cs.PlanError, match="nobody"):
        cs.price(FRAME, "{nobody}")
