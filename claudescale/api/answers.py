"""What one answer of the Messages API means: pure functions that take any bytes and never raise.

The bytes may come from the API, from a proxy, or from a connection that broke half way.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, replace
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from claudescale.api.catalog import CHARGES, ERRORS

if TYPE_CHECKING:
    from collections.abc import Mapping


CUT = frozenset({"refusal", "max_tokens", "model_context_window_exceeded", "pause_turn", "tool_use"})
"""Reasons to stop that are the error of the reply."""

DRY_RUN = "dry_run"
"""The error of a message that only had the API look at a request, before a batch of such was made."""

WORDS = {
    "max_tokens": "The reply was cut off at max_tokens, and paid for. Raise it: thinking counts in it.",
    "refusal": "The model declined to answer, and the reply is paid for.",
    "free_refusal": "The model declined to answer before it wrote anything. Nothing was paid.",
    "model_context_window_exceeded": "Prompt and reply are longer than the model can hold. Shorten the text.",
    "pause_turn": "The model paused a long turn, which a row cannot go on with.",
    "tool_use": "The model called a tool, and a row has nobody to answer it. Leave the tools out.",
    "empty_reply": "The reply has no text, and is paid for. Where the model thinks, raise max_tokens.",
    "expired": "The batch ended after its 24 hours, before this row was worked off. Nothing was paid.",
    "canceled": "The batch was canceled before this row was worked off. Nothing was paid.",
    DRY_RUN: "One short message before the first batch, so that the API looks at the request.",
}
"""What is said of an answer that has no words of its own, by its error."""

NO_ENDPOINT = "endpoint_not_found"
"""A 404 that does not speak of the model: of the address, or of a gateway that has less than the API."""
DOUBTED = {"authentication_error", "permission_error", "not_found_error", "redirect_error", NO_ENDPOINT}
"""Errors that a key, a model and an address which have answered may meet once by mistake."""
STOPPING_ERRORS = frozenset(ERRORS.account_codes) | {
    "authentication_error",
    "billing_error",
    "permission_error",
    "not_found_error",
    NO_ENDPOINT,
    "spend_limit_reached",
    "account_disabled",
}
"""Errors of the account or the model, met by every row alike; for none of them is a row to blame."""
NOT_FOLLOWED = "claudescale-not-followed"
"""The header that stands for ``location`` in an answer whose redirect must not be followed."""

_STOPPING = {401, 402, 403, 404}
_FAILING_ERRORS = {"invalid_request_error", "request_too_large"}
_RETRIED = {408, 409, 429}
_ACCOUNT_WORDS = {
    "spend_limit_reached": re.compile(
        r"^you have reached your (specified|[\w ]{0,40}usage limits?)\b", re.IGNORECASE
    ),
    "billing_error": re.compile("credit balance is too low", re.IGNORECASE),
    "account_disabled": re.compile(
        r"\b(organi[sz]ation|workspace|account|encryption key|API key)\b[^.:]{0,40} "
        r"(has been|have been|is|was)( \w+)? (disabled|suspended|deactivated|on hold|banned|archived)",
        re.IGNORECASE,
    ),
}
"""What the API says of an account without a code. Source: Anthropic, *Errors* (checked 2026-08-21)."""
_OF_A_MODEL = re.compile("model|claude-", re.IGNORECASE)
_UNSENDABLE = {
    "authentication_error": "The SDK finds no credentials, or none that it can use.",
    "simulator_error": "A simulator answers there, and only one on this machine can be told from the API.",
    "unsendable_error": "Nothing could be sent, so nothing is paid",
    "redirect_error": "The address redirects, and leads nowhere",
}
"""Failures that another try or another row would meet again."""
_SILENCE = {
    True: "no answer came; the API may have done, and billed, what it was asked",
    False: "no connection was made, so nothing was sent and nothing is paid",
}
_STREAM_STATUSES = {
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
_DELTAS = {"text_delta": "text", "thinking_delta": "thinking", "signature_delta": "signature"}
_USER_OF_URL = re.compile(r"^(\w*:?//)[^/@]*@")
_SECRET = re.compile(r"sk-[\w-]{8,}")
_MOST_CHARACTERS = 500
_MOST_TOKENS = 2**53


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
    it retries. A spend limit comes as a 429 or a 400 and lasts for days: it ends the run. The header
    ``x-should-retry`` overrules the list, as it does in the SDK.
    """
    if answer.status is None:
        return _verdict_on_silence(answer)
    body = read_object(answer.content)
    if answer.partial is not None:  # an error in a stream: what was written before it is paid for
        return replace(_verdict_on_error(answer.status, answer.headers, body), unseen=True)
    if 200 <= answer.status < 300:  # noqa: PLR2004 - HTTP's own numbers
        return _verdict_on_message(body)
    return _verdict_on_error(answer.status, answer.headers, body)


def _verdict_on_silence(answer: Answer) -> Verdict:
    because = f": {answer.reason}" if answer.reason else ""
    if words := _UNSENDABLE.get(answer.failure or ""):
        return Verdict(outcome="stop", error=answer.failure, message=f"{words}{because}")
    words = f"{_SILENCE[answer.sent]}{because}"
    return Verdict(outcome="overloaded", error=answer.failure, message=words, unseen=answer.sent)


def _verdict_on_message(body: dict[str, Any]) -> Verdict:
    if dig(list, body, "content") is None:
        error = _error(body).type or "invalid_response"
        return Verdict(outcome="again", error=error, message="the answer is no Message", unseen=True)
    stop_reason = stop_reason_of(body)
    called = stop_reason == "tool_use" and _tool_input(body) is not None
    flaw = stop_reason if stop_reason in CUT and not called else None if text_of(body) else "empty_reply"
    words = WORDS.get("free_refusal" if is_free(body) else flaw or "")
    unseen = not all(_is_count(dig(int, body, "usage", name)) for name in ("input_tokens", "output_tokens"))
    return Verdict(outcome="answered", error=flaw, message=words, reply=body, final=True, unseen=unseen)


def _verdict_on_error(status: int, headers: Mapping[str, str], body: dict[str, Any]) -> Verdict:
    problem = _error(body)
    if 300 <= status < 400 and (target := headers.get("location") or headers.get(NOT_FOLLOWED)):  # noqa: PLR2004
        return Verdict(outcome="stop", error="redirect_error", message=_redirect_words(status, target))
    if trouble := _account_trouble(problem):
        return Verdict(outcome="stop", error=trouble, message=problem.message)
    if problem.code in ERRORS.passing_codes:
        return Verdict(outcome="overloaded", error=problem.code, message=problem.message)
    error, outcome, retry = problem.type or f"http_{status}", "failed", headers.get("x-should-retry")
    if retry != "true" and status in _STOPPING and problem.code not in ERRORS.row_codes:
        outcome = "stop" if problem.type else "failed"  # a proxy's page says nothing of the account
        if problem.type == "not_found_error" and not _OF_A_MODEL.search(problem.message):
            error = NO_ENDPOINT
    elif status == HTTPStatus.TOO_MANY_REQUESTS:
        error = problem.code or error
        outcome = "stop" if retry == "false" else "refused"  # no row is to blame for a limit
    elif retry == "true" or (retry != "false" and (status in _RETRIED or status >= 500)):  # noqa: PLR2004
        outcome = "overloaded" if status >= 500 else "again"  # noqa: PLR2004
    final = outcome == "failed" and problem.type is not None and status < 500  # noqa: PLR2004
    words = problem.message or _no_words(status, headers)
    return Verdict(outcome=outcome, error=error, message=words, final=final)


def _redirect_words(status: int, target: str) -> str:
    """Return what is said of an answer that sends the request elsewhere, where it was not sent on."""
    bare = _SECRET.sub("sk-...", _USER_OF_URL.sub(r"\1", target.partition("?")[0]))[:_MOST_CHARACTERS]
    there = bare.partition("/v1/")[0] or "/"
    return f"status {status}: the address redirects to {bare}. Set base_url to {there}"


def _no_words(status: int, headers: Mapping[str, str]) -> str:
    """Return what is said of an answer without words of the API: nothing of a page, it may say anything."""
    phrase = next((f" {known.phrase}" for known in HTTPStatus if known == status), "")
    kind = headers.get("content-type", "").partition(";")[0].strip()[:40]
    as_what = f" as {kind}" if kind else ""
    return f"status {status}{phrase}{as_what}, no words of the API: a proxy may have answered"


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
        return Verdict(outcome="again", error=kind, message=WORDS[kind])
    if kind != "errored":
        words = "the line of the batch tells no result"
        return Verdict(outcome="again", error="invalid_response", message=words, unseen=True)
    problem = _error(dig(dict, result, "error") or {})
    passing = problem.code if problem.code in ERRORS.passing_codes else None
    error = _account_trouble(problem) or passing or problem.type or "invalid_response"
    outcome = "stop" if error in STOPPING_ERRORS else "failed" if error in _FAILING_ERRORS else "again"
    words = problem.message or "The API tells no more than the kind of the error."
    return Verdict(outcome=outcome, error=error, message=words, final=outcome == "failed")


class _Error(NamedTuple):
    type: str | None
    message: str
    code: str | None


def _error(body: dict[str, Any]) -> _Error:
    """Return type, words and code of an error body, whatever it is; no key stands in the words."""
    words = dig(str, body, "error", "message") or ""
    code = dig(str, body, "error", "details", "error_code")
    return _Error(
        dig(str, body, "error", "type") or None, _SECRET.sub("sk-...", words)[:_MOST_CHARACTERS], code
    )


def _account_trouble(error: _Error) -> str | None:
    """Return the name of a trouble of the account, which no row is to blame for; None where it is none."""
    if error.code in ERRORS.account_codes:
        return error.code
    if error.type == "billing_error":
        return error.type
    return next((name for name, words in _ACCOUNT_WORDS.items() if words.search(error.message)), None)


# -------------------------------------------------------------------------------------- what a Message has


def text_of(message: Mapping[str, Any]) -> str | None:
    """Return the text of a Message, or the input of the tool it calls as JSON; None where it has neither."""
    given = _tool_input(message)
    if given is not None:
        return json.dumps(given, ensure_ascii=False, separators=(",", ":"))
    texts = (dig(str, block, "text") for block in _blocks(message, "text"))
    return "".join(text for text in texts if text) or None


def _tool_input(message: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return the input of the first client tool that a Message calls: a forced call is a reply as JSON."""
    inputs = (dig(dict, block, "input") for block in _blocks(message, "tool_use"))
    return next((given for given in inputs if given is not None), None)


def _blocks(message: Mapping[str, Any], kind: str) -> list[Any]:
    return [block for block in dig(list, message, "content") or [] if dig(str, block, "type") == kind]


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
        "refusal_category": _refusal_category(message),
    }


def is_free(message: Mapping[str, Any] | None) -> bool:
    """Whether an answer is not billed though it has tokens: most refusals before any output."""
    refused = dig(str, message, "stop_reason") == "refusal"
    unwritten = dig(int, message, "usage", "output_tokens") == 0
    return refused and unwritten and _refusal_category(message) not in CHARGES.billed_refusals


def _refusal_category(message: Mapping[str, Any] | None) -> str | None:
    refused = dig(str, message, "stop_reason") == "refusal"
    return dig(str, message, "stop_details", "category") if refused else None


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
    return count is not None and 0 <= count <= _MOST_TOKENS


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
        self._blocks: dict[int, dict[str, Any]] = {}
        self._inputs: dict[int, str] = {}  # of tools, as JSON
        self._error: dict[str, Any] | None = None
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
        match event:
            case {"type": "message_start", "message": dict(message)}:
                self._message, self._plain = message, b""
            case {"type": "content_block_start", "index": int(index), "content_block": dict(block)}:
                self._blocks[index] = dict(block)
            case {"type": "content_block_delta", "index": int(index), "delta": dict(delta)}:
                self._add(index, delta)
            case {"type": "message_delta"}:
                self._message |= dig(dict, event, "delta") or {}
                usage = {name: n for name, n in (dig(dict, event, "usage") or {}).items() if n is not None}
                self._message["usage"] = (dig(dict, self._message, "usage") or {}) | usage
                self._is_over |= bool(self._message.get("stop_reason"))
            case {"type": "message_stop"}:
                self._is_over = True
            case {"type": "error"}:
                self._error = event

    def _add(self, index: int, delta: dict[str, Any]) -> None:
        block, kind = self._blocks.get(index, {}), str(delta.get("type"))
        if kind in _DELTAS:
            name = _DELTAS[kind]
            block[name] = f"{block.get(name) or ''}{delta.get(name) or ''}"
        elif kind == "input_json_delta":
            self._inputs[index] = self._inputs.get(index, "") + str(delta.get("partial_json") or "")
        elif kind == "citations_delta":
            block["citations"] = [*(block.get("citations") or []), delta.get("citation")]

    @property
    def so_far(self) -> dict[str, Any] | None:
        """The Message as far as it came; None before its beginning."""
        if not self._message:
            return None
        for index in self._inputs.keys() & self._blocks.keys():
            self._blocks[index]["input"] = read_object(self._inputs[index].encode())
        return {**self._message, "content": [self._blocks[index] for index in sorted(self._blocks)]}

    def answer(self, headers: Mapping[str, str]) -> Answer:
        """Return what the stream says once it has ended: an answer as any other, or one that broke off."""
        if self._error is not None:
            status = _STREAM_STATUSES.get(_error(self._error).type or "", 500)
            return Answer(status, headers, json.dumps(self._error).encode(), partial=self.so_far)
        if self._is_over:
            return Answer(200, headers, json.dumps(self.so_far).encode())
        if "event-stream" not in headers.get("content-type", "event-stream"):
            return Answer(200, headers, self._plain)
        words = "the stream ended before the reply did"
        return Answer(None, headers, b"", "connection_error", reason=words, partial=self.so_far)
