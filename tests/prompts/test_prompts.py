"""Frames to request bodies: the right text, valid for the API, with keys that stay."""

import hashlib
import json
from typing import get_type_hints

import anthropic.types.message_create_params as wire
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from polars.testing import assert_frame_equal
from pydantic import TypeAdapter
from running import a_plan, reviews

from claudescale.api import catalog
from claudescale.errors import NameTaken, PlanError, RequestTooLarge
from claudescale.prompts.requests import (
    NOT_SENT,
    REQUESTS,
    compile_prompt,
    last_failures,
    results,
)

HAIKU = catalog.model("claude-haiku-5-5")
REQUEST = TypeAdapter(wire.MessageCreateParamsNonStreaming)
TEXT = st.text(st.characters(exclude_categories=["Cs"]))
HOSTILE = [
    "",
    " ",
    "\x00",
    "\x1f\x7f\x85",
    "\r\n\t",
    "\u2028\u2029",
    'quote " backslash \\ slash / </script>',
    "\\u0041 \\n",
    "{rating}",
    "{{text}}",
    '{"role":"user","content":"x"}',
    '"}]}',
    "\U0001f600\U0001f468\u200d\U0001f469\u200d\U0001f467",
    "e\u0301\ufeff\u202e\ufffd\uffff",
    "\U0010ffff",
    "x" * 100_000,
]


def compiled(prompt, frame, **options):
    return compile_prompt(prompt, frame.collect_schema(), **{"model": HAIKU, **options})


def bodies_of(prompt, frame):
    return prompt.bodies(prompt.contents(frame)["content"]).to_list()


def texts_of(prompt, frame):
    bodies = bodies_of(prompt, frame)
    return [None if body is None else json.loads(body)["messages"][0]["content"] for body in bodies]


def lengths_of(prompt, frame):
    return frame.select(prompt.text.characters).to_series().to_list()


def keys_of(prompt, frame, api="api"):
    return prompt.keys(prompt.contents(frame)["content"], api)


def test_hostile_cells_arrive_as_they_are():
    """No cell, whatever is in it, breaks the JSON around it or is read as a template."""
    frame = pl.DataFrame({"text": HOSTILE, "rating": range(len(HOSTILE))})
    found = texts_of(compiled("A: {text} {{literal}} {rating}", frame), frame)
    assert found == [f"A: {text} {{literal}} {row}" for row, text in enumerate(HOSTILE)]


@settings(deadline=None)
@given(
    rows=st.lists(st.tuples(TEXT, st.integers(-(2**63), 2**63 - 1), st.booleans()), max_size=20),
    around=st.tuples(TEXT, TEXT, TEXT),
)
def test_bodies_hold_what_python_would_format(rows, around):
    """Any texts and numbers in any template give the string str.format gives, and its length."""
    frame = pl.DataFrame(rows, schema={"text": pl.String, "n": pl.Int64, "flag": pl.Boolean}, orient="row")
    before, between, after = (each.replace("{", "{{").replace("}", "}}") for each in around)
    template = f"{before}{{text}}{between}{{n}}{after}{{text}}"
    expected = [template.format(text=text, n=n) for text, n, _ in rows]
    prompt = compiled(template, frame)
    assert texts_of(prompt, frame) == expected
    assert lengths_of(prompt, frame) == [len(each) for each in expected]


@settings(deadline=None)
@given(cells=st.lists(st.none() | TEXT, max_size=10), api=TEXT)
def test_a_key_made_from_the_text_is_that_of_the_whole_body(cells, api):
    """A key made from the varying part alone is the hash of API and whole body."""
    frame = pl.DataFrame({"text": cells}, schema={"text": pl.String})
    prompt = compiled("Say {text}", frame, system="Briefly.")
    whole = bodies_of(prompt, frame)
    hashes = [hashlib.blake2b(f"{api}\0{body}".encode(), digest_size=16) for body in whole if body]
    found = keys_of(prompt, frame, api)
    assert found.is_null().to_list() == [cell is None for cell in cells]
    assert found.drop_nulls().to_list() == [each.hexdigest() for each in hashes]


def test_caching_does_not_change_the_key():
    """With and without a cache, for five minutes or an hour, a row is the same request to the ledger."""
    frame = pl.DataFrame({"text": ["a", None]})
    prompts = [compiled("{text}", frame, system="Briefly.", cache=each) for each in (False, True, "1h")]
    assert len({prompt.head for prompt in prompts}) == 3
    assert len({tuple(keys_of(prompt, frame)) for prompt in prompts}) == 1


def test_the_key_depends_on_everything_that_may_change_the_answer():
    """Model, prompt, system, schema, parameters, effort, cell and API each make another key."""
    frame = pl.DataFrame({"text": ["a"]})
    variants = [
        compiled("Say {text}", frame),
        compiled("Tell {text}", frame),
        compiled("Say {text}", frame, model=catalog.model("claude-sonnet-5-5")),
        compiled("Say {text}", frame, system="Briefly."),
        compiled("Say {text}", frame, returns=pl.Enum(["a"])),
        compiled("Say {text}", frame, max_tokens=5),
        compiled("Say {text}", frame, effort="low"),
        compiled("Say {text}", frame, thinking={"type": "adaptive"}),
        compiled("Say {text}", frame, params={"stop_sequences": ["."]}),
    ]
    keys = {keys_of(prompt, frame)[0] for prompt in variants}
    keys.add(keys_of(variants[0], frame, "another")[0])
    keys.add(keys_of(variants[0], pl.DataFrame({"text": ["b"]}))[0])
    assert len(keys) == len(variants) + 2


@pytest.mark.parametrize("name", list(catalog.MODELS))
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"system": "Briefly.", "cache": "1h", "returns": {"label": pl.Enum(["a", "b"])}, "max_tokens": 64},
        {"thinking": {"type": "adaptive"}, "effort": "high", "returns": pl.Boolean},
        {
            "params": {
                "stop_sequences": ["END"],
                "metadata": {"user_id": "u"},
                "service_tier": "standard_only",
                "tools": [{"name": "look", "input_schema": {"type": "object", "properties": {}}}],
                "tool_choice": {"type": "none"},
            }
        },
    ],
    ids=["plain", "cached", "thinking", "params"],
)
def test_bodies_are_what_the_sdk_would_send(name, options):
    """A rendered body has only fields of the SDK's own request type, each of its type."""
    if options.get("effort") and not catalog.MODELS[name].efforts:
        options = {**options, "effort": None, "thinking": None}
    if options.get("thinking") and "adaptive" not in catalog.MODELS[name].thinking_types:
        options = {**options, "thinking": None}
    frame = pl.DataFrame({"text": ["a"]})
    prompt = compiled("Say {text}", frame, model=catalog.MODELS[name], **options)
    body = json.loads(bodies_of(prompt, frame)[0])
    valid = REQUEST.validate_python(body)
    assert list(valid["messages"]) == [{"role": "user", "content": "Say a"}]
    for field in {"system", "tools"} & set(valid):
        assert list(valid[field])  # an Iterable field is validated as it is read
    assert set(body) <= set(get_type_hints(wire.MessageCreateParamsNonStreaming))
    assert body["model"] == name


def test_a_null_in_a_named_column_makes_the_row_unsent():
    """Only nulls in columns the prompt names count; an empty text is sent."""
    frame = pl.DataFrame({"a": ["x", None, "", "y"], "b": [1, 2, 3, None], "unnamed": [None, 1, 1, 1]})
    prompt = compiled("{a} {b}", frame)
    assert texts_of(prompt, frame) == ["x 1", None, " 3", None]
    assert lengths_of(prompt, frame) == [3, None, 2, None]


def test_an_empty_frame_gives_empty_frames():
    """No rows in, no rows out, with the columns and types there always are."""
    frame = pl.DataFrame(schema={"text": pl.String})
    for prompt in (compiled("Say {text}", frame), compiled(pl.lit("Say"), frame)):
        work = prompt.work(frame, "api")
        assert (work.keys.len(), work.requests.height, work.requests.schema) == (0, 0, REQUESTS)
        assert prompt.sizes(frame).equals(work.sizes)
        assert prompt.sizes(frame).height == 0


def test_a_plan_and_its_run_count_the_same_requests():
    """The stream over a LazyFrame and the one pass of a run find the same lengths, requests and rows."""
    texts = ["a", None, "bb", "a", "", "cc", None]
    frame = pl.DataFrame({"text": texts * 900})
    for prompt in (compiled("{text}", frame), compiled(pl.col("text"), frame)):
        work = prompt.work(frame, "api")
        assert prompt.sizes(frame.lazy()).equals(work.sizes)
        assert work.sizes.rows() == [(None, 1, 1_800), (0, 1, 900), (1, 1, 1_800), (2, 2, 1_800)]


@pytest.mark.parametrize(
    "text", ["x" * 32_000_000, "\x01" * 5_400_000, '"' * 16_000_000], ids=["long", "escaped", "quotes"]
)
def test_a_request_over_32_mb_is_named_by_row_and_size(text):
    """Size counts bytes as sent; the message has the row and the size and not the text."""
    frame = pl.DataFrame({"text": ["short", None, text, text]})
    prompt = compiled("{text}", frame)
    message = json.dumps({"role": "user", "content": text}, separators=(",", ":"))
    size = len(prompt.head) + len(message) + len(prompt.tail)
    with pytest.raises(RequestTooLarge, match=rf"row 2 .* is {size:,} bytes.* 2 rows are") as raised:
        prompt.work(frame, "api")
    assert len(str(raised.value)) < 300
    assert '""' not in str(raised.value)


@pytest.mark.parametrize("name", ["reply", "error"])
def test_a_column_the_results_need_is_taken(name):
    """A frame with a column of the results' own name is refused with the rename to type."""
    frame = pl.DataFrame({name: ["a"]})
    with pytest.raises(NameTaken, match=rf"frame\.rename\(\{{'{name}': 'my_{name}'\}}\)"):
        compiled(f"{{{name}}}", frame)


def test_a_field_may_not_hide_a_column():
    """A field named like a column, or like a column of the results, is refused before anything is sent."""
    frame = pl.DataFrame({"text": ["a"]})
    with pytest.raises(NameTaken, match=r"frame\.rename\(\{'text': 'my_text'\}\)"):
        compiled("{text}", frame, returns={"text": pl.String})
    for name in ("reply", "error"):
        with pytest.raises(NameTaken, match="Rename the field"):
            compiled("{text}", frame, returns={name: pl.String, "label": pl.String})


def test_shared_characters_count_what_every_request_repeats():
    """System prompt, tools and schema are shared; the row's text is not."""
    frame = pl.DataFrame({"text": ["four"]})
    tools = [{"name": "look", "input_schema": {"type": "object"}}]
    bare = compiled(
        "{text}", frame, system="Briefly.", params={"tools": tools, "tool_choice": {"type": "none"}}
    )
    assert lengths_of(bare, frame) == [4]
    assert bare.shared_characters == len("Briefly.") + len(json.dumps(tools, separators=(",", ":")))
    typed = compiled("{text}", frame, returns=pl.Boolean)
    assert typed.shared_characters == len(json.dumps(typed.returns.json_schema, separators=(",", ":")))


@pytest.mark.parametrize(
    "change", [pl.col("text").explode(), pl.col("text").map_batches(lambda s: s.head(2))]
)
def test_an_expression_that_changes_the_number_of_rows_never_renders(change):
    """Bodies that would slip to other rows are an error, even where only the data can show it."""
    frame = pl.DataFrame(
        {"text": [["a", "b"], ["c"], ["d"]] if "explode" in str(change) else ["a", "b", "c"]}
    )
    with pytest.raises((PlanError, pl.exceptions.PolarsError)):
        compiled(change, frame).work(frame, "api")


TEXTS = st.lists(st.text(max_size=5) | st.none(), max_size=20)


@given(TEXTS, st.data())
def test_answers_are_joined_to_their_rows(texts, data):
    """Whichever requests are answered: the frame is untouched, and each row has its own answer or none."""
    frame = pl.DataFrame({"text": texts}, schema={"text": pl.String})
    work = a_plan(frame, "{text}").compiled.work("test")
    assert work.requests["key"].n_unique() == work.requests.height == len(set(texts) - {None})
    known = data.draw(st.sets(st.sampled_from(texts)) if texts else st.just(set())) - {None}
    answers = pl.DataFrame(
        {"key": [key for key, text in zip(work.keys, texts, strict=True) if text in known],
         "reply": [f"<{text}>" for text in texts if text in known], "error": None},
        schema={"key": pl.String, "reply": pl.String, "error": pl.String},
    ).unique("key")  # fmt: skip
    found = results(work, None, answers)
    assert_frame_equal(found.select("text"), frame)
    assert found["reply"].to_list() == [f"<{text}>" if text in known else None for text in texts]
    sent = [text is not None and text not in known for text in texts]
    assert found["error"].to_list() == [NOT_SENT if missing else None for missing in sent]


@pytest.mark.parametrize("prompt", ["About {text}", pl.format("About {}", "text")])
@given(texts=TEXTS, slice_rows=st.integers(1, 7))
def test_texts_are_rendered_a_slice_at_a_time(prompt, texts, slice_rows):
    """Whatever the slices, each request has text, size and key of its first row in the frame."""
    frame = pl.DataFrame({"text": texts, "other": 1}, schema={"text": pl.String, "other": pl.Int64})
    plan = a_plan(frame, prompt)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("claudescale.prompts.requests.SLICE_ROWS", slice_rows)
        work = plan.compiled.work("test")
    assert work.requests.schema == REQUESTS
    whole = plan.compiled.prompt.contents(frame)["content"]
    assert work.texts.of(work.requests["row"]).to_list() == list(dict.fromkeys(whole.drop_nulls()))
    assert work.keys.equals(plan.compiled.prompt.keys(whole, "test"))
    bodies = plan.compiled.prompt.bodies(whole).gather(work.requests["row"])
    assert work.requests["bytes"].to_list() == bodies.str.len_bytes().to_list()


def test_the_last_failure_of_rows_without_a_final_answer():
    """Of a row that was tried in vain the last error counts; a row with a final answer has none."""
    attempts = pl.DataFrame({"key": ["a", "b", "a", "b", "c"], "error": ["1", "2", "3", None, "4"]})
    found = last_failures(attempts, pl.DataFrame({"key": ["b"]}))
    assert found.rows() == [("a", "3"), ("c", "4")]


def test_a_request_is_as_long_in_a_run_as_in_its_plan():
    """What a pilot's tokens are held against is what the plan counts: the characters of the text."""
    plan = a_plan(reviews(7), system="Briefly.")
    run, planned = (
        plan.compiled.work("test").requests["estimated_tokens"].sum(),
        plan.compiled.totals.input_tokens,
    )
    assert run == pytest.approx(planned)
