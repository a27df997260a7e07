"""Frames to request bodies and back to rows: the right text, stable keys, unpriceable requests refused."""

import base64
import hashlib
import json

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from polars.testing import assert_frame_equal
from pydantic import BaseModel, Field

import claudescale as cs
from claudescale.api import catalog
from claudescale.errors import PlanError, RequestTooLarge
from claudescale.prompts.requests import NOT_SENT, REQUESTS, compile_prompt

HAIKU, OLD, SONNET = "claude-haiku-5-5", "claude-haiku-4-5", "claude-sonnet-5-5"
# fmt: off
HOSTILE = [
    "", "\x00 \r\n\t\x1f\x7f\x85\u2028\u2029", 'quote " \\ slash / </script>', "\\u0041 \\n",
    "{text} {{text}}", '{"role":"user","content":"x"}', '"}]}', "x" * 9_000,
    "\U0001f600\u200d\U0001f467 e\u0301\ufeff\u202e\uffff",
]
# fmt: on
TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=5) | st.sampled_from([None, *HOSTILE])
ONE = pl.DataFrame({"text": ["a"]})


def compiled(prompt, frame, model=HAIKU, **options):
    return compile_prompt(prompt, frame.collect_schema(), model=catalog.model(model), **options)


def body_of(prompt="{text}", frame=ONE, row=0, **options):
    """Return the body of a row."""
    work = compiled(prompt, frame, **options).work(frame, "api")
    return json.loads(next(work.bodies(pl.Series([row]))))


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


def test_the_key_depends_on_everything_that_may_change_the_answer():
    """Model, prompt, system, schema, parameters, effort, cell and API change the key; caching does not."""
    options = {
        "model": SONNET, "system": "Briefly.", "returns": pl.Enum(["a"]), "max_tokens": 5, "effort": "low",
        "thinking": {"type": "adaptive"}, "examples": [("Hi", "there")], "params": {"stop_sequences": ["."]},
    }  # fmt: skip

    def key(prompt="Say {text}", frame=ONE, api="api", **options):
        return compiled(prompt, frame, **options).work(frame, api).keys[0]

    keys = [key(**{name: value}) for name, value in options.items()]
    keys += [key(), key("Tell {text}"), key(api="another"), key(frame=pl.DataFrame({"text": ["b"]}))]
    assert len({*keys}) == len(keys)
    assert key(system="Briefly.", cache=True) == key(system="Briefly.")


def test_a_request_over_32_mb_is_named_by_row_and_size():
    """Size counts bytes as sent, with files in base64; the message has row and size and not the text."""
    large = b"%PDF-1.4 /Type /Page" + bytes(24_000_000)
    frame = pl.DataFrame({"file": [large[:100], None, large, large]})
    with pytest.raises(RequestTooLarge, match=r"row 2 .* is 32,000") as raised:
        compiled([cs.pdf("file")], frame).work(frame, "api")
    assert len(str(raised.value)) < 300


def test_results_can_be_the_next_input():
    """Columns with our names keep their cells under the next free name, and a line says so."""
    frame = pl.DataFrame({"reply": ["late", "fine"], "error": None, "reply_1": ["a", "b"], "simulated": True})
    prompt = compiled("Is it bad? {reply}", frame, returns={"bad": pl.Boolean})
    work = prompt.work(frame, "api")
    results = work.results(answers((work.keys[1], '{"bad":false}', None)))
    assert results.schema == prompt.results_schema(frame)
    moved = results.select("reply_2", "error_1", "reply_1", "simulated_1")
    assert_frame_equal(moved.rename(dict(zip(moved.columns, frame.columns, strict=True))), frame)
    assert results["bad", "error"].rows() == [(None, NOT_SENT), (False, None)]
    (note,) = prompt.notes(frame)
    assert note.endswith("'reply' to 'reply_2', 'error' to 'error_1', 'simulated' to 'simulated_1'.")
    field = compiled("{reply}", frame.select("reply"), returns={"reply_1": pl.String})
    assert field.renamed == {"reply": "reply_2"}


class Mood(BaseModel):
    label: str = Field(alias="the label")
    sure: float


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
    for wrong in ("Hi", ["Hi"], [("Hi", 5)], [("", "a")], [()]):
        with pytest.raises(PlanError, match="is not a pair of texts"):
            compiled("{text}", ONE, examples=wrong)
    with pytest.raises(PlanError, match="not what returns= asks for"):
        compiled("{text}", ONE, returns=bool, examples=[("Hi", "maybe")])


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
    with pytest.raises(PlanError, match=r"system= names a column 'langage'.*'language'.*\{\{langage\}\}"):
        compiled("{text}", frame, system="Answer in {langage}.")
    with pytest.raises(PlanError, match="prefix that all rows share"):
        compiled("{text}", frame, system=system, cache=True)


def test_samples_send_each_row_as_often():
    """Each row has that many results, numbered from 1; the first is the request of an unsampled plan."""
    frame = pl.DataFrame({"text": ["a", None, "b", "a"], "sample": 7, "message": "kept"})
    prompt = compiled("{text}", frame, samples=3)
    once, work = compiled("{text}", frame).work(frame, "api"), prompt.work(frame, "api")
    assert work.keys.gather_every(3).equals(once.keys)
    assert work.requests["key"].n_unique() == work.requests.height == 6
    assert work.requests["row"].to_list() == [0, 0, 0, 2, 2, 2]
    assert prompt.sizes(frame.lazy()).drop_nulls().equals(work.sizes.drop_nulls())
    assert work.sizes.drop_nulls().select("requests", "rows").row(0) == (6, 9)
    results = work.results(answers((work.keys[1], "!", None)))
    assert results.schema == prompt.results_schema(frame)
    assert results["text"].to_list() == ["a"] * 3 + [None] * 3 + ["b"] * 3 + ["a"] * 3
    assert results["sample"].to_list() == [1, 2, 3] * 4
    assert {*results["sample_1", "message"].rows()} == {(7, "kept")}
    assert results["reply"].is_not_null().arg_true().to_list() == [1, 10]


# fields, tools and thinking

TOOL = {"name": "tag", "input_schema": {"type": "object", "properties": {"label": {"type": "string"}}}}
SEARCH = {"type": "web_search_20250305", "name": "web_search"}
ENABLED = {"type": "enabled", "budget_tokens": 2_000}


def plan(**options):
    return cs.plan(ONE, "{text}", **{"model": HAIKU, **options})


# fmt: off
PARAMS = [
    ({"extra_body": {"service_tier": "auto"}}, "straight into params"), ({"store": True}, "does not know"),
    ({"stop_sequence": ["a"]}, "Did you mean 'stop_sequences'"), (["stop_sequences"], "not a dict"),
    ({"context_management": {}}, "billed separately"), ({"tool_choice": {"type": "any"}}, "use returns="),
    ({"speed": "fast"}, "not priced"), ({"inference_geo": "eu"}, "'us' or 'global'"),
    ({"fallbacks": [{}]}, "own price"), ({"container": "c"}, "by the hour"),
    ({"mcp_servers": [{}]}, "cost of their tools"),
    ({"output_config": []}, "a dict"), ({"tools": {}}, "list of dicts"), ({"tools": [5]}, "list of dicts"),
    ({"tools": [TOOL]}, "'tag' must be run by your own code.*returns="),
    ({"tools": [{"type": "code_execution_20250825", "name": "code_execution"}]}, "by the hour"),
    ({"tools": [{"type": "bash_20250124", "name": "bash"}]}, "run by your own code"),
    ({"tools": [{"type": "web_serch_20250305", "name": "web_search"}]}, "Did you mean"),
    ({"tools": [{"type": "web_search_20250305", "name": "search"}]}, "'name': 'web_search'"),
    ({"tools": [{**SEARCH, "max_uses": 0}]}, "from 1 on"),
]
OPTIONS = [
    ({"model": OLD, "params": {"inference_geo": "global"}}, r"4\.6"), ({"samples": 0}, "samples="),
    ({"model": SONNET, "thinking": {"type": "disabled"}}, "between_tools"),
    ({"thinking": {"type": "adaptive", "budget_tokens": 2_000}}, "'budget_tokens'"),
    ({"model": OLD, "thinking": ENABLED, "max_tokens": 2_000}, "to below max_tokens=2,000"),
    ({"thinking": True}, "It takes 'adaptive'"), ({"samples": 1.5}, "samples="),
    ({"model": OLD, "max_tokens": 64_001}, "1 to 64,000 tokens"), ({"max_tokens": True}, "whole number"),
]
# fmt: on


@pytest.mark.parametrize(
    ("options", "words"), [*(({"params": each}, words) for each, words in PARAMS), *OPTIONS]
)
def test_what_cannot_be_sent_or_priced_is_refused_before(options, words):
    """A request that the API would always refuse or no bill could price is a PlanError that says why."""
    with pytest.raises(PlanError, match=words):
        plan(**options)


def test_an_option_left_unset_is_absent():
    """None at the top of params changes neither the request nor its key; a nested None stays."""
    unset = plan(params=dict.fromkeys(("stop_sequences", "service_tier", "model", "unheard_of")))
    assert unset.requests.equals(plan().requests)
    assert body_of(params={"metadata": {"user_id": None}})["metadata"] == {"user_id": None}


def test_what_costs_more_than_it_seems_is_noted():
    """Fields called reasoning, thinking or trace, web tools, and base64 as text each get a note."""

    def notes(frame=ONE, **options):
        return [*cs.plan(frame, "{text}", model=HAIKU, **options).compiled.prompt.notes(frame)]

    for returns in ({"Trace": pl.String}, {"a": pl.List(pl.Struct({"thinking": pl.String}))}):
        assert "reasoning_extraction" in notes(returns=returns)[0]
    assert notes(returns={"why": pl.String}, system="Trace.") == []
    searching = {"tools": [{**SEARCH, "max_uses": 2}]}
    assert "each search has a fee" in notes(params=searching)[0]
    charges = plan(params=searching).compiled.prompt.charges
    assert (charges.searches, charges.turns) == (2, 3)
    encoded = base64.b64encode(b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR").decode()
    assert "cs.image('text')" in notes(pl.DataFrame({"text": [encoded]}))[0]
