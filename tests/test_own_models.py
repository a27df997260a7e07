"""Models that the catalog does not have, and names that are sent as they were typed."""

from __future__ import annotations

import json
import math
from decimal import Decimal

import polars as pl
import pytest
from running import MODEL, WIDE_LIMITS, a_plan, finished, reviews, simulator

import claudescale as cs
from claudescale.api import catalog, ownmodels, prices

PRICED = cs.Model("my-haiku", input_dollars=0.2, output_dollars=1.0)
UNPRICED = cs.Model("my-haiku")


@pytest.fixture(autouse=True)
def _served(monkeypatch):
    """Let the simulator serve the name, as a gateway does."""
    facts = catalog.model(MODEL)
    monkeypatch.setitem(catalog._BY_NAME, "served", facts)
    callable_model = catalog.callable_model
    known = {"my-haiku": MODEL}
    monkeypatch.setattr(
        catalog, "callable_model", lambda name, at=None: callable_model(known.get(name, name), at)
    )


def sent(plan):
    return {json.loads(body)["model"] for body in plan.requests["params"]}


def test_its_name_is_sent_and_is_part_of_the_key():
    """The body has the id, the keys differ from the twin's, everything else is as the twin's."""
    own, twin = a_plan(reviews(3), model=PRICED), a_plan(reviews(3))
    assert sent(own) == {"my-haiku"}
    assert not set(own.requests["custom_id"]) & set(twin.requests["custom_id"])
    assert own.facts.tokenizer == twin.facts.tokenizer
    assert own.replace(model=cs.Model("my-haiku", max_tokens=64)).facts.max_output_tokens == 64


@pytest.mark.parametrize(
    ("name", "alias"),
    [
        ("claude-haiku-4-5-20251001", "claude-haiku-4-5"),
        ("claude-opus-4-5-20251101", "claude-opus-4-5"),
        ("claude-sonnet-4-5-20250929", "claude-sonnet-4-5"),
    ],
)
def test_a_dated_id_is_sent_as_typed(name, alias):
    """The body has what was typed; facts, price and keys are those of the alias, so no row is paid twice."""
    dated, short = a_plan(reviews(3), model=name), a_plan(reviews(3), model=alias)
    assert (sent(dated), sent(short)) == ({name}, {alias})
    assert dated.requests["custom_id"].to_list() == short.requests["custom_id"].to_list()
    assert dated.facts is short.facts
    assert dated.options.equals(short.options)


def test_a_trial_sends_every_name_as_typed():
    """Trials and cascades keep dated ids and models of one's own as they were given."""
    names = ["claude-haiku-4-5-20251001", PRICED]
    labels = a_plan(reviews(9), returns=pl.Enum(["late", "lost"]))
    trial = cs.trial(labels, models=names, n=4)
    assert [plan.model for plan in trial.plans.values()] == names
    cascade = cs.cascade(a_plan(reviews(9)), models=names)
    assert [plan.model for plan in cascade.plans.values()] == names


@pytest.mark.parametrize("mode", ["live", "batch"])
def test_given_prices_make_the_bill(mode):
    """Dollars are tokens times what was given, half in batches; bill and card say whose prices they are."""
    plan = a_plan(reviews(6), model=PRICED, mode=mode)
    assert "given by you" in repr(plan)
    with simulator(speed=600) as api:
        run = finished(plan, api.client())
    wanted = run.attempts["input_tokens"].sum() * 0.2e-6 + run.attempts["output_tokens"].sum() * 1e-6
    assert run.counts.dollars == pytest.approx(wanted / (2 if mode == "batch" else 1), rel=1e-9)
    assert run.bill["dollars"].sum() == pytest.approx(run.counts.dollars, rel=1e-9)
    assert run.bill["prices"].unique().to_list() == ["given by you"]
    assert run.savings["dollars_with"][-1] == pytest.approx(run.counts.dollars, rel=1e-9)
    assert plan.calibrate(run).expected.calls == 6
    # Who has the ledger alone sees what was recorded, and that no price is known.
    alone = prices.bill(run.attempts).row(-1, named=True)
    assert (alone["part"], alone["prices"]) == ("price not known", "not known")
    assert alone["dollars"] == pytest.approx(run.counts.dollars, rel=1e-9)


def test_the_cache_has_the_usual_multiples():
    """Writes cost 1.25 and 2 times the input, reads a tenth, and all of it half in batches."""
    live, batch = (prices.price(PRICED.facts, mode=mode).steps[0] for mode in ("live", "batch"))
    million = [each * 1e6 for each in (live.cache_write_5m, live.cache_write_1h, live.cache_read)]
    assert million == pytest.approx([0.25, 0.4, 0.02])
    assert (batch.input, batch.output) == (live.input / 2, live.output / 2)


@pytest.mark.parametrize("mode", ["live", "batch"])
def test_without_prices_dollars_are_unknown(mode):
    """Nothing is guessed: options, counts and bill have no dollars, and the run works, with its pilot."""
    plan = a_plan(reviews(6), model=UNPRICED, mode=mode)
    assert plan.options["dollars"].is_nan().all()
    assert "Prices: not known" in repr(plan)
    with simulator(speed=600) as api:
        run = finished(plan, api.client())
    assert run.results["error"].null_count() == 6
    assert math.isnan(run.counts.dollars)
    assert run.bill.row(-1, named=True)["dollars"] is None
    assert "?" in repr(run)
    assert plan.calibrate(run).expected.calls == 6
    assert run.waste.is_empty()


def test_an_unknown_price_survives_the_ledger(path):
    """A second run reads the replies and sends nothing."""
    plan = a_plan(reviews(6), model=UNPRICED)
    with simulator() as api:
        finished(plan, api.client(), ledger=path)
        again = finished(plan, api.client(), ledger=path)
        assert api.stats["calls"] == 6
    assert again.counts.reused == 6
    assert again.counts.dollars == 0
    assert again.replies["dollars"].is_nan().all()


def test_its_pictures_and_comparisons_are_drawn():
    """A model without prices stands beside others in tables and charts, and never on the frontier."""
    plan = a_plan(reviews(6), model=UNPRICED)
    table = plan.compare(model=[UNPRICED, PRICED, "claude-haiku-5-5"], mode=["live"])
    assert table["model"].to_list() == ["my-haiku", "my-haiku", "claude-haiku-5-5"]
    assert table["dollars"].is_nan().to_list() == [True, False, False]
    for picture in (plan.plot.frontier(), plan.plot.minutes(), plan.plot.savings()):
        assert repr(picture)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: a_plan(reviews(2), model=UNPRICED, budget=1.0), "input_dollars=..., output_dollars=..."),
        (lambda: a_plan(reviews(2), model=UNPRICED, mode="auto"), "input_dollars=..., output_dollars=..."),
        (lambda: cs.trial(a_plan(reviews(9)), ["claude-opus-5-5", UNPRICED], budget=1.0), "input_dollars="),
        (lambda: cs.Model(""), "the name to send"),
        (lambda: cs.Model(5), "the name to send"),
        (lambda: cs.Model("a", like="claude-haku-5-5"), "Did you mean 'claude-haiku-5-5'"),
        (lambda: cs.Model("a", input_dollars=1.0), "it needs output_dollars="),
        (lambda: cs.Model("a", input_dollars=-1, output_dollars=1), "above 0"),
        (lambda: cs.Model("a", input_dollars=math.nan, output_dollars=1), "above 0"),
        (lambda: cs.Model("a", input_dollars=math.inf, output_dollars=1), "above 0"),
        (lambda: cs.Model("a", input_dollars="1", output_dollars=1), "above 0"),
        (lambda: cs.Model("a", input_dollars=Decimal("NaN"), output_dollars=1), "above 0"),
        (lambda: cs.Model("a", max_tokens=0), "whole number of tokens"),
        (lambda: cs.Model("a", max_tokens=1.5), "whole number of tokens"),
        (lambda: cs.Model("a", context_tokens=math.nan), "whole number of tokens"),
        (lambda: cs.plan(reviews(2), "x {text}", model="my-haiku"), "cs.Model('my-haiku', like=...)"),
    ],
)
def test_what_cannot_be_is_told_with_what_to_type(make, words):
    """What is wrong with a model of one's own is a PlanError, before anything is sent."""
    with pytest.raises(cs.PlanError) as error:
        make()
    assert words in str(error.value)


def test_other_kinds_of_numbers_are_numbers():
    """Decimals and whole numbers do as prices, limits and lengths."""
    own = cs.Model("a", input_dollars=Decimal("0.5"), output_dollars=2, max_tokens=pl.Series([64.0])[0])
    assert own.facts.given_dollars == (0.5, 2.0)
    assert own.facts.max_output_tokens == 64
    limits = cs.Limits(
        requests_per_minute=Decimal(300), input_tokens_per_minute=1e6, output_tokens_per_minute=10**5
    )
    assert limits.per_minute == (300.0, 1e6, 1e5)


@pytest.mark.parametrize("value", [math.inf, math.nan, -1, 0, "300", None, True, 1e300, Decimal("NaN"), [1]])
@pytest.mark.parametrize("name", ["requests_per_minute", "output_tokens_per_minute", "batch_queue_requests"])
def test_a_limit_that_is_none_is_told(name, value):
    """A limit that no pacer could keep is a PlanError with what to type; and so is one that is no number."""
    given = dict.fromkeys(("requests_per_minute", "input_tokens_per_minute", "output_tokens_per_minute"), 1e6)
    if name == "batch_queue_requests" and value is None:
        return
    with pytest.raises(cs.PlanError, match=name):
        cs.Limits(**(given | {name: value}))


@pytest.mark.parametrize("value", [1e-6, 1e12, 0.5])
def test_a_plan_with_extreme_limits_is_shown(value):
    """The least and the highest limits there may be still give a plan that can be looked at."""
    names = ("requests_per_minute", "input_tokens_per_minute", "output_tokens_per_minute")
    plan = a_plan(reviews(2), tier=cs.Limits(**dict.fromkeys(names, value)))
    assert repr(plan)
    assert plan.options["minutes"].is_finite().all()


def test_a_picker_shows_a_model_of_ones_own():
    """What is picked from has the plan's own model and its limits."""
    plan = a_plan(reviews(2), model=PRICED, tier=WIDE_LIMITS)
    picker = cs.pick(plan)
    assert "my-haiku" in dict(picker.controls["model"].options).values()
    assert WIDE_LIMITS in dict(picker.controls["tier"].options).values()
    assert picker.plan is plan


def test_it_is_a_value():
    """Two of the same are equal, and its repr is what was typed."""
    assert ownmodels.Model("a") == cs.Model("a") != cs.Model("b")
    assert "id='a'" in repr(cs.Model("a"))
