"""Frames to request bodies: the right text, valid for the API, with keys that stay."""

import hashlib
import json

import anthropic.types.message_create_params as wire
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from polars.testing import assert_frame_equal
from pydantic import BaseModel, Field, TypeAdapter

from claudescale.api import catalog
from claudescale.errors import NameTaken, PlanError, RequestTooLarge
from claudescale.prompts.requests import NOT_SENT, REQUESTS, compile_prompt

HAIKU = catalog.model("claude-haiku-5-5")
REQUEST = TypeAdapter(wire.MessageCreateParamsNonStreaming)
TEXT = st.text(st.characters(exclude_categories=["Cs"]))
HOSTILE = [
    "",
    "\x00 \r\n\t\x1f\x7f\x85\u2028\u2029",
    'quote " backslash \\ slash / </script>',
    "\\u0041 \\n",
    "{rating} {{text}}",
    '{"role":"user","content":"x"}',
    '"}]}',
    "\U0001f600\u200d\U0001f467 e\u0301\ufeff\u202e\ufffd\uffff\U0010ffff",
    "x" * 100_000,
]


def compiled(prompt, frame, **options):
    return compile_prompt(prompt, frame.collect_schema(), **{"model": HAIKU, **options})


def bodies_of(prompt, frame):
    return prompt.bodies(prompt.contents(frame)["content"]).to_list()


def texts_of(prompt, frame):
    bodies = bodies_of(prompt, frame)
    return [None if body is None else json.loads(body)["messages"][0]["content"] for body in bodies]


def keys_of(prompt, frame, api="api"):
    return prompt.keys(prompt.contents(frame)["content"], api)


def test_hostile_cells_arrive_as_they_are():
    """No cell, whatever is in it, breaks the JSON around it or is read as a template."""
    frame = pl.DataFrame({"text": HOSTILE, "rating": range(len(HOSTILE))})
    found = texts_of(compiled("A: {text} {{literal}} {rating}", frame), frame)
    assert found == [f"A: {text} {{literal}} {row}" for row, text in enumerate(HOSTILE)]


@settings(deadline=None, max_examples=25)
@given(cells=st.lists(st.none() | TEXT, max_size=10), api=TEXT)
def test_a_key_made_from_the_text_is_that_of_the_whole_body(cells, api):
    """A key made from the varying part alone is the hash of API and whole body."""
    frame = pl.DataFrame({"text": cells}, schema={"text": pl.String})
    prompt = compiled("Say {text}", frame, system="Briefly.")
    whole = bodies_of(prompt, frame)
    assert texts_of(prompt, frame) == [None if cell is None else f"Say {cell}" for cell in cells]
    hashes = [hashlib.blake2b(f"{api}\0{body}".encode(), digest_size=16) for body in whole if body]
    found = keys_of(prompt, frame, api)
    assert found.is_null().to_list() == [cell is None for cell in cells]
    assert found.drop_nulls().to_list() == [each.hexdigest() for each in hashes]


def test_the_key_depends_on_everything_that_may_change_the_answer():
    """Model, prompt, system, schema, parameters, effort, cell and API each make another key."""
    frame = pl.DataFrame({"text": ["a"]})
    options = {
        "model": catalog.model("claude-sonnet-5-5"), "system": "Briefly.", "returns": pl.Enum(["a"]),
        "max_tokens": 5, "effort": "low", "thinking": {"type": "adaptive"}, "examples": [("Hi", "there")],
        "params": {"stop_sequences": ["."]},
    }  # fmt: skip
    plain = compiled("Say {text}", frame)
    variants = [plain, compiled("Tell {text}", frame)]
    variants += [compiled("Say {text}", frame, **{name: value}) for name, value in options.items()]
    keys = {keys_of(prompt, frame)[0] for prompt in variants}
    keys.add(keys_of(plain, frame, "another")[0])
    keys.add(keys_of(plain, pl.DataFrame({"text": ["b"]}))[0])
    assert len(keys) == len(variants) + 2


@pytest.mark.slow
def test_a_request_over_32_mb_is_named_by_row_and_size():
    """Size counts bytes as sent; the message has the row and the size and not the text."""
    text = "\x01" * 5_400_000  # of six bytes each
    frame = pl.DataFrame({"text": ["short", None, text, text]})
    with pytest.raises(RequestTooLarge, match=r"row 2 .* is 32,400,119 bytes.* 2 rows are") as raised:
        compiled("{text}", frame).work(frame, "api")
    assert len(str(raised.value)) < 300


def test_a_field_may_not_hide_a_column():
    """A field named like a column, or like a column of the results, is refused before anything is sent."""
    frame = pl.DataFrame({"text": ["a"]})
    with pytest.raises(NameTaken, match=r"frame\.rename\(\{'text': 'my_text'\}\)"):
        compiled("{text}", frame, returns={"text": pl.String})
    for name in ("reply", "error"):
        with pytest.raises(NameTaken, match="Rename the field"):
            compiled("{text}", frame, returns={name: pl.String, "label": pl.String})


def test_results_can_be_the_next_input():
    """Columns named as ours keep their cells under the next free name; bodies and keys know nothing of it."""
    frame = pl.DataFrame({"reply": ["late", "fine"], "error": None, "reply_1": ["a", "b"], "simulated": True})
    texts = frame.select(text="reply")
    prompt = compiled("Is it bad? {reply}", frame, returns={"bad": pl.Boolean})
    plain = compiled("Is it bad? {text}", texts, returns={"bad": pl.Boolean})
    assert texts_of(prompt, frame) == ["Is it bad? late", "Is it bad? fine"]
    assert keys_of(prompt, frame).equals(keys_of(plain, texts))
    work = prompt.work(frame, "api")
    answers = pl.DataFrame({"key": [work.keys[1]], "reply": ['{"bad":false}'], "error": None})
    found = work.results(answers.cast(pl.String))
    assert found.schema == prompt.results_schema(frame)
    kept = found.select("reply_2", "error_1", "reply_1", "simulated_1")
    assert_frame_equal(kept.rename(dict(zip(kept.columns, frame.columns, strict=True))), frame)
    assert found["bad", "error"].rows() == [(None, NOT_SENT), (False, None)]
    (note,) = prompt.notes
    assert note.endswith("'reply' to 'reply_2', 'error' to 'error_1', 'simulated' to 'simulated_1'.")
    field = compiled("{reply}", frame.select("reply"), returns={"reply_1": pl.String})
    assert field.renamed == {"reply": "reply_2"}
    with_sample = pl.DataFrame({"text": ["a"], "sample": [7], "message": ["kept"]})
    several = compiled("{text}", with_sample, samples=2)
    found = several.work(with_sample, "api").results(answers.clear().cast(pl.String))
    assert found.schema == several.results_schema(with_sample)
    assert found.select("sample_1", "sample", "message").rows() == [(7, 1, "kept"), (7, 2, "kept")]


TEXTS = st.lists(st.text(max_size=5) | st.none(), max_size=20)


@settings(deadline=None, max_examples=15)
@given(TEXTS, st.data())
def test_answers_are_joined_to_their_rows(texts, data):
    """Whichever requests are answered: the frame is untouched, and each row has its own answer or none."""
    frame = pl.DataFrame({"text": texts}, schema={"text": pl.String})
    work = compiled("{text}", frame).work(frame, "test")
    assert work.requests["key"].n_unique() == work.requests.height == len(set(texts) - {None})
    known = data.draw(st.sets(st.sampled_from(texts)) if texts else st.just(set())) - {None}
    answers = pl.DataFrame(
        {"key": [key for key, text in zip(work.keys, texts, strict=True) if text in known],
         "reply": [f"<{text}>" for text in texts if text in known], "error": None},
        schema={"key": pl.String, "reply": pl.String, "error": pl.String},
    ).unique("key")  # fmt: skip
    found = work.results(answers)
    assert_frame_equal(found.select("text"), frame)
    assert found["reply"].to_list() == [f"<{text}>" if text in known else None for text in texts]
    sent = [text is not None and text not in known for text in texts]
    assert found["error"].to_list() == [NOT_SENT if missing else None for missing in sent]


@pytest.mark.parametrize("template", ["About {text}", pl.format("About {}", "text")], ids=str)
@settings(deadline=None, max_examples=10)
@given(texts=TEXTS, slice_rows=st.integers(1, 7))
def test_texts_are_rendered_a_slice_at_a_time(template, texts, slice_rows):
    """Whatever the slices, each request has text, size and key of its first row in the frame."""
    frame = pl.DataFrame({"text": texts, "other": 1}, schema={"text": pl.String, "other": pl.Int64})
    prompt = compiled(template, frame)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("claudescale.prompts.requests.SLICE_ROWS", slice_rows)
        work = prompt.work(frame, "test")
    assert work.requests.schema == REQUESTS
    whole = prompt.contents(frame)["content"]
    assert work.texts.of(work.requests["row"]).to_list() == list(dict.fromkeys(whole.drop_nulls()))
    assert work.keys.equals(prompt.keys(whole, "test"))
    bodies = list(work.texts.bodies(work.requests["row"]))
    assert work.requests["bytes"].to_list() == [len(body) for body in bodies]
    assert prompt.sizes(frame.lazy()).equals(work.sizes)  # as the plan counts them


def body_of(frame, prompt="About {text}", row=0, **options):
    """Return the body of a row, as the SDK's types take it."""
    found = json.loads(bodies_of(compiled(prompt, frame, **options), frame)[row])
    REQUEST.validate_python(found)
    return found


class Mood(BaseModel):
    label: str = Field(alias="the label")
    sure: float


def test_examples_stand_before_the_row():
    """Pairs are turns; a reply may be the object, a dict or a value of `returns`; they count as shared."""
    frame = pl.DataFrame({"text": ["a"]})
    mood = Mood.model_validate({"the label": "glad", "sure": 1})
    for reply in (mood, {"the label": "glad", "sure": 1.0}, '{"the label":"glad","sure":1.0}'):
        turns = body_of(frame, returns=Mood, examples=[("Hi", reply)])["messages"]
        assert [turn["role"] for turn in turns] == ["user", "assistant", "user"]
        assert json.loads(turns[1]["content"]) == {"the label": "glad", "sure": 1.0}
    typed = {"returns": ["good", "bad"], "examples": [("Hi", "good")]}
    assert body_of(frame, **typed)["messages"][1]["content"] == '{"reply":"good"}'
    plain, taught = compiled("{text}", frame), compiled("{text}", frame, examples=[("Hi", "good")])
    assert taught.shared_characters - plain.shared_characters == len("Higood")


def test_the_cache_mark_stands_after_the_examples():
    """They are cached with the system prompt, and the key stays that of the plan without a cache."""
    frame = pl.DataFrame({"text": ["a"]})
    given = {"system": "Briefly.", "examples": [("Hi", "good"), ("Bye", "bad")]}
    body = body_of(frame, cache=True, **given)
    assert body["system"] == "Briefly."
    assert [type(turn["content"]) for turn in body["messages"]] == [str, str, str, list, str]
    block = {"type": "text", "text": "bad", "cache_control": {"type": "ephemeral"}}
    assert body["messages"][3]["content"] == [block]
    cached, plain = (compiled("{text}", frame, cache=cache, **given) for cache in (True, False))
    assert keys_of(cached, frame).equals(keys_of(plain, frame))


@pytest.mark.parametrize(
    ("examples", "words"),
    [
        ("Hi", "is not a list"),
        (["Hi"], "is not a pair"),
        ([("Hi", 5)], "is not a text"),
        ([("", "a")], "is not a text"),
    ],
)
def test_examples_that_are_none_are_refused(examples, words):
    """What would be refused in every row says what to type; so does a reply of another form."""
    frame = pl.DataFrame({"text": ["a"]})
    with pytest.raises(PlanError, match=words):
        compiled("{text}", frame, examples=examples)
    with pytest.raises(PlanError, match="not what returns= asks for"):
        compiled("{text}", frame, returns=bool, examples=[("Hi", "maybe")])


def test_a_system_prompt_is_filled_for_each_row():
    """Only an identifier that names a column is; other braces stay, and doubled ones are a word in braces."""
    frame = pl.DataFrame({"text": ["a", "b", "c"], "language": ["de", 'f"r', None]})
    system = 'Answer in {language} as {"a": {"b": 1}, "c": {}} or {{name}}.'
    prompt = compiled("{text}", frame, system=system)
    bodies = bodies_of(prompt, frame)
    assert bodies[2] is None  # a null in its columns leaves a row unsent
    for body, language in zip(map(json.loads, bodies[:2]), ["de", 'f"r'], strict=True):
        REQUEST.validate_python(body)
        assert body["system"] == f'Answer in {language} as {{"a": {{"b": 1}}, "c": {{}}}} or {{name}}.'
    assert prompt.shared_characters == 0
    work = prompt.work(frame, "api")
    assert work.keys.null_count() == 1
    assert prompt.sizes(frame.lazy()).equals(work.sizes)
    assert work.sizes["characters"].to_list() == [None, len(system) - 9, len(system) - 8]
    with pytest.raises(PlanError, match=r"no column 'langage'.*'language'.*\{\{langage\}\}"):
        compiled("{text}", frame, system="Answer in {langage}.")
    with pytest.raises(PlanError, match="prefix that all rows share"):
        compiled("{text}", frame, system=system, cache=True)


def test_samples_send_each_row_as_often():
    """Each row has so many results, numbered from 1; the first is the request of the plan without samples."""
    frame = pl.DataFrame({"text": ["a", None, "b", "a"]})
    plain, prompt = compiled("{text}", frame), compiled("{text}", frame, samples=3)
    once, work = plain.work(frame, "api"), prompt.work(frame, "api")
    assert work.keys.gather_every(3).equals(once.keys)
    assert work.requests["key"].n_unique() == work.requests.height == 6
    assert work.requests["row"].to_list() == [0, 0, 0, 2, 2, 2]
    priced = prompt.sizes(frame.lazy()).drop_nulls()
    assert priced.equals(work.sizes.drop_nulls())
    assert priced.select("requests", "rows").row(0) == (6, 9)
    second = work.keys[1]
    answers = pl.DataFrame({"key": [second], "reply": ["!"], "error": None}).cast(pl.String)
    found = work.results(answers)
    assert found["text"].to_list() == ["a"] * 3 + [None] * 3 + ["b"] * 3 + ["a"] * 3
    assert found["sample"].to_list() == [1, 2, 3] * 4
    assert found["reply"].is_not_null().arg_true().to_list() == [1, 10]
    for samples in (0, 1.5, True):
        with pytest.raises(PlanError, match="samples="):
            compiled("{text}", frame, samples=samples)
