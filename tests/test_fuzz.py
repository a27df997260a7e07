"""Anything as template, schema, answer's bytes or result line: an error of ours, or what was asked for."""

import asyncio
import json
import random

import polars as pl
import pytest
from breaking import Break, Breaker
from crash_child import the_plan
from hypothesis import given, settings
from hypothesis import strategies as st
from test_matrix import broken, run_of, simulator

from claudescale.api import answers as verdicts
from claudescale.api import catalog, limits
from claudescale.api.client import Wire
from claudescale.errors import PlanError
from claudescale.prompts import replies, requests
from claudescale.simulator.checks import check

MODEL = catalog.model("claude-haiku-5-5")
names = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=8)
pieces = st.sampled_from(
    ["{", "}", "{{", "}}", "{a}", "{ a}", "{a!r}", "{a:>9}", "{a.b}", "{a[0]}", "{}", "{0}"]
)
templates = st.lists(pieces | names | names.map("{{{}}}".format), max_size=8).map("".join)


@given(template=templates, columns=st.lists(names, max_size=4, unique=True), cell=st.none() | names)
@settings(max_examples=300)
def test_any_template_is_read_or_refused_with_words(template, columns, cell):
    """A template gives each row a text made of its own cells, or a PlanError that says what to type."""
    frame = pl.DataFrame({name: [cell, "x"] for name in ["a", *(each for each in columns if each != "a")]})
    try:
        prompt = requests.compile_prompt(template, frame.schema, model=MODEL)
    except PlanError as error:
        assert len(str(error)) > 20  # noqa: PT017 - it may come, or not
        return
    bodies = prompt.bodies(prompt.contents(frame)["content"]).to_list()
    assert len(bodies) == 2
    for body in bodies:
        if body is not None:
            (message,) = json.loads(body)["messages"]
            assert isinstance(message["content"], str)


leaves = st.sampled_from(
    [pl.String, pl.Boolean, pl.Int8, pl.UInt64, pl.Float32, pl.Date, pl.Datetime("us", "UTC"), pl.Duration,
     pl.Time, pl.Binary, pl.Object, pl.Null, pl.Categorical, pl.Decimal(10, 2), pl.Enum([]),
     pl.Enum(["a", "b"]), pl.Enum(["", "A", "a"]), pl.Unknown, int, str, None, 3, "text", object()]
)  # fmt: skip


def _listed(inner):
    try:
        return pl.List(inner)
    except (TypeError, ValueError):
        return inner


def _struct(fields):
    try:
        return pl.Struct(fields)
    except (TypeError, ValueError):
        return fields


dtypes = st.recursive(
    leaves,
    lambda inner: inner.map(_listed) | st.dictionaries(names, inner, max_size=3).map(_struct),
    max_leaves=6,
)


@given(wanted=dtypes | st.dictionaries(names, dtypes, max_size=4), text=st.text(max_size=30))
@settings(max_examples=300)
def test_any_reply_form_is_taken_by_the_api_or_refused_with_words(wanted, text):
    """A form becomes a schema that the API takes, whose columns read any text; or a PlanError says why."""
    try:
        returns = replies.compile_returns(wanted)
        prompt = requests.compile_prompt("{t}", pl.Schema({"t": pl.String}), model=MODEL, returns=wanted)
    except PlanError as error:
        assert len(str(error)) > 20  # noqa: PT017 - it may come, or not
        return
    body = json.loads(prompt.bodies(prompt.contents(pl.DataFrame({"t": ["x"]}))["content"]).item())
    check(body, MODEL, "2026-10-21")
    columns, errors = returns.decode(pl.Series([text, None, "{}", '{"reply": null}'], dtype=pl.String))
    assert (columns.height, errors.len()) == (4, 4)


# an answer's bytes

STATUS = st.sampled_from(
    [b"200 OK", b"200", b"400 Bad", b"429 ", b"500 X", b"529 O", b"999 ?", b"99 ?", b"-1 x", b""]
)
FIELDS = st.sampled_from(
    [b"content-type: application/json", b"content-length: 5", b"content-length: -1", b"content-length: many",
     b"transfer-encoding: chunked", b"content-encoding: br", b"content-encoding: zstd", b"retry-after: \xff",
     b"retry-after: 1e9", b"anthropic-ratelimit-requests-limit: 1e-300", b"x-should-retry: maybe",
     b"no colon", b": no name", b"request-id: " + b"x" * 5_000, b"set-cookie: a=\x00", b"date: yesterday",
     b"connection: close", "request-id: é".encode(), b"anthropic-ratelimit-tokens-remaining: NaN",
     b"location: ftp://[bad"]
)  # fmt: skip
BODIES = st.binary(max_size=60) | st.sampled_from(
    [b'{"content": [], "usage": {"input_tokens": 1e999, "output_tokens": []}}', b'{"type":"error","error":7}',
     b'{"error":{"type":"","message":[]}}', b'{"content":[{"type":"text","text":7}],"stop_reason":{}}',
     b"5\r\nhello\r\n0\r\n\r\n", b"ffffffffffffffffff\r\n", b"{" * 9_000, b'"\\ud800"']
)  # fmt: skip
answers = st.tuples(STATUS, st.lists(FIELDS, max_size=6), BODIES).map(
    lambda parts: (
        b"HTTP/1.1 " + parts[0] + b"\r\n" + b"".join(each + b"\r\n" for each in parts[1]) + b"\r\n" + parts[2]
    )
)


@pytest.fixture(scope="module")
def told():
    """Give a list whose last entry is what a server sends to whoever asks, and the wire to it."""
    answer = [b""]

    def strikes(name, number):
        return Break("after", lambda _: answer[0]) if name != "other" else None

    with simulator() as api, Breaker(api.url, strikes) as breaker:
        yield answer, api, breaker


@given(some=st.lists(answers | st.binary(max_size=200), min_size=1, max_size=4))
@settings(max_examples=60)
def test_any_bytes_are_an_answer(told, some):
    """Whatever a server sends, sending, asking and downloading end with an answer that has a meaning."""
    answer, api, breaker = told

    async def go():
        wire = Wire(api.client(base_url=breaker.url))
        blocks = []

        async def take(block):
            blocks.append(block)

        try:
            await wire.api()
            for answer[0] in some:
                for asked in (
                    wire.send(b"{}"),
                    wire.free("messages.batches.retrieve", "x"),
                    wire.stream("/v1/messages/batches/x/results", take),
                ):
                    async with asyncio.timeout(20):
                        found = await asked
                    meant = verdicts.verdict(found)
                    assert meant.outcome in {"answered", "failed", "refused", "overloaded", "again", "stop"}
                    assert meant.outcome == "answered" or (meant.error and meant.message)
                    limits.read_headers(found.headers)
        finally:
            await wire.close()

    asyncio.run(go())


# result lines


def spoil(lines, draws):
    """Lose a line, double, cut, change or move one, or bring in one of somebody else's."""
    at = draws.randrange(len(lines))
    line = lines[at]
    kept = line[: draws.randrange(len(line))] + b"\n"
    put = {
        "cut": [kept],
        "no id": [line.replace(b'"custom_id"', b'"custom_ID"')],
        "unknown": [line.replace(b'"succeeded"', b'"of tomorrow"')],
        "foreign": [line, b'{"custom_id":"somebody-else","result":{"type":"succeeded"}}\n'],
        "noise": [line, draws.randbytes(20).replace(b"\n", b"") + b"\n"],
        "blank": [line, b"\r\n\n"],
        "twice": [line, line],
        "lost": [] if len(lines) > 1 else [line],
    }
    lines[at : at + 1] = put[draws.choice(sorted(put))]
    if draws.random() < 0.5:
        draws.shuffle(lines)


def spoiled(body, draws):
    """Return result lines of which some are not what they were."""
    lines = body.splitlines(keepends=True)
    for _ in range(draws.randint(1, 4)):
        spoil(lines, draws)
    return b"".join(lines)


@pytest.mark.parametrize("seed", range(8))
def test_spoiled_results_lose_no_row(tmp_path, seed):
    """Whatever becomes of the lines of the first two downloads, every row is answered, and paid once."""
    draws = random.Random(seed)

    def answer(whole):
        head, _, chunks = whole.partition(b"\r\n\r\n")
        body = b""
        while chunks and (size := int(chunks.partition(b"\r\n")[0], 16)):
            chunks = chunks.partition(b"\r\n")[2]
            body, chunks = body + chunks[:size], chunks[size + 2 :]
        body = spoiled(body, draws)
        fields = [line for line in head.split(b"\r\n") if not line.lower().startswith(b"transfer-encoding")]
        return b"\r\n".join([*fields, f"content-length: {len(body)}".encode(), b"", b""]) + body

    def strikes(called, number):
        return Break("back", answer) if called == "results" and number <= 2 else None

    plan = the_plan(12)
    with broken(strikes) as (api, breaker, bills):
        runs = [run_of(plan, api, breaker, tmp_path / "l") for _ in range(2)]
        assert breaker.struck
        assert runs[-1].state == "finished"
        assert runs[-1].results["text"].to_list() == plan.frame["text"].to_list()
        assert runs[-1].results["reply"].null_count() == 0
        # A line that tells of an outcome yet unknown is no answer: its row goes into another batch.
        unknown = sum((run.attempts["error"] == "invalid_response").sum() for run in runs)
        assert sum(len(each) - 1 for each in bills.values()) <= unknown
