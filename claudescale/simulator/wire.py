"""The shapes of what goes over the wire: answers, errors, messages."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from claudescale.api.catalog import Model
    from claudescale.simulator.replies import Reply
    from claudescale.simulator.tokens import Shares

ORGANIZATION = "00000000-0000-4000-8000-000000000001"
WORKSPACE = "wrkspc_simulated"
MARKS = {
    "claudescale-simulator": "1",
    "anthropic-organization-id": ORGANIZATION,
    "anthropic-workspace-id": WORKSPACE,
}
HTML = "<html><head><title>502 Bad Gateway</title></head><body><h1>502 Bad Gateway</h1></body></html>"


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """One whole HTTP answer, and how its way to the client is broken, if it is.

    Attributes
    ----------
    fault : str or None
        "drop" (close the connection), "hang" (send nothing), "truncated_body" (send half of it).
    """

    status: int
    headers: dict[str, str]
    body: bytes
    fault: str | None = None
    kind: str | None = field(default=None)


def json_bytes(value: Any) -> bytes:
    """Return JSON in UTF-8 without spaces."""
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False).encode("utf-8", "surrogatepass")


def error_body(
    kind: str, message: str, request_id: str, details: dict[str, Any] | None = None
) -> dict[str, Any]:
    """Return the body of an error."""
    error: dict[str, Any] = {"type": kind, "message": message}
    if details is not None:
        error["details"] = details
    return {"type": "error", "error": error, "request_id": request_id}


def usage(shares: Shares, reply: Reply, tier: str) -> dict[str, Any]:
    """Return the ``usage`` of a message."""
    tools = {"server_tool_use": {"web_fetch_requests": 0, "web_search_requests": reply.searches}}
    return {
        "input_tokens": shares.input_tokens,
        "cache_creation_input_tokens": shares.cache_write_5m_input_tokens
        + shares.cache_write_1h_input_tokens,
        "cache_read_input_tokens": shares.cache_read_input_tokens,
        "cache_creation": {
            "ephemeral_5m_input_tokens": shares.cache_write_5m_input_tokens,
            "ephemeral_1h_input_tokens": shares.cache_write_1h_input_tokens,
        },
        "output_tokens": reply.output_tokens,
        "output_tokens_details": {"thinking_tokens": reply.thinking_tokens},
        "service_tier": tier,
        "speed": reply.speed,
        "inference_geo": reply.geo,
        **(tools if reply.searches is not None else {}),
    }


def message(
    message_id: str, model: Model, reply: Reply, used: dict[str, Any], diagnostics: dict[str, Any] | None
) -> dict[str, Any]:
    """Return a Message."""
    return {
        "id": message_id,
        "type": "message",
        "role": "assistant",
        "model": model.snapshot,
        "content": reply.content,
        "stop_reason": reply.stop_reason,
        "stop_sequence": reply.stop_sequence,
        "stop_details": reply.stop_details,
        "diagnostics": diagnostics,
        "usage": used,
    }
