"""Models missing from the catalog, names sent as typed, and the Models API."""

import json
import math
from datetime import UTC, datetime
from decimal import Decimal
from functools import partial

import polars as pl
import pytest
from canned import KEY, USAGE, BatchApi, Canned, message, passed_on
from running import a_plan, finished, reviews, simulator

import claudescale as cs
from claudescale.api import catalog, prices
from claudescale.api.models import API_MODELS, compared
from claudescale.clock import Clock
from claudescale.simulator.wire import model_info

PRICED = cs.Model("my-haiku", input_dollars=Decimal("0.2"), output_dollars=1, max_tokens=640.0)
UNPRICED = cs.Model("my-haiku")
NOW = datetime(2026, 11, 29, 12, tzinfo=UTC)


def sent(plan):
    return {json.loads(params)["model"] for params in plan.requests["params"]}


def test_its_name_is_sent_and_is_part_of_the_key():
    """The body has the id and the keys differ from the twin's; everything else equals the twin's."""
    own, twin = a_plan(reviews(3), model=PRICED), a_plan(reviews(3))
    assert sent(own) == {"my-haiku"}
    assert not set(own.requests["custom_id"]) & set(twin.requests["custom_id"])
    assert own.compiled.model.tokenizer == twin.compiled.model.tokenizer


def test_a_dated_id_is_sent_as_typed():
    """The body has the dated id; facts, price and keys are the alias's, so no row is paid twice."""
    dated, short = (a_plan(reviews(3), model=f"claude-haiku-4-5{day}") for day in ("-20251001", ""))
    assert (sent(dated), sent(short)) == ({"claude-haiku-4-5-20251001"}, {"claude-haiku-4-5"})
    assert dated.requests["custom_id"].to_list() == short.requests["custom_id"].to_list()
    assert dated.options.equals(short.options)


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["live", "batch"])
def test_given_prices_make_the_bill_and_none_is_guessed(mode, path):
    """Dollars are tokens times the given prices, halved in batches; without prices they are unknown."""
    priced, unpriced = (a_plan(reviews(6), model=model, mode=mode) for model in (PRICED, UNPRICED))
    assert "given by you" in repr(priced)
    assert "Prices: not known" in repr(unpriced)
    assert unpriced.options["dollars"].is_nan().all()
    with Canned(BatchApi(lambda _: {"type": "succeeded", "message": message()})) as gateway:
        client = cs.connect(api_key=KEY, base_url=gateway.url)
        run, unknown = finished(priced, client), finished(unpriced, client, ledger=path)
        again = finished(unpriced, client, ledger=path)
    wanted = 6 * (USAGE["input_tokens"] * 0.2e-6 + USAGE["output_tokens"] * 1e-6)
    paid = run.attempts.filter(mode=mode)["dollars"].sum()
    assert paid == pytest.approx(wanted / (2 if mode == "batch" else 1), rel=1e-9)
    assert run.bill["dollars"].sum() == pytest.approx(run.counts.dollars, rel=1e-9)
    assert run.bill["prices"].unique().to_list() == ["given by you"]
    # With the ledger alone, the recorded data show only that no price is known.
    alone = prices.bill(run.attempts).row(-1, named=True)
    assert (alone["part"], alone["prices"]) == ("price not known", "not known")
    assert alone["dollars"] == pytest.approx(run.counts.dollars, rel=1e-9)
    assert (PRICED.facts.max_output_tokens, UNPRICED.facts.max_output_tokens) == (640, 128_000)
    live = prices.price(PRICED.facts).steps[0]  # and the cache has the usual multiples
    cached = [each / live.input for each in (live.cache_write_5m, live.cache_write_1h, live.cache_read)]
    assert cached == pytest.approx([1.25, 2, 0.1])
    assert unknown.results["error"].null_count() == 6
    assert math.isnan(unknown.counts.dollars)
    assert unknown.bill.row(-1, named=True)["dollars"] is None
    assert (again.counts.reused, again.counts.dollars) == (6, 0)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"id": 5}, "the name to send"),
        ({"input_dollars": 1.0}, "Add output_dollars="),
        ({"input_dollars": "1", "output_dollars": 1}, "above 0"),
        ({"context_tokens": 1.5}, "whole number of tokens"),
    ],
)
def test_what_cannot_be_is_named_with_what_to_type(options, words):
    """An invalid custom model is a PlanError that says what to type, as is a budget without prices."""
    with pytest.raises(cs.PlanError, match=words):
        cs.Model(**{"id": "a", **options})
    with pytest.raises(cs.PlanError, match=r"input_dollars=\.\.\., output_dollars="):
        a_plan(reviews(2), model=UNPRICED, budget=1.0)


# ------------------------------------------------------------------------------------------ the Models API


def info(name, **changes):
    """Return a model as the Models API reports it, equal to the catalog except for the changes."""
    return json.loads(json.dumps(model_info(catalog.model(name), NOW))) | changes


def row(frame, name):
    return frame.row(by_predicate=pl.col("model") == name, named=True)


@pytest.mark.slow
def test_the_simulators_models_are_the_catalogs(monkeypatch):
    """One free call returns every model with its lifecycle, and nothing differs."""
    monkeypatch.setattr(catalog, "now", lambda: NOW)
    monkeypatch.setattr("claudescale.simulator.Clock", partial(Clock, now=NOW.timestamp()))
    with simulator() as api, Canned(passed_on(api.url)) as server:
        frame = cs.models(api.client(base_url=server.url))
        with pytest.raises(cs.PlanError, match="Could not get the models from the API"):
            cs.models(api.client(base_url=f"{api.url}/nowhere"))
    assert len([path for _, path, _, _ in server.seen if path.startswith("/v1/models")]) == 1
    differs = frame.filter(pl.col("differs").list.len() > 0)
    assert (frame.schema, differs["differs"].to_list()) == (API_MODELS, [["model"]] * 3)
    assert differs["model"].str.contains("mythos").all()
    deprecated = row(frame, "claude-opus-4-5")
    assert deprecated["api_lifecycle"] == "deprecated"
    assert deprecated["retires_at"] == datetime(2027, 1, 22, 17, tzinfo=UTC)
    assert row(frame, "claude-opus-4-1")["api_lifecycle"] == "retired"


def test_what_differs_is_named():
    """A revised date, length or capability and a new model are reported; damaged values read as unknown."""
    capabilities = info("claude-opus-5-5")["capabilities"] | {"batch": {"supported": False}}
    odd = {"effort": "high", "thinking": {"types": None}, "batch": 1}
    listed = [
        info("claude-sonnet-4-5", retires_at="2027-01-15T17:00:00Z"),
        info("claude-haiku-4-5", lifecycle="deprecated", retires_at="2027-03-01T17:00:00Z"),
        info("claude-opus-5-5", max_tokens=300_000, capabilities=capabilities),
        info("claude-fable-5-2", max_tokens="many", retires_at="soon", capabilities=odd),
        info("claude-haiku-5-5") | {"id": "claude-haiku-6"},
        {"id": "gateway-model", "object": "model"},
    ]
    frame = compared(listed, NOW)
    assert row(frame, "claude-sonnet-4-5")["differs"] == ["retires_on"]
    assert row(frame, "claude-haiku-4-5")["differs"] == ["lifecycle", "retires_on"]
    assert row(frame, "claude-opus-5-5")["differs"] == ["max_output_tokens", "batch"]
    assert row(frame, "claude-fable-5-2")["differs"] == []
    new = row(frame, "claude-haiku-6")
    assert (new["differs"], new["line"], new["max_tokens"]) == (["model"], "haiku", 128_000)
    assert new["dollars_per_million_input_tokens"] is row(frame, "gateway-model")["max_tokens"] is None
    # Of the models that the API leaves out, those on sale have a row.
    assert row(frame, "claude-sonnet-5-5")["differs"] == ["model"]
    assert "claude-opus-4-1" not in frame["model"]
