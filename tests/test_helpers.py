"""Level 1: `map`, `batch`, `price` and `spend` are nothing but calls of level 2."""

from __future__ import annotations

import polars as pl
import pytest
from polars.testing import assert_frame_equal

import claudescale as cs

FRAME = pl.DataFrame({"text": ["late again", "works", None, "works"]})
PROMPT = "Is this a complaint? {text}"
GIVEN = {"model": "claude-haiku-5-5", "max_tokens": 50}


@pytest.fixture
def sim():
    """Give a quick simulator."""
    with cs.Simulator(speed=600) as simulator:
        yield simulator


@pytest.mark.parametrize(("helper", "mode"), [(cs.map, "live"), (cs.batch, "batch")])
def test_a_helper_gives_what_its_plan_gives(helper, mode, sim, path):
    """The results are those of the plan with the same words, from the same ledger: nothing is sent again."""
    client = sim.client()
    found = cs.wait(helper(FRAME, PROMPT, client=client, ledger=path, progress=False, **GIVEN))
    run = cs.wait(cs.plan(FRAME, PROMPT, mode=mode, **GIVEN).run(client, ledger=path, progress=False))
    assert_frame_equal(found, run.results)
    assert run.counts.requests == 0
    assert found["reply"].null_count() == 1


def test_the_last_client_is_the_default(path, capsys):
    """Without `client`, the one that `connect` made last answers, and nothing new is started."""
    cs.connect(simulate=True, speed=600)
    capsys.readouterr()
    for _ in range(2):
        cs.wait(cs.map(FRAME, PROMPT, ledger=path, progress=False, **GIVEN))
    assert "imulat" not in capsys.readouterr().out


def test_a_helper_that_is_not_awaited_says_so():
    """No coroutine stands where a frame is expected."""
    started = cs.map(FRAME, PROMPT, **GIVEN)
    with pytest.raises(AttributeError, match=r"await cs\.map"):
        _ = started.columns
    started.close()


def test_price_shows_all_that_is_sold_the_cheapest_first():
    """Every model on sale, tier and mode has a row; nothing is sent, no client is needed."""
    found = cs.price(FRAME, PROMPT)
    assert found["dollars"].is_sorted()
    assert found.select("model", "tier", "mode").is_unique().all()
    assert {"claude-haiku-5-5", "claude-sonnet-5-5", "claude-opus-5-5"} <= set(found["model"])
    assert set(found["mode"]) == {"live", "batch"}
    assert set(found["tier"]) == {"start", "build", "scale"}


def test_price_of_one_choice_is_that_of_its_plan():
    """With a model, a tier and a mode there is one row, with the plan's own figures."""
    found = cs.price(FRAME, PROMPT, tier="build", mode="batch", **GIVEN)
    options = cs.plan(FRAME, PROMPT, tier="build", **GIVEN).options
    own = options.filter(mode="batch")
    assert_frame_equal(found.select(own.columns), own)


def test_price_leaves_out_models_that_cannot_do_it():
    """Where an option is not every model's, those that take it are compared; where none does, it says why."""
    able, all_of_them = (
        cs.price(FRAME, PROMPT, **given)["model"].n_unique() for given in ({"effort": "max"}, {})
    )
    assert 0 < able < all_of_them
    with pytest.raises(cs.PlanError, match="nobody"):
        cs.price(FRAME, "{nobody}")
