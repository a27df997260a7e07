"""The wire format: answers and errors, messages and their events, models and pages of a list."""

from __future__ import annotations

import json
import math
import re
import tomllib
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from claudescale.api import catalog

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence

    from multidict import MultiMapping

    from claudescale.simulator.replies import Reply

MARKS = {
    "claudescale-simulator": "1",
    "anthropic-organization-id": "00000000-0000-4000-8000-000000000001",
    "anthropic-workspace-id": "wrkspc_simulated",
}
HTML = b"<html><head><title>502 Bad Gateway</title></head><body><h1>502 Bad Gateway</h1></body></html>"
TABLES = tomllib.loads(Path(__file__).with_name("tables.toml").read_text("utf-8"))
ENCODER = json.JSONEncoder(separators=(",", ":"), ensure_ascii=False)
STOP = ("stop_reason", "stop_sequence", "stop_details")
AT_THE_START = ("cache_creation", "service_tier", "speed", "inference_geo")  # absent from the last usage
FEWEST_LETTERS, MOST_DELTAS = 48, 24  # characters per event, so that a signature fits in one; events per text
UNKNOWN_TIME = "1970-01-01T00:00:00Z"  # the API's own value for a release date it does not know
SNAPSHOT_DATE = re.compile(r"-(\d{4})(\d{2})(\d{2})$")
MAX_PAGE, DEFAULT_PAGE = 1000, 20


class Problem(Exception):
    """A refusal, with the default message of its status or its own, counted by `kind` or else its type."""

    def __init__(
        self, status: int, message: str = "", kind: str = "", code: str = "", retry_after: float | None = None
    ) -> None:
        self.status, self.details = status, {"error_code": code} if code else {}
        self.headers = {} if retry_after is None else {"retry-after": f"{math.ceil(max(1, retry_after))}"}
        self.type, usual = TABLES["errors"][str(status)]
        self.message, self.kind = message or usual, kind or self.type
        super().__init__(self.message)

    def body(self, request_id: str) -> dict[str, Any]:
        """Return the error as it appears in an answer and in the result of a batch's row."""
        error: dict[str, Any] = {"type": self.type, "message": self.message}
        error |= {"details": self.details} if self.details else {}
        return {"type": "error", "error": error, "request_id": request_id}


class Answer(NamedTuple):
    """One HTTP answer; `fault` breaks it in transit: "drop", "hang" or "truncated_body"."""

    status: int
    headers: dict[str, str]
    body: bytes
    fault: str | None = None


def read_object(raw: bytes | bytearray, max_bytes: int) -> dict[str, Any]:
    """Return a body parsed as a JSON object, or refuse it."""
    if len(raw) > max_bytes:
        most = f"The maximum request size is {max_bytes} bytes."
        raise Problem(413, f"Request exceeds the maximum allowed number of bytes. {most}")
    try:
        body = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise Problem(400, f"The request body is not valid JSON: {error}") from None
    if not isinstance(body, dict):
        raise Problem(400, "Input should be a valid dictionary")
    return body


def json_bytes(value: Any) -> bytes:
    """Return compact JSON in UTF-8."""
    return ENCODER.encode(value).encode("utf-8", "surrogatepass")


def instant(seconds: float | None) -> str | None:
    """Return a time as the API writes it, with microseconds."""
    return None if seconds is None else f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%dT%H:%M:%S.%fZ}"


@lru_cache(maxsize=4096)
def rfc3339(seconds: int) -> str:
    """Return a time in whole seconds, such as ``2026-11-22T10:00:00Z``."""
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%dT%H:%M:%SZ}"


# ------------------------------------------------------------------------------------ messages and events


def message(name: str, model: str, reply: Reply, tier: str) -> dict[str, Any]:
    """Return a reply as a Message of the API."""
    uncached, short, hour, read = reply.shares
    usage: dict[str, Any] = {
        "input_tokens": uncached,
        "cache_creation_input_tokens": short + hour,
        "cache_creation": {"ephemeral_5m_input_tokens": short, "ephemeral_1h_input_tokens": hour},
        "cache_read_input_tokens": read,
        "output_tokens": reply.output_tokens,
        "output_tokens_details": {"thinking_tokens": reply.thinking_tokens},
        "service_tier": tier, "speed": reply.speed, "inference_geo": reply.geo,
    }  # fmt: skip
    if reply.searches is not None:
        usage["server_tool_use"] = {"web_fetch_requests": 0, "web_search_requests": reply.searches}
    return {
        "id": name, "type": "message", "role": "assistant", "model": model,
        "content": reply.content, "diagnostics": None, "usage": usage,
        **{name: getattr(reply, name) for name in STOP},
    }  # fmt: skip


def event(value: dict[str, Any]) -> bytes:
    """Return one server-sent event."""
    return b"event: " + str(value["type"]).encode() + b"\ndata: " + json_bytes(value) + b"\n\n"


def events(message: dict[str, Any], begins_at: float, done_at: float) -> Iterator[tuple[float, bytes]]:
    """Yield each event of a message in order, as (API seconds since 1970, bytes)."""
    usage = message["usage"]
    begun = {"output_tokens": min(1, usage["output_tokens"]), "output_tokens_details": None}
    start = {**message, **dict.fromkeys(STOP), "content": [], "usage": {**usage, **begun}}
    yield begins_at, event({"type": "message_start", "message": start})
    yield begins_at, event({"type": "ping"})
    parts = [part for index, block in enumerate(message["content"]) for part in _block(index, block)]
    for place, part in enumerate(parts, start=1):
        yield begins_at + (done_at - begins_at) * place / len(parts), event(part)
    stop = {name: message[name] for name in STOP}
    usage = {name: value for name, value in usage.items() if name not in AT_THE_START}
    yield done_at, event({"type": "message_delta", "delta": stop, "usage": usage})
    yield done_at, event({"type": "message_stop"})


def _block(index: int, block: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield the events of one block, which starts empty and receives its text in parts."""
    empty = {"text": "", "thinking": "", "signature": "", "input": {}}
    start = {name: empty.get(name, value) for name, value in block.items()}
    yield {"type": "content_block_start", "index": index, "content_block": start}
    for name in filter(block.__contains__, empty):
        kind, key = ("input_json_delta", "partial_json") if name == "input" else (f"{name}_delta", name)
        text = json_bytes(block[name]).decode() if name == "input" else block[name]
        size = max(FEWEST_LETTERS, -(-len(text) // MOST_DELTAS))
        for at in range(0, len(text), size):
            delta = {"type": kind, key: text[at : at + size]}
            yield {"type": "content_block_delta", "index": index, "delta": delta}
    yield {"type": "content_block_stop", "index": index}


# ---------------------------------------------------------------------------------------- models and lists


def model_info(model: catalog.KnownModel, at: datetime) -> dict[str, Any]:
    """Return a model as the Models API shows it at that time."""
    dated = SNAPSHOT_DATE.search(model.snapshot)
    version = model.id.removeprefix("claude-").replace("-latest", "")
    line, *numbers = SNAPSHOT_DATE.sub("", version).split("-")
    info: dict[str, Any] = {
        "id": model.snapshot, "type": "model", "line": model.line, "lifecycle": "retired",
        "display_name": f"Claude {line.capitalize()} {'.'.join(numbers)}".strip(),
        "created_at": "{}-{}-{}T00:00:00Z".format(*dated.groups()) if dated else UNKNOWN_TIME,
        "retires_at": f"{model.retires_at:%Y-%m-%dT%H:%M:%SZ}" if model.retires_at else None,
        **dict.fromkeys(("deprecated_at", "max_input_tokens", "max_tokens", "capabilities")),
    }  # fmt: skip
    if isinstance(model, catalog.ModelFacts):
        info["lifecycle"] = catalog.lifecycle(model, at).replace("legacy", "active")
        info["deprecated_at"] = f"{model.deprecated_on}T00:00:00Z" if model.deprecated_on else None
        info |= {"max_input_tokens": model.context_tokens, "max_tokens": model.max_output_tokens}
        info["capabilities"] = _capabilities(model)
    return info


def _capabilities(model: catalog.ModelFacts) -> dict[str, Any]:
    def supported(names: Iterable[str], which: Collection[str]) -> dict[str, Any]:
        return {name: {"supported": name in which} for name in names}

    thinks = model.thinks_by_default or not {"adaptive", "enabled"}.isdisjoint(model.thinking_types)
    every, tools = TABLES["capabilities"], ("code_execution", "web_search")
    has = supported(every, every)
    has["server_tools"] |= supported(tools, tools)
    has["batch"] = {"supported": model.batch}
    has["structured_outputs"] = {"supported": model.structured_outputs}
    has["effort"] = {"supported": bool(model.efforts), **supported(TABLES["efforts"], model.efforts)}
    types = supported(TABLES["typed"]["thinking"], model.thinking_types)
    return has | {"thinking": {"supported": thinks, "types": types}}


def _models() -> list[catalog.KnownModel]:
    offered = (model for model in catalog.MODELS.values() if not model.verified_only)
    return [*offered, *catalog.RETIRED.values()]


def models_page(now: float, query: MultiMapping[str]) -> dict[str, Any]:
    """Return the answer to ``GET /v1/models``."""
    asked, at = query.getall("lifecycle[]", ["active", "deprecated"]), datetime.fromtimestamp(now, UTC)
    infos = (model_info(model, at) for model in _models())
    return page([info for info in infos if info["lifecycle"] in asked], query)


def one_model(now: float, name: str) -> dict[str, Any]:
    """Return the answer to ``GET /v1/models/{id}``."""
    for model in _models():
        if name in {model.id, model.snapshot}:
            return model_info(model, datetime.fromtimestamp(now, UTC))
    raise Problem(404, f"model: {name}")


def page(items: Sequence[dict[str, Any]], query: Mapping[str, str]) -> dict[str, Any]:
    """Return one page of `items`, each of which has an ``id``, in their order."""
    text, after = query.get("limit", str(DEFAULT_PAGE)), query.get("after_id")
    if not text.isdecimal() or not 1 <= int(text) <= MAX_PAGE:
        raise Problem(400, f"limit: Input should be a number from 1 to {MAX_PAGE}")
    ids = [item["id"] for item in items]
    start = ids.index(after) + 1 if after in ids else 0
    end = start + int(text)
    shown = ids[start:end] or [None]
    return {
        "data": items[start:end], "has_more": end < len(ids), "first_id": shown[0], "last_id": shown[-1],
    }  # fmt: skip
