"""Result lines of a batch as attempts: tables of lines, and properties over any bytes."""

import json
from datetime import UTC, datetime

import polars as pl
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from claudescale.api.prices import price
from claudescale.ledger.records import RECORDS, Batch
from claudescale.running import batch_rules
from claudescale.running.batch_rules import attempts, proves

KEY, NONCE = "00112233445566778899aabbccddeeff", "a1b2c3d4e5f6"
MODEL = "claude-haiku-5-5"
PRICE = price(MODEL, mode="batch", at=datetime(2026, 11, 20, tzinfo=UTC))
BEGUN = 1_764_000_000.123456
BATCH = Batch(NONCE, "api", MODEL, 5, BEGUN, "ended", "msgbatch_1", BEGUN, ended_at=BEGUN + 61.5)
CAP = "enforced_spend_limit_reached"


def read(*lines, trusted=True):
    """Return the attempts of lines, which are bytes or JSON."""
    block = b"\n".join(line if isinstance(line, bytes) else json.dumps(line).encode() for line in lines)
    return attempts(block, BATCH, PRICE, trusted=trusted, model=MODEL, simulated=True, run="run")


def row(result, custom_id=f"{KEY}-{NONCE}"):
    return {"custom_id": custom_id, "result": result}


def succeeded(*texts, **changes):
    usage = {
        "input_tokens": 11,
        "cache_creation_input_tokens": 700,
        "cache_read_input_tokens": 50,
        "cache_creation": {"ephemeral_5m_input_tokens": 100, "ephemeral_1h_input_tokens": 600},
        "output_tokens": 9,
        "output_tokens_details": {"thinking_tokens": 4},
        "service_tier": "batch",
        **changes.pop("usage", {}),
    }
    content = [{"type": "text", "text": text} for text in texts]
    message = {"model": MODEL, "role": "assistant", "content": content, "stop_reason": "end_turn"}
    return {"type": "succeeded", "message": {**message, "usage": usage, **changes}}


def errored(kind, code=None):
    error = {"type": kind, "message": "no", **({"details": {"error_code": code}} if code else {})}
    return {"type": "errored", "error": {"type": "error", "error": error, "request_id": "req_1"}}


PLAIN = json.dumps(row(succeeded("fine"))).encode()


def test_a_reply_is_an_attempt_with_all_that_the_ledger_keeps():
    """Every ledger column is present in order and type, at the batch's price."""
    found = read(row(succeeded("fine")))
    assert found.schema == read(b"").schema == RECORDS
    step = PRICE.steps[0]
    dollars = 11 * step.input + 100 * step.cache_write_5m + 600 * step.cache_write_1h
    dollars += 50 * step.cache_read + 9 * step.output
    assert found.row(0, named=True) == {
        "key": KEY, "run": "run", "mode": "batch", "batch_id": "msgbatch_1", "model": MODEL,
        "sent_at": datetime(2025, 11, 24, 16, 0, 0, 123456, tzinfo=UTC), "seconds": pytest.approx(61.5),
        "status": None, "error": None, "message": None, "request_id": None,
        "stop_reason": "end_turn", "reply": "fine",
        "input_tokens": 11, "cache_write_5m_input_tokens": 100, "cache_write_1h_input_tokens": 600,
        "cache_read_input_tokens": 50, "output_tokens": 9, "thinking_tokens": 4,
        "dollars": pytest.approx(dollars), "simulated": True, "final": True,
        "answering_model": MODEL, "inference_geo": None, "speed": None, "web_search_requests": 0,
        "refusal_category": None,
    }  # fmt: skip


def test_a_price_step_is_taken_row_by_row():
    """A long prompt is priced as a whole at its own step, and the short one next to it is not."""
    low, high = (dict.fromkeys(("cache_creation", "cache_creation_input_tokens"), None) for _ in range(2))
    for usage, tokens in ((low, 100_000), (high, 100_001)):
        usage.update(input_tokens=tokens, output_tokens=1, cache_read_input_tokens=0)
    found = read(*(row(succeeded("a", usage=usage)) for usage in (low, high)))["dollars"].to_list()
    base, step = PRICE.steps
    assert found == pytest.approx([100_000 * base.input + base.output, 100_001 * step.input + step.output])


@pytest.mark.parametrize(
    ("result", "error", "final"),
    [
        (errored("invalid_request_error"), "invalid_request_error", True),
        (errored("not_found_error"), "not_found_error", False),
        (errored("overloaded_error"), "overloaded_error", False),
        (errored("rate_limit_error", CAP), CAP, False),
        (errored(None), "invalid_response", False),
        ({"type": "expired"}, "expired", False),
        (None, "invalid_response", False),
        ({"type": "succeeded", "message": {"content": "text"}}, "invalid_response", False),
        (succeeded("half", stop_reason="refusal"), "refusal", True),
        (succeeded("half", stop_reason="max_tokens"), "max_tokens", True),
    ],
)
def test_an_error_ends_its_row_only_where_sending_again_cannot_mend_it(result, error, final):
    """The error decides whether the row goes into the next batch; only a truncated reply is paid for."""
    found = read(row(result)).row(0, named=True)
    paid = (result or {}).get("type") == "succeeded" and final
    assert (found["error"], found["final"], found["dollars"] > 0) == (error, final, paid)
    assert found["reply"] == ("half" if paid else None)
    assert read(row(result), trusted=False)["final"].item() is paid


THINKING = {"type": "thinking", "thinking": 'he said "text":"x"', "signature": "abc=="}
CALL = {"type": "tool_use", "id": "t", "name": "look", "input": {"text": "x"}}


@pytest.mark.parametrize(
    ("result", "reply", "tokens"),
    [
        (succeeded("one", "two"), "onetwo", 9),
        (succeeded('"a",\n\\ é \N{GRINNING FACE}\0'), '"a",\n\\ é \N{GRINNING FACE}\0', 9),
        (succeeded(content=[THINKING, {"type": "text", "text": "b", "citations": None}]), "b", 9),
        (succeeded("a", content=[CALL, {"type": "text", "text": "x"}]), '{"text":"x"}', 9),
        (succeeded("half \ud800 pair"), "half \ufffd pair", 9),
        (succeeded(""), None, 9),
        (succeeded("a", usage={"output_tokens": 10**30}), "a", 0),
        (succeeded("a", usage={"output_tokens": 10**14, "later": {"output_tokens": 1}}), "a", 10**14),
    ],
)
def test_what_a_reply_says_and_counts(result, reply, tokens):
    """Texts are joined, a tool call gives its input, and an invalid count is null, in ASCII or in UTF-8."""
    for ascii_only in (True, False):
        line = json.dumps(row(result), ensure_ascii=ascii_only).encode("utf-8", "surrogatepass")
        if b"\xed\xa0\x80" not in line:  # half a surrogate pair is not valid UTF-8
            assert read(line).select("reply", "output_tokens").rows() == [(reply, tokens)]


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"[" * 100_000,
        PLAIN[:-1],
        PLAIN + b"," + PLAIN,
        row(succeeded("a"), custom_id=f"{KEY}-000000000000"),
        {"result": succeeded("a")},
    ],
)
def test_what_is_unreadable_or_of_another_is_left_out(line):
    """A broken or foreign line gives no row, and its neighbors are unaffected; a bad byte costs itself."""
    assert read(line).height == 0
    assert read(PLAIN, line, PLAIN).equals(read(PLAIN, PLAIN))
    assert read(PLAIN.replace(b"fine", b"f\xffne"))["reply"].item() == "f\ufffdne"


USUAL = [
    succeeded("fine"),
    succeeded("a", more={"one": 1.5, "type": "c"}, container=None, stop_details=None),
    succeeded(content=[THINKING, {"type": "text", "text": "b"}]),
    succeeded("a", usage={"speed": "fast", "inference_geo": "us", "server_tool_use": None}),
    succeeded("a", usage={"server_tool_use": {"web_search_requests": 2}, "cache_creation": None}),
]
OTHER = [succeeded(), succeeded("a", stop_reason="max_tokens"), {"type": "expired"}, errored("api_error")]
FIELDS = [
    *("content", "stop_reason", "usage", "cache_creation", "type", "text", "model", "speed", "input_tokens"),
    *("cache_creation_input_tokens", "ephemeral_1h_input_tokens", "server_tool_use", "custom_id", "result"),
]
NAMES = st.sampled_from(FIELDS) | st.text(max_size=3)
SCALARS = (
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8)
    | st.sampled_from(["text", "tool_use", "succeeded", "expired", "refusal", "\ud83d", 2**53, 2**64, 10**30])
)  # fmt: skip
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=3),
    max_leaves=6,
)


@st.composite
def spoiled(draw):
    """Draw a nearly normal line: members changed or added, and bytes changed."""
    body = json.loads(json.dumps(row(draw(st.sampled_from(USUAL + OTHER)))))
    for _ in range(draw(st.integers(0, 2))):
        place = body
        while inner := [value for value in places(place) if isinstance(value, dict | list)]:
            if draw(st.booleans()):
                break
            place = draw(st.sampled_from(inner))
        if isinstance(place, dict):
            place[draw(NAMES | st.sampled_from(list(place) or [""]))] = draw(VALUES)
        else:
            place.insert(draw(st.integers(0, len(place))), draw(VALUES))
    line = json.dumps(body, ensure_ascii=draw(st.booleans())).encode("utf-8", "surrogatepass")
    for _ in range(draw(st.sampled_from([0, 0, 0, 1, 2]))):
        start = draw(st.integers(0, len(line)))
        piece = draw(st.sampled_from([b"", b'"', b"\\", b",", b"0", b"{", b"}"]) | st.binary(max_size=3))
        line = line[:start] + piece + line[start + draw(st.sampled_from([0, 0, 1, 2, 20])) :]
    return line.replace(b"\n", b"")


def places(place):
    return list(place.values()) if isinstance(place, dict) else place


EDGES = [
    succeeded("a", usage={"cache_creation_input_tokens": 5}),  # less than was written for an hour
    succeeded("a", usage={"input_tokens": None, "cache_read_input_tokens": -1}),
    succeeded("a", usage={"cache_creation": [1], "speed": 5}),
    succeeded("a", stop_reason="stop_sequence", content=[{"type": "text", "text": "b"}, CALL]),
    succeeded(content=["text", {"type": "text"}]),
]


@pytest.mark.slow
@settings(max_examples=150)
@example([json.dumps(row(result)).encode() for result in EDGES])
@given(st.lists(spoiled() | st.binary(max_size=40), max_size=3))
def test_any_lines_give_a_frame_and_both_ways_agree(lines):
    """The quick and the careful parser agree on any damaged line, whatever lines surround it."""
    suffix, lines = f"-{NONCE}", [line.replace(b"\n", b"") for line in lines]
    for block in (lines, *([line] for line in lines)):
        texts = [line.decode("utf-8", "replace") for line in block]
        careful = [batch_rules._any_row(text, suffix, trusted=True) for text in texts]
        found = batch_rules._read(b"\n".join(block), suffix, trusted=True)
        assert found.drop("line").rows() == [each for each in careful if each is not None]
    assert read(*lines).schema == RECORDS


def test_usual_replies_are_read_the_quick_way():
    """Polars alone reads every complete reply, and nothing else."""
    texts = [json.dumps(row(result)) for result in USUAL + OTHER]
    lines = pl.DataFrame({"line": range(len(texts)), "text": texts}, {"line": pl.UInt32, "text": pl.String})
    usual = batch_rules._usual_rows(batch_rules._decoded(lines), f"-{NONCE}")
    assert usual["line"].to_list() == [*range(len(USUAL))]


@pytest.mark.parametrize(
    ("block", "proven"),
    [
        (b"junk\n\n{}\n", None),
        (json.dumps(row({}, f"{KEY}-000000000000")).encode() + b"\n" + json.dumps(row({})).encode(), False),
        (json.dumps(row({}, 5)).encode() + b"\n" + json.dumps(row({})).encode() + b"\n", True),
    ],
)
def test_the_first_readable_line_proves_whose_batch_it_is(block, proven):
    """The nonce in one result distinguishes our orphaned batch from another client's."""
    assert proves(block, NONCE) is proven
