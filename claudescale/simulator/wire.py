"""What goes over the wire: answers and errors, messages and their events, models and pages of a list."""

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
    from collections.abc import Iterator, Sequence

    from claudescale.simulator.replies import Reply
    from claudescale.simulator.requests import Shares

MARKS = {
    "claudescale-simulator": "1",
    "anthropic-organization-id": "00000000-0000-4000-8000-000000000001",
    "anthropic-workspace-id": "wrkspc_simulated",
}
HTML = b"<html><head><title>502 Bad Gateway</title></head><body><h1>502 Bad Gateway</h1></body></html>"
TABLES = tomllib.loads(Path(__file__).with_name("tables.toml").read_text("utf-8"))
ENCODER = json.JSONEncoder(separators=(",", ":"), ensure_ascii=False)
MOST_DELTAS = 24  # events that one block's text comes in
UNKNOWN_TIME = "1970-01-01T00:00:00Z"  # the API's own value for a release date it does not know
SNAPSHOT_DATE = re.compile(r"-(\d{4})(\d{2})(\d{2})$")
MAX_PAGE, DEFAULT_PAGE = 1000, 20

Query = dict[str, list[str]]


class Problem(Exception):
    """Why a request is refused, in the usual words of its status or its own; counted by `kind` or by type."""

    def __init__(self, status: int, message: str = "", kind: str = "", **details: str) -> None:
        self.status, self.details, self.headers = status, details, dict[str, str]()
        self.type, usual = TABLES["errors"][str(status)]
        self.message, self.kind = message or usual, kind or self.type
        super().__init__(self.message)

    def body(self, request_id: str) -> dict[str, Any]:
        """Return it as it stands in an answer, and in the result of a batch's row."""
        error: dict[str, Any] = {"type": self.type, "message": self.message}
        error |= {"details": self.details} if self.details else {}
        return {"type": "error", "error": error, "request_id": request_id}


class Answer(NamedTuple):
    """One HTTP answer; `fault` breaks it on its way: "drop", "hang" or "truncated_body"."""

    status: int
    headers: dict[str, str]
    body: bytes
    fault: str | None = None


def limited(limit: str, retry_after: int, kind: str, more: str = "") -> Problem:
    """Return the 429 of a limit."""
    over = Problem(429, f"This request would exceed {limit}.{more}", kind)
    over.headers["retry-after"] = str(retry_after)
    return over


def read_object(raw: bytes | bytearray, max_bytes: int) -> dict[str, Any]:
    """Return the JSON object that a body is."""
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
    """Return JSON in UTF-8 without spaces."""
    return ENCODER.encode(value).encode("utf-8", "surrogatepass")


def instant(seconds: float | None) -> str | None:
    """Return a moment as the API writes it, with microseconds."""
    return None if seconds is None else f"{rfc3339(math.floor(seconds))[:-1]}.{int(seconds % 1 * 1e6):06d}Z"


@lru_cache(maxsize=4096)
def rfc3339(seconds: int) -> str:
    """Return a moment in whole seconds, such as ``2026-11-22T10:00:00Z``."""
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


# ------------------------------------------------------------------------------------ messages and events


def message(name: str, model: str, reply: Reply, shares: Shares, tier: str) -> dict[str, Any]:
    """Return a Message."""
    short, hour = shares.cache_write_5m_input_tokens, shares.cache_write_1h_input_tokens
    usage = {
        "input_tokens": shares.input_tokens,
        "cache_creation_input_tokens": short + hour,
        "cache_read_input_tokens": shares.cache_read_input_tokens,
        "cache_creation": {"ephemeral_5m_input_tokens": short, "ephemeral_1h_input_tokens": hour},
        "output_tokens": reply.output_tokens,
        "output_tokens_details": {"thinking_tokens": reply.thinking_tokens},
        "service_tier": tier,
        "speed": reply.speed,
        "inference_geo": reply.geo,
    }
    if reply.searches is not None:
        usage["server_tool_use"] = {"web_fetch_requests": 0, "web_search_requests": reply.searches}
    return {
        "id": name,
        "type": "message",
        "role": "assistant",
        "model": model,
        "content": reply.content,
        "stop_reason": reply.stop_reason,
        "stop_sequence": reply.stop_sequence,
        "stop_details": reply.stop_details,
        "diagnostics": None,
        "usage": usage,
    }


def event(value: dict[str, Any]) -> bytes:
    """Return one server-sent event."""
    return b"event: " + str(value["type"]).encode() + b"\ndata: " + json_bytes(value) + b"\n\n"


def events(message: dict[str, Any], begins_at: float, done_at: float) -> Iterator[tuple[float, bytes]]:
    """Yield (API seconds since 1970, bytes) of each event of a message, in order."""
    usage = message["usage"]
    stop = {key: message[key] for key in ("stop_reason", "stop_sequence", "stop_details")}
    begun = {"output_tokens": min(1, usage["output_tokens"]), "output_tokens_details": None}
    start = {**message, **dict.fromkeys(stop), "content": [], "usage": {**usage, **begun}}
    yield begins_at, event({"type": "message_start", "message": start})
    yield begins_at, event({"type": "ping"})
    parts = [part for index, block in enumerate(message["content"]) for part in _block(index, block)]
    for place, part in enumerate(parts, start=1):
        yield begins_at + (done_at - begins_at) * place / len(parts), event(part)
    whole = ("cache_creation", "service_tier", "speed", "inference_geo")  # only at the start
    counted = {key: value for key, value in usage.items() if key not in whole}
    yield done_at, event({"type": "message_delta", "delta": stop, "usage": counted})
    yield done_at, event({"type": "message_stop"})


def _block(index: int, block: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield the events of one block: begun empty, then its text in parts."""
    empty = {"text": "", "thinking": "", "signature": "", "input": {}}
    start = {key: empty.get(key, value) for key, value in block.items()}
    yield {"type": "content_block_start", "index": index, "content_block": start}
    deltas = []
    for name, kind, part in (
        ("text", "text_delta", "text"),
        ("thinking", "thinking_delta", "thinking"),
        ("input", "input_json_delta", "partial_json"),
    ):
        text = json_bytes(block[name]).decode() if name == "input" and name in block else block.get(name, "")
        size = max(8, -(-len(text) // MOST_DELTAS))
        deltas += [{"type": kind, part: text[at : at + size]} for at in range(0, len(text), size)]
    if "signature" in block:
        deltas.append({"type": "signature_delta", "signature": block["signature"]})
    yield from ({"type": "content_block_delta", "index": index, "delta": delta} for delta in deltas)
    yield {"type": "content_block_stop", "index": index}


# ---------------------------------------------------------------------------------------- models and lists


def model_info(model: catalog.RetiredModel, at: datetime) -> dict[str, Any]:
    """Return a model as the Models API shows it at a moment."""
    dated = SNAPSHOT_DATE.search(model.snapshot)
    version = model.id.removeprefix("claude-").replace("-latest", "")
    line, *numbers = SNAPSHOT_DATE.sub("", version).split("-")
    known = model if isinstance(model, catalog.Model) else None
    lifecycle = catalog.lifecycle(known, at) if known else "retired"
    return {
        "id": model.snapshot,
        "type": "model",
        "display_name": f"Claude {line.capitalize()} {'.'.join(numbers)}".strip(),
        "created_at": "{}-{}-{}T00:00:00Z".format(*dated.groups()) if dated else UNKNOWN_TIME,
        "line": model.line,
        "lifecycle": "active" if lifecycle == "legacy" else lifecycle,
        "deprecated_at": f"{known.deprecated_on}T00:00:00Z" if known and known.deprecated_on else None,
        "retires_at": f"{model.retires_at:%Y-%m-%dT%H:%M:%SZ}" if model.retires_at else None,
        "max_input_tokens": known.context_tokens if known else None,
        "max_tokens": known.max_output_tokens if known else None,
        "capabilities": _capabilities(known) if known else None,
    }


def _capabilities(model: catalog.Model) -> dict[str, Any]:
    thinks = model.thinks_by_default or not {"adaptive", "enabled"}.isdisjoint(model.thinking_types)
    has: dict[str, Any] = {name: {"supported": True} for name in TABLES["capabilities"]}
    has["server_tools"] |= {name: {"supported": True} for name in ("code_execution", "web_search")}
    has["batch"] = {"supported": model.batch}
    has["structured_outputs"] = {"supported": model.structured_outputs}
    efforts = {name: {"supported": name in model.efforts} for name in TABLES["efforts"]}
    types = {name: {"supported": name in model.thinking_types} for name in TABLES["choices"]["thinking"]}
    has["effort"] = {"supported": bool(model.efforts), **efforts}
    has["thinking"] = {"supported": thinks, "types": types}
    return has


def _models() -> list[catalog.RetiredModel]:
    offered = (model for model in catalog.MODELS.values() if not model.verified_only)
    return [*offered, *catalog.RETIRED.values()]


def models_page(now: float, query: Query) -> dict[str, Any]:
    """Return the answer to ``GET /v1/models``."""
    asked = ",".join([*query.get("lifecycle[]", ()), *query.get("lifecycle", ())]) or "active,deprecated"
    infos = (model_info(model, datetime.fromtimestamp(now, UTC)) for model in _models())
    return page([info for info in infos if info["lifecycle"] in asked.split(",")], query)


def one_model(now: float, name: str) -> dict[str, Any]:
    """Return the answer to ``GET /v1/models/{id}``."""
    for model in _models():
        if name in {model.id, model.snapshot}:
            return model_info(model, datetime.fromtimestamp(now, UTC))
    raise Problem(404, f"model: {name}")


def page(items: Sequence[dict[str, Any]], query: Query) -> dict[str, Any]:
    """Return one page of `items`, which have an ``id`` and are in the order of the list."""
    text = query.get("limit", [str(DEFAULT_PAGE)])[0]
    if not text.isdecimal() or not 1 <= int(text) <= MAX_PAGE:
        raise Problem(400, f"limit: Input should be a number from 1 to {MAX_PAGE}")
    limit, ids = int(text), [item["id"] for item in items]
    before, after = (query.get(name, [""])[0] for name in ("before_id", "after_id"))
    end = ids.index(before) if before in ids else 0
    start = max(0, end - limit)
    if not before:
        start = ids.index(after) + 1 if after in ids else 0
        end = start + limit
    found, more = items[start:end], start > 0 if before else end < len(items)
    first, last = (found[0]["id"], found[-1]["id"]) if found else (None, None)
    return {"data": found, "has_more": more, "first_id": first, "last_id": last}
