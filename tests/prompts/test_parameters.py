"""What all requests share: thinking kept small, the cache marked, what cannot be priced refused."""

import json
from dataclasses import replace
from typing import get_type_hints

import polars as pl
import pytest
from anthropic.types.beta.message_create_params import MessageCreateParamsNonStreaming as Beta
from anthropic.types.message_create_params import MessageCreateParamsNonStreaming as Known
from anthropic.types.tool_union_param import ToolUnionParam

import claudescale as cs
from claudescale.api import catalog
from claudescale.errors import PlanError
from claudescale.prompts.requests import FACTS, compile_prompt

TOOL = {"name": "tag", "input_schema": {"type": "object", "properties": {"label": {"type": "string"}}}}
OTHER = {**TOOL, "name": "other"}
SEARCH = {"type": "web_search_20250305", "name": "web_search"}
FORCED = {"type": "tool", "name": "tag"}
BUDGET = {"type": "enabled", "budget_tokens": 1_024}
HAIKU, OLD, SONNET, OPUS = "claude-haiku-5-5", "claude-haiku-4-5", "claude-sonnet-5-5", "claude-opus-5-5"


def plan(params=None, **options):
    frame = pl.DataFrame({"text": ["a"]})
    return cs.plan(frame, "{text}", **{"model": HAIKU, "params": params, **options})


def body(params=None, **options):
    return json.loads(plan(params, **options).requests["params"].item())


def test_every_field_and_tool_of_the_sdk_is_known():
    """Each parameter of the SDK's types, and each of its tools, is taken or refused with a reason."""
    kinds = [base for kind in (Known, Beta) for base in (kind, *kind.__orig_bases__)]
    fields = {name for kind in kinds for name in getattr(kind, "__annotations__", {})}
    tools = {get_type_hints(kind)["type"].__args__[0] for kind in ToolUnionParam.__args__[1:]}
    known = {*FACTS["taken"], *FACTS["refused"]}
    named = {name for name in tools if name.startswith((*FACTS["server_tools"], *FACTS["refused_tools"]))}
    assert len(fields & known) > 20
    assert named > set(FACTS["server_tools"])
    if new := fields - known | tools - named:  # refused as unknown until somebody looks at it
        pytest.skip(f"this SDK is newer, it has {new}")


# fmt: off
REFUSED = [
    ({"extra_body": {"service_tier": "auto"}}, "straight into params"), ({"store": True}, "does not know"),
    ({"stop_sequence": ["a"]}, "Did you mean 'stop_sequences'"),
    ({"context_management": {}}, "billed separately"),
    ({"speed": "fast"}, "not priced"), ({"inference_geo": "eu"}, "'us' or 'global'"),
    ({"output_config": []}, "a dict"), ({"tools": {}}, "list of dicts"),
    ({"tools": [TOOL, SEARCH]}, "returns="), ({"temperature": 1.0}, "no sampling parameters"),
    ({"tools": [TOOL], "tool_choice": {"type": "auto"}}, "nothing runs tools"),
    ({"tools": [TOOL], "tool_choice": {"type": "tool", "name": "no"}}, "nothing runs tools"),
    ({"tools": [TOOL, SEARCH], "tool_choice": {"type": "any"}}, "nothing runs tools"),
    ({"tools": [TOOL], "tool_choice": "any"}, "a dict, such as"),
    ({"tools": [{"type": "code_execution_20250825", "name": "code_execution"}]}, "by the hour"),
    ({"tools": [{"type": "bash_20250124", "name": "bash"}]}, "run by your own code"),
    ({"tools": [{"type": "web_serch_20250305", "name": "web_search"}]}, "Did you mean"),
    ({"tools": [{"type": "web_search_20250305", "name": "search"}]}, "'name': 'web_search'"),
    ({"tools": [{**SEARCH, "max_uses": 0}]}, "from 1 on"), (["stop_sequences"], "not a dict"),
    ({"output_config": {"effort": "low"}}, "Use effort= instead"), ({"metadata": "\udfff"}, "surrogate"),
]
OPTIONS_REFUSED = [
    ({"model": OLD, "params": {"inference_geo": "global"}}, r"4\.6"),
    ({"returns": pl.Boolean, "params": {"tools": [TOOL], "tool_choice": FORCED}}, "Keep one"),
    ({"returns": pl.Boolean, "params": {"output_config": {"format": {}}}}, "Keep one"),
    ({"model": SONNET, "thinking": {"type": "disabled"}}, "between_tools"),
    ({"thinking": {"type": "adaptive", "budget_tokens": 2_000}}, "'budget_tokens'"),
    ({"params": {"tool_choice": {"type": "auto"}}}, "no 'tools'"),
    ({"model": OLD, "max_tokens": 4_096, "thinking": {"type": "enabled", "budget_tokens": 2_000},
      "params": {"tools": [TOOL], "tool_choice": FORCED}}, "does not work with thinking"),
    ({"model": "claude-opus-5-5", "params": {"tools": [TOOL], "tool_choice": FORCED}}, "cannot be forced"),
    ({"thinking": True}, "It takes {'type': 'adaptive'}"), ({"system": "\ud800"}, "lone surrogate"),
    ({"model": OLD, "max_tokens": 64_001}, "1 to 64,000 tokens"), ({"max_tokens": True}, "whole number"),
]
# fmt: on


@pytest.mark.parametrize(
    ("options", "words"), [*(({"params": params}, words) for params, words in REFUSED), *OPTIONS_REFUSED]
)
def test_what_cannot_be_sent_or_priced_is_refused_before(options, words):
    """What the API would refuse in every row, or no bill could count, is a PlanError that says why."""
    with pytest.raises(PlanError, match=words):
        plan(**options)


def test_an_option_left_unset_is_absent():
    """None at the top of params changes neither the request nor its key; inside it stays."""
    unset = plan(dict.fromkeys(("stop_sequences", "service_tier", "model", "unheard_of")))
    assert unset.requests.equals(plan().requests)
    assert body({"metadata": {"user_id": None}})["metadata"] == {"user_id": None}


@pytest.mark.parametrize("choice", [FORCED, {"type": "any"}])
def test_a_tool_that_must_be_called_is_sent(choice):
    """The model is made to call it exactly once."""
    sent = body({"tools": [TOOL], "tool_choice": choice})
    assert sent["tool_choice"] == {**choice, "disable_parallel_tool_use": True}
    assert sent["tools"] == [TOOL]


@pytest.mark.parametrize(
    ("model", "options", "expected"),
    [
        (HAIKU, {}, {"thinking": {"type": "disabled"}}),
        (SONNET, {}, {"thinking": {"type": "between_tools"}}),
        (OPUS, {}, {"output_config": {"effort": "low"}}),
        (OLD, {}, {}),
        (HAIKU, {"effort": "max"}, {"output_config": {"effort": "max"}}),
        (OPUS, {"thinking": {"type": "adaptive"}}, {"thinking": {"type": "adaptive"}}),
        (HAIKU, {"params": {"output_config": {"later": 1}}, "effort": "low"},
         {"output_config": {"effort": "low", "later": 1}}),
    ],
)  # fmt: skip
def test_bulk_rows_do_not_think_unless_asked(model, options, expected):
    """Thinking is off, or small where it cannot be off; what the user says is sent and nothing else."""
    sent = body(model=model, **options)
    del sent["messages"]
    assert sent == {"model": model, "max_tokens": 1024, **expected}


def test_fields_that_ask_for_reasoning_are_warned_of():
    """A field called reasoning, thinking or trace, however deep, is noted: such refusals are billed."""
    for returns in ({"Trace": pl.String}, {"a": pl.List(pl.Struct({"thinking": pl.String}))}):
        (note,) = plan(returns=returns).compiled.prompt.notes
        assert "reasoning_extraction" in note
    assert plan(returns={"why": pl.String}).compiled.prompt.notes == ()


def test_a_prefix_too_short_to_cache_is_noted():
    """Below the model's minimum there is a note with both numbers, and no error; above it, nothing."""
    (note,) = plan(system="Briefly.", cache=True).compiled.prompt.notes
    assert "about 3 tokens" in note
    assert "512" in note
    assert plan(system="Briefly. " * 1_000, cache=True).compiled.prompt.notes == ()


def test_returns_needs_structured_outputs():
    """A model without structured outputs is refused where typed replies are asked for."""
    without = replace(catalog.model(HAIKU), structured_outputs=False)
    with pytest.raises(PlanError, match="no structured outputs"):
        compile_prompt("{text}", pl.Schema({"text": pl.String}), model=without, returns=pl.Boolean)
