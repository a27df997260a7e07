"""`cs.models(client)`: what the Models API says of each model, beside the catalog's facts."""

from __future__ import annotations

import asyncio
import json
from datetime import UTC, datetime
from functools import partial

import polars as pl
import pytest
from running import simulator

import claudescale as cs
from claudescale import clock
from claudescale.api import catalog, learning
from claudescale.clock import Clock

NOW = datetime(2026, 11, 29, 12, tzinfo=UTC)


@pytest.fixture(autouse=True)
def _today(monkeypatch):
    monkeypatch.setattr(clock, "now", lambda: NOW)
    monkeypatch.setattr("claudescale.simulator.Clock", partial(Clock, now=NOW.timestamp()))


def info(name, **changes):
    """Return a model as the Models API shows it, agreeing with the catalog but for the changes."""
    from claudescale.simulator.wire import model_info  # noqa: PLC0415

    return json.loads(json.dumps(model_info(catalog.model(name), NOW))) | changes


def row(frame, name):
    return frame.row(by_predicate=pl.col("model") == name, named=True)


def test_the_simulators_models_are_the_catalogs():
    """One call gives every model with its lifecycle, retired ones too, and nothing differs."""
    with simulator() as api:
        frame = cs.models(api.client())
        assert frame.schema == learning.API_MODELS
    offered = frame.filter(~pl.col("model").str.contains("mythos"))
    assert offered["differs"].list.len().sum() == 0
    assert frame.filter(pl.col("model").str.contains("mythos"))["differs"].to_list() == [["model"]] * 3
    deprecated = row(frame, "claude-opus-4-5")
    assert deprecated["api_lifecycle"] == "deprecated"
    assert deprecated["retires_at"] == datetime(2027, 1, 22, 17, tzinfo=UTC)
    assert row(frame, "claude-opus-4-1")["api_lifecycle"] == "retired"
    assert row(frame, "claude-haiku-5-5")["max_tokens"] == 128_000
    assert frame.head(1)["model"].item() == "claude-haiku-5-5"


def test_without_a_client_it_is_the_catalog():
    """The frame is as ever, and nothing is asked."""
    assert cs.models().equals(catalog.models())


def test_what_differs_is_named():
    """A revised day, another length, another capability and a new model are told, each by its column."""
    capabilities = info("claude-opus-5-5")["capabilities"] | {"batch": {"supported": False}}
    listed = [
        info("claude-sonnet-4-5", retires_at="2027-01-15T17:00:00Z"),
        info("claude-haiku-4-5", lifecycle="deprecated", retires_at="2027-03-01T17:00:00Z"),
        info("claude-opus-5-5", max_tokens=300_000, capabilities=capabilities),
        info("claude-haiku-5-5") | {"id": "claude-haiku-6"},
        {"id": "gateway-model", "object": "model"},
    ]
    frame = learning._beside(listed, NOW)
    assert row(frame, "claude-sonnet-4-5")["differs"] == ["retires_on"]
    assert row(frame, "claude-haiku-4-5")["differs"] == ["lifecycle", "retires_on"]
    assert row(frame, "claude-opus-5-5")["differs"] == ["max_output_tokens", "batch"]
    new = row(frame, "claude-haiku-6")
    assert (new["differs"], new["line"], new["max_tokens"]) == (["model"], "haiku", 128_000)
    assert new["dollars_per_million_input_tokens"] is None
    assert row(frame, "gateway-model")["max_tokens"] is None


@pytest.mark.parametrize(
    "changes",
    [
        {"retires_at": "soon"},
        {"retires_at": 5},
        {"capabilities": []},
        {"capabilities": {"effort": "high", "thinking": {"types": None}, "batch": 1}},
        {"lifecycle": None, "max_tokens": "many", "line": None},
    ],
)
def test_damaged_answers_read_as_unknown(changes):
    """Whatever the API says, there is a frame; what cannot be read is null."""
    frame = learning._beside([info("claude-haiku-5-5", **changes)], NOW)
    assert frame.schema == learning.API_MODELS


def test_it_works_while_a_loop_runs():
    """In plain async code it gives a frame too: the call goes over the background loop."""

    async def asked(client):
        return cs.models(client)

    with simulator() as api:
        assert asyncio.run(asked(api.client())).height > 20


def test_it_is_one_call_and_free(monkeypatch):
    """One request to the Models API with the longest page, and none to the Messages API."""
    seen = []
    call = learning.Wire.call

    async def counted(self, method, path, **options):
        seen.append(path)
        return await call(self, method, path, **options)

    monkeypatch.setattr(learning.Wire, "call", counted)
    with simulator() as api:
        cs.models(api.client())
        assert api.stats["calls"] == 0
    assert len(seen) == 1
    assert "limit=1000" in seen[0]


def test_an_api_that_has_none_says_so():
    """An error is a PlanError with what the API said; a key instead of a client says what to use."""
    with simulator(faults={}) as api:
        client = api.client(base_url=f"{api.url}/nowhere")
        with pytest.raises(cs.PlanError, match="cannot be asked for its models"):
            cs.models(client)
    with pytest.raises(cs.PlanError, match=r"cs\.connect\(\)"):
        cs.models("claude-haiku-5-5")
