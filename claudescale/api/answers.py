"""What one answer of the Messages API means: pure functions that take any bytes and never raise.

The bytes may come from the API, from a proxy, or from a connection that broke half way.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, replace
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, NamedTuple, TypeGuard

from claudescale.api.catalog import CHARGES

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

_ACCOUNT_CODES = frozenset(
    {
        "approval_required",
        "claude_code_key_creator_not_member",
        "claude_code_version_too_old",
        "cmek_feature_unsupported",
        "cmek_key_disabled",
        "cmek_key_network_blocked",
        "cmek_not_approved",
        "contract_spend_limit_reached",
        "enforced_spend_limit_reached",
        "gcp_project_not_verified",
        "human_review_not_available",
        "linked_organization_billing_unavailable",
        "linked_organization_spend_limit_reached",
        "organization_not_eligible",
        "organization_not_enrolled_in_beta",
        "organization_on_hold",
        "organization_type_not_supported",
        "parent_organization_required",
        "provider_not_allowed",
        "region_not_supported",
        "sandbox_egress_restricted",
        "unsupported_region",
        "user_profile_not_billable",
        "user_profile_not_found",
        "user_profile_required",
        "workspace_human_review_disabled",
        "workspace_policy_violation",
    }
)
"""Codes of troubles of the account, whatever their status. Source: anthropic 2.14.0 _error_classes.py."""
_PASSING_CODES = frozenset({"cmek_context_unavailable", "cmek_key_unreachable"})
"""Of the account as well, and gone in minutes: the API says to try again."""

NO_ENDPOINT = "endpoint_not_found"
"""A 404 that does not speak of the model: of the address, or of a gateway that has less than the API."""
DOUBTED = frozenset(
    {"authentication_error", "permission_error", "not_found_error", "redirect_error", NO_ENDPOINT}
)
"""Errors that a key, a model and an address which have answered may meet once by mistake."""

STOPPING_ERRORS = frozenset(
    {
        "authentication_error",
        "billing_error",
        "permission_error",
        "not_found_error",
        NO_ENDPOINT,
        "spend_limit_reached",
        "account_disabled",
        *_ACCOUNT_CODES,
    }
)
"""Errors of the account or the model, met by every row alike; for none of them is a row to blame."""

_STOPPING = {401, 402, 403, 404}
_FAILING_ERRORS = {"invalid_request_error", "request_too_large"}
_NO_RESULT = "the line of the batch tells no result"
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
_ROW_CODES = frozenset({"file_expired", "file_not_found"})  # a 404 of what one row names
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
NOT_FOLLOWED = "claudescale-not-followed"
"""The header that stands for ``location`` in an answer whose redirect must not be followed."""
_USER_OF_URL = re.compile(r"^(\w*:?//)[^/@]*@")
_SECRET = re.compile(r"sk-[\w-]{8,}")
_MOST_CHARACTERS = 500
_MOST_KIND = 40
_MOST_TOKENS = 2**53


class Answer(NamedTuple):
    """What came back for one request.

    Attributes
    ----------
    status : int or None
        None where no answer came: `failure` then says what did, in the words of an error type.
    sent : bool
        False where the request surely never reached the API.
    reason : str
        Why no answer came, in words, as far as that is known; never a key.
    partial : dict or None
        The Message as far as it was streamed, where the stream broke: what it used is paid for.
    """

    status: int | None
    headers: Mapping[str, str]
    content: bytes
    failure: str | None = None
    sent: bool = True
    reason: str = ""
    partial: Mapping[str, Any] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What an answer means for its row.

    Attributes
    ----------
    outcome : str
        ``"answered"`` (paid for), ``"failed"`` (sending it again is of no use), ``"refused"`` (the
        limits), ``"overloaded"`` (try again, fewer at once), ``"again"`` (try again), ``"stop"`` (the
        whole run).
    error, message : str or None
        The API's error type, and its words.
    reply : dict or None
        The Message, where there is one.
    final : bool
        Whether it is the API's own last word on the row; a proxy's page never is.
    unseen : bool
        Whether the API may have billed something that the answer does not tell.
    """

    outcome: str
    error: str | None = None
    message: str | None = None
    reply: dict[str, Any] | None = None
    final: bool = False
    unseen: bool = False


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
    unsendable = _UNSENDABLE.get(answer.failure or "")
    if unsendable is not None:
        return Verdict(outcome="stop", error=answer.failure, message=f"{unsendable}{because}")
    words = f"{_SILENCE[answer.sent]}{because}"
    return Verdict(outcome="overloaded", error=answer.failure, message=words, unseen=answer.sent)


def _verdict_on_message(body: dict[str, Any]) -> Verdict:
    if not isinstance(body.get("content"), list):
        error = _error(body).type or "invalid_response"
        return Verdict(outcome="again", error=error, message="the answer is no Message", unseen=True)
    stop_reason = stop_reason_of(body)
    called = stop_reason == "tool_use" and _tool_input(body) is not None
    cut = stop_reason if stop_reason in CUT and not called else None
    silent = None if text_of(body) else "empty_reply"
    usage = _dict(body, "usage")
    unseen = not all(_is_count(usage.get(name)) for name in ("input_tokens", "output_tokens"))
    flaw = cut or silent
    words = WORDS.get("free_refusal" if is_free(body) else flaw or "")
    return Verdict(outcome="answered", error=flaw, message=words, reply=body, final=True, unseen=unseen)


def _verdict_on_error(status: int, headers: Mapping[str, str], body: dict[str, Any]) -> Verdict:
    found = _error(body)
    error: str = found.type or f"http_{status}"
    if 300 <= status < 400 and (led := headers.get("location") or headers.get(NOT_FOLLOWED)):  # noqa: PLR2004
        return Verdict(outcome="stop", error="redirect_error", message=_redirect_words(status, led))
    told = headers.get("x-should-retry")
    trouble = _account_trouble(found)
    if trouble is not None:
        return Verdict(outcome="stop", error=trouble, message=found.message)
    if found.code in _PASSING_CODES:
        return Verdict(outcome="overloaded", error=found.code, message=found.message)
    outcome = "failed"
    if told != "true" and status in _STOPPING and found.code not in _ROW_CODES:
        outcome = "stop" if found.type else "failed"  # a proxy's page says nothing of the account
        if found.type == "not_found_error" and not _OF_A_MODEL.search(found.message):
            error = NO_ENDPOINT
    elif status == HTTPStatus.TOO_MANY_REQUESTS:
        error = found.code or error
        outcome = "stop" if told == "false" else "refused"  # no row is to blame for a limit
    elif told == "true" or (told != "false" and (status in _RETRIED or status >= 500)):  # noqa: PLR2004
        outcome = "overloaded" if status >= 500 else "again"  # noqa: PLR2004
    final = outcome == "failed" and found.type is not None and status < 500  # noqa: PLR2004
    words = found.message or _no_words(status, headers)
    return Verdict(outcome=outcome, error=error, message=words, final=final)


def _redirect_words(status: int, led: str) -> str:
    """Return what is said of an answer that sends the request elsewhere, where it was not sent on."""
    bare = _SECRET.sub("sk-...", _USER_OF_URL.sub(r"\1", led.partition("?")[0]))[:_MOST_CHARACTERS]
    there = bare.partition("/v1/")[0] or "/"
    return f"status {status}: the address redirects to {bare}. Set base_url to {there}"


def _no_words(status: int, headers: Mapping[str, str]) -> str:
    """Return what is said of an answer without words of the API: nothing of a page, it may say anything."""
    names = {each.value: f" {each.phrase}" for each in HTTPStatus}
    kind = headers.get("content-type", "").partition(";")[0].strip()[:_MOST_KIND]
    as_what = f" as {kind}" if kind else ""
    return f"status {status}{names.get(status, '')}{as_what}, no words of the API: a proxy may have answered"


def verdict_on_result(result: Mapping[str, Any]) -> Verdict:
    """Decide what the result of one row of a batch means; the API bills only those that succeeded.

    Parameters
    ----------
    result : mapping
        What stands under ``result`` in a line of the batch's results, whatever it is.

    Notes
    -----
    A row's error has no status: its type says whether sending the row again is of use. An error that
    every row would meet, of the account or the model, is no row's last word, as with live answers.
    Source: Anthropic, *Batch processing* and *Errors* (checked 2026-10-08).
    """
    kind = result.get("type")
    if kind == "succeeded":
        return _verdict_on_message(_dict(result, "message"))
    if kind == "errored":
        return _verdict_on_row_error(_dict(result, "error"))
    if kind in ("expired", "canceled"):
        return Verdict(outcome="again", error=kind, message=WORDS[kind])
    return Verdict(outcome="again", error="invalid_response", message=_NO_RESULT, unseen=True)


def _verdict_on_row_error(body: dict[str, Any]) -> Verdict:
    found = _error(body)
    passing = found.code if found.code in _PASSING_CODES else None
    error = _account_trouble(found) or passing or found.type or "invalid_response"
    outcome = "stop" if error in STOPPING_ERRORS else "failed" if error in _FAILING_ERRORS else "again"
    words = found.message or "The API tells no more than the kind of the error."
    return Verdict(outcome=outcome, error=error, message=words, final=outcome == "failed")


def text_of(message: Mapping[str, Any]) -> str | None:
    """Return the text of a Message, or the input of the tool it calls as JSON; None where it has neither."""
    given = _tool_input(message)
    if given is not None:
        return json.dumps(given, ensure_ascii=False, separators=(",", ":"))
    texts = [block.get("text") for block in _blocks(message, "text")]
    return "".join(text for text in texts if isinstance(text, str)) or None


def _tool_input(message: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return the input of the first client tool that a Message calls: a forced call is a reply as JSON."""
    inputs = [block.get("input") for block in _blocks(message, "tool_use")]
    return next((each for each in inputs if isinstance(each, dict)), None)


def _blocks(message: Mapping[str, Any], kind: str) -> list[dict[str, Any]]:
    content = message.get("content")
    blocks = content if isinstance(content, list) else []
    return [block for block in blocks if isinstance(block, dict) and block.get("type") == kind]


def stop_reason_of(message: Mapping[str, Any]) -> str | None:
    """Return why a Message ends, as the API says it; None where it does not."""
    reason = message.get("stop_reason")
    return reason if isinstance(reason, str) else None


def usage_of(message: Mapping[str, Any] | None) -> dict[str, int]:
    """Return the token counts of a Message under the ledger's names; nothing is counted twice."""
    usage = _dict(message or {}, "usage")
    hour = _count(_dict(usage, "cache_creation"), "ephemeral_1h_input_tokens")
    written = max(_count(usage, "cache_creation_input_tokens"), hour)
    return {
        "input_tokens": _count(usage, "input_tokens"),
        "cache_write_5m_input_tokens": written - hour,
        "cache_write_1h_input_tokens": hour,
        "cache_read_input_tokens": _count(usage, "cache_read_input_tokens"),
        "output_tokens": _count(usage, "output_tokens"),
        "thinking_tokens": _count(_dict(usage, "output_tokens_details"), "thinking_tokens"),
    }


def answer_of(message: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return what a Message says of itself that its price depends on, and why the model declined."""
    body = message or {}
    usage = _dict(body, "usage")
    return {
        "answering_model": _text(body, "model"),
        "inference_geo": _text(usage, "inference_geo"),
        "speed": _text(usage, "speed"),
        "web_search_requests": _count(_dict(usage, "server_tool_use"), "web_search_requests"),
        "refusal_category": _refusal_category(body) if stop_reason_of(body) == "refusal" else None,
    }


def is_free(message: Mapping[str, Any] | None) -> bool:
    """Whether an answer is not billed though it has tokens: most refusals before any output."""
    body = message or {}
    if stop_reason_of(body) != "refusal" or _dict(body, "usage").get("output_tokens") != 0:
        return False
    return _refusal_category(body) not in CHARGES.billed_refusals


def _refusal_category(body: Mapping[str, Any]) -> str | None:
    return _text(_dict(body, "stop_details"), "category")


def _text(parent: Mapping[str, Any], name: str) -> str | None:
    found = parent.get(name)
    return found if isinstance(found, str) else None


def _dict(parent: Mapping[str, Any], name: str) -> dict[str, Any]:
    found = parent.get(name)
    return found if isinstance(found, dict) else {}


def _count(parent: Mapping[str, Any], name: str) -> int:
    found = parent.get(name)
    return found if _is_count(found) else 0


def _is_count(found: object) -> TypeGuard[int]:
    return type(found) is int and 0 <= found <= _MOST_TOKENS


def read_object(content: bytes) -> dict[str, Any]:
    """Return the JSON object that `content` is; an empty one where it is none."""
    try:
        body = json.loads(content)
    except (ValueError, RecursionError):
        return {}
    return body if isinstance(body, dict) else {}


class _Error(NamedTuple):
    type: str | None
    message: str
    code: str | None


def _account_trouble(found: _Error) -> str | None:
    """Return the name of a trouble of the account, which no row is to blame for; None where it is none."""
    if found.code in _ACCOUNT_CODES:
        return found.code
    if found.type == "billing_error":
        return found.type
    return next((name for name, words in _ACCOUNT_WORDS.items() if words.search(found.message)), None)


def _error(body: dict[str, Any]) -> _Error:
    """Return type, words and code of an error body, whatever it is; no key stands in the words."""
    error = _dict(body, "error")
    kind, message = error.get("type"), error.get("message")
    code = _dict(error, "details").get("error_code")
    return _Error(
        kind if isinstance(kind, str) and kind else None,
        _SECRET.sub("sk-...", message)[:_MOST_CHARACTERS] if isinstance(message, str) else "",
        code if isinstance(code, str) else None,
    )
