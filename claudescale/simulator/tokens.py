"""How many tokens a request has, and which of them the prompt cache holds.

Counts are deterministic: characters by the tokenizer's generation, each text up to a tenth off, so
that an estimate from characters has an honest error.
"""

from __future__ import annotations

import json
import math
import zlib
from dataclasses import dataclass
from hashlib import blake2b
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterator

    from claudescale.api.catalog import Model

REQUEST_TOKENS = 4
MESSAGE_TOKENS = 3
SCHEMA_TOKENS = 80  # the hidden system prompt of structured outputs
TOOLS_TOKENS = 290
MEDIA_TOKENS = 1_500  # of one image or document, whatever its size
LOOKBACK_BLOCKS = 20
TTL_SECONDS = {"5m": 300.0, "1h": 3600.0}
MINIMUM_TOKENS = 512  # cacheable prefix of models whose own is not published
MAX_ENTRIES = 20_000


class Block(NamedTuple):
    """A piece of the prompt between two places where a cached prefix may end."""

    text: str
    tokens: int
    ttl: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """What a request weighs: all its input tokens, and its blocks where it asks for caching."""

    input_tokens: int
    blocks: tuple[Block, ...] = ()
    salt: bytes = b""


@dataclass(frozen=True, slots=True, kw_only=True)
class Shares:
    """How the input tokens of one request are billed."""

    input_tokens: int
    cache_write_5m_input_tokens: int = 0
    cache_write_1h_input_tokens: int = 0
    cache_read_input_tokens: int = 0

    @property
    def limited_input_tokens(self) -> int:
        """What counts against the input limit: everything but cache reads."""
        return self.input_tokens + self.cache_write_5m_input_tokens + self.cache_write_1h_input_tokens

    @property
    def total_input_tokens(self) -> int:
        """Length of the whole prompt."""
        return self.limited_input_tokens + self.cache_read_input_tokens


def tokens_in(text: str, characters_per_token: float) -> int:
    """Tokens of one text; the same text always has the same."""
    if not text:
        return 0
    drawn = (zlib.crc32(text.encode("utf-8", "surrogatepass")) & 0xFFFF) / 0xFFFF
    return math.ceil(len(text) / (characters_per_token * (0.9 + 0.2 * drawn)))


def pieces(content: Any) -> Iterator[tuple[str, int, Any]]:
    """Yield (text, further tokens, cache_control) of each block of a `content` or `system` field."""
    if isinstance(content, str):
        yield content, 0, None
        return
    for block in content if isinstance(content, list) else ():
        if not isinstance(block, dict):
            continue
        kind, control = block.get("type"), block.get("cache_control")
        if kind == "text":
            yield str(block.get("text", "")), 0, control
        elif kind in ("image", "document"):
            yield "", MEDIA_TOKENS, control
        elif kind == "tool_result":
            inner = list(pieces(block.get("content")))
            yield "".join(each[0] for each in inner), sum(each[1] for each in inner), control
        else:
            rest = {key: value for key, value in block.items() if key not in {"cache_control", "signature"}}
            yield json.dumps(rest), 0, control


def measure(body: dict[str, Any], model: Model) -> Measured:
    """Weigh a valid request for `model`."""
    per_token = model.characters_per_token
    found: list[tuple[str, int, Any]] = []
    overhead = REQUEST_TOKENS
    tools = body.get("tools")
    if tools:
        overhead += TOOLS_TOKENS
        for tool in tools:
            rest = {key: value for key, value in tool.items() if key != "cache_control"}
            found.append((json.dumps(rest), 0, tool.get("cache_control")))
    wanted = (body.get("output_config") or {}).get("format")
    if wanted:
        overhead += SCHEMA_TOKENS + tokens_in(json.dumps(wanted.get("schema")), per_token)
    found.extend(pieces(body.get("system")))
    for message in body["messages"]:
        overhead += MESSAGE_TOKENS
        found.extend(pieces(message["content"]))
    automatic = body.get("cache_control")
    total = overhead
    blocks = []
    for text, further, control in found:
        tokens = further + tokens_in(text, per_token)
        total += tokens
        blocks.append(Block(text, tokens, control.get("ttl", "5m") if control else None))
    if automatic and blocks:
        blocks[-1] = blocks[-1]._replace(ttl=blocks[-1].ttl or automatic.get("ttl", "5m"))
    if not any(block.ttl for block in blocks):
        return Measured(input_tokens=total)
    blocks[0] = blocks[0]._replace(tokens=blocks[0].tokens + overhead)
    changes = [
        body["model"],
        body.get("thinking"),
        body.get("output_config"),
        body.get("tool_choice"),
        body.get("speed"),
    ]
    return Measured(
        input_tokens=total, blocks=tuple(blocks), salt=json.dumps(changes, sort_keys=True).encode()
    )


class Entry(NamedTuple):
    """A prefix the cache holds, from when it can be read until it is forgotten."""

    available_at: float
    expires_at: float
    ttl: str


class PromptCache:
    """Prefixes that requests have marked, each for five minutes or an hour after its last use.

    An entry can be read only once the first reply that wrote it has begun, so calls that start
    together all write.
    """

    def __init__(self) -> None:
        self._entries: dict[bytes, Entry] = {}

    def shares(
        self, now: float, measured: Measured, minimum_tokens: int | None, *, found: bool = True
    ) -> Shares:
        """How the request would be billed if it started now; changes nothing. `found`: it may read."""
        if not measured.blocks:
            return Shares(input_tokens=measured.input_tokens)
        totals, digests = _prefixes(measured)
        marks = _marks(measured, totals, minimum_tokens)
        hit = self._hit(now, marks, digests) if found else None
        read = totals[hit] if hit is not None else 0
        written = {"5m": 0, "1h": 0}
        reached = read
        for mark in marks:
            if totals[mark] > reached:
                written[measured.blocks[mark].ttl or "5m"] += totals[mark] - reached
                reached = totals[mark]
        return Shares(
            input_tokens=measured.input_tokens - reached,
            cache_write_5m_input_tokens=written["5m"],
            cache_write_1h_input_tokens=written["1h"],
            cache_read_input_tokens=read,
        )

    def keep(self, now: float, begins_at: float, measured: Measured, minimum_tokens: int | None) -> None:
        """Remember the marked prefixes of a request that starts `now` and whose reply begins later."""
        if not measured.blocks:
            return
        totals, digests = _prefixes(measured)
        marks = _marks(measured, totals, minimum_tokens)
        hit = self._hit(now, marks, digests)
        used = [mark for mark in marks if hit is None or mark > hit]
        if hit is not None:
            held = self._entries[digests[hit]]
            self._remember(now, digests[hit], held.available_at, held.ttl)
        for mark in used:
            self._remember(now, digests[mark], begins_at, measured.blocks[mark].ttl or "5m")
        if len(self._entries) > MAX_ENTRIES:
            self._entries = {key: held for key, held in self._entries.items() if held.expires_at > now}

    def _remember(self, now: float, digest: bytes, available_at: float, ttl: str) -> None:
        held = self._entries.get(digest)
        expires_at = now + TTL_SECONDS[ttl]
        if held is not None and held.expires_at > now:
            available_at = min(available_at, held.available_at)
            expires_at = max(expires_at, held.expires_at)
        self._entries[digest] = Entry(available_at, expires_at, ttl)

    def _hit(self, now: float, marks: list[int], digests: list[bytes]) -> int | None:
        """Index of the longest prefix that can be read now."""
        for mark in reversed(marks):
            for index in range(mark, max(-1, mark - LOOKBACK_BLOCKS), -1):
                held = self._entries.get(digests[index])
                if held is not None and held.available_at <= now < held.expires_at:
                    return index
        return None


def _prefixes(measured: Measured) -> tuple[list[int], list[bytes]]:
    """Tokens and digest of the prefix that ends with each block."""
    totals, digests = [], []
    total, digest = 0, measured.salt
    for block in measured.blocks:
        total += block.tokens
        digest = blake2b(
            digest + b"\0" + block.text.encode("utf-8", "surrogatepass"), digest_size=16
        ).digest()
        totals.append(total)
        digests.append(digest)
    return totals, digests


def _marks(measured: Measured, totals: list[int], minimum_tokens: int | None) -> list[int]:
    """Indexes of the blocks that end a prefix long enough to be cached."""
    minimum = MINIMUM_TOKENS if minimum_tokens is None else minimum_tokens
    return [
        index
        for index, block in enumerate(measured.blocks)
        if block.ttl is not None and totals[index] >= minimum
    ]
