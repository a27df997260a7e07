"""A Message that comes in server-sent events, put together: the same as one that comes at once."""

from __future__ import annotations

import json
from typing import Any

from claudescale.api.answers import Answer, read_object

_STATUSES = {
    "invalid_request_error": 400,
    "authentication_error": 401,
    "billing_error": 402,
    "permission_error": 403,
    "not_found_error": 404,
    "request_too_large": 413,
    "rate_limit_error": 429,
    "timeout_error": 504,
    "overloaded_error": 529,
}
"""What the error of a stream would be as an answer of its own; any other is a 500."""
_ADDED = {"text_delta": "text", "thinking_delta": "thinking", "signature_delta": "signature"}


class StreamedMessage:
    """Takes the bytes of a stream, in whatever pieces, and gives the Message or the error that it tells."""

    def __init__(self) -> None:
        self._rest = b""
        self._message: dict[str, Any] = {}
        self._blocks: dict[int, dict[str, Any]] = {}
        self._json: dict[int, str] = {}  # of the input of tools
        self._error: dict[str, Any] | None = None
        self._plain = b""
        self._is_over = False

    def feed(self, part: bytes) -> None:
        """Take some more bytes."""
        if not self._message and self._error is None:
            self._plain += part  # a gateway that does not stream sends the Message itself
        *lines, self._rest = (self._rest + part).split(b"\n")
        for line in lines:
            if line.startswith(b"data:"):
                self._take(read_object(line[5:]))

    def _take(self, event: dict[str, Any]) -> None:
        index = event.get("index")
        given = event.get("content_block") or event.get("delta") or {}
        match event.get("type"):
            case "message_start" if isinstance(event.get("message"), dict):
                self._message, self._plain = event["message"], b""
            case "content_block_start" if isinstance(index, int) and isinstance(given, dict):
                self._blocks[index] = dict(given)
            case "content_block_delta" if index in self._blocks and isinstance(given, dict):
                self._add(index, given)
            case "message_delta":
                self._message |= given
                usage = event.get("usage")
                known = {name: each for name, each in (usage or {}).items() if each is not None}
                self._message["usage"] = {**self._message.get("usage", {}), **known}
                self._is_over |= bool(self._message.get("stop_reason"))
            case "message_stop":
                self._is_over = True
            case "error":
                self._error = event

    def _add(self, index: int, delta: dict[str, Any]) -> None:
        block, kind = self._blocks[index], delta.get("type")
        if kind in _ADDED:
            name = _ADDED[kind]
            block[name] = f"{block.get(name) or ''}{delta.get(name) or ''}"
        elif kind == "input_json_delta":
            self._json[index] = self._json.get(index, "") + str(delta.get("partial_json") or "")
        elif kind == "citations_delta":
            block["citations"] = [*(block.get("citations") or []), delta.get("citation")]

    @property
    def so_far(self) -> dict[str, Any] | None:
        """The Message as far as it came; None before its beginning."""
        if not self._message:
            return None
        for index, text in self._json.items():
            self._blocks[index]["input"] = read_object(text.encode())
        return {**self._message, "content": [self._blocks[index] for index in sorted(self._blocks)]}

    def answer(self, headers: Any) -> Answer:
        """Return what the stream says once it has ended: an answer as any other, or one that broke off."""
        if self._error is not None:
            found = self._error.get("error")
            kind = found.get("type") if isinstance(found, dict) else None
            status = _STATUSES.get(str(kind), 500)
            return Answer(status, headers, json.dumps(self._error).encode(), partial=self.so_far)
        if self._is_over:
            return Answer(200, headers, json.dumps(self.so_far).encode())
        if "event-stream" not in headers.get("content-type", "event-stream"):
            return Answer(200, headers, self._plain)
        words = "the stream ended before the reply did"
        return Answer(None, headers, b"", "connection_error", reason=words, partial=self.so_far)
