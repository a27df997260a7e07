"""What the simulator answers, status, type, words and headers: a hundred and twenty requests."""

# ruff: noqa: E501 - a table of cases

import http.client
import itertools
import json

from golden import check

import claudescale as cs

HAIKU = "claude-haiku-5-5"
SECRET = {"authorization": "Bearer sk-ant-api03-simulated", "anthropic-version": "2026-10-21"}
_CHANGING = {"date", "request-id", "content-length"}


def body(**changes):
    """Return a small good request, changed."""
    return {"model": HAIKU, "max_tokens": 20, "messages": [{"role": "user", "content": "Hello."}], **changes}


def turns(*contents, **changes):
    """Return a request with these turns, user and assistant in turn."""
    roles = itertools.cycle(["user", "assistant"])
    return body(messages=[{"role": next(roles), "content": each} for each in contents], **changes)


def text(words="Hi.", **more):
    """Return a block of text."""
    return {"type": "text", "text": words, **more}


_SCHEMA = {"type": "object", "properties": {"a": {"type": "string"}}, "required": ["a"]}
_CLOSED = {**_SCHEMA, "additionalProperties": False}
_TOOL = {"name": "t", "input_schema": _SCHEMA}
_KEPT = {"type": "ephemeral"}


def form(schema):
    """Return the `output_config` of a schema."""
    return {"format": {"type": "json_schema", "schema": schema}}


MODELS = (HAIKU, "claude-sonnet-5-5", "claude-opus-5-5", "claude-fable-5-2", "claude-sonnet-4-6")
MODELS += (
    "claude-haiku-4-5",
    "claude-haiku-4-5-20251001",
    "claude-opus-4-1",
    "claude-3-opus-20240229",
    "gpt-5",
)
BODIES = {
    **{f"model {name}": body(model=name) for name in MODELS},
    **{f"max_tokens {value!r}": body(max_tokens=value) for value in (0, 1, -1, "5", 10**7, None, 1.5, True)},
    **{
        f"{name} {value!r}": body(**{name: value})
        for name, value in [
            ("temperature", 0),
            ("top_p", 1),
            ("top_k", 1),
            ("extra", 1),
            ("stream", "yes"),
            ("system", 5),
            ("system", ""),
            ("system", "Be brief."),
            ("system", [text()]),
            ("messages", []),
            ("messages", "x"),
            ("messages", None),
            ("model", None),
            ("model", 5),
            ("service_tier", "auto"),
            ("service_tier", "gold"),
            ("metadata", {"user_id": "u"}),
            ("metadata", {"other": 1}),
            ("metadata", 5),
            ("inference_geo", "us"),
            ("inference_geo", "eu"),
            ("speed", "fast"),
            ("stop_sequences", ["END"]),
            ("stop_sequences", "END"),
            ("stop_sequences", [1]),
            ("thinking", {"type": "disabled"}),
            ("thinking", {"type": "adaptive"}),
            ("thinking", {"type": "deep"}),
            ("thinking", {"type": "disabled", "more": 1}),
            ("thinking", 5),
            ("thinking", {"type": "enabled", "budget_tokens": 1_024}),
            ("output_config", {"effort": "low"}),
            ("output_config", {"effort": "huge"}),
            ("output_config", {"effort": "max"}),
            ("output_config", 5),
            ("output_config", form(_CLOSED)),
            ("output_config", form(_SCHEMA)),
            ("output_config", form({})),
            ("output_config", form({**_CLOSED, "minLength": 3})),
            ("tools", [_TOOL]),
            ("tools", [_TOOL, _TOOL]),
            ("tools", [{"name": "no good", "input_schema": _SCHEMA}]),
            ("tools", [{"name": "t"}]),
            ("tools", 5),
            ("tool_choice", {"type": "any"}),
            ("cache_control", _KEPT),
            ("cache_control", {"type": "long"}),
            ("container", "c"),
            ("fallbacks", [{"model": "claude-opus-5-5"}]),
            ("mcp_servers", []),
            ("diagnostics", {"previous_message_id": None}),
            ("workspace_id", "w"),
            ("betas", ["x"]),
            ("stream", None),
            ("context_management", {"edits": []}),
            ("thinking", {"type": "between_tools"}),
            ("tool_choice", "any"),
        ]
    },
    "forced tool": body(tools=[_TOOL], tool_choice={"type": "tool", "name": "t"}),
    "forced tool on Opus": body(model=MODELS[2], tools=[_TOOL], tool_choice={"type": "any"}),
    "unknown forced tool": body(tools=[_TOOL], tool_choice={"type": "tool", "name": "u"}),
    "blocks": turns([text()]),
    "empty text": turns([text(" ")]),
    "empty content": turns(""),
    "content of a wrong kind": turns(5),
    "three turns": turns("a", "b", "c"),
    "prefill": turns("a", "b"),
    "prefill of an old model": turns("a", "b", model="claude-haiku-4-5"),
    "prefill that ends in a blank": turns("a", "b ", model="claude-haiku-4-5"),
    "unknown role": body(messages=[{"role": "system", "content": "x"}]),
    "assistant first": body(messages=[{"role": "assistant", "content": "x"}]),
    "turn with more": body(messages=[{"role": "user", "content": "x", "name": "y"}]),
    "unknown block": turns([{"type": "video", "x": 1}]),
    "image": turns(
        [{"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "iVBORw0KGgo="}}]
    ),
    "image by address": turns(
        [{"type": "image", "source": {"type": "url", "url": "https://example.com/a.png"}}]
    ),
    "image of an unknown kind": turns(
        [{"type": "image", "source": {"type": "base64", "media_type": "image/x", "data": ""}}]
    ),
    "document": turns(
        [{"type": "document", "source": {"type": "text", "media_type": "text/plain", "data": "x"}}]
    ),
    "document of the assistant": turns(
        "a", [{"type": "document", "source": {"type": "text", "media_type": "text/plain", "data": "x"}}], "b"
    ),
    "citations on text": turns([text(citations=[{"type": "char_location"}])]),
    "cached block": turns([text(cache_control=_KEPT)]),
    "five cached blocks": turns([text(cache_control=_KEPT)] * 5),
    "hour after five minutes": turns([text(cache_control=_KEPT), text(cache_control={**_KEPT, "ttl": "1h"})]),
    "cached for a day": turns([text(cache_control={**_KEPT, "ttl": "1d"})]),
}
CALLS = {
    **{name: ("POST", "/v1/messages", given, {}) for name, given in BODIES.items()},
    "no key": ("POST", "/v1/messages", body(), {"authorization": None}),
    "another way to sign": ("POST", "/v1/messages", body(), {"authorization": None, "x-api-key": "sk-ant-api03-x"}),
    "no version": ("POST", "/v1/messages", body(), {"anthropic-version": None}),
    "unknown version": ("POST", "/v1/messages", body(), {"anthropic-version": "2020-01-01"}),
    "older version": ("POST", "/v1/messages", body(temperature=0.5, model="claude-haiku-4-5"), {"anthropic-version": "2023-06-01"}),
    "not JSON": ("POST", "/v1/messages", b"{", {}),
    "no object": ("POST", "/v1/messages", b"[]", {}),
    "unknown path": ("GET", "/v1/nothing", None, {}),
    "wrong method": ("GET", "/v1/messages", None, {}),
    "count": ("POST", "/v1/messages/count_tokens", {k: v for k, v in body().items() if k != "max_tokens"}, {}),
    "count with max_tokens": ("POST", "/v1/messages/count_tokens", body(), {}),
    "models": ("GET", "/v1/models?limit=2", None, {}),
    "a model": ("GET", f"/v1/models/{HAIKU}", None, {}),
    "no such model": ("GET", "/v1/models/gpt-5", None, {}),
    "rate limits": ("GET", "/v1/organizations/rate_limits", None, {}),
    "rate limits for an admin": ("GET", "/v1/organizations/rate_limits", None, {"authorization": "Bearer sk-ant-admin-x"}),
    "no batches": ("GET", "/v1/messages/batches", None, {}),
    "no such batch": ("GET", "/v1/messages/batches/msgbatch_none", None, {}),
    "results of no batch": ("GET", "/v1/messages/batches/msgbatch_none/results", None, {}),
    "batch of nothing": ("POST", "/v1/messages/batches", {"requests": []}, {}),
    "batch with a bad id": ("POST", "/v1/messages/batches", {"requests": [{"custom_id": "a b", "params": body()}]}, {}),
    "batch with one id twice": ("POST", "/v1/messages/batches", {"requests": [{"custom_id": "a", "params": body()}] * 2}, {}),
}  # fmt: skip


def asked(connection, method, path, content, changes):
    """Return status, type, words and headers of one call."""
    headers = {name: value for name, value in {**SECRET, **changes}.items() if value is not None}
    raw = content if isinstance(content, bytes | None) else json.dumps(content).encode()
    connection.request(
        method, path, raw, {**headers, **({"content-type": "application/json"} if raw else {})}
    )
    answer = connection.getresponse()
    read = answer.read()
    told = json.loads(read) if "json" in (answer.getheader("content-type") or "") else {}
    error = told.get("error") or {}
    named = {name.lower(): value for name, value in answer.getheaders()}
    kept = {name: value for name, value in named.items() if name not in _CHANGING and "reset" not in name}
    kept = {name: "..." if name.endswith("remaining") else value for name, value in kept.items()}
    seen = {"status": answer.status, "type": told.get("type"), "headers": kept}
    return seen | (
        {"error": error["type"], "message": error["message"]} if error else {"fields": sorted(told)}
    )


def test_the_simulator_answers_as_recorded():
    """Other people's clients meet the same answers as before."""
    found = {}
    with cs.Simulator("start", speed=1_000, latency=0.01, seed=7) as api:
        connection = http.client.HTTPConnection(api.url.removeprefix("http://"), timeout=30)
        for name, call in CALLS.items():
            found[name] = asked(connection, *call)
        connection.close()
    assert len(found) >= 120
    common = [set(each["headers"].items()) for each in found.values()]
    shared = set.intersection(*common)
    for each in found.values():
        each["headers"] = dict(sorted(set(each["headers"].items()) - shared))
    check("simulator", {"headers of all": dict(sorted(shared)), "answers": found})
