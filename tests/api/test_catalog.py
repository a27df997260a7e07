"""The catalog: every fact is dated, names resolve, what is unknown is an error."""

from __future__ import annotations

import re
import tomllib
import warnings
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import get_args
from zoneinfo import ZoneInfo

import polars as pl
import pytest

from claudescale.api import catalog
from claudescale.errors import PlanError, UnknownModel, UnknownTier

NOW = datetime(2026, 11, 22, 12, tzinfo=UTC)


def test_every_row_of_the_file_is_dated():
    """Every table row of catalog.toml names its source and the day it was checked."""
    data = tomllib.loads(Path(catalog.__file__).with_name("catalog.toml").read_text())
    rows = [*data["model"], *data["retired"], *data["tier"], *data["tokenizer"].values()]
    rows += [data["message"], data["batch"]]
    assert len(rows) > 40
    for row in rows:
        assert len(row["source"]) > 10
        assert row["checked"] > date(2026, 1, 1)


def test_no_price_is_written_by_hand():
    """catalog.toml holds no price; the only dollars in it are the tiers' monthly caps and purchases."""
    text = Path(catalog.__file__).with_name("catalog.toml").read_text()
    keys = [line.split("=")[0].strip() for line in text.splitlines() if "dollars" in line and "=" in line]
    assert set(keys) == {"spend_dollars_per_month", "qualify"}


@pytest.mark.parametrize("model", catalog.MODELS.values(), ids=lambda model: model.id)
def test_the_facts_of_a_model_agree_with_each_other(model):
    """Successors are models that stay; thinking and effort settings name values that the model takes."""
    assert model.lifecycle in get_args(catalog.Lifecycle)
    assert model.max_output_tokens < model.context_tokens
    if model.successor:
        assert catalog.model(model.successor).retires_on is None
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


def warn_of(differences, subject):
    """Warn of what has moved since the catalog was checked: it is news, and no fault of this package's."""
    for each in differences:
        warnings.warn(f"{subject}: {each}", stacklevel=2)


@pytest.mark.moving
def test_the_sdk_knows_no_model_that_the_catalog_does_not():
    """Every id in the installed SDK's list resolves, or a warning names it."""
    from anthropic.types.model import Model  # noqa: PLC0415

    ids = set(get_args(get_args(Model)[0]))
    assert len(ids) > 10
    known = {each for model in catalog.MODELS.values() for each in (model.id, model.snapshot)}
    warn_of(sorted(ids - known - {"claude-mythos-preview"}), "the SDK has a model that the catalog has not")


@pytest.mark.moving
def test_retirement_dates_agree_with_the_sdk():
    """Where the SDK gives a retirement date, the catalog gives the same one, or a warning says so."""
    from anthropic.resources.messages.messages import DEPRECATED_MODELS  # noqa: PLC0415

    known = {**catalog.MODELS, **catalog.RETIRED}
    known |= {model.snapshot: model for model in known.values()}
    days = {name: f"{known[name].retires_on:%B %-d %Y}" for name in DEPRECATED_MODELS if name in known}
    said = {name: re.sub(r"(?<=\d)(st|nd|rd|th)?,? ", " ", DEPRECATED_MODELS[name]) for name in days}
    differ = [f"{name} on {said[name]}" for name, day in days.items() if day != said[name]]
    warn_of(differ, "the SDK retires a model on another day")


@pytest.mark.moving
def test_context_windows_agree_with_genai_prices():
    """Where genai-prices gives a context window, the catalog gives the same one, or a warning says so."""
    from genai_prices.data_snapshot import get_snapshot  # noqa: PLC0415

    anthropic = get_snapshot().find_provider(None, "anthropic", None)
    found = {model.id: anthropic.find_model(model.id) for model in catalog.MODELS.values()}
    sizes = {name: info.context_window for name, info in found.items() if info is not None}
    assert len(sizes) >= 10
    differ = {name: size for name, size in sizes.items() if size != catalog.MODELS[name].context_tokens}
    warn_of(differ.items(), "genai-prices has another context window")


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
    assert catalog.model(name) is catalog.MODELS[expected]


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
        catalog.model(name)


def test_a_model_retires_at_its_moment():
    """A model can be called until 9 AM Pacific of its day and not after; who only reads is never refused."""
    model = catalog.model("claude-sonnet-4-5")
    moment = datetime(2026, 11, 30, 17, tzinfo=UTC)
    assert model.retires_at == moment
    assert catalog.callable_model("claude-sonnet-4-5", moment - timedelta(seconds=1)) is model
    with pytest.raises(UnknownModel, match=r"retired on 2026-11-30.*Use 'claude-sonnet-5-5'"):
        catalog.callable_model("claude-sonnet-4-5-20250929", moment)
    assert catalog.lifecycle(model, moment) == "retired"
    # "Not sooner than" is no retirement: the day may pass.
    assert catalog.notices(catalog.model("claude-haiku-4-5"), datetime(2030, 1, 1, tzinfo=UTC)) == []


def test_nine_in_california_needs_no_table_of_zones():
    """The moment of retirement is 9 AM in Los Angeles on every day of six years."""
    pacific = ZoneInfo("America/Los_Angeles")
    for days in range(6 * 365):
        day = date(2025, 1, 1) + timedelta(days=days)
        assert catalog.retirement(day) == datetime(day.year, day.month, day.day, 9, tzinfo=pacific), day


@pytest.mark.parametrize(
    ("at", "minutes", "words"),
    [
        (datetime(2026, 11, 1, tzinfo=UTC), 1_440, ["deprecated and retires on 2027-01-22"]),
        (datetime(2026, 11, 24, tzinfo=UTC), 1_440, ["retires in 59 days, on 2027-01-22 at 17:00 UTC"]),
        (datetime(2027, 1, 21, 12, tzinfo=UTC), 1_440, ["retires tomorrow"]),
        (datetime(2027, 1, 21, 18, tzinfo=UTC), 1_440, ["retires tomorrow", "may take 24 hours"]),
        (datetime(2027, 1, 20, 18, tzinfo=UTC), 2_880, ["in 2 days", "may take 48 hours"]),
        (datetime(2027, 1, 22, 16, 59, tzinfo=UTC), 0, ["retires today"]),
        (datetime(2027, 1, 22, 17, tzinfo=UTC), 1_440, ["was retired on 2027-01-22"]),
    ],
)
def test_what_is_said_of_a_model_that_goes_away(at, minutes, words):
    """A retirement is announced sixty days ahead, and a batch that may not end before it is told."""
    model = catalog.model("claude-opus-4-5")
    found = catalog.notices(model, at, batch_minutes=minutes)
    assert len(found) == len(words)
    assert all(word in note for word, note in zip(words, found, strict=True))
    assert "Use 'claude-opus-5-5'" in found[0]


def test_a_model_is_found_among_names_of_either_kind():
    """A list that has a model's dated id or its alias has the model, whichever is asked for."""
    for name in ("claude-haiku-4-5", "claude-haiku-4-5-20251001"):
        assert catalog.same_model(name, ["claude-haiku-4-5"])
        assert catalog.same_model(name, ["claude-haiku-4-5-20251001"])
        assert not catalog.same_model(name, ["claude-haiku-5-5"])
    assert catalog.same_model("claude-next", ["claude-next"])


@pytest.mark.parametrize(
    ("tier", "rates"),
    [
        *((name, (50, 40_000, 8_000)) for name in (1, "1", "Tier 1", "TIER-1")),
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
    assert unpriced == []
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
    """For every model, each batch price is half the live one, step by step."""
    for name in catalog.MODELS:
        live = catalog.list_price(name, at=NOW)
        batch = catalog.list_price(name, mode="batch", at=NOW)
        assert set(live) == set(batch) == set(catalog.PARTS)
        for part, steps in live.items():
            assert [(above, price / 2) for above, price in steps] == list(batch[part]), (name, part)


def test_an_unknown_price_is_an_error(monkeypatch):
    """No price, or no batch price yet, raises; genai-prices would answer with the full price silently."""
    unpriced = replace(catalog.model("claude-haiku-5-5"), id="claude-unpriced")
    monkeypatch.setitem(catalog._BY_NAME, "claude-unpriced", unpriced)
    with pytest.raises(UnknownModel, match="does not know the price of claude-unpriced"):
        catalog.list_price("claude-unpriced")
    with pytest.raises(PlanError, match="begin on 2026-10-14"):
        catalog.list_price("claude-haiku-5-5", mode="batch", at=datetime(2026, 10, 13, 23, tzinfo=UTC))
    assert catalog.list_price("claude-haiku-5-5", mode="batch", at=datetime(2026, 10, 14, tzinfo=UTC))
    with pytest.raises(UnknownModel, match="Did you mean"):
        catalog.list_price("claude-haiku-56")
    with pytest.raises(PlanError, match="'live' or 'batch'"):
        catalog.list_price("claude-haiku-5-5", mode="hybrid")


def test_the_nonstreaming_bound_is_the_sdks():
    """The largest max_tokens without streaming is the one that the installed SDK lets through."""
    import anthropic  # noqa: PLC0415

    client = anthropic.Anthropic(api_key="none")
    bound = catalog.MESSAGE.nonstreaming_max_tokens
    assert client._calculate_nonstreaming_timeout(bound, None)
    with pytest.raises(ValueError, match="Streaming is"):
        client._calculate_nonstreaming_timeout(bound + 1, None)
    client.close()
