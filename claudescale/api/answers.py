"""Interprets answers of the Messages API, with pure functions that take any bytes and never raise.

The bytes may come from the API, from a proxy, or from a connection that broke midway.
"""

from __future__ import annotations

import http.client
import json
import re
from dataclasses import dataclass, replace
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from claudescale.api.catalog import CHARGES, ERRORS, WORDS

if TYPE_CHECKING:
    from collections.abc import Mapping


CUT = frozenset({"refusal", "max_tokens", "model_context_window_exceeded", "pause_turn", "tool_use"})
"""Stop reasons that make a reply an error."""
LASTING = frozenset({"refusal", "model_context_window_exceeded", "tool_use", "invalid_request_error"})
LASTING |= {"request_too_large"}
"""Errors of a row that the same request would meet again."""
DRY_RUN = "dry_run"
"""The error of a test message that only had the API check a request before the first batch."""
NO_ENDPOINT = "endpoint_not_found"
"""A 404 that does not mention the model: the address is wrong, or a gateway lacks the endpoint."""
DOUBTED = {"authentication_error", "permission_error", "not_found_error", "redirect_error", NO_ENDPOINT}
"""Errors that may come once by mistake although the key, model and address have worked before."""
STOPPING_ERRORS = frozenset(
    {*ERRORS.account_codes, *ERRORS.stopping_errors, *ERRORS.account_words, NO_ENDPOINT}
)
"""Errors of the account or the model, which every row would meet; no row is to blame for them."""
NOT_FOLLOWED = "claudescale-not-followed"
"""The header that replaces ``location`` in an answer whose redirect must not be followed."""

_SERVER_ERROR = 500
_ACCOUNT_WORDS = {name: re.compile(words, re.IGNORECASE) for name, words in ERRORS.account_words.items()}
_OF_A_MODEL = re.compile("model|claude-", re.IGNORECASE)
_USER_OF_URL = re.compile(r"^(\w*:?//)[^/@]*@")
_SECRET = re.compile(r"sk-[\w-]{8,}")
_MOST_CHARACTERS = 500
MOST_TOKENS = 2**53  # a larger count is not valid


# ----------------------------------------------------------------------------------- answers and verdicts


class Answer(NamedTuple):
    """The API's answer to one request, or why there is none."""

    status: int | None  # None where no answer came: `failure` is then an error type
    headers: Mapping[str, str]
    content: bytes
    failure: str | None = None
    sent: bool = True  # False where the request cannot have reached the API
    reason: str = ""  # why no answer came, if known; never contains a key
    # The part of the Message that arrived before its stream broke: its tokens are billed.
    partial: Mapping[str, Any] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What an answer means for its row.

    The outcome is ``"answered"`` (billed), ``"failed"`` (a retry cannot help), ``"refused"`` (rate limited),
    ``"overloaded"`` (retry with fewer in flight), ``"again"`` (retry) or ``"stop"`` (end the run).
    """

    outcome: str
    error: str | None = None  # the API's error type
    message: str | None = None  # the error's message
    reply: dict[str, Any] | None = None  # the Message, where there is one
    final: bool = False  # the API itself has decided the row; a proxy's page never does
    unseen: bool = False  # the API may have billed something that the answer does not show


def verdict(answer: Answer) -> Verdict:
    """Decide what an answer means. Only this module knows which errors are worth a retry.

    Notes
    -----
    Source: Anthropic, *Errors* and *Rate limits* (checked 2026-10-08), and the SDK's own list of what
    it retries. A spend limit arrives as a 429 or a 400 and lasts for days, so it ends the run.
    """
    if answer.status is None:
        return _verdict_on_silence(answer)
    body = read_object(answer.content)
    if answer.partial is not None:  # an error inside a stream: the tokens before it are billed
        return replace(_verdict_on_error(answer.status, answer.headers, body), unseen=True)
    if answer.status // 100 == HTTPStatus.OK // 100:
        return _verdict_on_message(body)
    return _verdict_on_error(answer.status, answer.headers, body)


def _verdict_on_silence(answer: Answer) -> Verdict:
    because = f": {answer.reason}" if answer.reason else ""
    if words := WORDS["unsendable"].get(answer.failure or ""):
        return Verdict(outcome="stop", error=answer.failure, message=f"{words}{because}")
    words = WORDS["silence"]["sent" if answer.sent else "unsent"] + because
    return Verdict(outcome="overloaded", error=answer.failure, message=words, unseen=answer.sent)


def _verdict_on_message(body: dict[str, Any]) -> Verdict:
    if dig(list, body, "content") is None:
        error = _error(body)[0] or "invalid_response"
        return Verdict(outcome="again", error=error, message="the answer is not a Message", unseen=True)
    stop_reason = stop_reason_of(body)
    is_tool_reply = stop_reason == "tool_use" and _tool_input(body) is not None
    flaw = None if text_of(body) else "empty_reply"
    if stop_reason in CUT and not is_tool_reply:
        flaw = stop_reason
    words = WORDS["answer"].get("free_refusal" if is_free(body) else flaw or "")
    unseen = not all(_is_count(dig(int, body, "usage", name)) for name in ("input_tokens", "output_tokens"))
    return Verdict(outcome="answered", error=flaw, message=words, reply=body, final=True, unseen=unseen)


def _verdict_on_error(status: int, headers: Mapping[str, str], body: dict[str, Any]) -> Verdict:
    kind, words, code = _error(body)
    target = headers.get("location") or headers.get(NOT_FOLLOWED)
    if target and status // 100 == HTTPStatus.MULTIPLE_CHOICES // 100:
        return Verdict(outcome="stop", error="redirect_error", message=_redirect_words(status, target))
    if trouble := _account_trouble(kind, words, code):
        return Verdict(outcome="stop", error=trouble, message=words)
    if code in ERRORS.passing_codes:
        return Verdict(outcome="overloaded", error=code, message=words)
    failed = status >= _SERVER_ERROR
    outcome = ERRORS.outcomes.get(str(status), "overloaded" if failed else "failed")
    error = (code if outcome == "refused" else None) or kind or f"http_{status}"
    if outcome == "refused" and headers.get("x-should-retry") == "false":
        outcome = "stop"  # a limit is not the fault of a row
    elif outcome == "stop" and (kind is None or code in ERRORS.row_codes):
        outcome = "failed"  # a proxy's page says nothing about the account
    elif outcome == "stop" and kind == "not_found_error" and not _OF_A_MODEL.search(words):
        error = NO_ENDPOINT
    phrase = http.client.responses.get(status, "")
    words = words or f"status {status} {phrase}, with no message from the API. A proxy may have answered"
    final = outcome == "failed" and kind is not None and not failed
    return Verdict(outcome=outcome, error=error, message=words, final=final)


def _redirect_words(status: int, target: str) -> str:
    """Return the message for a redirect that was not followed."""
    bare = _SECRET.sub("sk-...", _USER_OF_URL.sub(r"\1", target.partition("?")[0]))[:_MOST_CHARACTERS]
    there = bare.partition("/v1/")[0] or "/"
    return f"status {status}: the address redirects to {bare}. Set base_url to {there}"


def verdict_on_result(result: Mapping[str, Any]) -> Verdict:
    """Decide what the result of one row of a batch means. The API bills only results that succeeded.

    Notes
    -----
    `result` is the ``result`` field of a line of the batch's results, and may be malformed. A row's error has
    no status, so its type decides whether a retry can help. As with live answers, an error of the account or
    the model, which every row would meet, is never final for a row.
    Source: Anthropic, *Batch processing* and *Errors* (checked 2026-10-08).
    """
    kind = result.get("type")
    if kind == "succeeded":
        return _verdict_on_message(dig(dict, result, "message") or {})
    if kind in ("expired", "canceled"):
        return Verdict(outcome="again", error=kind, message=WORDS["answer"][kind])
    if kind != "errored":
        words = "the batch's line for this row has no result"
        return Verdict(outcome="again", error="invalid_response", message=words, unseen=True)
    api_type, words, code = _error(dig(dict, result, "error") or {})
    passing = code if code in ERRORS.passing_codes else None
    error = _account_trouble(api_type, words, code) or passing or api_type or "invalid_response"
    outcome = "stop" if error in STOPPING_ERRORS else "failed" if error in ERRORS.failing_errors else "again"
    words = words or "The API gave only the type of the error."
    return Verdict(outcome=outcome, error=error, message=words, final=outcome == "failed")


def _error(body: dict[str, Any]) -> tuple[str | None, str, str | None]:
    """Return the type, message and code of an error body of any shape, with keys masked in the message."""
    words = _SECRET.sub("sk-...", dig(str, body, "error", "message") or "")[:_MOST_CHARACTERS]
    code = dig(str, body, "error", "details", "error_code")
    return dig(str, body, "error", "type") or None, words, code


def _account_trouble(kind: str | None, words: str, code: str | None) -> str | None:
    """Return the name of a problem with the account, which is not the fault of a row; None for others."""
    if code in ERRORS.account_codes:
        return code
    if kind == "billing_error":
        return kind
    return next((name for name, pattern in _ACCOUNT_WORDS.items() if pattern.search(words)), None)


# --------------------------------------------------------------------------------- what a Message contains


def text_of(message: Mapping[str, Any]) -> str | None:
    """Return the text of a Message, or the input of its tool call as JSON; None where it has neither."""
    tool_input = _tool_input(message)
    if tool_input is not None:
        return json.dumps(tool_input, ensure_ascii=False, separators=(",", ":"))
    return "".join(block["text"] for block in _blocks(message, "text", "text", str)) or None


def _tool_input(message: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return the input of the first client tool call in a Message; a forced call is a JSON reply."""
    return next((block["input"] for block in _blocks(message, "tool_use", "input", dict)), None)


def _blocks(message: Mapping[str, Any], kind: str, name: str, of: type) -> list[dict[str, Any]]:
    """Return the content blocks of one kind whose field `name` has the type `of`."""
    blocks = dig(list, message, "content") or []
    return [b for b in blocks if dig(str, b, "type") == kind and dig(of, b, name) is not None]


def stop_reason_of(message: Mapping[str, Any]) -> str | None:
    """Return the stop reason of a Message; None where it has none."""
    return dig(str, message, "stop_reason")


def usage_of(message: Mapping[str, Any] | None) -> dict[str, int]:
    """Return the token counts of a Message under the ledger's names, with nothing counted twice."""
    hour = _count(message, "cache_creation", "ephemeral_1h_input_tokens")
    return {
        "input_tokens": _count(message, "input_tokens"),
        "cache_write_5m_input_tokens": max(_count(message, "cache_creation_input_tokens") - hour, 0),
        "cache_write_1h_input_tokens": hour,
        "cache_read_input_tokens": _count(message, "cache_read_input_tokens"),
        "output_tokens": _count(message, "output_tokens"),
        "thinking_tokens": _count(message, "output_tokens_details", "thinking_tokens"),
    }


def answer_of(message: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return the fields of a Message that decide its price, and why the model declined."""
    return {
        "answering_model": dig(str, message, "model"),
        "inference_geo": dig(str, message, "usage", "inference_geo"),
        "speed": dig(str, message, "usage", "speed"),
        "web_search_requests": _count(message, "server_tool_use", "web_search_requests"),
        "refusal_category": dig(str, message, "stop_details", "category"),
    }


def is_free(message: Mapping[str, Any] | None) -> bool:
    """Whether an answer is free although it has tokens, as most refusals before any output are."""
    refused = dig(str, message, "stop_reason") == "refusal"
    unwritten = dig(int, message, "usage", "output_tokens") == 0
    return refused and unwritten and answer_of(message)["refusal_category"] not in CHARGES.billed_refusals


_Kind = TypeVar("_Kind")


def dig(kind: type[_Kind], body: Any, *path: str) -> _Kind | None:
    """Return the value at a path in an answer; None where it is missing or of another type."""
    for name in path:
        body = body.get(name) if isinstance(body, dict) else None
    return body if type(body) is kind else None


def _count(message: Mapping[str, Any] | None, *path: str) -> int:
    count = dig(int, message, "usage", *path)
    return count if count is not None and _is_count(count) else 0


def _is_count(count: int | None) -> bool:
    return count is not None and 0 <= count <= MOST_TOKENS


def read_object(content: bytes | str) -> dict[str, Any]:
    """Return the JSON object in `content`; an empty one where there is none."""
    try:
        body = json.loads(content)
    except (ValueError, RecursionError):
        return {}
    return body if isinstance(body, dict) else {}


# ------------------------------------------------------------------------ a Message as a stream of events


class StreamedMessage:
    """Assembles the Message or the error in a stream from chunks of any size."""

    def __init__(self) -> None:
        self._rest = self._plain = b""
        self._message: dict[str, Any] = {}
        self._blocks: list[dict[str, Any]] = []
        self._error: dict[str, Any] | None = None

    def feed(self, part: bytes) -> None:
        """Add a chunk of bytes."""
        if not self._message and self._error is None:
            self._plain += part  # a gateway that does not stream sends the whole Message
        *lines, self._rest = (self._rest + part).split(b"\n")
        for line in lines:
            if line.startswith(b"data:"):
                self._take(read_object(line[5:]))

    def _take(self, event: dict[str, Any]) -> None:
        match event:
            case {"type": "message_start", "message": dict(message)}:
                self._message = message
            case {"type": "content_block_start", "content_block": dict(block)}:
                self._blocks.append(block)
            case {"type": "content_block_delta", "delta": dict(delta)} if self._blocks:
                block = self._blocks[-1]
                for name in delta.keys() & {"text", "partial_json"}:  # the only parts that are kept
                    block[name] = f"{block.get(name) or ''}{delta[name] or ''}"
            case {"type": "message_delta"}:
                usage = {name: n for name, n in (dig(dict, event, "usage") or {}).items() if n is not None}
                self._message |= dig(dict, event, "delta") or {}
                self._message["usage"] = (dig(dict, self._message, "usage") or {}) | usage
            case {"type": "error"}:
                self._error = event

    @property
    def so_far(self) -> dict[str, Any] | None:
        """The Message received so far; None before it begins."""
        if not self._message:
            return None
        content = [dict(block) for block in self._blocks]
        for block in content:
            if (written := block.pop("partial_json", None)) is not None:
                block["input"] = read_object(written.encode())
        return {**self._message, "content": content}

    def answer(self, headers: Mapping[str, str]) -> Answer:
        """Return the answer of a stream that has ended, complete or broken off."""
        if self._error is not None:
            status = ERRORS.stream_statuses.get(_error(self._error)[0] or "", _SERVER_ERROR)
            return Answer(status, headers, json.dumps(self._error).encode(), partial=self.so_far)
        if self._message.get("stop_reason"):
            return Answer(200, headers, json.dumps(self.so_far).encode())
        if "event-stream" not in headers.get("content-type", "event-stream"):
            return Answer(200, headers, self._plain)
        words = "the stream ended before the reply did"
        return Answer(None, headers, b"", "connection_error", reason=words, partial=self.so_far)
