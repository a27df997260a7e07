"""What the simulator refuses and what it bills, as the API does: each case live and in a batch."""

from __future__ import annotations

import asyncio
import base64
import json
from collections import Counter

import pytest

from claudescale.simulator import Admission, Batches, Desk, Fault, Simulator

NOW = 1_795_000_000.0  # November 2026
VERSION = "2026-10-21"
HEADERS = {"authorization": "Bearer simulated", "anthropic-version": VERSION}
HAIKU, OLD, OPUS = "claude-haiku-5-5", "claude-haiku-4-5", "claude-opus-5-5"
PNG = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR" + (64).to_bytes(4) * 2
JPEG = b"\xff\xd8\xff\xe0\0\x10JFIF"
SCHEMA = {
    "type": "object",
    "properties": {"label": {"type": "string"}},
    "required": ["label"],
    "additionalProperties": False,
}
FORMAT = {"format": {"type": "json_schema", "schema": SCHEMA}}
TOOL = {"name": "rate", "input_schema": SCHEMA}
SEARCH = {"type": "web_search_20250305", "name": "web_search", "max_uses": 3}
EPHEMERAL = {"type": "ephemeral"}


def request(text="The box was broken.", **changes):
    return {"model": HAIKU, "max_tokens": 500, "messages": [{"role": "user", "content": text}], **changes}


def said(*turns, **changes):
    """Return a request of several turns, the user's first."""
    roles = ("user", "assistant")
    return request(
        messages=[{"role": roles[n % 2], "content": each} for n, each in enumerate(turns)], **changes
    )


def text(value="x", **more):
    return {"type": "text", "text": value, **more}


def source(kind, data, media_type):
    encoded = base64.b64encode(data).decode() if isinstance(data, bytes) else data
    return {"type": kind, "source": {"type": "base64", "data": encoded, "media_type": media_type}}


def document(**more):
    return {"type": "document", "source": {"type": "text", "data": "x", "media_type": "text/plain"}, **more}


def desk(**options):
    return Desk((1e9, 1e12, 1e12), now=NOW, **options)


def answered(at, body, headers=HEADERS):
    """Return status and body of a call's answer."""
    decision = at.admit(NOW, body, headers)
    answer = at.finish(decision.done_at, decision) if isinstance(decision, Admission) else decision
    return answer.status, json.loads(answer.body)


def batched(at, *rows, betas=""):
    """Return the results of a batch of `rows`, in their order."""
    batches = Batches(at, NOW, 60)
    rows = [{"custom_id": f"row-{place}", "params": body} for place, body in enumerate(rows)]
    batch = batches.find(batches.create(NOW, {"requests": rows}, VERSION, betas)["id"])
    for _ in batches.work(batch, NOW + 60):
        pass
    found = {line["custom_id"]: line["result"] for line in map(json.loads, batches.results(NOW + 60, batch))}
    return [found[row["custom_id"]] for row in rows]


# ------------------------------------------------------------------------------------ what is refused

REFUSED = {
    "prefill that ends in a blank": (
        said("x", "abc ", model=OLD),
        "messages: final assistant content cannot end",
    ),
    "a block of it that does": (
        said("x", [text("abc\n")], model=OLD),
        "messages: final assistant content cannot",
    ),
    "prefill of 4.6": (
        said("x", "{", model="claude-opus-4-6"),
        "This model does not support assistant message",
    ),
    "prefill of Haiku 5.5": (said("x", "{"), "This model does not support assistant message prefill"),
    "prefill of JSON": (
        said("x", "{", model=OLD, output_config=FORMAT),
        "output_config.format: assistant message",
    ),
    "unknown block": (
        request([{"type": "video", "x": 1}]),
        "messages.0.content.0: Input tag 'video' found using",
    ),
    "unknown block of a tool's result": (
        said(
            "x",
            [{"type": "tool_use", "id": "t", "name": "rate", "input": {}}],
            [{"type": "tool_result", "tool_use_id": "t", "content": [{"type": "audio"}]}],
        ),
        "messages.2.content.0.tool_result.content.0: Input tag 'audio'",
    ),
    "unknown key of a block": (
        request([text(x=1)]),
        "messages.0.content.0.text.x: Extra inputs are not permitted",
    ),
    "empty text": (request([text(" ")]), "messages: text content blocks must be non-empty"),
    "document of the assistant": (
        said("x", [document()], "y"),
        "messages.1.content.0: `document` blocks can only be",
    ),
    "image of the assistant": (
        said("x", [source("image", PNG, "image/png")], "y"),
        "messages.1.content.0: `image` blocks can only",
    ),
    "thinking of the user": (
        request([{"type": "thinking", "thinking": "", "signature": "s"}]),
        "messages.0.content.0: `thinking` blocks",
    ),
    "citations of a user's text": (
        request([text(citations=[{"type": "char_location"}])]),
        "messages.0.content.0.text.citations: Extra inputs",
    ),
    "citations and a format": (
        request([document(citations={"enabled": True}), text()], output_config=FORMAT),
        "output_config.format: citations cannot be enabled",
    ),
    "image that is none": (request([source("image", b"no image", "image/png")]), "Could not process image"),
    "image of another type": (
        request([source("image", JPEG, "image/png")]),
        "messages.0.content.0.image.source.base64: The image was specified using the image/png media type",
    ),
    "image of a type unknown": (
        request([source("image", PNG, "image/bmp")]),
        "messages.0.content.0.image.source.base64.media_type: Input",
    ),
    "image that is not base64": (
        request([source("image", "!", "image/png")]),
        "messages.0.content.0.image.source.base64: invalid base64",
    ),
    "image that is too wide": (
        request([source("image", PNG[:16] + (9_000).to_bytes(4) * 2, "image/png")]),
        "messages.0.content.0.image.source.base64: image dimensions exceed",
    ),
    "image without a source": (
        request([{"type": "image"}]),
        "messages.0.content.0.image.source: Field required",
    ),
    "document that is no PDF": (
        request([source("document", b"<html>", "application/pdf")]),
        "messages.0.content.0.document.source.base64.data: The PDF",
    ),
    "MCP without its beta": (request(mcp_servers=[]), "mcp_servers: Extra inputs are not permitted"),
    "context management without": (request(context_management={}), "context_management: Extra inputs are"),
    "fallbacks without": (request(fallbacks="default"), "fallbacks: "),
    "task budget without": (
        request(output_config={"task_budget": {}}),
        "output_config.task_budget: Extra inputs are not permitted",
    ),
    "fast mode without": (request(model="claude-opus-5", speed="fast"), "speed: "),
    "fast mode of Haiku": (request(speed="fast"), "speed: "),
    "unknown field": (request(extra_body={}), "extra_body: Extra inputs are not permitted"),
    "research preview": (
        request(research_preview_2026_02="active"),
        "research_preview_2026_02: Extra inputs",
    ),
    "geography of Europe": (request(inference_geo="eu"), "inference_geo: Input should be 'global' or 'us'"),
    "geography of 4.5": (
        request(model=OLD, inference_geo="us"),
        "inference_geo: not supported on this model",
    ),
    "extra key of thinking": (
        request(thinking={"type": "adaptive", "budget_tokens": 2_000}),
        "thinking.adaptive.budget_tokens: Extra",
    ),
    "display unknown": (
        request(thinking={"type": "adaptive", "display": "full"}),
        "thinking.adaptive.display: Input",
    ),
    "forced tool with thinking": (
        request(
            model=OLD,
            max_tokens=4_000,
            thinking={"type": "enabled", "budget_tokens": 2_000},
            tools=[TOOL],
            tool_choice={"type": "any"},
        ),
        "Thinking may not be enabled when tool_choice forces tool use.",
    ),
    "forced tool of Opus 5.5": (
        request(model=OPUS, tools=[TOOL], tool_choice={"type": "any"}),
        "tool_choice.type: 'any' is not supported",
    ),
    "forced tool that is not there": (
        request(tools=[TOOL], tool_choice={"type": "tool", "name": "other"}),
        "Tool 'other' not found in provided",
    ),
    "extra key of a choice": (
        request(tools=[TOOL], tool_choice={"type": "none", "name": "rate"}),
        "tool_choice.none.name: Extra inputs",
    ),
    "tool's name": (
        request(tools=[{**TOOL, "name": "a b"}]),
        "tools.0.custom.name: String should match pattern",
    ),
    "tools of one name": (request(tools=[TOOL, TOOL]), "tools: Tool names must be unique."),
    "tool unknown": (
        request(tools=[{"type": "web_search_2020", "name": "w"}]),
        "tools.0: Input tag 'web_search_2020'",
    ),
    "tool by another name": (
        request(tools=[{**SEARCH, "name": "find"}]),
        "tools.0.web_search_20250305.name: Input should be 'web_search'",
    ),
    "no searches": (
        request(tools=[{**SEARCH, "max_uses": 0}]),
        "tools.0.web_search_20250305.max_uses: Input",
    ),
    "metadata": (
        request(metadata={"user_id": "u", "team": "t"}),
        "metadata.team: Extra inputs are not permitted",
    ),
    "metadata's type": (request(metadata={"user_id": 7}), "metadata.user_id: Input should be a valid string"),
    "service tier": (
        request(service_tier="priority"),
        "service_tier: Input should be 'auto' or 'standard_only'",
    ),
    "diagnostics": (request(diagnostics={"x": 1}), "diagnostics.x: Extra inputs are not permitted"),
    "system's key": (request(system=[text(x=1)]), "system.0.text.x: Extra inputs are not permitted"),
    "system turn of 4.5": (
        request(model=OLD, messages=[{"role": "user", "content": "x"}, {"role": "system", "content": "y"}]),
        "messages.1: role 'system' is not supported on this model",
    ),
    "five breakpoints": (
        request([text(str(n), cache_control=EPHEMERAL) for n in range(5)]),
        "A maximum of 4 blocks",
    ),
    "5 minutes before an hour": (
        request([text("a", cache_control=EPHEMERAL), text("b", cache_control={**EPHEMERAL, "ttl": "1h"})]),
        "cache_control: a ttl='1h' block must not come after",
    ),
}


@pytest.mark.parametrize(("body", "begins"), REFUSED.values(), ids=REFUSED)
def test_what_the_api_refuses_is_refused_live_and_in_a_batch(body, begins):
    """A 400 in the API's kind of words, live at once, in a batch as the row's result; nothing is billed."""
    at = desk()
    status, error = answered(at, body)
    assert (status, error["error"]["type"]) == (400, "invalid_request_error")
    assert error["error"]["message"].startswith(begins)
    wrong, right = batched(at, body, request())
    assert wrong["error"]["error"]["type"] == "invalid_request_error"
    assert wrong["error"]["error"]["message"].startswith(begins)
    assert right["type"] == "succeeded"
    assert at.account.figures()["billed_rows"] == 1


BATCH_ONLY = {
    "stream": ({"stream": True}, {}),
    "speed": ({"model": OPUS, "speed": "fast"}, {}),
    "max_tokens": ({"max_tokens": 0}, {}),
    "fallbacks": ({"fallbacks": "default"}, {"anthropic-beta": "server-side-fallback-2026-07-01"}),
}


@pytest.mark.parametrize(("changes", "headers"), BATCH_ONLY.values(), ids=BATCH_ONLY)
def test_some_things_are_refused_in_batches_alone(changes, headers):
    """Live it is answered; in a batch the row is errored after the batch has ended."""
    body = request(**changes)
    if "stream" in changes:
        assert isinstance(desk().admit(NOW, body, HEADERS), Admission)
    else:
        assert answered(desk(), body, {**HEADERS, **headers})[0] == 200
    (row,) = batched(desk(), body, betas=headers.get("anthropic-beta", ""))
    assert (row["type"], row["error"]["error"]["type"]) == ("errored", "invalid_request_error")


@pytest.mark.parametrize("name", ["store", "previous_thread_event_id", "cache_hint", "context_hint"])
def test_threads_and_hints_are_refused_in_batches(name):
    """A row that asks for them is errored."""
    (row,) = batched(desk(), request(**{name: "x"}))
    assert row["error"]["error"]["message"].startswith(f"{name}: ")


@pytest.mark.parametrize(
    "changes",
    [
        {"output_config": FORMAT},
        {"stream": True},
        {"tools": [TOOL], "tool_choice": {"type": "any"}},
        {"model": OLD, "thinking": {"type": "enabled", "budget_tokens": 1024}},
    ],
)
def test_warming_the_cache_takes_no_request_for_output(changes):
    """`max_tokens` 0 with what asks for output is a 400."""
    assert answered(desk(), request(max_tokens=0, **changes))[0] == 400


TAKEN = {
    "a blank within the conversation": said("x", "abc ", "y"),
    "a paused turn sent back": said(
        "x", [{"type": "server_tool_use", "id": "s", "name": "web_search", "input": {}}], tools=[SEARCH]
    ),
    "a system turn": request(
        messages=[{"role": "user", "content": "x"}, {"role": "system", "content": "Be short."}]
    ),
    "an image and a PDF": request(
        [source("image", PNG, "image/png"), source("document", b"%PDF-1.7", "application/pdf"), text()]
    ),
    "a file and an address": request(
        [
            {"type": "image", "source": {"type": "url", "url": "https://example.com/a.png"}},
            {"type": "document", "source": {"type": "file", "file_id": "file_1"}, "title": "t"},
        ]
    ),
    "citations without a format": request([document(citations={"enabled": True}), text()]),
    "a tool's result with an image": said(
        "x",
        [{"type": "tool_use", "id": "t", "name": "rate", "input": {}}],
        [{"type": "tool_result", "tool_use_id": "t", "content": [source("image", JPEG, "image/jpeg")]}],
    ),
    "prefill of 4.5": said("x", "The answer is", model=OLD),
    "tools of the API": request(tools=[TOOL, {"type": "bash_20250124", "name": "bash"}, SEARCH]),
    "forced tool without thinking": request(tools=[TOOL], tool_choice={"type": "tool", "name": "rate"}),
}


@pytest.mark.parametrize("body", TAKEN.values(), ids=TAKEN)
def test_what_the_api_takes_is_taken(body):
    """Near to what is refused, and in order."""
    assert answered(desk(), body)[0] == 200
    assert batched(desk(), body)[0]["type"] == "succeeded"


BETA = {
    "mcp-client-2026-09-15": {"mcp_servers": []},
    "context-management-2025-06-27": {"context_management": {}},
    "server-side-fallback-2026-07-01": {"fallbacks": "default"},
    "task-budgets-2026-03-13": {"output_config": {"task_budget": {"type": "tokens", "total": 20_000}}},
    "fast-mode-2026-02-01": {"model": "claude-opus-5", "speed": "fast"},
    "computer-use-2025-11-24": {"tools": [{"type": "computer_20251124", "name": "computer"}]},
}


@pytest.mark.parametrize("beta", BETA)
def test_a_beta_needs_its_header_and_with_it_is_taken(beta):
    """Without the header, or with another's, a 400; with it an answer."""
    body = request(**BETA[beta])
    assert answered(desk(), body)[0] == 400
    assert answered(desk(), body, {**HEADERS, "anthropic-beta": f"other-2026-01-01, {beta}"})[0] == 200


def test_the_older_version_still_takes_a_document_of_the_assistant():
    """What the newest API version took away is there on the one before."""
    old = {**HEADERS, "anthropic-version": "2023-06-01"}
    assert answered(desk(), said("x", [document()], "y"), old)[0] == 200
    assert answered(desk(), request([text(citations=[{"type": "char_location"}])]), old)[0] == 200


# --------------------------------------------------------------------------------- what is billed, and not


def test_a_refusal_is_billed_in_some_categories_only():
    """Before any output: free but in three categories; its tokens stand in `usage` all the same."""
    at = desk(faults={"refusal": 1.0})
    messages = [answered(at, request(f"row {n}"))[1] for n in range(60)]
    messages += [row["message"] for row in batched(at, *(request(f"batch {n}") for n in range(60)))]
    kinds = Counter(message["stop_details"]["category"] for message in messages)
    assert set(kinds) == {"general_harms", "cyber", "bio", "frontier_llm"}
    assert {message["stop_reason"] for message in messages} == {"refusal"}
    assert {message["usage"]["output_tokens"] for message in messages} == {0}
    figures = at.account.figures()
    assert figures["billed_rows"] == kinds["bio"] + kinds["frontier_llm"]
    assert figures["free_refusals"] == kinds["general_harms"] + kinds["cyber"]
    tokens = [message["usage"]["input_tokens"] for message in messages]
    assert figures["input_tokens"] == sum(tokens)
    paid = [
        size * (0.10 if place < 60 else 0.05) / 1e6
        for place, (message, size) in enumerate(zip(messages, tokens, strict=True))
        if message["stop_details"]["category"] in {"bio", "frontier_llm"}
    ]
    assert figures["dollars"] == pytest.approx(sum(paid))


@pytest.mark.parametrize("field", ["reasoning", "thinking", "trace"])
def test_a_field_for_the_reasoning_can_be_refused_and_is_billed(field):
    """The category is reasoning_extraction, one of those that cost."""
    schema = {**SCHEMA, "properties": {field: {"type": "string"}}, "required": [field]}
    at = desk(faults={"refusal": 1.0})
    body = request(output_config={"format": {"type": "json_schema", "schema": schema}})
    assert answered(at, body)[1]["stop_details"]["category"] == "reasoning_extraction"
    assert at.account.figures()["billed_rows"] == 1


def test_a_refusal_midway_is_billed():
    """What was written until then costs, with the input."""
    at = desk(faults={"refusal_midway": 1.0})
    message = answered(at, request())[1]
    assert message["stop_reason"] == "refusal"
    assert message["usage"]["output_tokens"] > 0
    assert at.account.figures()["billed_rows"] == 1


def test_the_spend_cap_has_a_code_on_the_messages_api_alone():
    """The documented words on both; the code not where a batch is created."""
    at = desk(faults={"spend_cap": 0.0})
    answer = Batches(at, NOW).submit(NOW, {"requests": [{"custom_id": "a", "params": request()}]}, VERSION)
    found = [answered(at, request()), (answer.status, json.loads(answer.body))]
    assert [status for status, _ in found] == [429, 429]
    assert all(
        body["error"]["message"].startswith("You have reached your API usage limits") for _, body in found
    )
    assert found[0][1]["error"]["details"] == {"error_code": "enforced_spend_limit_reached"}
    assert "details" not in found[1][1]["error"]


@pytest.mark.parametrize(
    "kind",
    [
        *("organization_on_hold", "workspace_human_review_disabled", "cmek_key_disabled"),
        *("cmek_key_network_blocked", "organization_disabled"),
    ],
)
def test_troubles_of_the_account_strike_calls_creates_and_rows(kind):
    """Status 400 with the code, where there is one, wherever the account is asked for something."""
    at = desk(faults={kind: Fault(starts=0, ends=1)})
    answer = Batches(at, NOW).submit(NOW, {"requests": [{"custom_id": "a", "params": request()}]}, VERSION)
    errors = [answered(at, request()), (answer.status, json.loads(answer.body))]
    (row,) = batched(desk(faults={kind: 1.0}), request())
    errors.append((400, row["error"]))
    for status, body in errors:
        assert (status, body["error"]["type"]) == (400, "invalid_request_error")
        code = body["error"].get("details", {}).get("error_code")
        assert code == (None if kind == "organization_disabled" else kind)
    assert at.account.figures()["billed_rows"] == 0


def dollars_by_hand(message, batch):
    """Return what a message on Haiku or Opus 5.5 costs, from the price page."""
    usage = message["usage"]
    per_input, per_output = (0.10, 0.50) if message["model"] == HAIKU else (4.0, 20.0)
    factor = (0.5 if batch else 1.0) * (1.1 if usage["inference_geo"] == "us" else 1.0)
    factor *= 2.0 if usage["speed"] == "fast" else 1.0
    tokens = usage["input_tokens"] * per_input + usage["output_tokens"] * per_output
    searches = (usage.get("server_tool_use") or {}).get("web_search_requests", 0)
    return factor * tokens / 1e6 + 0.01 * searches


def test_searches_geography_and_fast_mode_are_sent_and_billed():
    """$10 per 1,000 searches in both modes, what they find as input; US geography 1.1; fast mode 2."""
    at = desk()
    kinds = [{}, {"tools": [SEARCH]}, {"inference_geo": "us"}, {"tools": [SEARCH], "inference_geo": "us"}]
    bodies = [request(f"row {n}", max_tokens=8_000, **kinds[n % 4]) for n in range(40)]
    live = [answered(at, body)[1] for body in bodies]
    late = [row["message"] for row in batched(at, *bodies)]
    fast = [answered(at, request(model=OPUS, speed="fast", inference_geo=geo))[1] for geo in ("us", "global")]
    whole = sum(dollars_by_hand(each, batch=False) for each in live + fast)
    whole += sum(dollars_by_hand(each, batch=True) for each in late)
    figures = at.account.figures()
    assert figures["dollars"] == pytest.approx(whole, abs=1e-9)
    for messages in (live, late):
        searches = [
            (each["usage"].get("server_tool_use") or {}).get("web_search_requests") for each in messages
        ]
        assert set(searches[1::2]) == {0, 1, 2, 3}
        assert set(searches[::2]) == {None}
        assert {each["usage"]["inference_geo"] for each in messages[2::4]} == {"us"}
        for message, count in zip(messages, searches, strict=True):
            types = [block["type"] for block in message["content"] if block["type"] != "thinking"]
            assert types == ["server_tool_use", "web_search_tool_result"] * (count or 0) + ["text"]
        sizes = [
            each["usage"]["input_tokens"] - 500 * (n or 0) for each, n in zip(messages, searches, strict=True)
        ]
        assert min(sizes) > 0
    assert figures["web_searches"] == sum(
        (each["usage"].get("server_tool_use") or {}).get("web_search_requests", 0) for each in live + late
    )
    assert answered(at, request(model=OLD))[1]["usage"]["inference_geo"] == "not_available"


def test_diagnostics_say_why_the_cache_missed():
    """Against the earlier request that is named: which part changed; null where none did."""
    at = desk()

    def asked(previous, **changes):
        return answered(at, request(**changes, diagnostics={"previous_message_id": previous}))[1]

    first = asked(None, system="a")
    assert first["diagnostics"] is None
    assert asked(first["id"], system="a")["diagnostics"] is None
    reasons = [
        asked(first["id"], system="b"),
        asked(first["id"], system="a", model=OPUS),
        asked(first["id"], system="a", tools=[TOOL]),
        asked(first["id"], system="a", text="Another row."),
        asked(first["id"], system="a", output_config={"effort": "low"}),
        asked("msg_none", system="a"),
    ]
    assert [each["diagnostics"]["cache_miss_reason"]["type"] for each in reasons] == [
        *("system_changed", "model_changed", "tools_changed", "messages_changed", "unavailable"),
        "previous_message_not_found",
    ]


def test_the_sdk_in_strict_mode_takes_all_of_it():
    """Messages, streams, batches, counts and models are valid answers, with searches, refusals and all."""
    tools = {"tools": [SEARCH], "inference_geo": "us"}
    bodies = [request(f"row {n}", **tools, diagnostics={"previous_message_id": "msg_x"}) for n in range(6)]

    async def run():
        with Simulator(
            (1e9, 1e12, 1e12), speed=2_000, faults={"refusal": 0.2, "refusal_midway": 0.2}
        ) as made:
            async with made.client(_strict_response_validation=True) as client:
                plain = [await client.messages.create(**body) for body in bodies]
                streamed = []
                for body in bodies:
                    async with client.messages.stream(**body) as stream:
                        streamed.append(await stream.get_final_message())
                rows = [{"custom_id": str(place), "params": body} for place, body in enumerate(bodies)]
                batch = await client.messages.batches.create(requests=rows)
                while batch.processing_status != "ended":
                    await asyncio.sleep(0.05)
                    batch = await client.messages.batches.retrieve(batch.id)
                lines = [line async for line in await client.messages.batches.results(batch.id)]
                lines.sort(key=lambda line: line.custom_id)
                counted = await client.messages.count_tokens(
                    **{name: bodies[0][name] for name in ("model", "messages", "tools")}
                )
                models = [model async for model in client.models.list()]
                return plain, streamed, [line.result.message for line in lines], counted, models

    plain, streamed, late, counted, models = asyncio.run(run())
    for one, two, three in zip(plain, streamed, late, strict=True):
        contents = [
            message.model_dump(exclude={"content": {"__all__": {"parsed_output"}}})
            for message in (one, two, three)
        ]
        assert contents[0]["content"] == contents[1]["content"] == contents[2]["content"]
        assert (one.stop_reason, one.stop_details) == (two.stop_reason, two.stop_details)
        assert one.usage.server_tool_use == two.usage.server_tool_use == three.usage.server_tool_use
        assert one.usage.model_copy(update={"service_tier": "batch"}) == three.usage
        assert two.diagnostics.cache_miss_reason.type == "previous_message_not_found"
    assert {"refusal", "end_turn"} <= {message.stop_reason for message in plain}
    assert any(message.usage.server_tool_use.web_search_requests for message in plain)
    assert counted.input_tokens > 0
    assert all(model.capabilities.batch.supported for model in models)
