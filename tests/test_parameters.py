"""The constant part of a request: thinking kept small, the cache marked, mistakes found before sending."""

import json

import polars as pl
import pytest

from claudescale.api import catalog
from claudescale.errors import BadReturns, PlanError
from claudescale.prompts.requests import compile_prompt

SCHEMA = pl.Schema({"text": pl.String})


def compiled(model="claude-haiku-5-5", **options):
    return compile_prompt("{text}", SCHEMA, model=catalog.model(model), **options)


def constant(model="claude-haiku-5-5", **options):
    prompt = compiled(model, **options)
    body = json.loads(f'{prompt.head}"x"{prompt.tail}')
    assert body.pop("messages") == ["x"]
    return body


@pytest.mark.parametrize(
    ("model", "options", "expected"),
    [
        ("claude-haiku-5-5", {}, {"thinking": {"type": "disabled"}}),
        ("claude-sonnet-5-5", {}, {"thinking": {"type": "between_tools"}}),
        ("claude-opus-5-5", {}, {"output_config": {"effort": "low"}}),
        ("claude-haiku-4-5", {}, {}),
        ("claude-haiku-5-5", {"effort": "max"}, {"output_config": {"effort": "max"}}),
        ("claude-haiku-5-5", {"thinking": {"type": "adaptive"}}, {"thinking": {"type": "adaptive"}}),
        ("claude-opus-5-5", {"thinking": {"type": "adaptive"}}, {"thinking": {"type": "adaptive"}}),
        (
            "claude-haiku-5-5",
            {"thinking": {"type": "disabled"}, "effort": "high"},
            {"thinking": {"type": "disabled"}, "output_config": {"effort": "high"}},
        ),
    ],
)
def test_bulk_rows_do_not_think_unless_asked(model, options, expected):
    """Thinking is off, or small where it cannot be off; what the user says is sent and nothing else."""
    body = constant(model, **options)
    assert body == {"model": model, "max_tokens": 1024, **expected}


def test_effort_and_format_share_one_field():
    """The schema of returns= does not push out the effort, nor a further field of output_config."""
    body = constant("claude-opus-5-5", returns=pl.Boolean, params={"output_config": {"later": 1}})
    assert set(body["output_config"]) == {"effort", "format", "later"}
    assert body["output_config"]["format"]["type"] == "json_schema"


def test_a_schema_of_the_users_own_can_be_sent():
    """A JSON schema in params goes as it is, where returns= is not used."""
    own = {"type": "json_schema", "schema": {"type": "object"}}
    assert constant(params={"output_config": {"format": own}})["output_config"] == {"format": own}


@pytest.mark.parametrize(("cache", "control"), [(True, {}), ("5m", {}), ("1h", {"ttl": "1h"})])
def test_the_cache_mark_stands_on_the_system_prompt(cache, control):
    """What all rows share is marked, for five minutes or an hour."""
    expected = {"type": "text", "text": "Briefly.", "cache_control": {"type": "ephemeral", **control}}
    assert constant(system="Briefly.", cache=cache)["system"] == [expected]


def test_a_prefix_too_short_to_cache_is_noted():
    """Below the model's minimum there is a note with both numbers, and no error; above it, nothing."""
    (note,) = compiled(system="Briefly.", cache=True).notes
    assert "about 3 tokens" in note
    assert "512" in note
    assert compiled(system="Briefly. " * 1_000, cache=True).notes == ()
    assert compiled(system="Briefly.").notes == ()


@pytest.mark.parametrize(
    ("model", "options", "words"),
    [
        ("claude-haiku-5-5", {"max_tokens": 0}, "1 to 128,000 tokens"),
        ("claude-haiku-5-5", {"max_tokens": 128_001}, "1 to 128,000 tokens"),
        ("claude-haiku-4-5", {"max_tokens": 64_001}, "1 to 64,000 tokens"),
        ("claude-haiku-5-5", {"max_tokens": 10.5}, "whole number"),
        ("claude-haiku-5-5", {"max_tokens": True}, "whole number"),
        ("claude-haiku-5-5", {"cache": True}, "into system="),
        ("claude-haiku-5-5", {"cache": "2h", "system": "a"}, "'5m' or '1h'"),
        ("claude-haiku-5-5", {"system": " "}, "Leave it out"),
        ("claude-haiku-5-5", {"system": "\ud800"}, "lone surrogate"),
        ("claude-haiku-5-5", {"effort": "huge"}, "low, medium, high, xhigh, max"),
        ("claude-haiku-4-5", {"effort": "low"}, "Leave effort= out"),
        ("claude-haiku-5-5", {"thinking": {"type": "disabled"}, "effort": "max"}, "effort='high' or less"),
        ("claude-sonnet-5-5", {"thinking": {"type": "disabled"}}, "between_tools"),
        ("claude-opus-5-5", {"thinking": {"type": "disabled"}}, "adaptive"),
        ("claude-haiku-4-5", {"thinking": {"type": "enabled", "budget_tokens": 1024}}, "Raise max_tokens="),
        ("claude-haiku-5-5", {"params": {"temperature": 1.0}}, "no sampling parameters"),
        ("claude-haiku-5-5", {"params": {"top_p": 1}}, "no sampling parameters"),
        ("claude-haiku-5-5", {"params": {"top_k": 1}}, "no sampling parameters"),
        ("claude-haiku-5-5", {"params": {"stream": True}}, "Leave it out"),
        ("claude-opus-5-5", {"params": {"speed": "fast"}}, "not priced here"),
        ("claude-haiku-5-5", {"thinking": True}, "It takes {'type': 'adaptive'}"),
        ("claude-haiku-4-5", {"thinking": {"type": "enabled"}}, "needs budget_tokens"),
        ("claude-haiku-4-5", {"thinking": {"type": "enabled", "budget_tokens": 10}}, "from 1,024"),
        ("claude-haiku-5-5", {"params": {"model": "other"}}, "Use model= instead"),
        ("claude-haiku-5-5", {"params": {"messages": []}}, "Use the prompt instead"),
        ("claude-haiku-5-5", {"params": {"max_tokens": 5}}, "Use max_tokens= instead"),
        ("claude-haiku-5-5", {"params": {"system": "a"}}, "Use system= instead"),
        ("claude-haiku-5-5", {"params": {"thinking": {}}}, "Use thinking= instead"),
        ("claude-haiku-5-5", {"params": {"cache_control": {}}}, "cache=True"),
        ("claude-haiku-5-5", {"params": {"output_config": {"effort": "low"}}}, "Use effort= instead"),
        ("claude-haiku-5-5", {"params": {"metadata": {1, 2}}}, "cannot be written as JSON"),
        ("claude-haiku-5-5", {"params": {"metadata": float("nan")}}, "cannot be written as JSON"),
        ("claude-haiku-5-5", {"params": {"metadata": "\udfff"}}, "lone surrogate"),
        (
            "claude-haiku-5-5",
            {"returns": pl.Boolean, "params": {"output_config": {"format": {}}}},
            "Keep one",
        ),
    ],
)
def test_what_the_api_would_refuse_is_refused_here(model, options, words):
    """A request that would fail for every row is a PlanError that says what to change."""
    with pytest.raises(PlanError, match=words):
        compiled(model, **options)


def test_returns_needs_structured_outputs():
    """A model without structured outputs is refused where typed replies are asked for."""
    from dataclasses import replace  # noqa: PLC0415

    plain = replace(catalog.model("claude-haiku-5-5"), structured_outputs=False)
    with pytest.raises((BadReturns, PlanError), match="no structured outputs"):
        compile_prompt("{text}", SCHEMA, model=plain, returns=pl.Boolean)
