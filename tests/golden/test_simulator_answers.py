"""The simulator's answers to a hundred and twenty requests: status, type, message and headers."""

# ruff: noqa: E501 - a table of cases

import http.client
import json

from bodies import DOCUMENT, EPHEMERAL, HAIKU, form, request, said
from golden import check

import claudescale as cs

SECRET = {"authorization": "Bearer sk-ant-api03-simulated", "anthropic-version": "2026-10-21"}
_CHANGING = {"date", "request-id", "content-length"}


def text(words="Hi.", **more):
    """Return a text block."""
    return {"type": "text", "text": words, **more}


_SCHEMA = {"type": "object", "properties": {"a": {"type": "string"}}, "required": ["a"]}
_CLOSED = {**_SCHEMA, "additionalProperties": False}
SCHEMAS = (_CLOSED, _SCHEMA, {}, {**_CLOSED, "minLength": 3})
_TOOL = {"name": "t", "input_schema": _SCHEMA}


def image(**source):
    """Return an image block."""
    return {"type": "image", "source": source}


MODELS = (HAIKU, "claude-sonnet-5-5", "claude-opus-5-5", "claude-fable-5-2", "claude-sonnet-4-6", "claude-haiku-4-5",
          "claude-haiku-4-5-20251001", "claude-opus-4-1", "claude-3-opus-20240229", "gpt-5")  # fmt: skip
FIELDS = {
    "max_tokens": [0, 1, -1, "5", 10**7, None, 1.5, True],
    "temperature": [0], "top_p": [1], "top_k": [1], "extra": [1], "betas": [["x"]],
    "system": [5, "", "Be brief.", [text()]],
    "messages": [[], "x", None],
    "model": [None, 5],
    "service_tier": ["auto", "gold"],
    "metadata": [{"user_id": "u"}, {"other": 1}, 5],
    "inference_geo": ["us", "eu"], "speed": ["fast"], "stream": ["yes", None],
    "stop_sequences": [["END"], "END", [1]],
    "thinking": [{"type": "disabled"}, {"type": "adaptive"}, {"type": "deep"}, {"type": "disabled", "more": 1}, 5,
                 {"type": "enabled", "budget_tokens": 1_024}, {"type": "between_tools"}],
    "output_config": [{"effort": "low"}, {"effort": "huge"}, {"effort": "max"}, 5,
                      *(form(schema)["output_config"] for schema in SCHEMAS)],
    "tools": [[_TOOL], [_TOOL, _TOOL], [{"name": "no good", "input_schema": _SCHEMA}], [{"name": "t"}], 5],
    "tool_choice": [{"type": "any"}, "any"],
    "cache_control": [EPHEMERAL, {"type": "long"}],
    "container": ["c"], "fallbacks": [[{"model": "claude-opus-5-5"}]], "mcp_servers": [[]], "workspace_id": ["w"],
    "diagnostics": [{"previous_message_id": None}], "context_management": [{"edits": []}],
}  # fmt: skip
BODIES = {
    **{f"model {name}": request(model=name) for name in MODELS},
    **{f"{name} {value!r}": request(**{name: value}) for name, values in FIELDS.items() for value in values},
    "forced tool": request(tools=[_TOOL], tool_choice={"type": "tool", "name": "t"}),
    "forced tool on Opus": request(model=MODELS[2], tools=[_TOOL], tool_choice={"type": "any"}),
    "unknown forced tool": request(tools=[_TOOL], tool_choice={"type": "tool", "name": "u"}),
    "blocks": said([text()]),
    "empty text": said([text(" ")]),
    "empty content": said(""),
    "content of a wrong kind": said(5),
    "three turns": said("a", "b", "c"),
    "prefill": said("a", "b"),
    "prefill of an old model": said("a", "b", model="claude-haiku-4-5"),
    "prefill that ends in a blank": said("a", "b ", model="claude-haiku-4-5"),
    "unknown role": request(messages=[{"role": "system", "content": "x"}]),
    "assistant first": request(messages=[{"role": "assistant", "content": "x"}]),
    "turn with more": request(messages=[{"role": "user", "content": "x", "name": "y"}]),
    "unknown block": said([{"type": "video", "x": 1}]),
    "image": said([image(type="base64", media_type="image/png", data="iVBORw0KGgo=")]),
    "image by address": said([image(type="url", url="https://example.com/a.png")]),
    "image of an unknown kind": said([image(type="base64", media_type="image/x", data="")]),
    "document": said([DOCUMENT]),
    "document of the assistant": said("a", [DOCUMENT], "b"),
    "citations on text": said([text(citations=[{"type": "char_location"}])]),
    "cached block": said([text(cache_control=EPHEMERAL)]),
    "five cached blocks": said([text(cache_control=EPHEMERAL)] * 5),
    "hour after five minutes": said(
        [text(cache_control=EPHEMERAL), text(cache_control={**EPHEMERAL, "ttl": "1h"})]
    ),
    "cached for a day": said([text(cache_control={**EPHEMERAL, "ttl": "1d"})]),
}
CALLS = {
    **{name: ("POST", "/v1/messages", given, {}) for name, given in BODIES.items()},
    "no key": ("POST", "/v1/messages", request(), {"authorization": None}),
    "another way to sign": ("POST", "/v1/messages", request(), {"authorization": None, "x-api-key": "sk-ant-api03-x"}),
    "no version": ("POST", "/v1/messages", request(), {"anthropic-version": None}),
    "unknown version": ("POST", "/v1/messages", request(), {"anthropic-version": "2020-01-01"}),
    "older version": ("POST", "/v1/messages", request(temperature=0.5, model="claude-haiku-4-5"), {"anthropic-version": "2023-06-01"}),
    "not JSON": ("POST", "/v1/messages", b"{", {}),
    "no object": ("POST", "/v1/messages", b"[]", {}),
    "unknown path": ("GET", "/v1/nothing", None, {}),
    "wrong method": ("GET", "/v1/messages", None, {}),
    "count": ("POST", "/v1/messages/count_tokens", {k: v for k, v in request().items() if k != "max_tokens"}, {}),
    "count with max_tokens": ("POST", "/v1/messages/count_tokens", request(), {}),
    "models": ("GET", "/v1/models?limit=2", None, {}),
    "a model": ("GET", f"/v1/models/{HAIKU}", None, {}),
    "no such model": ("GET", "/v1/models/gpt-5", None, {}),
    "rate limits": ("GET", "/v1/organizations/rate_limits", None, {}),
    "rate limits for an admin": ("GET", "/v1/organizations/rate_limits", None, {"authorization": "Bearer sk-ant-admin-x"}),
    "no batches": ("GET", "/v1/messages/batches", None, {}),
    "no such batch": ("GET", "/v1/messages/batches/msgbatch_none", None, {}),
    "results of no batch": ("GET", "/v1/messages/batches/msgbatch_none/results", None, {}),
    "batch of nothing": ("POST", "/v1/messages/batches", {"requests": []}, {}),
    "batch with a bad id": ("POST", "/v1/messages/batches", {"requests": [{"custom_id": "a b", "params": request()}]}, {}),
    "batch with one id twice": ("POST", "/v1/messages/batches", {"requests": [{"custom_id": "a", "params": request()}] * 2}, {}),
}  # fmt: skip


def asked(connection, method, path, content, changes):
    """Return status, type, message and headers of one call."""
    raw = content if isinstance(content, bytes | None) else json.dumps(content).encode()
    sent = {**SECRET, **({"content-type": "application/json"} if raw else {}), **changes}
    connection.request(method, path, raw, {name: value for name, value in sent.items() if value is not None})
    answer = connection.getresponse()
    value = json.load(answer)
    headers = {name.lower(): value for name, value in answer.getheaders()}
    headers = {name: text for name, text in headers.items() if name not in _CHANGING and "reset" not in name}
    headers |= {name: "..." for name in headers if name.endswith("remaining")}
    seen = {"status": answer.status, "type": value.get("type"), "headers": headers}
    if error := value.get("error"):
        return {**seen, "error": error["type"], "message": error["message"]}
    return {**seen, "fields": sorted(value)}


def test_the_simulator_answers_as_recorded():
    """Clients of other libraries get the same answers as before."""
    # In a second each bucket refills faster than a reply drains it, so its headers do not depend on the real clock.
    with cs.Simulator("start", speed=1_000, latency=1.0, seed=7) as api:
        connection = http.client.HTTPConnection(api.url.removeprefix("http://"), timeout=30)
        answers = {name: asked(connection, *call) for name, call in CALLS.items()}
        connection.close()
    assert len(answers) >= 120
    shared = set.intersection(*(set(answer["headers"].items()) for answer in answers.values()))
    for answer in answers.values():
        answer["headers"] = dict(sorted(set(answer["headers"].items()) - shared))
    check("simulator", {"headers of all": dict(sorted(shared)), "answers": answers})
