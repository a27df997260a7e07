"""Retiring models: paid results stay readable, and only sending checks whether a model can be called."""

from datetime import UTC, datetime
from functools import partial

import pytest
from running import a_plan, finished, reviews, simulator

import claudescale as cs
from claudescale.api import catalog
from claudescale.clock import Clock

EVE = datetime(2026, 11, 29, 20, tzinfo=UTC).timestamp()
"""Some hours before Sonnet 4.5 retires, on 2026-11-30 at 17:00 UTC."""
DAY = 86_400.0
ROWS = 6
pytestmark = pytest.mark.slow


@pytest.fixture
def pass_time(monkeypatch):
    """Start on the eve of retirement, and return a function that advances the clock of catalog and API."""

    def later(seconds, api=None):
        monkeypatch.setattr(catalog, "now", lambda: datetime.fromtimestamp(EVE + seconds, UTC))
        if api is not None:
            api.clock._epoch += seconds

    monkeypatch.setattr("claudescale.simulator.Clock", partial(Clock, now=EVE))
    later(0)
    return later


def the_plan(mode="batch", rows=ROWS):
    more = {"deadline": 90} if mode == "hybrid" else {}
    return a_plan(reviews(rows), model="claude-sonnet-4-5", mode=mode, **more)


def left_alone(api, path):
    """Submit a batch and disconnect, as when a laptop lid is closed."""
    run = cs.wait(the_plan().run(api.client(), ledger=path, progress=False, wait=False))
    run.leave()
    assert cs.wait(run).state == "left"


@pytest.mark.parametrize("mode", ["batch", "hybrid"])
def test_a_batch_is_collected_after_its_model_has_retired(mode, path, pass_time):
    """In every mode the batch's answers arrive at half the price of their day; one more row is refused."""
    with simulator(speed=600, batch_seconds=3_600) as api:
        assert "claude-sonnet-4-5" in cs.price(reviews(1), "{text}", tier="start")["model"]
        left_alone(api, path)
        pass_time(DAY, api)
        assert "claude-sonnet-4-5" not in cs.price(reviews(1), "{text}", tier="start")["model"]
        plan = the_plan(mode)
        assert "was retired on 2026-11-30" in repr(plan)
        run = finished(plan, api.client(), ledger=path)
        assert run.results["reply"].null_count() == 0
        full = run.attempts["input_tokens"].sum() * 3e-6 + run.attempts["output_tokens"].sum() * 15e-6
        assert run.bill["dollars"].sum() == pytest.approx(full / 2, abs=1e-9)
        with pytest.raises(cs.errors.UnknownModel, match=r"retired on 2026-11-30.*Use 'claude-sonnet-5-5'"):
            finished(the_plan(mode, rows=ROWS + 1), api.client(), ledger=path)
        assert (api.stats["calls"], api.stats["batches_created"]) == (0, 1)


def test_rows_that_expired_are_not_sent_to_a_retired_model(path, pass_time):
    """The batch is collected first, its answers are kept, and the run ends without resending anything."""
    with simulator(speed=600, batch_seconds=40 * 3_600) as api:
        api.clock._epoch -= 2 * DAY
        left_alone(api, path)
        pass_time(3 * DAY, api)
        with pytest.raises(cs.RunStopped, match="retired on 2026-11-30") as error:
            finished(the_plan(), api.client(), ledger=path)
        (batch,) = error.value.run.batches.to_dicts()
        assert batch["state"] == "collected"
        assert batch["expired"] > 0
        assert (api.stats["calls"], api.stats["batches_created"]) == (0, 1)
