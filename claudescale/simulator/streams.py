"""A reply as server-sent events, and when each is due."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from claudescale.simulator.wire import json_bytes

if TYPE_CHECKING:
    from collections.abc import Iterator

    from claudescale.simulator.desk import Admission

MOST_DELTAS = 24


def event(value: dict[str, Any]) -> bytes:
    """Return one server-sent event."""
    return b"event: " + str(value["type"]).encode() + b"\ndata: " + json_bytes(value) + b"\n\n"


def events(admission: Admission) -> Iterator[tuple[float, bytes]]:
    """Yield (API seconds since 1970, bytes) of each event of a reply, in order."""
    message = admission.message()
    usage = message["usage"]
    begin = {
        **message,
        "content": [],
        "stop_reason": None,
        "stop_sequence": None,
        "stop_details": None,
        "usage": {**usage, "output_tokens": min(1, usage["output_tokens"]), "output_tokens_details": None},
    }
    yield admission.begins_at, event({"type": "message_start", "message": begin})
    yield admission.begins_at, event({"type": "ping"})
    parts = [(index, part) for index, block in enumerate(message["content"]) for part in _block(index, block)]
    step = (admission.done_at - admission.begins_at) / max(1, len(parts))
    for place, (_, part) in enumerate(parts, start=1):
        yield admission.begins_at + step * place, event(part)
    delta = {key: message[key] for key in ("stop_reason", "stop_sequence", "stop_details")}
    counted = {
        key: usage[key]
        for key in (
            "input_tokens",
            "cache_creation_input_tokens",
            "cache_read_input_tokens",
            "output_tokens",
            "output_tokens_details",
            "server_tool_use",
        )
        if key in usage
    }
    yield admission.done_at, event({"type": "message_delta", "delta": delta, "usage": counted})
    yield admission.done_at, event({"type": "message_stop"})


def _block(index: int, block: dict[str, Any]) -> Iterator[dict[str, Any]]:
    where = {"index": index}
    empty = {"text": "", "thinking": "", "signature": "", "input": {}}
    start = {key: empty.get(key, value) for key, value in block.items()}
    yield {"type": "content_block_start", **where, "content_block": start}
    if block["type"] == "text":
        for piece in _pieces(block["text"]):
            yield {"type": "content_block_delta", **where, "delta": {"type": "text_delta", "text": piece}}
    elif block["type"] == "thinking":
        for piece in _pieces(block["thinking"]):
            yield {
                "type": "content_block_delta",
                **where,
                "delta": {"type": "thinking_delta", "thinking": piece},
            }
        signed = {"type": "signature_delta", "signature": block["signature"]}
        yield {"type": "content_block_delta", **where, "delta": signed}
    elif block["type"] in {"tool_use", "server_tool_use"}:
        for piece in _pieces(json_bytes(block["input"]).decode()):
            delta = {"type": "input_json_delta", "partial_json": piece}
            yield {"type": "content_block_delta", **where, "delta": delta}
    yield {"type": "content_block_stop", **where}


def _pieces(text: str) -> list[str]:
    size = max(8, -(-len(text) // MOST_DELTAS))
    return [text[place : place + size] for place in range(0, len(text), size)]
