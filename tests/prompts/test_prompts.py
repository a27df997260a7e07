"""Frames to request bodies and back to rows: the right text, stable keys, unpriceable requests refused."""

import base64
import hashlib
import json
from collections.abc import Iterable

import polars as pl
import pytest
from anthropic.types.messages.batch_create_params import Request
from hypothesis import given, settings
from hypothesis import strategies as st
from polars.testing import assert_frame_equal
from pydantic import BaseModel, Field, TypeAdapter
from running import a_plan, finished, simulator

import claudescale as cs
from claudescale.api import catalog
from claudescale.errors import PlanError
from claudescale.prompts.requests import NOT_SENT, REQUESTS, compile_prompt

HAIKU, OLD = "claude-haiku-5-5", "claude-haiku-4-5"
HOSTILE = ["", "\x00 \r\n\t\x1f\x7f\x85\u2028\u2029", 'quote " \\ slash / </script>', "\\u0041 \\n"]
HOSTILE += ["{text} {{text}}", '"}]}', "\U0001f600\u200d\U0001f467 e\u0301\ufeff\u202e\uffff"]
TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=5) | st.sampled_from([None, *HOSTILE])
ONE = pl.DataFrame({"text": ["a"]})


def compiled(prompt, frame, model=HAIKU, **options):
    return compile_prompt(prompt, frame.collect_schema(), model=catalog.model(model), **options)


def body_of(**options):
    """Return the body of a row."""
    work = compiled("{text}", ONE, **options).work(ONE, "api")
    return json.loads(next(work.bodies(work.requests["row"])))


def answers(*rows):
    """Return keys with their replies as a ledger gives them."""
    return pl.DataFrame(rows, schema=dict.fromkeys(("key", "reply", "error"), pl.String), orient="row")


@pytest.mark.parametrize("template", ["About {text}", pl.format("About {}", "text")], ids=str)
@settings(deadline=None, max_examples=15)
@given(texts=st.lists(TEXTS, max_size=20), slice_rows=st.integers(1, 7), data=st.data())
def test_rows_become_requests_and_answers_rows(template, texts, slice_rows, data):
    """No cell breaks the JSON, a key is the hash of API and body, and identical rows are sent once."""
    frame = pl.DataFrame({"text": texts, "other": 1}, schema={"text": pl.String, "other": pl.Int64})
    prompt = compiled(template, frame, system="Briefly.")
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("claudescale.prompts.requests.SLICE_ROWS", slice_rows)
        work = prompt.work(frame, "test")
        bodies = list(work.bodies(work.requests["row"]))
    distinct = list(dict.fromkeys(text for text in texts if text is not None))
    assert [json.loads(body)["messages"][0]["content"] for body in bodies] == [f"About {t}" for t in distinct]
    assert work.requests.schema == REQUESTS
    assert work.requests["bytes"].to_list() == [len(body) for body in bodies]
    hashes = [hashlib.blake2b(b"test\0" + body, digest_size=16).hexdigest() for body in bodies]
    assert work.requests["key"].to_list() == hashes
    keys = {None: None, **dict(zip(distinct, hashes, strict=True))}
    assert work.keys.to_list() == [keys[text] for text in texts]
    assert prompt.sizes(frame.lazy()).equals(work.sizes)
    answered = data.draw(st.sets(st.sampled_from(distinct)) if distinct else st.just(set()))
    results = work.results(answers(*((keys[text], f"<{text}>", None) for text in answered)))
    assert_frame_equal(results.select("text", "other"), frame)
    assert results["reply"].to_list() == [f"<{text}>" if text in answered else None for text in texts]
    missing = [text is not None and text not in answered for text in texts]
    assert results["error"].to_list() == [NOT_SENT if is_missing else None for is_missing in missing]


class Mood(BaseModel):
    """What a customer feels."""

    label: str = Field(alias="the label")
    sure: float | None


def test_examples_stand_before_the_row():
    """Pairs are turns; a reply may be the object, a dict or a value of `returns`; all are shared prefix."""
    mood = Mood.model_validate({"the label": "glad", "sure": 1})
    for reply in (mood, {"the label": "glad", "sure": 1.0}, '{"the label":"glad","sure":1.0}'):
        turns = body_of(returns=Mood, examples=[("Hi", reply)])["messages"]
        assert [turn["role"] for turn in turns] == ["user", "assistant", "user"]
        assert json.loads(turns[1]["content"]) == {"the label": "glad", "sure": 1.0}
    labelled = body_of(returns=["good", "bad"], examples=[("Hi", "good")])
    assert labelled["messages"][1]["content"] == '{"reply":"good"}'
    taught = compiled("{text}", ONE, examples=[("Hi", "good")])
    assert taught.shared_characters - compiled("{text}", ONE).shared_characters == len("Higood")
    body = body_of(system="Briefly.", examples=[("Hi", "good"), ("Bye", "bad")], cache=True)
    assert body["system"] == "Briefly."  # the mark of the cache is after the examples
    block = {"type": "text", "text": "bad", "cache_control": {"type": "ephemeral"}}
    assert [turn["content"] for turn in body["messages"]] == ["Hi", "good", "Bye", [block], "a"]


def test_a_system_prompt_is_filled_for_each_row():
    """Only identifiers that name a column are filled in; other braces stay, and doubled ones become one."""
    frame = pl.DataFrame({"text": ["a", "b", "c"], "language": ["de", 'f"r', None]})
    system = 'Answer in {language} as {"a": {"b": 1}, "c": {}} or {{name}}.'
    work = compiled("{text}", frame, system=system).work(frame, "api")
    for body, language in zip(work.bodies(work.requests["row"]), ["de", 'f"r'], strict=True):
        said = f'Answer in {language} as {{"a": {{"b": 1}}, "c": {{}}}} or {{name}}.'
        assert json.loads(body)["system"] == said
    assert work.keys.null_count() == 1  # a null in its columns leaves a row unsent
    alike = frame.with_columns(text=pl.lit("a"))
    assert compiled("{text}", alike, system=system).work(alike, "api").keys.drop_nulls().n_unique() == 2
    assert work.prompt.shared_characters == 0
    assert work.prompt.sizes(frame.lazy()).equals(work.sizes)
    assert work.sizes["characters"].to_list() == [None, len(system) - 9, len(system) - 8]


def test_samples_send_each_row_as_often():
    """Each row has that many results, the first of a plan without; columns with our names are renamed."""
    columns = {"sample": 7, "reply": "late", "reply_1": "early", "message": "kept"}
    frame = pl.DataFrame({"text": ["a", None, "b", "a"], **columns})
    prompt = compiled("{text}", frame, samples=3)
    once, work = compiled("{text}", frame).work(frame, "api"), prompt.work(frame, "api")
    assert work.keys.gather_every(3).equals(once.keys)
    assert work.requests["key"].n_unique() == work.requests.height == 6
    assert prompt.sizes(frame.lazy()).drop_nulls().equals(work.sizes.drop_nulls())
    assert work.sizes.drop_nulls().select("requests", "rows").row(0) == (6, 9)
    results = work.results(answers((work.keys[1], "!", None)))
    assert results.schema == prompt.results_schema(frame)
    assert results["text"].to_list() == ["a"] * 3 + [None] * 3 + ["b"] * 3 + ["a"] * 3
    assert results["sample"].to_list() == [1, 2, 3] * 4
    assert {*results["sample_1", "reply_2", "reply_1", "message"].rows()} == {(7, "late", "early", "kept")}
    assert results["reply"].is_not_null().arg_true().to_list() == [1, 10]
    (note,) = prompt.notes(frame)
    assert note.endswith("'reply' to 'reply_2', 'sample' to 'sample_1'.")


# fields, tools and thinking

TOOL = {"name": "tag", "input_schema": {"type": "object", "properties": {"label": {"type": "string"}}}}
SEARCH = {"type": "web_search_20250305", "name": "web_search"}
PARAMS = [
    ({"stop_sequence": ["a"]}, "Did you mean 'stop_sequences'"), (["stop_sequences"], "not a dict"),
    ({"tool_choice": {"type": "any"}}, "use returns="), ({"speed": "fast"}, "not priced"),
    ({"fallbacks": [{}]}, "own price"), ({"container": "c"}, "by the hour"),
    ({"mcp_servers": [{}]}, "cost of their tools"), ({"inference_geo": "eu"}, "'us' or 'global'"),
    ({"tools": [TOOL]}, "'tag' must be run by your own code.*returns="),
    ({"tools": [{"type": "code_execution_20250825", "name": "code_execution"}]}, "by the hour"),
    ({"tools": [{"type": "web_serch_20250305", "name": "web_search"}]}, "Did you mean"),
    ({"tools": [{"type": "web_search_20250305", "name": "search"}]}, "'name': 'web_search'"),
    ({"tools": [{**SEARCH, "max_uses": 0}]}, "from 1 on"), ({"tools": [5]}, "list of dicts"),
]  # fmt: skip
OPTIONS = [
    ({"model": OLD, "params": {"inference_geo": "global"}}, r"4\.6"), ({"samples": 1.5}, "samples="),
    ({"thinking": {"type": "adaptive", "budget_tokens": 2_000}}, "'budget_tokens'"),
    ({"thinking": True}, "It takes 'adaptive'"), ({"examples": [("Hi", 5)]}, "not a pair of texts"),
    ({"examples": [("Hi", "maybe")], "returns": bool}, "not what returns= asks for"),
    ({"system": "In {txt}."}, r"system= names a column 'txt'.*'text'.*\{\{txt\}\}"),
    ({"system": "In {text}.", "cache": True}, "prefix that all rows share"),
]  # fmt: skip
OPTIONS += [({"params": params}, words) for params, words in PARAMS]


@pytest.mark.parametrize(("options", "words"), OPTIONS)
def test_what_cannot_be_sent_or_priced_is_refused_before(options, words):
    """A request that the API would always refuse or no bill could price is a PlanError that says why."""
    with pytest.raises(PlanError, match=words):
        compiled("{text}", ONE, **options)


def test_what_costs_more_than_it_seems_is_noted():
    """Fields called reasoning, thinking or trace, web tools, and base64 as text each get a note."""

    def notes(frame=ONE, **options):
        return [*compiled("{text}", frame, **options).notes(frame)]

    assert "reasoning_extraction" in notes(returns={"a": pl.List(pl.Struct({"Thinking": pl.String}))})[0]
    assert notes(returns={"why": pl.String}, system="Trace.") == []
    searching = {"tools": [{**SEARCH, "max_uses": 2}]}
    assert "each search has a fee" in notes(params=searching)[0]
    charges = compiled("{text}", ONE, params=searching).charges
    assert (charges.searches, charges.turns) == (2, 3)
    encoded = base64.b64encode(PNG).decode()
    assert "cs.image('text')" in notes(pl.DataFrame({"text": [encoded]}))[0]


# a row of each kind, as the SDK's own types accept it

REQUEST = TypeAdapter(Request)  # for a batch; its params are a live call's
PNG = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR\0\0\0\x1c\0\0\0\x1c\x08\x02"
FRAME = pl.DataFrame(
    {"text": ["late again"], "language": ["German"], "photo": [PNG], "file": [b"%PDF-1.7 << /Type /Page >>"]}
    | {"url": ["https://example.org/a"], "id": ["file_011"]}
)
NAME_IT, PAIRS = "Name it: {text}", [("works", "praise"), ("late", "complaint")]
KINDS = [
    {"system": "You are brief. " * 400, "cache": True},
    {"system": "Answer in {language}.", "samples": 3},
    {"prompt": [cs.image("photo"), cs.pdf("file"), NAME_IT], "examples": PAIRS},
    {"prompt": [cs.image("url"), cs.pdf("url"), NAME_IT]},
    {"prompt": [cs.image("id", kind="file_id"), cs.pdf("id", kind="file_id"), NAME_IT]},
    {"examples": PAIRS, "system": "Be brief.", "cache": True},
    {"examples": [("works", Mood(**{"the label": "glad"}, sure=1))], "returns": Mood},
    {"thinking": {"type": "adaptive"}, "effort": "high", "returns": bool},
    {"params": {"stop_sequences": ["END"], "tools": [SEARCH], "service_tier": None}},
    {"returns": {"label": pl.Enum(["good", "bad"]), "sure": pl.Float64 | None, "on": pl.Date}},
    {"returns": list[Mood]},
]


def read(value):
    """Return a validated value and its content: the types validate an Iterable only when it is read."""
    if isinstance(value, dict):
        return {name: read(inner) for name, inner in value.items()}
    is_list = isinstance(value, Iterable) and not isinstance(value, str)
    return [read(inner) for inner in value] if is_list else value


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["live", "batch"])
def test_a_row_of_each_kind_is_of_the_sdk_s_types_and_answered(mode):
    """No field is unknown to the types, which would drop it; each reply has the requested form."""
    with simulator(speed=600, batch_seconds=6) as api:
        for options in KINDS:
            plan = a_plan(FRAME, **{"prompt": NAME_IT, "max_tokens": 1_000, "mode": mode, **options})
            for key, params in plan.requests.iter_rows():
                request = {"custom_id": key, "params": json.loads(params)}
                assert read(REQUEST.validate_python(request, strict=True)) == request
            results = finished(plan, api.client()).results
            assert results.height == plan.requests.height
            assert results["reply"].null_count() == results["error"].count() == 0, options
