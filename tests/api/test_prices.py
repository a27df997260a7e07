"""Bills: every row has genai-prices' price for its answer, and every dollar is in exactly one part."""

from datetime import UTC, datetime, timedelta
from types import SimpleNamespace

import canned
import genai_prices
import polars as pl
import pytest
from running import WIDE_LIMITS, finished

import claudescale as cs
from claudescale.api import catalog, prices
from claudescale.errors import PlanError, UnknownModel
from claudescale.ledger.records import ATTEMPTS
from claudescale.running.job import Job

NOW = datetime(2026, 11, 22, 12, tzinfo=UTC)
ASKED, OTHER = "claude-haiku-5-5", "claude-opus-5-5"
TWINS = {"claude-mythos-5-1", "claude-mythos-5"}  # genai-prices lists only their Fable twins
TOKENS = list(catalog.COLUMNS.values())
SEARCH = {"type": "web_search_20250305", "name": "web_search", "max_uses": 5}

# Prompts around the price steps, where a wrong comparison shows.
USAGES = pl.DataFrame(
    [(0, 0, 0, 0, 0), (100_000, 0, 0, 0, 7), (99_999, 1, 0, 1, 7), (50_000, 25_000, 25_000, 1, 0)],
    schema=TOKENS,
    orient="row",
)


def by_genai(model, mode, usage, at=NOW):
    """Return the dollars of one request according to genai-prices."""
    write = usage["cache_write_5m_input_tokens"] + usage["cache_write_1h_input_tokens"]
    used = genai_prices.Usage(
        input_tokens=usage["input_tokens"] + write + usage["cache_read_input_tokens"],
        cache_write_tokens=write,
        cache_write_1h_tokens=usage["cache_write_1h_input_tokens"],
        cache_read_tokens=usage["cache_read_input_tokens"],
        output_tokens=usage["output_tokens"],
    )
    context = {"processing": "batch"} if mode == "batch" else None
    price = genai_prices.calc_price(
        used, model, provider_id="anthropic", genai_request_timestamp=at, price_context=context
    )
    return float(price.total_price)


def attempt(key="a", *, model=ASKED, mode="live", error=None, billed=True, at=NOW, **tokens):
    """Return one row of attempts, priced by genai-prices."""
    usage = dict.fromkeys((*TOKENS, "thinking_tokens", "web_search_requests"), 0) | tokens
    row = {"key": key, "model": model, "mode": mode, "sent_at": at, "error": error}
    return row | usage | {"dollars": by_genai(model, mode, usage, at) if billed else 0.0}


def frame(*rows):
    """Return a frame of attempts."""
    return pl.DataFrame(list(rows), schema=ATTEMPTS)


MIXED = frame(
    attempt("a", input_tokens=1_000, output_tokens=300, thinking_tokens=100),
    attempt("b", mode="batch", input_tokens=150_000, output_tokens=40),
    attempt("c", model=OTHER, input_tokens=7, cache_write_5m_input_tokens=2_000, output_tokens=9),
    attempt("d", model=OTHER, input_tokens=7, cache_read_input_tokens=2_000, output_tokens=9),
    attempt("e", model="claude-sonnet-5-5", mode="batch", cache_write_1h_input_tokens=900, output_tokens=1),
    attempt("f", error="rate_limit_error", billed=False),
    attempt("f", error="rate_limit_error", billed=False),
    attempt("f", error="truncated", input_tokens=500, output_tokens=1_024, thinking_tokens=1_000),
    attempt("f", input_tokens=500, output_tokens=80, at=NOW + timedelta(days=1)),
    attempt("a", input_tokens=1_000, output_tokens=310),
)


@pytest.mark.parametrize("mode", ["live", "batch"])
@pytest.mark.parametrize("model", [name for name in catalog.MODELS if name not in TWINS])
def test_dollars_are_those_of_genai_prices(mode, model):
    """The dollars of a usage equal genai-prices' for every model and mode, in a frame and alone."""
    price = prices.price(model, mode=mode, at=NOW)
    each = prices.dollars(price, **{name: pl.col(name) for name in TOKENS})
    rows, paid = USAGES.to_dicts(), USAGES.select(dollars=each)
    assert paid.schema == {"dollars": pl.Float64}
    assert paid["dollars"].to_list() == pytest.approx([by_genai(model, mode, row) for row in rows], rel=1e-12)
    assert [price.dollars(**row) for row in rows] == paid["dollars"].to_list()


def test_every_model_has_the_price_of_its_day():
    """The UTC date decides; Mythos costs the same as its twin; an unknown price raises."""
    for model in TWINS:
        twin = prices.price(model.replace("mythos", "fable"), at=NOW)
        assert prices.price(model, at=NOW).steps == twin.steps
    with pytest.raises(UnknownModel, match="no model 'claude-next'"):
        prices.price("claude-next", at=NOW)
    early = prices.price("claude-opus-4-6", at=datetime(2026, 3, 12, tzinfo=UTC))
    late = prices.price("claude-opus-4-6", at=datetime(2026, 3, 13, tzinfo=UTC))
    assert (len(early.steps), len(late.steps)) == (2, 1)
    eastern = datetime.fromisoformat("2026-03-12T23:00:00-05:00")
    assert prices.price("claude-opus-4-6", at=eastern) == late
    with pytest.raises(PlanError, match="no batch price"):
        prices.price("claude-opus-4-6", mode="batch", at=datetime(2026, 9, 1, tzinfo=UTC))


def test_the_parts_of_a_bill_sum_to_what_was_billed():
    """Every billed dollar is in exactly one part, across models, days, price steps and price changes."""
    bill, parts = prices.bill(MIXED), ["input", *catalog.PARTS[1:4], "reply", "thinking"]
    assert (bill.schema, bill["part"].to_list()) == (prices.BILL, parts)
    assert bill["share"].sum() == pytest.approx(1)
    assert bill["tokens"].sum() == MIXED.select(pl.sum_horizontal(TOKENS).sum()).item()
    assert bill.filter(part="thinking")["tokens"].item() == 1_100
    bill = prices.bill(MIXED.with_columns(pl.col("dollars") * 2))
    assert bill["part"].to_list() == [*parts, "price changed since"]
    assert bill["dollars"].sum() == pytest.approx(2 * MIXED["dollars"].sum(), abs=1e-12)
    free = frame(attempt(error="overloaded_error", billed=False))
    assert prices.bill(free)["dollars"].to_list() == [0.0] * 6
    assert prices.savings(free)["dollars_saved"].to_list() == [0.0] * 3
    # Billed replies without a result, refused calls and repeated replies are separate kinds of waste.
    waste = prices.waste(MIXED)
    kinds = {row["kind"]: (row["attempts"], row["tokens"], row["dollars"]) for row in waste.to_dicts()}
    cut, repeated = MIXED["dollars"][7], MIXED["dollars"][-1]
    wanted = {"truncated": (1, 1_524, cut), "repeated": (1, 1_310, repeated), "rate_limit_error": (2, 0, 0)}
    assert (waste.schema, kinds) == (prices.WASTE, wanted)
    assert prices.bill(MIXED)["wasted_dollars"].sum() == pytest.approx(cut + repeated)


def test_savings_are_against_the_same_rows_done_plainly():
    """Savings from deduplication, cache and batches add up from the plain price to the billed amount."""
    duplicates = pl.DataFrame({"key": ["a", "nobody"], "duplicates": [40, 99]})
    rows = MIXED[[0, 1, 2, 3, 9]]  # a, b, c, d, and a again, which was answered already
    saved = prices.savings(rows, duplicates=duplicates)
    assert saved.schema == prices.SAVINGS
    # By hand: 40 more of a; c's 2,000 tokens written at 5 for 4, d's read at 0.20; half of a long prompt.
    by_hand = [40 * (1_000 * 0.1 + 300 * 0.5), 2_000 * (3.8 - 1), (150_000 * 0.5 + 40 * 2.5) / 2]
    assert saved["dollars_saved"].to_list() == pytest.approx([millionth / 1e6 for millionth in by_hand])
    assert saved["dollars_with"][-1] == pytest.approx(rows["dollars"].sum())
    assert saved["dollars_without"][0] == pytest.approx(saved["dollars_with"][-1] + sum(by_hand) / 1e6)


# ------------------------------------------------------------------ the cost of an answer by its usage


def answer(input_tokens, output_tokens, *, model=ASKED, searches=0, geo="global", refused=None):
    """Return a Message in the API's form."""
    usage = {"input_tokens": input_tokens, "output_tokens": output_tokens, "inference_geo": geo}
    usage |= {"server_tool_use": {"web_search_requests": searches, "web_fetch_requests": 0}}
    details = {"type": "refusal", "category": refused, "explanation": None} if refused else None
    content = [{"type": "text", "text": "ok"}] if output_tokens else []
    reason = "refusal" if refused else "end_turn"
    return canned.message(model=model, content=content, stop_reason=reason, stop_details=details, usage=usage)


# Calculated by hand, dollars per million tokens. The requested model costs 0.10 in and 0.50 out, and
# 0.50 and 2.50 for prompts above 100,000 tokens; the other 4 in and 20 out. US geography is 1.1 times,
# a search 0.01. Batches cost half of that, except for searches.
ACCOUNT = {
    "five searches": (answer(60_000, 4_000, searches=5), 0.058, 0.054),
    "a fallback answered": (answer(10_000, 2_000, model=OTHER), 0.080, 0.040),
    "refused at once": (answer(80_000, 0, refused="cyber"), 0.0, 0.0),
    "refused at once, billed": (answer(80_000, 0, refused="bio"), 0.008, 0.004),
    "all at once": (answer(10_000, 1_000, model=OTHER, geo="us", searches=2), 0.086, 0.053),
    "a long prompt in the US": (answer(200_000, 1_000, geo="us"), 0.11275, 0.056375),
    "an unknown model": (answer(50_000, 10_000, model="claude-next-9"), 0.010, 0.005),
}


def ran(answers, mode="live", **options):
    """Return a finished run whose rows get these answers."""

    def given(params):
        return {"type": "succeeded", "message": answers[params["messages"][0]["content"]]}

    texts = pl.DataFrame({"text": list(answers)})
    plan = cs.plan(texts, "{text}", **{"model": ASKED, "tier": WIDE_LIMITS, "mode": mode, **options})
    with canned.Canned(canned.BatchApi(given)) as server:
        return finished(plan, cs.connect(api_key=canned.KEY, base_url=server.url))


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["live", "batch"])
def test_a_run_costs_what_the_account_says(mode):
    """Searches, geography, fallbacks and refusals are priced to the cent, live and in a batch."""
    run = ran({name: message for name, (message, _, _) in ACCOUNT.items()}, mode)
    attempts = run.attempts.filter(mode=mode) if mode == "batch" else run.attempts
    costs = sorted(row[1 if mode == "live" else 2] for row in ACCOUNT.values())
    assert attempts["dollars"].sort().to_list() == pytest.approx(costs, abs=1e-12)
    bill = prices.bill(attempts)
    assert bill["dollars"].sum() == pytest.approx(sum(costs), abs=1e-12)
    assert (bill["part"][-1], bill["dollars"][-1]) == ("web_search", pytest.approx(0.07))
    assert prices.savings(attempts)["dollars_with"][-1] == pytest.approx(sum(costs), abs=1e-12)
    refused = prices.waste(attempts).row(by_predicate=pl.col("kind") == "refusal", named=True)
    assert (refused["attempts"], refused["billed_attempts"]) == (2, 1)
    refusals = attempts.filter(error="refusal").sort("input_tokens", "dollars")
    assert refusals["refusal_category"].to_list() == ["cyber", "bio"]
    assert ["You paid nothing" in words for words in refusals["message"]] == [True, False]
    every = attempts.filter(web_search_requests=2).row(0, named=True)
    assert (every["model"], every["answering_model"], every["inference_geo"]) == (ASKED, OTHER, "us")
    assert attempts.filter(answering_model="claude-next-9")["message"].str.contains(ASKED).all()


def test_the_worst_case_knows_geography_and_tools():
    """A workspace may default to US geography, and with server tools every turn may read a full context."""
    price = prices.price(ASKED, inference_geo=prices.worst_geography(None))
    assert price.steps[0].output == pytest.approx(0.55e-6)
    assert prices.price(ASKED, inference_geo="global") == prices.price(ASKED)
    assert prices.price("claude-haiku-4-5", inference_geo="us") == prices.price("claude-haiku-4-5")
    plan = cs.plan(pl.DataFrame({"text": ["a"]}), "{text}", model=ASKED, params={"tools": [SEARCH]})
    job = Job(plan, SimpleNamespace(middleware=()), None)
    most = job.with_worst(pl.DataFrame({"most_tokens": [9]}), "live")["worst_dollars"].item()
    # Six turns of a million tokens written to the cache, and of 1,024 tokens; five searches.
    assert most == pytest.approx(6 * (1e6 * 0.6875e-6 + 1_024 * 2.75e-6) + 0.05)
    with pytest.raises(cs.PlanError, match="max_uses"):
        plan.replace(budget=100.0, params={"tools": [{**SEARCH, "max_uses": None}]})
    with pytest.raises(cs.errors.ImpossibleBudget, match="one row can cost up to"):
        plan.replace(budget=1.0)


def test_estimates_know_geography_and_searches():
    """US geography multiplies all token prices, a search tool adds a fee, and a pilot measures how many."""
    texts = pl.DataFrame({"text": ["a" * 1_000] * 3, "n": [1, 2, 3]})
    plan = cs.plan(texts, "{text} {n}", model=ASKED)
    there = plan.replace(params={"inference_geo": "us"})
    ratio = there.options["dollars"] / plan.options["dollars"]
    assert ratio.to_list() == pytest.approx([1.1, 1.1])
    searching = plan.replace(params={"tools": [SEARCH]})
    assert searching.compiled.totals.live_dollars > plan.compiled.totals.live_dollars + 3 * 0.01 - 1e-12
    answers = {f"a {n}": answer(1_000, 10, geo="us", searches=2) for n in range(3)}
    pilot = ran(answers, params={"tools": [SEARCH]})
    known = pilot.plan.calibrate(pilot)
    assert known.compiled.totals.live_dollars == pytest.approx(pilot.counts.dollars, rel=1e-6)
