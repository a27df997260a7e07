"""The catalog: every fact is dated, names resolve, what is unknown is an error."""

from __future__ import annotations

import tomllib
from datetime import UTC, date, datetime
from decimal import Decimal
from pathlib import Path
from typing import get_args

import polars as pl
import pytest

from claudescale import catalog
from claudescale.errors import PlanError, UnknownModel, UnknownTier

BEFORE = date(2026, 11, 22)
NOW = datetime(2026, 11, 22, 12, tzinfo=UTC)


def test_every_row_of_the_file_is_dated():
    """Every table row of catalog.toml names its source and a day that is not in the future."""
    data = tomllib.loads(Path(catalog.__file__).with_name("catalog.toml").read_text())
    rows = [*data["model"], *data["retired"], *data["tier"], *data["tokenizer"].values()]
    rows += [data["message"], data["batch"]]
    assert len(rows) > 40
    for row in rows:
        assert len(row["source"]) > 10
        assert date(2026, 1, 1) < row["checked"] <= datetime.now(UTC).date()


def test_no_price_is_written_by_hand():
    """catalog.toml holds no price; the only dollars in it are the tiers' monthly caps and purchases."""
    text = Path(catalog.__file__).with_name("catalog.toml").read_text()
    keys = [line.split("=")[0].strip() for line in text.splitlines() if "dollars" in line and "=" in line]
    assert set(keys) == {"spend_dollars_per_month", "qualify"}


@pytest.mark.parametrize("model", catalog.MODELS.values(), ids=lambda model: model.id)
def test_the_facts_of_a_model_agree_with_each_other(model):
    """Successors can be called, thinking and effort settings name values that the model takes."""
    assert model.lifecycle in get_args(catalog.Lifecycle)
    assert model.max_output_tokens < model.context_tokens
    if model.successor:
        assert catalog.model(model.successor, on=BEFORE).lifecycle in ("active", "legacy")
    if model.lifecycle in ("legacy", "deprecated"):
        assert model.successor
    if model.thinking_off:
        assert model.thinks_by_default
        assert model.thinking_off["type"] in model.thinking_types
    for effort in (model.default_effort, model.effort_for_bulk, model.thinking_off_up_to_effort):
        assert effort is None or effort in model.efforts
    assert (model.default_effort is None) == (not model.efforts)
    # Bulk rows keep thinking small one way or another.
    assert not model.thinks_by_default or model.thinking_off or model.effort_for_bulk


def test_models_that_share_a_limit_share_a_group():
    """Opus 4.5 to 4.8 draw from one set of limits, Sonnet 4.5 and 4.6 from another, the 5.5s alone."""
    groups = {}
    for model in catalog.MODELS.values():
        groups.setdefault(model.rate_group, set()).add(model.id.removeprefix("claude-"))
    assert groups["opus-4"] == {"opus-4-8", "opus-4-7", "opus-4-6", "opus-4-5"}
    assert groups["sonnet-4"] == {"sonnet-4-6", "sonnet-4-5"}
    assert groups["fable-5"] == {"fable-5-1", "fable-5"}
    for alone in ("haiku-5-5", "haiku-4-5", "sonnet-5-5", "sonnet-5", "opus-5-5", "opus-5"):
        assert groups[alone] == {alone}


def test_the_sdk_knows_no_model_that_the_catalog_does_not():
    """Every id in the installed SDK's list resolves, but for the one whose facts are not published."""
    from anthropic.types.model import Model  # noqa: PLC0415

    ids = set(get_args(get_args(Model)[0])) - {"claude-mythos-preview"}
    assert {catalog.model(each, on=BEFORE).id for each in ids} == set(catalog.MODELS)


def test_retirement_dates_agree_with_the_sdk():
    """Where the installed SDK gives a retirement date, the catalog gives the same one."""
    from anthropic.resources.messages.messages import DEPRECATED_MODELS  # noqa: PLC0415

    known = {**catalog.MODELS, **catalog.RETIRED}
    known |= {model.snapshot: model for model in known.values()}
    compared = 0
    for name, day in DEPRECATED_MODELS.items():
        if name in known:
            plain = day.translate(str.maketrans("", "", ",")).replace("th ", " ").replace("st ", " ")
            told = datetime.strptime(plain, "%B %d %Y").replace(tzinfo=UTC).date()
            assert known[name].retires_on == told, name
            compared += 1
    assert compared >= 10


def test_context_windows_agree_with_genai_prices():
    """Where genai-prices gives a context window, the catalog gives the same one."""
    from genai_prices.data_snapshot import get_snapshot  # noqa: PLC0415

    anthropic = get_snapshot().find_provider(None, "anthropic", None)
    found = {model.id: anthropic.find_model(model.id) for model in catalog.MODELS.values()}
    sizes = {name: info.context_window for name, info in found.items() if info is not None}
    assert len(sizes) >= 16
    assert sizes == {name: catalog.MODELS[name].context_tokens for name in sizes}


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("claude-haiku-5-5", "claude-haiku-5-5"),
        ("claude-haiku-4-5-20251001", "claude-haiku-4-5"),
        ("claude-opus-4-5-20251101", "claude-opus-4-5"),
    ],
)
def test_a_dated_id_is_the_same_model(name, expected):
    """A dated id and its alias give one and the same model."""
    assert catalog.model(name, on=BEFORE) is catalog.MODELS[expected]


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("claude-haiku-55", "Did you mean 'claude-haiku-5-5'"),
        ("claude-sonnet-4-20250514", "retired on 2026-06-15"),
        ("claude-sonnet-4-20250514", "Use 'claude-sonnet-5-5'"),
        ("claude-opus-4-1", "Use 'claude-opus-4-8'"),
        ("gpt-9", "Current models: claude-haiku-5-5"),
    ],
)
def test_a_wrong_model_says_what_to_type(name, words):
    """An unknown model names the nearest one, a retired one its successor."""
    with pytest.raises(UnknownModel, match=words):
        catalog.model(name, on=BEFORE)


def test_a_model_retires_on_its_day():
    """A deprecated model can be called up to the day before it retires, with a notice, and not after."""
    model = catalog.model("claude-sonnet-4-5", on=date(2026, 11, 29))
    assert "retires on 2026-11-30. Use 'claude-sonnet-5-5'" in model.notice
    with pytest.raises(UnknownModel, match=r"retired on 2026-11-30.*Use 'claude-sonnet-5-5'"):
        catalog.model("claude-sonnet-4-5-20250929", on=date(2026, 11, 30))
    assert catalog.lifecycle(model, date(2026, 11, 30)) == "retired"
    # "Not sooner than" is no retirement: the day may pass.
    assert catalog.model("claude-haiku-4-5", on=date(2030, 1, 1)).notice is None


def test_a_model_is_found_among_names_of_either_kind():
    """A list that has a model's dated id or its alias has the model, whichever is asked for."""
    for name in ("claude-haiku-4-5", "claude-haiku-4-5-20251001"):
        assert catalog.same_model(name, ["claude-haiku-4-5"])
        assert catalog.same_model(name, ["claude-haiku-4-5-20251001"])
        assert not catalog.same_model(name, ["claude-haiku-5-5"])
    assert catalog.same_model("claude-next", ["claude-next"])


@pytest.mark.parametrize("name", [1, "1", "tier 1", "Tier 1", "TIER-1"])
def test_a_numbered_tier_has_many_spellings(name):
    """A numbered tier is found by number and by name, in any capitals."""
    assert catalog.tier(name).name == "tier 1"


@pytest.mark.parametrize(
    ("tier", "rates"),
    [
        (1, (50, 40_000, 8_000)),
        (2, (1_000, 80_000, 16_000)),
        (3, (2_000, 160_000, 32_000)),
        (4, (4_000, 400_000, 80_000)),
        ("start", (1_000, 2_000_000, 400_000)),
        ("Build", (5_000, 5_000_000, 1_000_000)),
        ("SCALE", (10_000, 10_000_000, 2_000_000)),
    ],
)
def test_the_rates_of_a_tier(tier, rates):
    """Each published tier gives its three limits for a current model."""
    assert catalog.tier_rates(tier, "claude-haiku-5-5") == rates


def test_fable_has_limits_of_its_own():
    """Today's tiers allow Fable less than the other lines."""
    assert catalog.tier_rates("start", "claude-fable-5-1") == (1_000, 500_000, 100_000)
    assert catalog.tier("start").limits["fable-5"].requests_per_minute == 1_000


@pytest.mark.parametrize(
    ("tier", "model"),
    [
        ("evaluation", "claude-haiku-5-5"),
        ("custom", "claude-haiku-5-5"),
        ("scale (numbered era)", "claude-haiku-5-5"),
        ("start", "claude-fable-5-2"),
        ("start", "claude-mythos-5-1"),
    ],
)
def test_unpublished_limits_are_an_error_at_use(tier, model):
    """A tier without published limits exists, and asking for its limits says what to type instead."""
    assert catalog.tier(tier).source
    with pytest.raises(UnknownTier, match=r"not published.*tier=cs\.Limits\("):
        catalog.tier_rates(tier, model)


def test_an_unknown_tier_names_the_known_ones():
    """A misspelt tier gives the nearest name and the list."""
    with pytest.raises(UnknownTier, match=r"Did you mean 'start'.*evaluation, start, build"):
        catalog.tier("strat")
    for wrong in (5, 0, True, ""):
        with pytest.raises(UnknownTier):
            catalog.tier(wrong)


def test_the_models_frame():
    """models() has its schema, one row per callable model, and prices wherever genai-prices has them."""
    frame = catalog.models(at=NOW)
    assert frame.schema == catalog.MODELS_SCHEMA
    assert frame["model"].to_list() == list(catalog.MODELS)
    unpriced = frame.filter(pl.col("dollars_per_million_input_tokens").is_null())["model"].to_list()
    assert unpriced == ["claude-mythos-5-1", "claude-mythos-5"]
    assert frame.filter(pl.col("price_step_tokens").is_not_null())["model"].to_list() == [
        "claude-haiku-5-5",
        "claude-sonnet-4-5",
    ]
    assert not frame.filter(pl.any_horizontal(pl.col("source", "checked").is_null())).height
    before_batch_prices = catalog.models(at=datetime(2026, 10, 13, tzinfo=UTC)).row(0, named=True)
    assert before_batch_prices["dollars_per_million_input_tokens"] == 0.1
    assert before_batch_prices["batch_dollars_per_million_input_tokens"] is None
    later = catalog.models(at=datetime(2026, 12, 1, tzinfo=UTC))
    assert set(frame["model"]) - set(later["model"]) == {"claude-sonnet-4-5"}


def test_the_tiers_frame():
    """tiers() has its schema, one row per tier and group, and one row per tier for one model."""
    frame = catalog.tiers()
    assert frame.schema == catalog.TIERS_SCHEMA
    assert not frame.select("tier", "rate_group").is_duplicated().any()
    assert set(frame["tier"]) == set(catalog.TIERS)
    of = catalog.tiers("claude-haiku-4-5-20251001")
    assert of["tier"].to_list() == list(catalog.TIERS)
    assert of.filter(tier="tier 4").row(0, named=True)["output_tokens_per_minute"] == 80_000


def test_batches_cost_half():
    """For every model with a price, each batch price is half the live one, step by step."""
    priced = [name for name in catalog.MODELS if name not in ("claude-mythos-5-1", "claude-mythos-5")]
    for name in priced:
        live = catalog.list_price(name, at=NOW)
        batch = catalog.list_price(name, mode="batch", at=NOW)
        assert set(live) == set(batch) == set(catalog.PARTS)
        for part, steps in live.items():
            assert [(above, price / 2) for above, price in steps] == list(batch[part]), (name, part)


def test_a_price_step_comes_from_genai_prices():
    """Haiku 5.5 has two steps, at 100,000 tokens of prompt, and a flat model has one."""
    steps = catalog.list_price("claude-haiku-5-5", at=NOW)["input"]
    assert [above for above, _ in steps] == [0, 100_000]
    assert all(isinstance(dollars, Decimal) for _, dollars in steps)
    assert len(catalog.list_price("claude-sonnet-5-5", at=NOW)["input"]) == 1


def test_an_unknown_price_is_an_error():
    """No price, or no batch price yet, raises; genai-prices would answer with the full price silently."""
    with pytest.raises(UnknownModel, match="does not know the price of claude-mythos-5-1"):
        catalog.list_price("claude-mythos-5-1")
    with pytest.raises(PlanError, match="begin on 2026-10-14"):
        catalog.list_price("claude-haiku-5-5", mode="batch", at=datetime(2026, 10, 13, 23, tzinfo=UTC))
    assert catalog.list_price("claude-haiku-5-5", mode="batch", at=datetime(2026, 10, 14, tzinfo=UTC))
    with pytest.raises(UnknownModel, match="Did you mean"):
        catalog.list_price("claude-haiku-56")
    with pytest.raises(PlanError, match="'live' or 'batch'"):
        catalog.list_price("claude-haiku-5-5", mode="hybrid")


def test_the_limits_of_requests_and_batches():
    """The limits of one request and of one batch are those of today, not of the older pages."""
    assert (catalog.BATCH.max_requests, catalog.BATCH.max_bytes) == (100_000, 256_000_000)
    assert (catalog.BATCH.expires_hours, catalog.BATCH.results_days) == (24, 29)
    assert catalog.MESSAGE.max_bytes == 32_000_000
    assert catalog.MESSAGE.schema_optional_parameters == 24


def test_the_nonstreaming_bound_is_the_sdks():
    """The largest max_tokens without streaming is the one that the installed SDK lets through."""
    import anthropic  # noqa: PLC0415

    client = anthropic.Anthropic(api_key="none")
    bound = catalog.MESSAGE.nonstreaming_max_tokens
    assert client._calculate_nonstreaming_timeout(bound, None)
    with pytest.raises(ValueError, match="Streaming is"):
        client._calculate_nonstreaming_timeout(bound + 1, None)
    client.close()
