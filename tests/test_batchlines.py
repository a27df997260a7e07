"""Result lines of a batch as attempts: tables of lines, properties over any bytes, the simulator's own."""

import json
from datetime import UTC, datetime

import polars as pl
import pytest
from anthropic.types.messages import MessageBatchIndividualResponse
from hypothesis import given
from hypothesis import strategies as st

from claudescale.api.answers import Answer, verdict
from claudescale.api.catalog import USAGE
from claudescale.api.prices import price
from claudescale.ledger.records import RECORDS
from claudescale.running import batch_results
from claudescale.running.batch_results import attempts, proves
from claudescale.simulator import Batches, Desk

KEY, NONCE = "00112233445566778899aabbccddeeff", "a1b2c3d4e5f6"
PRICE = price("claude-haiku-5-5", mode="batch", at=datetime(2026, 11, 20, tzinfo=UTC))
NOW = 1_795_000_000.0
CAP = "enforced_spend_limit_reached"


def read(*lines, trusted=True):
    block = b"\n".join(line if isinstance(line, bytes) else json.dumps(line).encode() for line in lines)
    return attempts(
        block, nonce=NONCE, batch_id="msgbatch_1", model="claude-haiku-5-5", price=PRICE, simulated=True,
        run="run", sent_at=1_764_000_000.123456, seconds=61.5, trusted=trusted,
    )  # fmt: skip


def row(result, custom_id=f"{KEY}-{NONCE}"):
    return {"custom_id": custom_id, "result": result}


def message(*texts, **changes):
    return {
        "id": "msg_1",
        "type": "message",
        "role": "assistant",
        "model": "claude-haiku-5-5",
        "content": [{"type": "text", "text": text} for text in texts],
        "stop_reason": "end_turn",
        "stop_sequence": None,
        "usage": {
            "input_tokens": 11,
            "cache_creation_input_tokens": 700,
            "cache_read_input_tokens": 50,
            "cache_creation": {"ephemeral_5m_input_tokens": 100, "ephemeral_1h_input_tokens": 600},
            "output_tokens": 9,
            "output_tokens_details": {"thinking_tokens": 4},
            "service_tier": "batch",
        },
        **changes,
    }


def succeeded(*texts, **changes):
    return {"type": "succeeded", "message": message(*texts, **changes)}


def errored(kind, words="no", code=None, request_id="req_1"):
    error = {"type": kind, "message": words}
    if code is not None:
        error["details"] = {"error_code": code}
    return {"type": "errored", "error": {"type": "error", "error": error, "request_id": request_id}}


def test_a_reply_is_an_attempt_with_all_that_the_ledger_keeps():
    """Every column of the ledger is there, in its order and type, and the batch's price is paid."""
    found = read(row(succeeded("fine")))
    assert found.schema == RECORDS
    step = PRICE.steps[0]
    dollars = 11 * step.input + 100 * step.cache_write_5m + 600 * step.cache_write_1h
    dollars += 50 * step.cache_read + 9 * step.output
    assert found.row(0, named=True) == {
        "key": KEY, "run": "run", "mode": "batch", "batch_id": "msgbatch_1", "model": "claude-haiku-5-5",
        "sent_at": datetime(2025, 11, 24, 16, 0, 0, 123456, tzinfo=UTC), "seconds": 61.5, "status": None,
        "error": None, "message": None, "request_id": None, "stop_reason": "end_turn", "reply": "fine",
        "input_tokens": 11, "cache_write_5m_input_tokens": 100, "cache_write_1h_input_tokens": 600,
        "cache_read_input_tokens": 50, "output_tokens": 9, "thinking_tokens": 4,
        "dollars": pytest.approx(dollars), "simulated": True, "final": True,
        "answering_model": "claude-haiku-5-5", "inference_geo": None, "speed": None, "web_search_requests": 0,
        "refusal_category": None,
    }  # fmt: skip


def test_nothing_gives_an_empty_frame_of_the_same_columns():
    """A block without lines is no special case for who reads the frame."""
    assert read(b"").equals(RECORDS.to_frame())
    assert read(b"", b"", b"{").schema == RECORDS


def test_a_price_step_is_taken_row_by_row():
    """A long prompt is priced as a whole at its own step, and the short one beside it is not."""
    usage = {"output_tokens": 1}
    low, high = (succeeded("a", usage={**usage, "input_tokens": tokens}) for tokens in (100_000, 100_001))
    found = read(row(low), row(high))["dollars"].to_list()
    base, step = PRICE.steps
    assert found == pytest.approx([100_000 * base.input + base.output, 100_001 * step.input + step.output])


@pytest.mark.parametrize(
    ("kind", "words", "code", "error", "final"),
    [
        ("invalid_request_error", "no", None, "invalid_request_error", True),
        ("request_too_large", "no", None, "request_too_large", True),
        ("authentication_error", "no", None, "authentication_error", False),
        ("billing_error", "no", None, "billing_error", False),
        ("permission_error", "no", None, "permission_error", False),
        ("not_found_error", "no", None, "not_found_error", False),
        ("api_error", "no", None, "api_error", False),
        ("overloaded_error", "no", None, "overloaded_error", False),
        ("timeout_error", "no", None, "timeout_error", False),
        ("rate_limit_error", "no", None, "rate_limit_error", False),
        ("rate_limit_error", "no", CAP, CAP, False),
        ("invalid_request_error", "Your credit balance is too low to", None, "billing_error", False),
        ("invalid_request_error", "You have reached your specified", None, "spend_limit_reached", False),
        ("brand_new_error", "no", None, "brand_new_error", False),
        (None, "no", None, "invalid_response", False),
    ],
)
def test_an_error_ends_its_row_only_where_sending_again_cannot_mend_it(kind, words, code, error, final):
    """The error's own type says whether the row goes into the next batch; none of them is billed."""
    line = row(errored(kind, words, code))
    found = read(line).row(0, named=True)
    assert (found["error"], found["message"], found["final"]) == (error, words, final)
    assert (found["request_id"], found["dollars"], found["reply"]) == ("req_1", 0.0, None)
    assert not read(line, trusted=False)["final"].any()


def test_no_key_stands_in_the_words_of_an_error():
    """A message that repeats an API key is masked, and cut."""
    found = read(row(errored("api_error", "no sk-ant-api03-abcdef and " + "x" * 1_000)))["message"].item()
    assert found.startswith("no sk-... and x")
    assert len(found) == 500


@pytest.mark.parametrize(
    ("result", "error"),
    [
        ({"type": "expired"}, "expired"),
        ({"type": "canceled"}, "canceled"),
        ({"type": "brand_new"}, "invalid_response"),
        ({"type": ["expired"]}, "invalid_response"),
        ({}, "invalid_response"),
        (None, "invalid_response"),
        ([1], "invalid_response"),
        ({"type": "errored"}, "invalid_response"),
        ({"type": "succeeded"}, "invalid_response"),
        ({"type": "succeeded", "message": {"content": "text"}}, "invalid_response"),
    ],
)
def test_a_row_without_an_answer_is_to_be_sent_again(result, error):
    """What expired, was canceled or cannot be understood is on record, unpaid, and not final."""
    found = read(row(result)).row(0, named=True)
    assert (found["error"], found["final"], found["dollars"]) == (error, False, 0.0)


@pytest.mark.parametrize("reason", ["refusal", "max_tokens", "model_context_window_exceeded", "tool_use"])
def test_a_cut_reply_is_paid_for_and_final(reason):
    """A reply that broke off is an answer whose error is the reason why."""
    found = read(row(succeeded("half", stop_reason=reason))).row(0, named=True)
    assert (found["error"], found["stop_reason"], found["reply"], found["final"]) == (
        reason, reason, "half", True
    )  # fmt: skip
    assert found["dollars"] > 0


OTHER_BLOCKS = [
    {"type": "thinking", "thinking": 'he said "text":"x"', "signature": "abc=="},
    {"type": "redacted_thinking", "data": "abc=="},
    {"type": "tool_use", "id": "t", "name": "look", "input": {"text": "x", "usage": {"input_tokens": 7}}},
    {"type": "brand_new", "text": "x"},
    "text",
]
SURROGATE_PAIR = json.dumps(row(succeeded("\N{GRINNING FACE}"))).encode()
LINES = [
    row(succeeded()),
    row(succeeded("")),
    row(succeeded("one", "two")),
    row(succeeded('quotes "a",\nnewline, \\ backslash, é \N{GRINNING FACE}\0')),
    row(succeeded('"input_tokens":5,"text":"x"')),
    row(succeeded("a", stop_reason=None)),
    row(succeeded("a", stop_reason="brand_new")),
    row(succeeded("a", stop_reason=5)),
    row(succeeded("a", usage=None)),
    row(succeeded("a", usage={})),
    row(succeeded("a", usage={"input_tokens": 1.0, "output_tokens": True})),
    row(succeeded("a", usage={"input_tokens": -1, "output_tokens": "7"})),
    row(succeeded("a", usage={"input_tokens": 2**53, "output_tokens": 2**53 + 1})),
    row(succeeded("a", usage={"input_tokens": 10**30, "cache_creation": {"ephemeral_1h_input_tokens": 5}})),
    row(succeeded("a", usage={"brand_new": {"input_tokens": 9}, "output_tokens": 3})),
    row(
        succeeded(
            "a", brand_new={"text": "x", "usage": {"input_tokens": 9}, "content": [], "stop_reason": "b"}
        )
    ),
    row(succeeded("a", stop_details={"type": "refusal", "category": "bio", "explanation": "no"})),
    row(succeeded("half \ud800 pair")),
    row(succeeded(5)),
    row(succeeded("a", content=[{"text": "x", "type": "text"}])),
    row(succeeded("a", content=[{"type": "text", "text": "x", "citations": None}])),
    row(succeeded("a", content=[{"type": "text", "text": "x", "citations": [{"cited_text": "y"}]}])),
    *(row(succeeded("a", content=[block, {"type": "text", "text": "x"}])) for block in OTHER_BLOCKS),
    *(row(succeeded("a", content=[{"type": "text", "text": "x"}, block])) for block in OTHER_BLOCKS),
    {**row(succeeded("a")), "more": 1},
    {"result": succeeded("a"), "custom_id": f"{KEY}-{NONCE}"},
    {"custom_id": f"{KEY}-{NONCE}"},
    row({"message": message("a"), "type": "succeeded"}),
    row({**succeeded("a"), "type": "succeeded"}),
    row(succeeded("a"), custom_id=f"-{NONCE}"),
    row(succeeded("a"), custom_id=f"short-{NONCE}"),
    row(succeeded("a"), custom_id=f"é\ud800-{NONCE}"),
    row(succeeded("a"), custom_id=f"{'x' * 60}-{NONCE}"),
    row(errored("api_error", "half \ud800 pair", request_id=5)),
    row({"type": "errored", "error": {"error": "text"}}),
    row({"type": "expired"}),
    row({"type": "canceled", "more": None}),
    SURROGATE_PAIR.replace(b"ude00", b"u0041"),
    SURROGATE_PAIR.replace(b"\\ude00", b""),
    SURROGATE_PAIR.replace(b"\\ud83d\\ude00", b"\xed\xa0\x80"),
    SURROGATE_PAIR.replace(b"\\ud83d\\ude00", b"a\\/b"),
    SURROGATE_PAIR + b"\r",
    b" " + SURROGATE_PAIR + b" ",
    SURROGATE_PAIR.replace(b'"usage"', b'"content":[],"usage"'),
    SURROGATE_PAIR.replace(b'"usage"', b'"usage":{"input_tokens":1},"usage"'),
    SURROGATE_PAIR.replace(b'"input_tokens"', b'"input_tokens": 7, "input_tokens"'),
    SURROGATE_PAIR.replace(b'"input_tokens"', b'"input\\u005ftokens"'),
    SURROGATE_PAIR.replace(b'"input_tokens"', b'"a\\"input_tokens": 3, "input_tokens"'),
    SURROGATE_PAIR.replace(b'"input_tokens": 11', b'"input_tokens": NaN'),
    SURROGATE_PAIR.replace(b'"input_tokens": 11', b'"input_tokens": 1e400'),
    SURROGATE_PAIR.replace(b'"input_tokens": 11', b'"input_tokens": -0'),
]
NOT_OURS = [
    b"",
    b"{}",
    b"null",
    b"[" * 100_000,
    SURROGATE_PAIR[:-1],
    SURROGATE_PAIR + b"x",
    SURROGATE_PAIR + b"," + SURROGATE_PAIR,
    SURROGATE_PAIR.replace(b"\\ud83d\\ude00", b"\xff"),
    SURROGATE_PAIR.replace(b"\\ud83d\\ude00", b"\t"),
    SURROGATE_PAIR.replace(b'"input_tokens": 11', b'"input_tokens": 011'),
    row(succeeded("a"), custom_id=f"{KEY}-000000000000"),
    row(succeeded("a"), custom_id=f"{KEY}{NONCE}"),
    row(succeeded("a"), custom_id=5),
    row(succeeded("a"), custom_id=None),
    {"result": succeeded("a")},
]


def forms(line):
    """Return a line as it can be written: with spaces or without, in ASCII or in UTF-8."""
    if isinstance(line, bytes):
        compact = line.replace(b'": ', b'":').replace(b', "', b',"')
        return [line, compact]
    written = [
        json.dumps(line, ensure_ascii=ascii_only, separators=separators)
        for ascii_only in (True, False)
        for separators in ((",", ":"), (", ", ": "))
    ]
    return [text.encode("utf-8", "surrogatepass") for text in written]


def storable(text):
    return None if text is None else text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def plainly(line):
    """Return what must come of a line, in other words than the module's: by the live path's own functions."""
    try:
        body = json.loads(line)
        custom_id = body["custom_id"]
        ours = custom_id.endswith("-" + NONCE)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return None
    if not ours:
        return None
    result = body.get("result")
    result = result if isinstance(result, dict) else {}
    if result.get("type") != "succeeded":
        return storable(custom_id[:-13]), None, (0,) * 6, 0.0
    found = verdict(Answer(200, {}, json.dumps(result.get("message")).encode()))
    reply = found.reply or {}
    blocks = [
        each for each in reply.get("content", []) if isinstance(each, dict) and each.get("type") == "text"
    ]
    text = "".join(each["text"] for each in blocks if isinstance(each.get("text"), str))
    dicts = [each for each in reply.get("content", []) if isinstance(each, dict)]
    calls = [each for each in dicts if each.get("type") == "tool_use"]
    if calls:
        text = json.dumps(calls[0]["input"], separators=(",", ":"))
    usage = counts(reply.get("usage"))
    dollars = PRICE.dollars(**dict(zip(USAGE[:-1], usage, strict=False)))
    return storable(custom_id[:-13]), storable(text) or None, usage, pytest.approx(dollars, rel=1e-12)


def counts(usage):
    def count(parent, name):
        found = parent.get(name) if isinstance(parent, dict) else None
        return found if type(found) is int and 0 <= found <= 2**53 else 0

    usage = usage if isinstance(usage, dict) else {}
    hour = count(usage.get("cache_creation"), "ephemeral_1h_input_tokens")
    written = max(count(usage, "cache_creation_input_tokens"), hour)
    thinking = count(usage.get("output_tokens_details"), "thinking_tokens")
    read = count(usage, "cache_read_input_tokens")
    return count(usage, "input_tokens"), written - hour, hour, read, count(usage, "output_tokens"), thinking


def shortly(found):
    return [
        (each["key"], each["reply"], tuple(each[name] for name in USAGE), each["dollars"])
        for each in found.iter_rows(named=True)
    ]


@pytest.mark.parametrize("line", LINES)
def test_every_line_of_ours_is_one_row(line):
    """Whatever its form, a line is read as a live answer would be, alone and among lines of every kind."""
    for form in forms(line):
        alone = shortly(read(form))
        assert alone == [plainly(form)]
        assert shortly(read(b"", SURROGATE_PAIR, form, b"junk", SURROGATE_PAIR))[1] == alone[0]


@pytest.mark.parametrize("line", NOT_OURS)
def test_what_is_unreadable_or_of_another_is_left_out(line):
    """A line that is broken or not ours gives no row, and its neighbours stay what they are."""
    for form in forms(line):
        assert read(form).height == 0
        assert shortly(read(SURROGATE_PAIR, form, SURROGATE_PAIR)) == [plainly(SURROGATE_PAIR)] * 2


def both(line):
    """Return what the quick way and the slow one make of a line; the quick one may leave it."""
    quick, left = batch_results._by_schema([line], NONCE)
    slow = batch_results._one_by_one([(0, line)], nonce=NONCE, trusted=True)
    return None if left else quick.rows(named=True), slow.rows(named=True)


USUAL = [
    succeeded(),
    succeeded(""),
    succeeded('quotes "a",\nnewline, \\ backslash, é \N{GRINNING FACE}\0'),
    succeeded('"input_tokens":5,"text":"x"'),
    succeeded("5", stop_reason="max_tokens"),
    succeeded("a", stop_details={"type": "refusal", "category": "bio"}, container=None),
    succeeded("a", brand_new=[], more={"one": 1.5, "two": "b", "type": "c"}, text_tokens=3),
    succeeded(
        "a", content=[OTHER_BLOCKS[0], OTHER_BLOCKS[1], {"type": "text", "text": "b", "citations": None}]
    ),
    succeeded("a", content=[OTHER_BLOCKS[0]]),
    succeeded("a", usage={"input_tokens": 10**14, "output_tokens": 0}),
    succeeded("a", usage={**message()["usage"], "brand_new": {"brand_new_requests": 1}, "speed": None}),
    succeeded("a", usage={**message()["usage"], "speed": "standard", "inference_geo": "us"}),
    succeeded("a", usage={**message()["usage"], "inference_geo": "global", "later": 1, "speed": "fast"}),
    succeeded(
        "a",
        usage={
            **message()["usage"],
            "server_tool_use": {"web_search_requests": 0, "web_fetch_requests": 0},
            "inference_geo": "global",
        },
    ),
    {"type": "expired"},
    {"type": "canceled"},
]


@pytest.mark.parametrize("result", USUAL)
def test_usual_lines_go_the_quick_way(result):
    """Replies with or without thinking, fields yet unknown, and rows without an answer are read by schema."""
    line = json.dumps(row(result), ensure_ascii=False, separators=(",", ":")).encode()
    quick, slow = both(line)
    assert quick == slow
    assert len(slow) == 1


@pytest.mark.parametrize("line", [*LINES, *NOT_OURS])
def test_the_quick_way_differs_in_nothing(line):
    """A line that the pattern knows gives the very row that parsing it gives."""
    for form in forms(line):
        quick, slow = both(form)
        assert quick in (None, slow)


FIELDS = [
    *("content", "stop_reason", "usage", "cache_creation", "output_tokens_details", "type", "text", "model"),
    *("inference_geo", "speed", "server_tool_use", "web_search_requests", "input_tokens", "output_tokens"),
    *("cache_creation_input_tokens", "cache_read_input_tokens", "ephemeral_1h_input_tokens"),
    *("thinking_tokens", "stop_sequence", "id", "input", "output_tokens_detail", ""),
]
NAMES = st.sampled_from(FIELDS) | st.text(max_size=3)
NEW = st.sampled_from(["more", "stop_sequence", "id", "output_tokens_detail", "text_", "types", "inputs"])
SCALARS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from(
        ["text", "thinking", "succeeded", "expired", "max_tokens", '"text":"x"', "\ud83d", "\udc00"]
    )
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=3),
    max_leaves=6,
)


@st.composite
def spoiled(draw):
    """Draw a line that is nearly as usual: members changed, added or twice, bytes changed, lines joined."""
    body = json.loads(json.dumps(row(draw(st.sampled_from(USUAL)))))
    for _ in range(draw(st.integers(0, 2))):
        place = body
        while (inner := [each for each in places(place) if isinstance(each, dict | list)]) and draw(
            st.booleans()
        ):
            place = draw(st.sampled_from(inner))
        if isinstance(place, dict):
            place[draw(NEW | NAMES | st.sampled_from(list(place) or [""]))] = draw(SCALARS | VALUES)
        else:
            place.insert(draw(st.integers(0, len(place))), draw(VALUES))
    separators = draw(st.sampled_from([(",", ":")] * 5 + [(", ", ": ")]))
    text = json.dumps(body, ensure_ascii=draw(st.booleans()), separators=separators)
    line = text.encode("utf-8", "surrogatepass")
    for _ in range(draw(st.sampled_from([0, 0, 0, 1, 2]))):
        start = draw(st.integers(0, len(line)))
        stop = start + draw(st.sampled_from([0, 0, 1, 2, 20]))
        # No member a second time: which of the two counts is no promise.
        piece = draw(
            st.sampled_from([b"", b'"', b"\\", b",", b"0", b"{", b"}", b"]"]) | st.binary(max_size=3)
        )
        line = line[:start] + piece + line[stop:]
    return line.replace(b"\n", b"")


def places(place):
    return list(place.values()) if isinstance(place, dict) else place


@given(VALUES)
def test_any_result_is_one_row(result):
    """Whatever JSON stands where the result should, the row is on record, unpaid where nothing is told."""
    assert read(row(result)).height == 1


@given(spoiled())
def test_the_quick_way_differs_in_nothing_on_spoiled_lines(line):
    """However a line is spoiled, the quick way gives the very row that parsing it gives, or leaves it."""
    quick, slow = both(line)
    assert quick in (None, slow)


@given(st.lists(spoiled(), max_size=4))
def test_spoiled_lines_do_not_spoil_their_neighbours(lines):
    """A line gives the same rows alone and among others, in the order of the lines."""
    alone = [each for line in lines for each in read(line).rows()]
    assert read(*lines).rows() == alone


@given(st.lists(st.binary(max_size=40)))
def test_no_bytes_make_it_raise(blocks):
    """Any bytes give a frame of the same columns."""
    assert read(*blocks).schema == RECORDS


@pytest.mark.parametrize(
    ("block", "proven"),
    [
        (b"", None),
        (b"junk\n\n{}\n", None),
        (b"junk\n" + json.dumps(row({})).encode(), True),
        (json.dumps(row({}, f"{KEY}-000000000000")).encode() + b"\n" + json.dumps(row({})).encode(), False),
        (json.dumps(row({}, 5)).encode() + b"\n" + json.dumps(row({})).encode() + b"\n", True),
    ],
)
def test_the_first_readable_line_proves_whose_batch_it_is(block, proven):
    """The nonce in one result tells an orphan of ours from another's batch."""
    assert proves(block, NONCE) is proven


def test_lines_keep_their_order():
    """Rows come in the order of their lines, whichever way each was read."""
    keys = [f"{number:032x}" for number in range(300)]
    results = [succeeded("a"), succeeded("a", "b"), {"type": "expired"}, errored("api_error")]
    lines = [row(results[number % 4], f"{key}-{NONCE}") for number, key in enumerate(keys)]
    assert read(*lines)["key"].equals(pl.Series("key", keys))


def test_what_the_simulator_writes_is_read_the_quick_way_and_adds_up_to_its_bill():
    """Replies of every kind are as the SDK reads them, and their dollars are what the account is billed."""
    desk = Desk((1e9, 1e12, 1e12), now=NOW, faults={"batch_expired": 0.1, "batch_overloaded": 0.1})
    batches = Batches(desk, NOW, seconds=600)
    system = [
        {"type": "text", "text": "Sort it. " * 900, "cache_control": {"type": "ephemeral", "ttl": "1h"}}
    ]
    rows = [
        {
            "custom_id": f"{number:032x}-{NONCE}",
            "params": {
                "model": "claude-haiku-5-5",
                "max_tokens": 5 if number % 7 == 3 else 500,
                "system": system,
                "thinking": {"type": "disabled" if number % 3 else "adaptive"},
                "messages": [{"role": "user", "content": f'Say "{number}" in Greek: \\u03b1\\n'}],
            },
        }
        for number in range(200)
    ]
    shown = batches.create(NOW, {"requests": rows}, "2026-10-21")
    for batch in batches.unsettled():
        for _ in batches.work(batch, NOW + 600):
            pass
    lines = [line.rstrip(b"\n") for line in batches.results(NOW + 600, batches.find(shown["id"]))]
    found = read(*lines)
    assert (found.height, found["key"].n_unique()) == (200, 200)
    errored = sum(b'"errored"' in line for line in lines)
    assert len(batch_results._by_schema(lines, NONCE)[1]) == errored > 0
    for line, row in zip(lines, found.iter_rows(named=True), strict=True):
        result = MessageBatchIndividualResponse.model_validate_json(line).result
        if result.type == "succeeded":
            texts = [block.text for block in result.message.content if block.type == "text"]
            assert ("".join(texts) or None, result.message.stop_reason) == (row["reply"], row["stop_reason"])
            assert row["final"]
        else:
            assert row["error"] == ("expired" if result.type == "expired" else "overloaded_error")
    assert set(found["error"]) >= {None, "max_tokens", "expired", "overloaded_error"}
    assert found["cache_read_input_tokens"].sum() > 0
    assert found["dollars"].sum() == pytest.approx(desk.account.figures()["dollars"])
