"""Frames to request bodies: the right text, valid for the API, with keys that stay."""

import hashlib
import json
from typing import get_type_hints

import anthropic.types.message_create_params as wire
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter

from claudescale.api import catalog
from claudescale.errors import NameTaken, PlanError, RequestTooLarge
from claudescale.prompts.requests import BODIES, CONTENTS, compile_prompt

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


def contents(bodies):
    return [None if body is None else json.loads(body)["messages"][0]["content"] for body in bodies["body"]]


def test_hostile_cells_arrive_as_they_are():
    """No cell, whatever is in it, breaks the JSON around it or is read as a template."""
    frame = pl.DataFrame({"text": HOSTILE, "rating": range(len(HOSTILE))})
    found = compiled("A: {text} {{literal}} {rating}", frame).bodies(frame)
    assert contents(found) == [f"A: {text} {{literal}} {row}" for row, text in enumerate(HOSTILE)]


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
    assert contents(prompt.bodies(frame)) == expected
    assert prompt.characters(frame)[0].to_list() == [len(each) for each in expected]


@settings(deadline=None)
@given(cells=st.lists(st.none() | TEXT, max_size=10), api=TEXT)
def test_a_key_made_from_the_text_is_that_of_the_whole_body(cells, api):
    """A key made from the varying part alone is the hash of API and whole body."""
    frame = pl.DataFrame({"text": cells}, schema={"text": pl.String})
    prompt = compiled("Say {text}", frame, system="Briefly.")
    bodies, parts = prompt.bodies(frame), prompt.contents(frame)
    assert bodies.schema == BODIES
    assert parts.schema == CONTENTS
    whole = [None if part is None else prompt.head + part + prompt.tail for part in parts["content"]]
    assert bodies["body"].to_list() == whole
    hashes = [hashlib.blake2b(f"{api}\0{body}".encode(), digest_size=16) for body in whole if body]
    found = prompt.keys(parts["content"], api)
    assert found.is_null().to_list() == [cell is None for cell in cells]
    assert found.drop_nulls().to_list() == [each.hexdigest() for each in hashes]


def test_a_key_never_changes():
    """The key is blake2b over the API's name, a NUL and the body: a ledger of years ago still fits."""
    prompt = compiled("Say {text}", pl.DataFrame({"text": ["a"]}))
    message = '{"role":"user","content":"Say \u00e9"}'
    found = prompt.keys(pl.Series([message, None]), "https://api.anthropic.com")
    text = f"https://api.anthropic.com\0{prompt.head}{message}{prompt.tail}"
    assert found.to_list() == [hashlib.blake2b(text.encode(), digest_size=16).hexdigest(), None]
    assert found[0] == "5be540deb928701ab90749106b6e9d81"


def test_caching_does_not_change_the_key():
    """With and without a cache, for five minutes or an hour, a row is the same request to the ledger."""
    frame = pl.DataFrame({"text": ["a", None]})
    prompts = [compiled("{text}", frame, system="Briefly.", cache=each) for each in (False, True, "1h")]
    assert len({prompt.head for prompt in prompts}) == 3
    assert len({tuple(prompt.keys(prompt.contents(frame)["content"], "api")) for prompt in prompts}) == 1


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
    keys = {prompt.keys(prompt.contents(frame)["content"], "api")[0] for prompt in variants}
    keys.add(variants[0].keys(variants[0].contents(frame)["content"], "another")[0])
    keys.add(variants[0].keys(variants[0].contents(pl.DataFrame({"text": ["b"]}))["content"], "api")[0])
    assert len(keys) == len(variants) + 2


def test_bodies_do_not_depend_on_the_order_of_params():
    """The same request has the same bytes, in whatever order its parameters were written."""
    frame = pl.DataFrame({"text": ["a"]})
    params = {"stop_sequences": ["."], "metadata": {"user_id": "u"}, "service_tier": "auto"}
    turned = dict(reversed(params.items()))
    assert compiled("{text}", frame, params=params).head == compiled("{text}", frame, params=turned).head


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
    body = json.loads(
        compiled("Say {text}", frame, model=catalog.MODELS[name], **options).bodies(frame)["body"][0]
    )
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
    assert contents(prompt.bodies(frame)) == ["x 1", None, " 3", None]
    assert prompt.characters(frame)[0].to_list() == [3, None, 2, None]


def test_an_empty_frame_gives_empty_frames():
    """No rows in, no rows out, with the columns and types there always are."""
    frame = pl.DataFrame(schema={"text": pl.String})
    for prompt in (compiled("Say {text}", frame), compiled(pl.lit("Say"), frame)):
        assert prompt.bodies(frame).schema == BODIES
        assert prompt.bodies(frame).height == 0
        assert prompt.characters(frame)[0].len() == 0
        assert prompt.keys(prompt.contents(frame)["content"], "api").len() == 0


def test_a_lazy_frame_stays_lazy_and_says_the_same():
    """The bodies of a LazyFrame are a LazyFrame with the rows of the DataFrame's, by either engine."""
    frame = pl.DataFrame({"row": ["a", None, "c"], "content": ["x", "y", "z"]})
    prompt = compiled("{row}{content}", frame)
    lazy = prompt.bodies(frame.lazy())
    assert isinstance(lazy, pl.LazyFrame)
    assert lazy.collect().equals(prompt.bodies(frame))
    assert lazy.collect(engine="streaming").equals(prompt.bodies(frame))
    assert prompt.characters(frame.lazy())[0].equals(prompt.characters(frame)[0])


def test_rows_keep_their_order_and_number():
    """Row numbers count from 0 in the frame's order, over many chunks and threads."""
    frame = pl.concat([pl.DataFrame({"n": range(start, start + 7_000)}) for start in range(0, 70_000, 7_000)])
    found = compiled("{n}", frame).bodies(frame.lazy()).collect(engine="streaming")
    assert found["row"].to_list() == list(range(70_000))
    assert contents(found.tail(3)) == ["69997", "69998", "69999"]


@pytest.mark.parametrize(
    "text", ["x" * 32_000_000, "\x01" * 5_400_000, '"' * 16_000_000], ids=["long", "escaped", "quotes"]
)
def test_a_request_over_32_mb_is_named_by_row_and_size(text):
    """Size counts bytes as sent; the message has the row and the size and not the text."""
    frame = pl.DataFrame({"text": ["short", None, text, text]})
    prompt = compiled("{text}", frame)
    message = json.dumps({"role": "user", "content": text}, separators=(",", ":"))
    size = len(prompt.head) + len(message) + len(prompt.tail)
    for act in (prompt.bodies, prompt.characters, lambda frame: prompt.characters(frame.lazy())):
        with pytest.raises(RequestTooLarge, match=rf"row 2 .* is {size:,} bytes.* 2 rows are") as raised:
            act(frame)
        assert len(str(raised.value)) < 300
        assert '""' not in str(raised.value)


def test_a_large_request_within_the_limit_passes():
    """A text that only might be too long, were every character escaped, is no error."""
    frame = pl.DataFrame({"text": ["x" * 10_000_000]})
    prompt = compiled("{text}", frame)
    assert prompt.characters(frame)[0].to_list() == [10_000_000]
    assert prompt.bodies(frame).height == 1


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
    lengths, shared = bare.characters(frame)
    assert lengths.to_list() == [4]
    assert shared == len("Briefly.") + len(json.dumps(tools, separators=(",", ":")))
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
        compiled(change, frame).bodies(frame)
