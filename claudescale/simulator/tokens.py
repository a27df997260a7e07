"""How many tokens a request has, and which of them the prompt cache holds.

Counts are deterministic: characters by the tokenizer's generation, each text up to a tenth off, so
that an estimate from characters has an error as it has on the API. Images and PDFs count by their pixels
and pages as they do in an estimate, one behind a URL or an id as many tokens as an estimate assumes.
"""

from __future__ import annotations

import base64
import io
import json
import math
import struct
import zlib
from contextlib import suppress
from hashlib import blake2b
from typing import TYPE_CHECKING, Any, NamedTuple

from claudescale.api import media

if TYPE_CHECKING:
    from collections.abc import Iterator

    from claudescale.api.catalog import Model

REQUEST_TOKENS = 4
MESSAGE_TOKENS = 3
SCHEMA_TOKENS = 80  # the hidden system prompt of structured outputs
TOOLS_TOKENS = 290
LOOKBACK_BLOCKS = 20
TTL_SECONDS = {"5m": 300.0, "1h": 3600.0}
MINIMUM_TOKENS = 512  # cacheable prefix of models whose own is not published
MAX_ENTRIES = 20_000
SALT = ("model", "thinking", "output_config", "tool_choice", "speed")  # another one finds no entry


class Prefix(NamedTuple):
    """A prompt from its beginning to the end of one block; `ttl` where it is marked for the cache."""

    tokens: int
    digest: bytes
    ttl: str | None


class Measured(NamedTuple):
    """What a request weighs: all its input tokens, and its prefixes where it asks for caching."""

    input_tokens: int
    prefixes: tuple[Prefix, ...] = ()


class Shares(NamedTuple):
    """How the input tokens of one request are billed."""

    input_tokens: int
    cache_write_5m_input_tokens: int = 0
    cache_write_1h_input_tokens: int = 0
    cache_read_input_tokens: int = 0

    @property
    def limited_input_tokens(self) -> int:
        """What counts against the input limit: everything but cache reads."""
        return sum(self) - self.cache_read_input_tokens

    @property
    def total_input_tokens(self) -> int:
        """Length of the whole prompt."""
        return sum(self)


def tokens_in(text: str, characters_per_token: float) -> int:
    """Return the tokens of one text; the same text always has the same."""
    if not text:
        return 0
    drawn = (zlib.crc32(text.encode("utf-8", "surrogatepass")) & 0xFFFF) / 0xFFFF
    return math.ceil(len(text) / (characters_per_token * (0.9 + 0.2 * drawn)))


class Piece(NamedTuple):
    """One block of a request, its text and the blocks of files in it."""

    text: str
    cache_control: Any = None
    files: tuple[dict[str, Any], ...] = ()  # blocks of images and of documents that are no text


def pieces(content: Any) -> Iterator[Piece]:
    """Yield each block of a `content`, `system` or `tools` field."""
    if isinstance(content, str):
        yield Piece(content)
        return
    for block in content if isinstance(content, list) else ():
        if not isinstance(block, dict):
            continue
        kind, control, given = block.get("type"), block.get("cache_control"), block.get("source")
        source = given if isinstance(given, dict) and kind == "document" else {}
        form = source.get("type")
        if kind == "text" or form == "text":
            yield Piece(str(block.get("text") if kind == "text" else source.get("data")), control)
        elif kind == "tool_result" or form == "content":
            inner = list(pieces((block if kind == "tool_result" else source).get("content")))
            files = tuple(file for piece in inner for file in piece.files)
            yield Piece("".join(piece.text for piece in inner), control, files)
        elif kind in ("image", "document"):
            yield Piece("", control, (block,))
        else:
            rest = {key: value for key, value in block.items() if key not in {"cache_control", "signature"}}
            yield Piece(json.dumps(rest), control)


def file_tokens(block: dict[str, Any], tokenizer: str) -> int:
    """Return the tokens of an image or a PDF; one that does not show its size counts as one unseen."""
    with suppress(ValueError, TypeError, AttributeError, LookupError, struct.error):  # broken, or elsewhere
        raw = base64.b64decode(block["source"].get("data", ""))
        found = media.media_type(raw[: media.HEAD_BYTES])
        if found == media.PDF:
            return media.pdf_pages(raw)[1]
        if found is not None:
            return media.image_tokens(*media.pixels(io.BytesIO(raw)), tokenizer)
    return media.unseen_tokens(block["type"])


def measure(body: dict[str, Any], model: Model) -> Measured:
    """Weigh a valid request for `model`."""
    per_token, messages, tools = model.characters_per_token, body["messages"], body.get("tools")
    overhead = REQUEST_TOKENS + MESSAGE_TOKENS * len(messages) + (TOOLS_TOKENS if tools else 0)
    if wanted := (body.get("output_config") or {}).get("format"):
        overhead += SCHEMA_TOKENS + tokens_in(json.dumps(wanted.get("schema")), per_token)
    fields = [tools, body.get("system"), *(message["content"] for message in messages)]
    blocks = [piece for part in fields for piece in pieces(part)]
    counts = [
        tokens_in(text, per_token) + sum(file_tokens(file, model.tokenizer) for file in files)
        for text, _, files in blocks
    ]
    total = overhead + sum(counts)
    automatic = body.get("cache_control")
    if not automatic and not any(piece.cache_control for piece in blocks):
        return Measured(total)
    prefixes, reached = [], overhead
    digest = json.dumps([body.get(name) for name in SALT], sort_keys=True).encode()
    for place, ((text, mark, files), tokens) in enumerate(zip(blocks, counts, strict=True), start=1):
        reached += tokens
        said = text + "".join(json.dumps(file.get("source"), sort_keys=True) for file in files)
        digest = blake2b(digest + b"\0" + said.encode("utf-8", "surrogatepass"), digest_size=16).digest()
        control = mark or (automatic if place == len(blocks) else None)
        prefixes.append(Prefix(reached, digest, control.get("ttl", "5m") if control else None))
    return Measured(total, tuple(prefixes))


class PromptCache:
    """Prefixes that requests have marked, each for five minutes or an hour after its last use.

    An entry can be read only once the first reply that wrote it has begun, so calls that start
    together all write.
    """

    def __init__(self) -> None:
        self._entries: dict[bytes, tuple[float, float, str]] = {}  # can be read from and until when; its life

    def shares(
        self, now: float, measured: Measured, minimum_tokens: int | None, *, may_read: bool = True
    ) -> Shares:
        """Return how the request would be billed if it started now; changes nothing."""
        marked, hit = self._found(now, measured, minimum_tokens)
        read = reached = hit.tokens if hit and may_read else 0
        written = dict.fromkeys(TTL_SECONDS, 0)
        for prefix in marked:
            written[prefix.ttl or "5m"] += max(0, prefix.tokens - reached)
            reached = max(reached, prefix.tokens)
        return Shares(measured.input_tokens - reached, written["5m"], written["1h"], read)

    def keep(self, now: float, begins_at: float, measured: Measured, minimum_tokens: int | None) -> None:
        """Remember the marked prefixes of a request that starts `now` and whose reply begins later."""
        marked, hit = self._found(now, measured, minimum_tokens)
        used = [(hit.digest, self._entries[hit.digest][2])] if hit else []
        used += [(one.digest, one.ttl or "5m") for one in marked if not hit or one.tokens > hit.tokens]
        for digest, ttl in used:
            since, until, _ = self._entries.get(digest, (math.inf, 0.0, ttl))
            since, until = (since, until) if until > now else (math.inf, 0.0)
            self._entries[digest] = min(begins_at, since), max(now + TTL_SECONDS[ttl], until), ttl
        if len(self._entries) > MAX_ENTRIES:
            self._entries = {key: entry for key, entry in self._entries.items() if entry[1] > now}

    def _found(
        self, now: float, measured: Measured, minimum_tokens: int | None
    ) -> tuple[list[Prefix], Prefix | None]:
        """Return the prefixes that are marked and long enough, and the longest that can be read now."""
        minimum = MINIMUM_TOKENS if minimum_tokens is None else minimum_tokens
        marked = [prefix for prefix in measured.prefixes if prefix.ttl and prefix.tokens >= minimum]
        for mark in reversed(marked):
            end = measured.prefixes.index(mark) + 1
            for prefix in reversed(measured.prefixes[max(0, end - LOOKBACK_BLOCKS) : end]):
                since, until, _ = self._entries.get(prefix.digest, (0.0, 0.0, ""))
                if since <= now < until:
                    return marked, prefix
        return marked, None
