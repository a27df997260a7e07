"""The simulated models' replies, how their tokens and cache are counted, and the effects of faults."""

import itertools
import json
import re
from collections import Counter

import pytest
from bodies import EPHEMERAL, HAIKU, LONG, OLD, OPUS, SENTIMENT, cached, form, request, rows_of, said
from desks import NOW, admitted, answered, batches_of, desk, made, message_of, text_of, worked

from claudescale.simulator import Fault
from claudescale.simulator.replies import MARK
from claudescale.simulator.wire import TABLES, Problem


def test_a_reply_depends_on_the_seed_and_the_body_alone():
    """Order, time, tier and earlier calls never change a marked reply; the seed and `varied` do."""
    bodies = [request(f"Row {n}: the screen froze. It was slow. I like the case.") for n in range(30)]
    one, two, other = desk(seed=3), desk("start", seed=3), desk(seed=4)
    first = [text_of(message_of(body, one)) for body in bodies]
    later = [text_of(message_of(body, two, NOW + 9e4 + 60 * n)) for n, body in enumerate(bodies[::-1])]
    assert first == later[::-1]
    assert first != [text_of(message_of(body, other)) for body in bodies]
    assert all(text.startswith(MARK) for text in first)
    varied = [desk(varied=True), desk(varied=True)]
    one, two = ([text_of(message_of(request(LONG), at)) for _ in range(6)] for at in varied)
    assert one == two
    assert len(set(one)) > 1


def test_replies_of_ones_own_are_sent_and_a_stop_sequence_ends_them():
    """A value is sent as JSON; a text ends before the first stop sequence, and the reply names it."""
    at = desk(replies=lambda body: {"seen": body["messages"][0]["content"]})
    assert json.loads(text_of(message_of(request("abc"), at))) == {"seen": "abc"}
    body = request(stop_sequences=["three", "two"], thinking={"type": "disabled"})
    message = message_of(body, desk(replies=lambda _: "One two three"))
    assert (text_of(message), message["stop_reason"]) == ("One ", "stop_sequence")
    assert message["stop_sequence"] == "two"


def test_thinking_counts_in_max_tokens_and_can_be_kept_off():
    """With little room the answer is cut or missing; Haiku 5.5 thinks on some rows, if disabled on none."""
    thought = Counter()
    for number in range(30):
        cut = message_of(request(f"Row {number}: {LONG}", max_tokens=12, output_config={"effort": "high"}))
        assert (cut["stop_reason"], cut["usage"]["output_tokens"]) == ("max_tokens", 12)
        thought["alone"] += [block["type"] for block in cut["content"]] == ["thinking"]
        for kind in ("adaptive", "disabled"):
            message = message_of(request(f"Row {number}", thinking={"type": kind}))
            thinks = message["usage"]["output_tokens_details"]["thinking_tokens"] > 0
            assert thinks == any(block["type"] == "thinking" for block in message["content"])
            thought[kind] += thinks
    assert 5 < thought["alone"] < 30
    assert 5 < thought["adaptive"] < 25
    assert thought["disabled"] == 0


def test_classification_looks_plausible_and_better_models_err_less():
    """Labels follow the words of the text; over many rows Opus errs less than Haiku 4.5."""
    words, right = {"positive": "great quality, I love it", "negative": "arrived broken, terrible"}, Counter()
    for model in (OLD, HAIKU, OPUS):
        for wanted, number in itertools.product(words, range(100)):
            text = f"Which is it?\n\nOrder {number}: {words[wanted]}."
            message = message_of(request(text, model=model, max_tokens=8000, **form()))
            right[model] += json.loads(text_of(message))["sentiment"] == wanted
    assert 0.75 < right[OLD] / 200 < right[OPUS] / 200 < 1.0
    assert right[HAIKU] / 200 > 0.85


def shares(message):
    """Return the uncached, the written and the read input tokens of a message."""
    names = ("input_tokens", "cache_creation_input_tokens", "cache_read_input_tokens")
    return tuple(message["usage"][name] for name in names)


def test_a_prefix_is_written_then_read_until_its_time_is_up():
    """A read renews it; an hour is longer than five minutes; a longer turn reads the one before."""
    at, moments = desk(), (("a", 0), ("b", 250), ("c", 500), ("d", 801))
    first, second, third, late = (shares(message_of(cached(row), at, NOW + wait)) for row, wait in moments)
    assert (first[2], second[1], third[1], late[2]) == (0, 0, 0, 0)
    assert first[1] == second[2] == third[2] == late[1] > 512
    warm = message_of(cached("a", ttl="1h", max_tokens=0), at, NOW + 9_000)
    assert (warm["content"], warm["stop_reason"], warm["usage"]["output_tokens"]) == ([], "max_tokens", 0)
    assert warm["usage"]["cache_creation"]["ephemeral_1h_input_tokens"] > 512
    assert shares(message_of(cached("b", ttl="1h"), at, NOW + 12_500))[2] > 512
    other = cached("c", ttl="1h", output_config={"effort": "low"})
    assert shares(message_of(other, at, NOW + 12_500))[2] == 0
    assert shares(message_of(cached("a", model=OLD)))[1:] == (0, 0)  # too short for 4.5
    at = desk()
    written = shares(message_of(said(LONG, cache_control=EPHEMERAL), at))[1]
    longer = shares(message_of(said(LONG, "Yes.", f"{LONG}?", cache_control=EPHEMERAL), at, NOW + 60))
    assert 512 < longer[2] == pytest.approx(written, abs=10)


def test_calls_that_start_together_all_write_and_reads_do_not_count_against_the_input_limit():
    """An entry is readable once the first reply has begun; with room for one prefix many reads pass."""
    at = desk(latency=4.0)
    together = [admitted(at, cached(f"row {number}"), NOW + 0.1 * number) for number in range(5)]
    later = admitted(at, cached("later"), NOW + 2.1).reply.shares
    assert [call.reply.shares.cache_read_input_tokens for call in together] == [0] * 5
    assert later.cache_read_input_tokens == together[0].reply.shares.cache_write_5m_input_tokens > 512
    at = desk((1e6, 1700, 1e9))
    for number in range(20):
        message_of(cached(f"row {number}"), at, NOW + 10 + number)
    assert answered(at, cached("x", prefix=LONG + "!"), NOW + 30)[0] == 429


STATUSES = [(code, code) for code in (400, 401, 402, 403, 404, 408, 409, 413, 429, 500, 503, 504, 529)]
NAMED = [("overloaded", 529), ("rate_limit", 429), ("server_error", 500)]


@pytest.mark.parametrize(("kind", "status"), STATUSES + NAMED)
def test_every_status_can_be_made_to_happen_by_number_or_by_name(kind, status):
    """The failing call takes nothing; a name is an alias of its status, in `stats` as well."""
    at = desk(faults={kind: Fault(tries=[1])})
    first, headers, error = answered(at, request())
    figures = at.account.figures()
    assert (first, figures["faults"], figures["billed_rows"]) == (status, {str(status): 1}, 0)
    if status == 429:
        assert headers["retry-after"] == "5"
        assert error["error"]["details"] == {"error_code": "ramp_limit_exceeded"}
    assert answered(at, request())[0] == 200


def test_a_fault_strikes_by_seed_by_try_and_within_its_window():
    """The same calls fail in any order; a retry is drawn anew; none fails outside the window."""

    def struck(at, order, now=NOW + 15):
        return {number for number in order if answered(at, request(f"row {number}"), now)[0] == 529}

    one, two, three = (desk(faults={529: (0.3, 10, 20)}, seed=5) for _ in range(3))
    first = struck(one, range(100))
    assert first == struck(two, reversed(range(100)))
    assert 15 < len(first) < 45
    assert 0 < len(struck(one, first)) < len(first)
    assert struck(three, range(100), NOW + 20) == set()


def test_levels_refuse_once_dollars_are_spent_or_too_many_calls_are_in_flight():
    """The spend cap has a code, but for batches; the workspace's limit is a 400; a 529 is temporary."""
    at = desk(faults={"spend_cap": 1e-9})
    message_of(request(), at)
    status, headers, error = answered(at, request(), NOW + 60)
    assert (status, error["error"]["details"]["error_code"]) == (429, "enforced_spend_limit_reached")
    assert error["error"]["message"].startswith("You have reached your API usage limits")
    assert "retry-after" not in headers
    with pytest.raises(Problem, match="You have reached your API usage limits") as refused:
        made(batches_of(at), rows_of(request()))
    assert refused.value.details == {}
    status, _, error = answered(desk(faults={"workspace_spend": 0.0}), request())
    words = r"You have reached your specified workspace API usage limits.* 2026-12-01"
    assert (status, bool(re.match(words, error["error"]["message"]))) == (400, True)
    at = desk(faults={"overload_above": 1})
    first = admitted(at, request("1"))
    assert answered(at, request("2"))[0] == 529
    at.finish(first.done_at, first)
    assert answered(at, request("3"), first.done_at)[0] == 200


SPOILED = [
    ("refusal_midway", "refusal", ["text"]), ("empty_content", "end_turn", []),
    ("thinking_only", "max_tokens", ["thinking"]), ("cut", "max_tokens", ["text"]),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "reason", "blocks"), SPOILED)
def test_replies_can_be_spoiled(kind, reason, blocks):
    """Each has status 200, is billed, and is unusable."""
    at = desk(faults={kind: 1.0})
    message = message_of(request(thinking={"type": "disabled"}), at)
    assert (message["stop_reason"], [block["type"] for block in message["content"]]) == (reason, blocks)
    assert message["usage"]["output_tokens"] > 0
    assert at.account.figures()["billed_rows"] == 1


def test_a_refusal_is_billed_in_some_categories_only():
    """A refusal before any output is billed in three categories only; its tokens are always in `usage`."""
    at = desk(faults={"refusal": 1.0})
    messages = [message_of(request(f"row {n}"), at) for n in range(30)]
    late = worked(batches_of(at), rows_of(*(request(f"batch {n}") for n in range(30))))
    messages += [result["message"] for result in late.values()]
    assert {message["stop_reason"] for message in messages} == {"refusal"}
    assert {message["usage"]["output_tokens"] for message in messages} == {0}
    categories = Counter(message["stop_details"]["category"] for message in messages)
    figures = at.account.figures()
    assert figures["billed_rows"] == categories.pop("bio") + categories.pop("frontier_llm")
    assert figures["free_refusals"] == categories.pop("general_harms") + categories.pop("cyber")
    assert not categories
    assert figures["input_tokens"] == sum(message["usage"]["input_tokens"] for message in messages)
    schema = {**SENTIMENT, "properties": {"reasoning": {"type": "string"}}, "required": ["reasoning"]}
    assert message_of(request(**form(schema)), at)["stop_details"]["category"] == "reasoning_extraction"
    assert at.account.figures()["billed_rows"] == figures["billed_rows"] + 1


@pytest.mark.parametrize("kind", TABLES["account"])
def test_troubles_of_the_account_strike_calls_and_rows(kind):
    """They have status 400 and the code, if any, live and in the result of a batch's row."""
    at = desk(faults={kind: Fault(ends=1)})
    status, _, live = answered(at, request())
    row = worked(batches_of(desk(faults={kind: Fault(starts=1)})), rows_of(request()))["0"]["error"]
    for error in (live["error"], row["error"]):
        code = error.get("details", {}).get("error_code", "organization_disabled")
        assert (error["type"], code) == ("invalid_request_error", kind)
    assert (status, at.account.figures()["billed_rows"]) == (400, 0)
