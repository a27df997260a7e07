"""What all requests share: thinking kept small, the cache marked, what cannot be priced refused."""

import json
from dataclasses import replace
from typing import get_type_hints

import polars as pl
import pytest
from anthropic.types.beta.message_create_params import MessageCreateParamsNonStreaming as Beta
from anthropic.types.message_create_params import MessageCreateParamsNonStreaming as Known
from anthropic.types.tool_union_param import ToolUnionParam
from pydantic import AliasChoices, AliasPath, BaseModel, Field, SecretStr, computed_field
from pydantic.dataclasses import dataclass

import claudescale as cs
from claudescale.api import catalog
from claudescale.errors import BadReturns, PlanError
from claudescale.prompts.requests import FACTS, compile_prompt

FRAME = pl.DataFrame({"text": ["a"]})
TOOL = {"name": "tag", "input_schema": {"type": "object", "properties": {"label": {"type": "string"}}}}
OTHER = {**TOOL, "name": "other"}
SEARCH = {"type": "web_search_20250305", "name": "web_search"}
FORCED = {"type": "tool", "name": "tag"}
THINKING = {"type": "enabled", "budget_tokens": 1_024}


def plan(params=None, **options):
    return cs.plan(FRAME, "{text}", **{"model": "claude-haiku-5-5", "params": params, **options})


def body(params, **options):
    return json.loads(plan(params, **options).requests["params"].item())


def test_every_field_of_the_sdk_is_known():
    """Each parameter of the SDK's types is taken, an argument of the plan, or refused with a reason."""
    known = {*FACTS["taken"], *FACTS["refused"]}
    found = {name for kind in (Known, Beta) for base in (kind, *kind.__orig_bases__) for name in fields(base)}
    assert len(found) > 20
    if found - known:  # what the next SDK brings is refused as unknown until somebody looks at it
        pytest.skip(f"this SDK is newer, it has {found - known}")


def fields(kind):
    return getattr(kind, "__annotations__", {})


def test_every_tool_of_the_sdk_is_known():
    """Each type of tool that the SDK has is priced or refused with a reason."""
    kinds = [get_type_hints(each)["type"] for each in ToolUnionParam.__args__[1:]]
    names = {each.__args__[0] for each in kinds}
    known = {name for name in names if name.startswith((*FACTS["server_tools"], *FACTS["refused_tools"]))}
    assert known > set(FACTS["server_tools"])
    if names - known:
        pytest.skip(f"this SDK is newer, it has {names - known}")


# fmt: off
NOT_SENT = [
    ({"extra_body": {"service_tier": "auto"}}, "straight into params"), ({"timeout": 5}, "with_options"),
    ({"betas": ["x"]}, "default_headers"), ({"stop_sequence": ["a"]}, "Did you mean 'stop_sequences'"),
    ({"store": True}, "does not know"), ({"fallbacks": "default"}, "another model"),
    ({"container": "c"}, "by the hour"), ({"context_management": {}}, "billed apart"),
    ({"speed": "fast"}, "not priced"), ({"inference_geo": "eu"}, "'us' or 'global'"),
    ({"service_tier": "batch"}, "'auto' or 'standard_only'"), ({"metadata": {"job": "x"}}, "nothing else"),
    ({"metadata": {"user_id": 5}}, "nothing else"), ({"stop_sequences": [" "]}, "list of texts"),
    ({"stop_sequences": "END"}, "list of texts"), ({"output_config": []}, "is a dict|a dict"),
    ({"tools": {}}, "list of dicts"), ({"tools": [{"name": "tag"}]}, "input_schema"),
    ({"tools": [TOOL, SEARCH]}, "returns="), ({"tool_choice": {"type": "auto"}}, "no 'tools'"),
    ({"tools": [TOOL], "tool_choice": {"type": "auto"}}, "nobody to run it"),
    ({"tools": [TOOL, OTHER], "tool_choice": {"type": "any"}}, "Name one"),
    ({"tools": [TOOL], "tool_choice": {"type": "tool", "name": "no"}}, "There is: tag"),
    ({"tools": [TOOL], "tool_choice": "any"}, "a dict whose 'type'"),
    ({"tools": [TOOL], "tool_choice": {**FORCED, "disable_parallel_tool_use": False}}, "one reply"),
    ({"tools": [{"type": "code_execution_20250825", "name": "code_execution"}]}, "by the hour"),
    ({"tools": [{"type": "bash_20250124", "name": "bash"}]}, "run by the client"),
    ({"tools": [{"type": "web_serch_20250305", "name": "web_search"}]}, "Did you mean"),
    ({"tools": [{"type": "web_search_20250305", "name": "search"}]}, "'name': 'web_search'"),
    ({"tools": [{**SEARCH, "max_uses": 0}]}, "from 1 on"), (["stop_sequences"], "no dict"),
    ({"temperature": 1.0}, "no sampling parameters"), ({"stream": True}, "Leave it out"),
    ({"model": "other"}, "use model= instead"), ({"messages": []}, "use the prompt instead"),
    ({"cache_control": {}}, "cache=True"), ({"output_config": {"effort": "low"}}, "Use effort= instead"),
    ({"metadata": {1, 2}}, "cannot be written as JSON"), ({"metadata": "\udfff"}, "lone surrogate"),
]
# fmt: on


@pytest.mark.parametrize(("params", "words"), NOT_SENT)
def test_what_cannot_be_sent_or_priced_is_refused_before(params, words):
    """What the API would refuse in every row, or no bill could count, is a PlanError that says why."""
    with pytest.raises(PlanError, match=words):
        plan(params)


def test_an_option_left_unset_is_absent():
    """None at the top of params changes neither the request nor its key; inside it stays."""
    unset = plan(
        dict.fromkeys(("stop_sequences", "metadata", "service_tier", "speed", "model", "unheard_of"))
    )
    assert unset.requests.equals(plan().requests)
    assert body({"metadata": {"user_id": None}})["metadata"] == {"user_id": None}


def test_what_only_batches_refuse_is_asked_of_every_mode_that_may_send_one():
    """A live call takes speed="standard"; a batch does not, nor a mode that may become one."""
    live = plan({"speed": "standard"})
    for mode in ("batch", "auto"):
        with pytest.raises(PlanError, match="batches refuse"):
            live.replace(mode=mode)


def test_geography_is_taken_where_it_exists():
    """inference_geo goes to models from 4.6 on, and is a PlanError on an older one, whatever its value."""
    assert body({"inference_geo": "us"})["inference_geo"] == "us"
    with pytest.raises(PlanError, match=r"4\.6"):
        plan({"inference_geo": "global"}, model="claude-haiku-4-5")


@pytest.mark.parametrize("choice", [FORCED, {"type": "any"}])
def test_a_tool_that_must_be_called_is_sent(choice):
    """The model is made to call it exactly once."""
    sent = body({"tools": [TOOL], "tool_choice": choice})
    assert sent["tool_choice"] == {**choice, "disable_parallel_tool_use": True}
    assert sent["tools"] == [TOOL]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"model": "claude-opus-5-5"}, "does not take tool_choice"),
        ({"model": "claude-sonnet-5-5"}, "does not take tool_choice"),
        ({"model": "claude-haiku-4-5", "max_tokens": 4_096, "thinking": THINKING}, "'enabled'"),
        ({"returns": pl.Boolean}, "Keep one"),
    ],
)
def test_a_forced_tool_goes_only_with_what_takes_it(options, words):
    """Some models, thinking of the type enabled and returns= cannot go with a forced tool."""
    with pytest.raises(PlanError, match=words):
        plan({"tools": [TOOL], "tool_choice": FORCED}, **options)


@pytest.mark.parametrize(
    ("model", "thinking", "words"),
    [
        ("claude-haiku-5-5", {"type": "adaptive", "budget_tokens": 2_000}, "'budget_tokens'"),
        ("claude-haiku-5-5", {"type": "disabled", "display": "omitted"}, "'display'"),
        ("claude-haiku-5-5", {"type": "adaptive", "display": "all"}, "'summarized' or 'omitted'"),
        ("claude-sonnet-5-5", {"type": "between_tools", "budget_tokens": 1_024}, "'budget_tokens'"),
        ("claude-haiku-4-5", {**THINKING, "effort": "low"}, "'effort'"),
    ],
)
def test_thinking_has_only_what_its_type_takes(model, thinking, words):
    """A further key in thinking is a 400 in every row, so it is a PlanError."""
    with pytest.raises(PlanError, match=words):
        plan(model=model, thinking=thinking, max_tokens=4_096)
    assert plan(thinking={"type": "adaptive", "display": "omitted"}).compiled.notes == ()


def test_fields_that_ask_for_reasoning_are_warned_of():
    """A field called reasoning, thinking or trace, however deep, is noted: such refusals are billed."""

    class Inner(BaseModel):
        Reasoning: str

    class Outer(BaseModel):
        parts: list[Inner]

    for returns in ({"trace": pl.String}, Outer, {"a": pl.Struct({"thinking": pl.String})}):
        (note,) = plan(returns=returns).compiled.notes
        assert "reasoning_extraction" in note
    assert plan(returns={"why": pl.String}).compiled.notes == ()


class Place(BaseModel):
    city: str = Field(validation_alias=AliasPath("address", "city"))


class Places(BaseModel):
    places: list[Place]


class OneOfPaths(BaseModel):
    city: str = Field(validation_alias=AliasChoices(AliasPath("address", 0), AliasPath("home", "city")))


class PathOfOne(BaseModel):
    city: str = Field(validation_alias=AliasPath("town"))


class Secrets(BaseModel):
    words: list[SecretStr | None]


class Computed(BaseModel):
    price: float

    @computed_field
    @property
    def double(self) -> float:
        return 2 * self.price


@dataclass
class Made:
    a: int
    b: int = Field(init=False, default=3)


class WithMade(BaseModel):
    made: Made


class Aliased(BaseModel, validate_by_alias=False, validate_by_name=True):
    city: str = Field(alias="town")


@pytest.mark.parametrize(
    ("model", "words"),
    [
        (Place, "Place.city is read from inside"),
        (Places, "Place.city is read from inside"),
        (OneOfPaths, "AliasPath"),
        (PathOfOne, "AliasPath"),
        (Secrets, "stars"),
        (Computed, "Computed.double is computed"),
        (WithMade, "Made.b has init=False"),
        (Aliased, "validate_by_alias"),
    ],
)
def test_a_field_whose_value_cannot_come_out_is_refused(model, words):
    """A reply that keeps to the schema would be invalid or unreadable, so nothing is sent."""
    with pytest.raises(BadReturns, match=words):
        plan(returns=model)


def test_a_name_among_the_choices_and_an_excluded_field_are_read():
    """A plain name among alias choices is what the model is asked for, and exclude= keeps nothing back."""

    class Fine(BaseModel):
        city: str = Field(validation_alias=AliasChoices(AliasPath("a", "b"), "town"))
        code: str = Field(exclude=True)

    typed = plan(returns=Fine).compiled.returns
    assert list(typed.json_schema["properties"]) == ["town", "code"]
    found, errors = typed.decode(pl.Series(['{"town": "Ulm", "code": "U"}']))
    assert found.rows() == [("Ulm", "U")]
    assert errors.to_list() == [None]


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


# fmt: off
REFUSED = [
    ("claude-haiku-5-5", {"max_tokens": 0}, "1 to 128,000 tokens"),
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
    ("claude-haiku-4-5", {"thinking": {"type": "enabled", "budget_tokens": 1024}}, "Raise max_tokens="),
    ("claude-haiku-5-5", {"thinking": True}, "It takes {'type': 'adaptive'}"),
    ("claude-haiku-4-5", {"thinking": {"type": "enabled"}}, "needs budget_tokens"),
    ("claude-haiku-5-5", {"returns": pl.Boolean, "params": {"output_config": {"format": {}}}}, "Keep one"),
]
# fmt: on


@pytest.mark.parametrize(("model", "options", "words"), REFUSED)
def test_what_the_api_would_refuse_is_refused_here(model, options, words):
    """A request that would fail for every row is a PlanError that says what to change."""
    with pytest.raises(PlanError, match=words):
        compiled(model, **options)


def test_returns_needs_structured_outputs():
    """A model without structured outputs is refused where typed replies are asked for."""
    plain = replace(catalog.model("claude-haiku-5-5"), structured_outputs=False)
    with pytest.raises((BadReturns, PlanError), match="no structured outputs"):
        compile_prompt("{text}", SCHEMA, model=plain, returns=pl.Boolean)
