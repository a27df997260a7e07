"""The catalog: every fact is dated, names resolve, and anything unknown is an error."""

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
from claudescale.api.limits import Limits
from claudescale.api.models import MODELS, models
from claudescale.errors import PlanError, UnknownModel, UnknownTier

NOW = datetime(2026, 11, 22, 12, tzinfo=UTC)
HAIKU = "claude-haiku-5-5"


def test_every_fact_is_dated_and_agrees_with_the_others():
    """Each row of catalog.toml has a source and a date; its only dollars are the tiers' monthly caps.

    Successors are not retiring themselves, and bulk settings limit thinking with valid values.
    """
    text = Path(catalog.__file__).with_name("catalog.toml").read_text()
    data = tomllib.loads(text)
    rows = [*data["model"], *data["retired"], *data["tier"], *data["tokenizer"].values()]
    rows += [data[name] for name in ("message", "media", "batch", "charges", "errors")]
    assert all(len(row["source"]) > 10 and row["checked"] > date(2026, 1, 1) for row in rows)
    keys = {line.split("=")[0].strip() for line in text.splitlines() if "dollars" in line and "=" in line}
    assert keys == {"spend_dollars_per_month", "qualify"}
    for model in catalog.MODELS.values():
        assert model.lifecycle == "active" or catalog.model(model.successor).retires_on is None
        assert not model.thinking_off or model.thinking_off["type"] in model.thinking_types
        efforts = {model.default_effort, model.effort_for_bulk, model.thinking_off_up_to_effort}
        assert efforts <= {None, *model.efforts}
        assert not model.thinks_by_default or model.thinking_off or model.effort_for_bulk


@pytest.mark.moving
def test_the_catalog_agrees_with_the_sdk_and_genai_prices():
    """A model, date or length that has changed since the catalog was checked gives a warning."""
    from anthropic.resources.messages.messages import DEPRECATED_MODELS  # noqa: PLC0415
    from anthropic.types.model import Model  # noqa: PLC0415
    from genai_prices.data_snapshot import get_snapshot  # noqa: PLC0415

    known = {**catalog.MODELS, **catalog.RETIRED}
    known |= {model.snapshot: model for model in known.values()}
    news = sorted(set(get_args(get_args(Model)[0])) - known.keys() - {"claude-mythos-preview"})
    for name in DEPRECATED_MODELS.keys() & known.keys():
        told = re.sub(r"(?<=\d)(st|nd|rd|th)?,? ", " ", DEPRECATED_MODELS[name])
        news += [f"{name} on {told}"] if f"{known[name].retires_on:%B %-d %Y}" != told else []
    anthropic = get_snapshot().find_provider(None, "anthropic", None)
    for name, model in catalog.MODELS.items():
        found = anthropic.find_model(name)
        news += [name] if found and found.context_window not in (None, model.context_tokens) else []
    for each in news:
        warnings.warn(f"the catalog is behind: {each}", stacklevel=1)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("sonnet", "Did you mean 'claude-sonnet-5-5'"),
        ("claude-sonnet-4-20250514", "retired on 2026-06-15.*Use 'claude-sonnet-5-5'"),
        (None, "there is no default"),
        (pl.col("model"), "one name for all rows"),
    ],
)
def test_a_wrong_model_says_what_to_type(name, words):
    """A line suggests its newest model, a retired model its successor, and a non-string a name."""
    with pytest.raises(PlanError, match=words):
        catalog.model(name)


def test_a_model_retires_at_its_moment():
    """Plans warn sixty days ahead and of batches that may be late; calls fail from 9 AM Pacific on."""
    model, moment = catalog.model("claude-sonnet-4-5-20250929"), datetime(2026, 11, 30, 17, tzinfo=UTC)
    assert (model.id, model.retires_at) == ("claude-sonnet-4-5", moment)
    assert catalog.notices(model, moment - timedelta(days=61)) == []
    (soon,) = catalog.notices(model, moment - timedelta(days=59), batch_minutes=1_440)
    assert "retires on 2026-11-30 at 17:00 UTC. Use 'claude-sonnet-5-5'" in soon
    _, late = catalog.notices(model, moment - timedelta(hours=47), batch_minutes=2_880)
    assert "may take 48 hours" in late
    assert catalog.refusal(model, moment - timedelta(seconds=1)) is None
    assert "retired on 2026-11-30, and requests to it fail. Use 'claude-son" in catalog.refusal(model, moment)
    (gone,) = catalog.notices(model, moment, batch_minutes=1_440)
    assert "was retired on 2026-11-30" in gone
    # "Not sooner than" announces no retirement: the date may pass.
    assert catalog.notices(catalog.model("claude-haiku-4-5"), datetime(2030, 1, 1, tzinfo=UTC)) == []
    pacific = ZoneInfo("America/Los_Angeles")
    for day in (date(2026, month, 1) + timedelta(n) for month in (3, 11) for n in range(30)):
        assert catalog.retirement(day) == datetime(day.year, day.month, day.day, 9, tzinfo=pacific), day


def test_the_rates_of_a_tier():
    """A tier gives its three limits for a model, in any spelling of its name; if not published, an error."""
    for tier in (1, "1", "TIER-1"):
        assert Limits.of(tier, HAIKU).per_minute == (50, 40_000, 8_000)
    with pytest.raises(UnknownTier, match=r"not published.*tier=cs\.Limits\("):
        Limits.of("start", "claude-fable-5-2")
    with pytest.raises(UnknownTier, match=r"Did you mean 'start'.*evaluation, start, build"):
        Limits.of("strat", HAIKU)


def test_the_frames_of_models_and_tiers():
    """models() lists current prices and which models can be called; tiers() has a row per tier and model."""
    frame, later = models(at=NOW), models(at=datetime(2026, 12, 1, tzinfo=UTC))
    assert (frame.schema, frame["model"].to_list()) == (MODELS, list(catalog.MODELS))
    assert set(frame["model"]) - set(later["model"]) == {"claude-sonnet-4-5"}
    assert not frame["dollars_per_million_input_tokens"].has_nulls()
    assert frame.drop_nulls("price_step_tokens")["model"].to_list() == [HAIKU, "claude-sonnet-4-5"]
    early = models(at=datetime(2026, 10, 13, tzinfo=UTC)).row(0, named=True)
    assert early["dollars_per_million_input_tokens"] == 0.1
    assert early["batch_dollars_per_million_input_tokens"] is None
    tiers = catalog.tiers("claude-haiku-4-5-20251001")
    assert (tiers.schema, tiers["tier"].to_list()) == (catalog.TIERS_SCHEMA, list(catalog.TIERS))
    assert tiers.filter(tier="tier 4").row(0, named=True)["output_tokens_per_minute"] == 80_000


def test_an_unknown_price_is_an_error(monkeypatch):
    """A missing price or batch price raises, where genai-prices would silently return the full price."""
    unpriced = replace(catalog.model(HAIKU), id="claude-unpriced")
    monkeypatch.setitem(catalog._BY_NAME, "claude-unpriced", unpriced)
    with pytest.raises(UnknownModel, match="does not know the price of claude-unpriced"):
        catalog.list_price("claude-unpriced", "live", date(2026, 10, 13))
    with pytest.raises(PlanError, match="begin on 2026-10-14"):
        catalog.list_price(HAIKU, "batch", date(2026, 10, 13))
    assert catalog.list_price(HAIKU, "batch", date(2026, 10, 14))
