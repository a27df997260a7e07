"""What the simulated models answer: synthetic, plausible, and the same for the same request.

A reply depends on the seed and the body alone, never on the order or the time of the calls.
"""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass, field, replace
from hashlib import blake2b
from random import Random
from typing import TYPE_CHECKING, Any

from claudescale.simulator.checks import GEO_FROM, generation
from claudescale.simulator.tokens import pieces, tokens_in
from claudescale.simulator.words import Subject, subject
from claudescale.simulator.writing import Writer

if TYPE_CHECKING:
    from collections.abc import Callable

    from claudescale.api.catalog import Model

MARK = "[simulated] "
ASIDE = frozenset({"stream", "metadata", "service_tier", "max_tokens", "cache_control", "diagnostics"})
# Invented, like `PACE`: how often a label or a flag is the one that the seed and the text make right.
SKILL = {"haiku": 0.90, "sonnet": 0.95, "opus": 0.97, "fable": 0.98, "mythos": 0.98}
OLD_SKILL_LOSS = 0.03  # of the models with the older tokenizer
THINKING_TOKENS = {"low": 60, "medium": 160, "high": 380, "xhigh": 900, "max": 2200}
THINKING_CHANCE = {"low": 0.2, "medium": 0.5, "high": 0.85, "xhigh": 1.0, "max": 1.0}
PACE = {  # seconds to the first token, output tokens per second: invented, only their order is documented
    "haiku": (0.5, 160.0),
    "sonnet": (1.0, 85.0),
    "opus": (1.5, 60.0),
    "fable": (2.2, 45.0),
    "mythos": (2.2, 45.0),
}
FAST_MODE_SPEEDUP = 2.5
READING_TOKENS_PER_SECOND = 60_000.0
WORDS_ASKED = re.compile(r"\b(\d{1,4})[ -]words?\b")
MAX_WORDS = 3_000
SHOWN_THINKING = "[simulated] What is asked is weighed against what the text says."
REFUSALS = ("general_harms", "cyber", "bio", "frontier_llm")
BILLED_REFUSALS = frozenset({"bio", "frontier_llm", "reasoning_extraction"})
REASONING = re.compile(r'"(?:reasoning|thinking|trace)": \{')  # as a field of a schema
MOST_SEARCHES = 3
SEARCH_TOKENS = 40  # of output, to ask for one
BLOCK_TOKENS = 3  # a reply is never free of output tokens, even an empty one


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """One answer of a model, before it is put on the wire."""

    content: list[dict[str, Any]]
    stop_reason: str
    output_tokens: int
    thinking_tokens: int = 0
    stop_sequence: str | None = None
    stop_details: dict[str, Any] | None = field(default=None)
    geo: str = "global"
    speed: str = "standard"
    searches: int | None = None  # of the web; None where they are not offered
    found_tokens: int = 0  # of what they found, which is input

    @property
    def billed(self) -> bool:
        """Whether it costs anything: a refusal before any output does only in some categories."""
        category = (self.stop_details or {}).get("category")
        return self.stop_reason != "refusal" or self.output_tokens > 0 or category in BILLED_REFUSALS


def digest(seed: int, body: dict[str, Any]) -> bytes:
    """Return what decides the reply to a request: the seed and everything the model would see."""
    seen = {key: value for key, value in body.items() if key not in ASIDE}
    text = json.dumps(seen, sort_keys=True, separators=(",", ":"))
    return blake2b(text.encode(), digest_size=16, key=str(seed).encode()[:64]).digest()


def draws(key: bytes, purpose: str = "") -> Random:
    """Return a random generator for one purpose, the same for the same `key`."""
    if purpose:
        key = blake2b(purpose.encode(), digest_size=8, key=key[:64]).digest()
    return Random(int.from_bytes(key[:8], "big"))


def effort_of(body: dict[str, Any], model: Model) -> str:
    """Return the effort a request asks for, or the model's own."""
    return (body.get("output_config") or {}).get("effort") or model.default_effort or "high"


def thinking_tokens(body: dict[str, Any], model: Model, own: Random) -> int:
    """Return how many tokens the model would think, if nothing cut it short."""
    asked = body.get("thinking") or {}
    kind = asked.get("type") or ("adaptive" if model.thinks_by_default else "disabled")
    if kind in {"disabled", "between_tools"}:
        return 0
    effort = effort_of(body, model)
    chance, size = own.random(), own.lognormvariate(0.0, 0.5)
    if kind == "adaptive" and chance > THINKING_CHANCE[effort]:
        return 0
    wanted = math.ceil(THINKING_TOKENS[effort] * size)
    return min(wanted, int(asked.get("budget_tokens") or wanted))


def compose(
    key: bytes,
    seed: int,
    body: dict[str, Any],
    model: Model,
    written: Callable[[dict[str, Any]], Any] | None = None,
) -> Reply:
    """Return the reply to a valid request.

    Parameters
    ----------
    key : bytes
        `digest` of the request.
    written : callable, optional
        Gives the text (or the JSON value) instead of the simulator's own.
    """
    geo = body.get("inference_geo") or ("global" if generation(model.id) >= GEO_FROM else "not_available")
    placed: dict[str, Any] = {"geo": geo, "speed": body.get("speed") or "standard"}
    if body["max_tokens"] == 0:
        return Reply(content=[], stop_reason="max_tokens", output_tokens=0, **placed)
    own = draws(key)
    thought = thinking_tokens(body, model, own)
    tool = _forced_tool(body)
    if written is not None:
        given = written(body)
        text = given if isinstance(given, str) else json.dumps(given, ensure_ascii=False)
        tool = None
    elif tool is not None:
        text = json.dumps(
            _structured(tool.get("input_schema") or {}, seed, body, model, own), ensure_ascii=False
        )
    else:
        text = _text(seed, body, model, own)
    reply = Reply(content=[], stop_reason="end_turn", output_tokens=0, thinking_tokens=thought, **placed)
    for stop in body.get("stop_sequences") or ():
        if stop and stop in text and tool is None:
            text = text.partition(stop)[0]
            reply = replace(reply, stop_reason="stop_sequence", stop_sequence=stop)
    return _searched(_cut(reply, text, tool, body, model, key), body, key)


def _searched(reply: Reply, body: dict[str, Any], key: bytes) -> Reply:
    """Return the reply after a few searches of the web, or none, where the request offers them."""
    tools = (tool for tool in body.get("tools") or () if str(tool.get("type")).startswith("web_search_"))
    tool = next(tools, None)
    if tool is None:
        return reply
    own = draws(key, "search")
    room = (body["max_tokens"] - reply.output_tokens) // SEARCH_TOKENS
    count = min(room, own.randint(0, min(MOST_SEARCHES, tool.get("max_uses") or MOST_SEARCHES)))
    if (body.get("tool_choice") or {}).get("type") == "none" or reply.stop_reason == "max_tokens":
        count = 0
    blocks: list[dict[str, Any]] = []
    for number in range(count):
        name = f"srvtoolu_sim{key.hex()[:16]}{number:02d}"
        asked = {"id": name, "name": "web_search", "input": {"query": f"{MARK}{number + 1}"}}
        page = {"url": f"https://example.com/{number + 1}", "title": MARK.strip(), "page_age": None}
        found = [{"type": "web_search_result", **page, "encrypted_content": f"c2ltdWxhdGVk{key.hex()}"}]
        caller = {"caller": {"type": "direct"}}
        blocks.append({"type": "server_tool_use", **asked, **caller})
        blocks.append({"type": "web_search_tool_result", "tool_use_id": name, "content": found, **caller})
    at = len([block for block in reply.content[:1] if block["type"] == "thinking"])
    return replace(
        reply,
        content=[*reply.content[:at], *blocks, *reply.content[at:]],
        searches=count,
        found_tokens=sum(own.randint(500, 2_000) for _ in range(count)),
        output_tokens=reply.output_tokens + SEARCH_TOKENS * count,
    )


def _cut(  # noqa: PLR0917
    reply: Reply, text: str, tool: dict[str, Any] | None, body: dict[str, Any], model: Model, key: bytes
) -> Reply:
    """Put text and thinking together within `max_tokens`, which counts both."""
    room = int(body["max_tokens"])
    content = []
    if reply.thinking_tokens:
        content.append(_thinking(body, model, key))
    thought = min(reply.thinking_tokens, room)
    room -= thought
    needed = BLOCK_TOKENS + tokens_in(text, model.characters_per_token)
    cut = needed > room
    if cut:
        text = text[: int(len(text) * max(0, room - BLOCK_TOKENS) / max(1, needed - BLOCK_TOKENS))]
    if tool is not None and not cut:
        used = {"type": "tool_use", "id": f"toolu_sim{key.hex()[:20]}", "name": tool["name"]}
        content.append({**used, "input": json.loads(text)})
    elif room > 0:
        content.append({"type": "text", "text": text, "citations": None})
    stop = "max_tokens" if cut else "tool_use" if tool is not None else reply.stop_reason
    return replace(
        reply,
        content=content,
        stop_reason=stop,
        stop_sequence=None if cut else reply.stop_sequence,
        output_tokens=thought + min(needed, room),
        thinking_tokens=thought,
    )


def _thinking(body: dict[str, Any], model: Model, key: bytes) -> dict[str, Any]:
    # Opus 4.7 and later leave the text of their thinking out unless asked for it.
    shown = (body.get("thinking") or {}).get("display") or (
        "omitted" if model.tokenizer == "2026" else "summarized"
    )
    text = SHOWN_THINKING if shown == "summarized" else ""
    return {"type": "thinking", "thinking": text, "signature": f"c2ltdWxhdGVk{key.hex()}"}


def _forced_tool(body: dict[str, Any]) -> dict[str, Any] | None:
    choice = body.get("tool_choice") or {}
    tools = [tool for tool in body.get("tools") or () if "input_schema" in tool]
    if choice.get("type") == "any" and tools:
        return dict(tools[0])
    if choice.get("type") == "tool":
        return next((dict(tool) for tool in tools if tool.get("name") == choice.get("name")), None)
    return None


def _last_text(body: dict[str, Any]) -> str:
    return "\n".join(text for text, _, _ in pieces(body["messages"][-1]["content"]))


def _structured(schema: dict[str, Any], seed: int, body: dict[str, Any], model: Model, own: Random) -> Any:
    about = subject(_last_text(body))
    fair = draws(
        blake2b(about.encode("utf-8", "surrogatepass"), key=str(seed).encode()[:64]).digest(), "fair"
    )
    skill = SKILL.get(model.line, SKILL["sonnet"]) - (OLD_SKILL_LOSS if model.tokenizer == "2024" else 0.0)
    return Writer(Subject(about), schema, fair, own, skill).write()


def _text(seed: int, body: dict[str, Any], model: Model, own: Random) -> str:
    wanted = (body.get("output_config") or {}).get("format")
    if wanted:
        return json.dumps(_structured(wanted["schema"], seed, body, model, own), ensure_ascii=False)
    prompt = _last_text(body)
    asked = WORDS_ASKED.search(prompt)
    sentences = Subject(subject(prompt)).sentences()
    if asked:
        words = " ".join(sentences).split()
        count = min(MAX_WORDS, int(asked.group(1)))
        return MARK + " ".join((words * (count // len(words) + 1))[:count])
    first = own.randrange(len(sentences))
    chosen = sentences[first : first + own.randrange(1, 4)]
    return MARK + " ".join(" ".join(chosen).split()[: own.randrange(25, 70)])


def seconds(
    model: Model, body: dict[str, Any], reply: Reply, input_tokens: int, key: bytes
) -> tuple[float, float]:
    """Return the API seconds until the reply begins, and until it is complete."""
    own = draws(key, "latency")
    first, pace = PACE.get(model.line, PACE["sonnet"])
    if body.get("speed") == "fast":
        pace *= FAST_MODE_SPEEDUP
    begins = first * own.lognormvariate(0.0, 0.25) + input_tokens / READING_TOKENS_PER_SECOND
    return begins, begins + reply.output_tokens / (pace * own.lognormvariate(0.0, 0.2))


def spoiled(kind: str, reply: Reply, key: bytes, body: dict[str, Any]) -> Reply:
    """Return what becomes of a reply by a fault: empty, thinking alone, refused or cut short."""
    text = next((block["text"] for block in reply.content if block["type"] == "text"), "")
    if kind == "empty_content":
        return replace(
            reply, content=[], stop_reason="end_turn", output_tokens=BLOCK_TOKENS, thinking_tokens=0
        )
    if kind == "thinking_only":
        thought = {"type": "thinking", "thinking": "", "signature": f"c2ltdWxhdGVk{key.hex()}"}
        tokens = max(reply.thinking_tokens, THINKING_TOKENS["medium"])
        return replace(
            reply, content=[thought], stop_reason="max_tokens", output_tokens=tokens, thinking_tokens=tokens
        )
    schema = ((body.get("output_config") or {}).get("format") or {}).get("schema")
    category = draws(key, "category").choice(REFUSALS)
    if REASONING.search(json.dumps(schema)):  # a reply that is asked for its reasoning
        category = "reasoning_extraction"
    details = {"type": "refusal", "category": category, "explanation": "A simulated refusal."}
    refused: dict[str, Any] = {"stop_reason": "refusal", "stop_sequence": None, "stop_details": details}
    if kind == "refusal":
        refused |= {"output_tokens": 0, "thinking_tokens": 0, "found_tokens": 0}
        return replace(reply, content=[], searches=reply.searches and 0, **refused)
    half = text[: len(text) // 2]
    kept = [{**block, "text": half} if block["type"] == "text" else block for block in reply.content]
    shorter = max(reply.thinking_tokens + 1, reply.output_tokens // 2)
    end = refused if kind == "refusal_midway" else {"stop_reason": "max_tokens", "stop_sequence": None}
    return replace(reply, content=kept, output_tokens=shorter, **end)
