"""Requests, byte for byte, and the keys by which a ledger recognizes its rows permanently."""

import json
import re

import polars as pl
import pytest
from canned import KEY, BatchApi, Canned, message
from golden import check
from plans import OPTIONS, RETURNS, a_plan
from running import WIDE, finished

import claudescale as cs


def test_keys_and_bodies_are_those_recorded():
    """A row of an older ledger is found again, so it is not paid for again."""
    found = {}
    for name, options in OPTIONS.items():
        rows = a_plan(**options).requests
        found[name] = dict(zip(rows["custom_id"], rows["params"], strict=True))
    check("requests", found)


def test_live_calls_send_what_the_plan_shows():
    """The bodies that arrive equal those of `Plan.requests`, to the byte."""
    for name in ("plain", "list", "expression", "system cached", "pydantic with system", "effort"):
        plan = a_plan(**OPTIONS[name])
        with Canned(lambda *_: (200, {}, message())) as server:
            finished(plan, cs.connect(api_key=KEY, base_url=server.url))
            assert sorted(server.bodies()) == sorted(body.encode() for body in plan.requests["params"])


@pytest.mark.slow
def test_a_batch_sends_what_the_plan_shows():
    """Each row's params equal those of `Plan.requests`; its id is a key and the batch's own nonce."""
    result = {"type": "succeeded", "message": message()}
    plan = a_plan(**OPTIONS["pydantic"], mode="batch")
    with Canned(BatchApi(lambda _: result)) as server:
        assert finished(plan, cs.connect(api_key=KEY, base_url=server.url)).state == "finished"
        (body,) = server.bodies("/v1/messages/batches")
    ids = [each["custom_id"] for each in json.loads(body)["requests"]]
    (mark,) = {each[32:] for each in ids}
    assert re.fullmatch("-[0-9a-f]{12}", mark)
    pairs = zip(ids, plan.requests["params"], strict=True)
    rows = [f'{{"custom_id":"{each}","params":{params}}}' for each, params in pairs]
    assert body.decode() == f'{{"requests":[{",".join(rows)}]}}'


@pytest.mark.slow
def test_schemas_and_types_of_each_returns_are_those_recorded():
    """The JSON schema sent and the columns returned are as recorded."""
    found = {}
    with cs.Simulator(WIDE, speed=50, latency=0.1) as api:
        for name, returns in RETURNS.items():
            plan = a_plan(returns=returns)
            sent = json.loads(plan.requests["params"][0])["output_config"]
            schema = finished(plan, api.client()).results.schema
            columns = {column: str(dtype) for column, dtype in schema.items()}
            found[name] = {"sent": sent, "columns": columns}
    check("returns", found)


def test_results_of_seeded_runs_are_those_recorded():
    """The same seed gives the same frame: live, typed and by batch."""
    found, plans = {}, {"live": {}, "typed": {"returns": RETURNS["pydantic"]}}
    plans["batch"] = {"returns": RETURNS["enum"], "mode": "batch"}
    with cs.Simulator(WIDE, speed=600, latency=0.1, batch_seconds=60) as api:
        for name, options in plans.items():
            results = finished(a_plan(**options), api.client()).results
            found[name] = json.loads(results.cast({pl.Date: pl.String}).write_json())
    check("results", found)


def test_a_simulator_of_another_seed_is_another_api(path):
    """A ledger's rows are known to a simulator of the same seed, and sent again to one of another."""
    plan, calls = a_plan(), []
    for seed in (1, 1, 2):
        with cs.Simulator(WIDE, speed=600, seed=seed) as api:
            finished(plan, api.client(), ledger=path)
            calls.append(api.stats["calls"])
    assert calls == [len(plan.requests), 0, len(plan.requests)]
