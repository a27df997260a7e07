"""What one answer of the Messages API means: pure functions that take any bytes and never raise.

The bytes may come from the API, from a proxy, or from a connection that broke half way.
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
"""Reasons to stop that are the error of the reply."""
DRY_RUN = "dry_run"
"""The error of a message that only had the API look at a request, before a batch of such was made."""
NO_ENDPOINT = "endpoint_not_found"
"""A 404 that does not speak of the model: of the address, or of a gateway that has less than the API."""
DOUBTED = {"authentication_error", "permission_error", "not_found_error", "redirect_error", NO_ENDPOINT}
"""Errors that a key, a model and an address which have answered may meet once by mistake."""
STOPPING_ERRORS = frozenset(
    {*ERRORS.account_codes, *ERRORS.stopping_errors, *ERRORS.account_words, NO_ENDPOINT}
)
"""Errors of the account or the model, met by every row alike; for none of them is a row to blame."""
NOT_FOLLOWED = "claudescale-not-followed"
"""The header that stands for ``location`` in an answer whose redirect must not be followed."""

_SERVER_ERROR = 500
_ACCOUNT_WORDS = {name: re.compile(words, re.IGNORECASE) for name, words in ERRORS.account_words.items()}
_OF_A_MODEL = re.compile("model|claude-", re.IGNORECASE)
_USER_OF_URL = re.compile(r"^(\w*:?//)[^/@]*@")
_SECRET = re.compile(r"sk-[\w-]{8,}")
_MOST_CHARACTERS = 500
MOST_TOKENS = 2**53  # a count above is no count


# ----------------------------------------------------------------------------------- answers and verdicts


class Answer(NamedTuple):
    """What came back for one request."""

    status: int | None  # None where no answer came: `failure` says what did, in the words of an error type
    headers: Mapping[str, str]
    content: bytes
    failure: str | None = None
    sent: bool = True  # False where the request surely never reached the API
    reason: str = ""  # why no answer came, in words, as far as that is known; never a key
    # The Message as far as it was streamed, where the stream broke: what it used is paid for.
    partial: Mapping[str, Any] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What an answer means for its row.

    Its outcome is ``"answered"`` (paid for), ``"failed"`` (sending it again is of no use), ``"refused"`` (the
    limits), ``"overloaded"`` (try again, fewer at once), ``"again"`` (try again) or ``"stop"`` (the run).
    """

    outcome: str
    error: str | None = None  # the API's error type
    message: str | None = None  # its words
    reply: dict[str, Any] | None = None  # the Message, where there is one
    final: bool = False  # the API's own last word on the row; a proxy's page never is
    unseen: bool = False  # the API may have billed something that the answer does not say


def verdict(answer: Answer) -> Verdict:
    """Decide what an answer means; the only place that knows which errors are worth a retry.

    Notes
    -----
    Source: Anthropic, *Errors* and *Rate limits* (checked 2026-10-08), and the SDK's own list of what
    it retries. A spend limit comes as a 429 or a 400 and lasts for days: it ends the run.
    """
    if answer.status is None:
        return _verdict_on_silence(answer)
    body = read_object(answer.content)
    if answer.partial is not None:  # an error in a stream: what was written before it is paid for
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
        outcome = "stop"  # no row is to blame for a limit
    elif outcome == "stop" and (kind is None or code in ERRORS.row_codes):
        outcome = "failed"  # a proxy's page says nothing of the account
    elif outcome == "stop" and kind == "not_found_error" and not _OF_A_MODEL.search(words):
        error = NO_ENDPOINT
    phrase = http.client.responses.get(status, "")
    words = words or f"status {status} {phrase}, with no message from the API. A proxy may have answered"
    final = outcome == "failed" and kind is not None and not failed
    return Verdict(outcome=outcome, error=error, message=words, final=final)


def _redirect_words(status: int, target: str) -> str:
    """Return what is said of an answer that sends the request elsewhere, where it was not sent on."""
    bare = _SECRET.sub("sk-...", _USER_OF_URL.sub(r"\1", target.partition("?")[0]))[:_MOST_CHARACTERS]
    there = bare.partition("/v1/")[0] or "/"
    return f"status {status}: the address redirects to {bare}. Set base_url to {there}"


def verdict_on_result(result: Mapping[str, Any]) -> Verdict:
    """Decide what the result of one row of a batch means; the API bills only those that succeeded.

    Notes
    -----
    `result` stands under ``result`` in a line of the batch's results, whatever it is. A row's error has no
    status: its type says whether sending the row again is of use. An error that every row would meet, of the
    account or the model, is no row's last word, as with live answers.
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
    """Return type, words and code of an error body, whatever it is; no key stands in the words."""
    words = _SECRET.sub("sk-...", dig(str, body, "error", "message") or "")[:_MOST_CHARACTERS]
    code = dig(str, body, "error", "details", "error_code")
    return dig(str, body, "error", "type") or None, words, code


def _account_trouble(kind: str | None, words: str, code: str | None) -> str | None:
    """Return the name of a trouble of the account, which no row is to blame for; None where it is none."""
    if code in ERRORS.account_codes:
        return code
    if kind == "billing_error":
        return kind
    return next((name for name, pattern in _ACCOUNT_WORDS.items() if pattern.search(words)), None)


# -------------------------------------------------------------------------------------- what a Message has


def text_of(message: Mapping[str, Any]) -> str | None:
    """Return the text of a Message, or the input of the tool it calls as JSON; None where it has neither."""
    tool_input = _tool_input(message)
    if tool_input is not None:
        return json.dumps(tool_input, ensure_ascii=False, separators=(",", ":"))
    return "".join(block["text"] for block in _blocks(message, "text", "text", str)) or None


def _tool_input(message: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return the input of the first client tool that a Message calls: a forced call is a reply as JSON."""
    return next((block["input"] for block in _blocks(message, "tool_use", "input", dict)), None)


def _blocks(message: Mapping[str, Any], kind: str, name: str, of: type) -> list[dict[str, Any]]:
    """Return the blocks of a kind that have what they are to have."""
    blocks = dig(list, message, "content") or []
    return [b for b in blocks if dig(str, b, "type") == kind and dig(of, b, name) is not None]


def stop_reason_of(message: Mapping[str, Any]) -> str | None:
    """Return why a Message ends, as the API says it; None where it does not."""
    return dig(str, message, "stop_reason")


def usage_of(message: Mapping[str, Any] | None) -> dict[str, int]:
    """Return the token counts of a Message under the ledger's names; nothing is counted twice."""
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
    """Return what a Message says of itself that its price depends on, and why the model declined."""
    return {
        "answering_model": dig(str, message, "model"),
        "inference_geo": dig(str, message, "usage", "inference_geo"),
        "speed": dig(str, message, "usage", "speed"),
        "web_search_requests": _count(message, "server_tool_use", "web_search_requests"),
        "refusal_category": dig(str, message, "stop_details", "category"),
    }


def is_free(message: Mapping[str, Any] | None) -> bool:
    """Whether an answer is not billed though it has tokens: most refusals before any output."""
    refused = dig(str, message, "stop_reason") == "refusal"
    unwritten = dig(int, message, "usage", "output_tokens") == 0
    return refused and unwritten and answer_of(message)["refusal_category"] not in CHARGES.billed_refusals


_Kind = TypeVar("_Kind")


def dig(kind: type[_Kind], body: Any, *path: str) -> _Kind | None:
    """Return what stands at a path in an answer; None where that is nothing of the kind."""
    for name in path:
        body = body.get(name) if isinstance(body, dict) else None
    return body if type(body) is kind else None


def _count(message: Mapping[str, Any] | None, *path: str) -> int:
    count = dig(int, message, "usage", *path)
    return count if count is not None and _is_count(count) else 0


def _is_count(count: int | None) -> bool:
    return count is not None and 0 <= count <= MOST_TOKENS


def read_object(content: bytes) -> dict[str, Any]:
    """Return the JSON object that `content` is; an empty one where it is none."""
    try:
        body = json.loads(content)
    except (ValueError, RecursionError):
        return {}
    return body if isinstance(body, dict) else {}


# ------------------------------------------------------------------------- a Message that comes in events


class StreamedMessage:
    """Takes the bytes of a stream, in whatever pieces, and gives the Message or the error that it brings."""

    def __init__(self) -> None:
        self._rest = self._plain = b""
        self._message: dict[str, Any] = {}
        self._blocks: list[dict[str, Any]] = []
        self._error: dict[str, Any] | None = None

    def feed(self, part: bytes) -> None:
        """Take some more bytes."""
        if not self._message and self._error is None:
            self._plain += part  # a gateway that does not stream sends the Message itself
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
                for name in delta.keys() & {"text", "partial_json"}:  # all of a reply that is kept
                    block[name] = f"{block.get(name) or ''}{delta[name] or ''}"
            case {"type": "message_delta"}:
                usage = {name: n for name, n in (dig(dict, event, "usage") or {}).items() if n is not None}
                self._message |= dig(dict, event, "delta") or {}
                self._message["usage"] = (dig(dict, self._message, "usage") or {}) | usage
            case {"type": "error"}:
                self._error = event

    @property
    def so_far(self) -> dict[str, Any] | None:
        """The Message as far as it came; None before its beginning."""
        if not self._message:
            return None
        content = [dict(block) for block in self._blocks]
        for block in content:
            if (written := block.pop("partial_json", None)) is not None:
                block["input"] = read_object(written.encode())
        return {**self._message, "content": content}

    def answer(self, headers: Mapping[str, str]) -> Answer:
        """Return what the stream says once it has ended: an answer as any other, or one that broke off."""
        if self._error is not None:
            status = ERRORS.stream_statuses.get(_error(self._error)[0] or "", _SERVER_ERROR)
            return Answer(status, headers, json.dumps(self._error).encode(), partial=self.so_far)
        if self._message.get("stop_reason"):
            return Answer(200, headers, json.dumps(self.so_far).encode())
        if "event-stream" not in headers.get("content-type", "event-stream"):
            return Answer(200, headers, self._plain)
        words = "the stream ended before the reply did"
        return Answer(None, headers, b"", "connection_error", reason=words, partial=self.so_far)
