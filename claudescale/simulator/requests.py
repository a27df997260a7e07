"""The validation of a request, which is refused with a 400 or 404, and the count of its tokens.

The shape of a request is checked against `tables.toml` first, then its meaning; the first error is the one
reported. The messages follow the API's where those are known; the API does not promise their exact wording.

Token counts are deterministic: characters per token by the tokenizer's generation, each text up to a tenth
off, so that an estimate from characters has an error as on the API. Images and PDFs count by their pixels and
pages, as in an estimate; one behind a URL or an id counts as many tokens as an estimate assumes.
"""

from __future__ import annotations

import base64
import io
import json
import math
import re
import struct
import zlib
from collections import Counter
from contextlib import suppress
from datetime import UTC, datetime
from hashlib import blake2b
from typing import TYPE_CHECKING, Any, NamedTuple

from claudescale.api import catalog, media
from claudescale.api.catalog import MEDIA
from claudescale.errors import UnknownModel
from claudescale.simulator.wire import TABLES, Problem

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

OLD_VERSION = "2023-06-01"
VERSIONS = frozenset({OLD_VERSION, "2026-10-21"})
PREFILLED = ("claude-haiku-4-5", "claude-sonnet-4-5", "claude-opus-4-5")  # accept a final assistant turn
FAST = frozenset({"claude-fable-5-2", "claude-opus-5-5", "claude-opus-5", "claude-opus-4-8"})
FEW_THINKING_TOKENS = 1024
MAX_BREAKPOINTS = 4
LONG_CONTEXT = 1_000_000
ROLES, BETAS, SAMPLING, WORDS = (TABLES[name] for name in ("roles", "betas", "sampling", "refusals"))
FIELDS, TYPED, SCHEMA = (TABLES[name] for name in ("fields", "typed", "schema"))
TOOL_NAME = re.compile(r"[a-zA-Z0-9_-]{1,64}")
SERVED_TOOL = re.compile(TABLES["served_tools"])
TYPES = {"string": str, "integer": int, "boolean": bool, "list": list, "dictionary": dict}
TYPES |= dict.fromkeys(FIELDS, dict)
REQUEST_TOKENS = 4
MESSAGE_TOKENS = 3
SCHEMA_TOKENS = 80  # the hidden system prompt of structured outputs
TOOLS_TOKENS = 290
LOOKBACK_BLOCKS = 20
TTL_SECONDS = {"5m": 300.0, "1h": 3600.0}
MINIMUM_TOKENS = 512  # smallest cacheable prefix of models without a published one
SALT = ("model", "thinking", "output_config", "tool_choice", "speed")  # a change in any misses the cache


def refuse(wrong: object, words: str, *values: object) -> None:
    """Refuse a request if something is `wrong`, with the message that `tables.toml` names `words`."""
    if wrong:
        raise Problem(400, WORDS[words].format(*values))


def named_model(body: Mapping[str, Any], now: float) -> catalog.ModelFacts:
    """Return the model that a request names."""
    name = body.get("model")
    refuse(name is None, "missing", "model")
    refuse(not isinstance(name, str), "kind", "model", "string")
    with suppress(UnknownModel):
        model = catalog.model(name)
        if not model.verified_only and catalog.refusal(model, datetime.fromtimestamp(now, UTC)) is None:
            return model
    raise Problem(404, f"model: {name}")


def check(
    body: dict[str, Any], model: catalog.ModelFacts, headers: Mapping[str, str], *, counting: bool = False
) -> None:
    """Refuse a request, or one for a token count, with the first error that the API would report."""
    old, betas = headers["anthropic-version"] == OLD_VERSION, headers.get("anthropic-beta", "")
    fields = {**TABLES["counted"], **({} if counting else TABLES["request"])}
    fields |= dict.fromkeys(SAMPLING if old else (), "any")
    fields |= {name: "any" for name in BETAS if _has(betas, name)}
    check_fields("", body, fields, loose=bool(betas))
    Checks(body, model, betas, old=old).all()


def _has(betas: str, name: str) -> bool:
    """Return whether the beta header that `name` needs was sent."""
    return any(beta.strip().startswith(tuple(BETAS[name])) for beta in betas.split(","))


# ------------------------------------------------------------------------------------------------- shapes

# The SDK's own parameter types, checked by pydantic, were tried. Lists are an `Iterable` there, whose items
# pydantic does not check; unions have no tag, so that errors name every member; and extra fields pass.


def check_fields(where: str, value: dict[str, Any], fields: dict[str, Any], *, loose: bool) -> None:
    """Refuse an object whose fields do not fit a shape in `tables.toml`; a `loose` one may have more."""
    at = f"{where}." if where else ""
    for name, part in value.items():
        kind = fields.get(name) or fields.get(f"{name}!")
        if kind is None:
            refuse(not (loose and where), "extra", at + name)
        elif part is not None:
            _check_kind(at + name, part, kind, loose=loose)
    for field in fields:
        name = field.removesuffix("!")
        refuse(name != field and value.get(name) is None, "missing", at + name)


def _check_kind(where: str, value: Any, kinds: list[Any] | str, *, loose: bool) -> None:
    """Refuse a value of another kind; the first alternative of the same Python type applies."""
    if isinstance(kinds, list):
        refuse(value not in kinds, "one_of", where, _either(kinds))
        return
    alternatives = kinds.split(" or ")
    fitting = [kind for kind in alternatives if TYPES.get(kind.partition(" ")[0]) in (None, type(value))]
    wanted = kinds.partition(" ")[0]
    refuse(not fitting, "kind", where, "dictionary" if wanted in FIELDS else wanted)
    kind = fitting[0]
    if kind.startswith("list of "):
        for place, item in enumerate(value):
            _check_kind(f"{where}.{place}", item, kind.removeprefix("list of "), loose=loose)
    elif kind in FIELDS:
        check_fields(where, value, FIELDS[kind], loose=loose)
    elif kind in TYPED:
        _check_typed(where, value, TYPED[kind], loose=loose)


def _check_typed(where: str, value: Any, shapes: dict[str, Any], *, loose: bool) -> None:
    """Refuse an object whose `type` names none of the shapes, or that does not fit the one it names."""
    tag = value.get("type") if isinstance(value, dict) else None
    tag = tag if isinstance(tag, str) else None
    if tag not in shapes and not (loose and tag):
        in_list = "." in where
        refuse(not in_list, "one_of", f"{where}.type", _either(shapes))
        refuse(in_list, "tag", where, tag, ", ".join(map(repr, shapes)))
    elif shapes.get(tag, "any") != "any":
        check_fields(f"{where}.{tag}", value, {**shapes[tag], "type": "string"}, loose=loose)


def _either(values: Iterable[str]) -> str:
    *most, last = map(repr, values)
    return f"{', '.join(most)} or {last}" if most else last


# ------------------------------------------------------------------------------------------------ meaning


class Checks:
    """The checks of a request whose shape is right; each relies on the earlier ones."""

    def __init__(self, body: dict[str, Any], model: catalog.ModelFacts, betas: str, *, old: bool) -> None:
        self.body, self.model, self.betas, self.old = body, model, betas, old
        self.tools, self.choice = body.get("tools") or [], body.get("tool_choice") or {}
        self.forced = self.choice["type"] if self.choice.get("type") in ("any", "tool") else None
        self.thinking, config = body.get("thinking") or {}, body.get("output_config") or {}
        self.effort, self.format = config.get("effort"), config.get("format")
        contents = [turn["content"] for turn in body["messages"]]
        self.blocks = [block for content in contents if isinstance(content, list) for block in content]
        self.pages = 0  # of PDFs, counted as each is checked

    def all(self) -> None:
        """Refuse the request at its first error."""
        tokens, most = self.body.get("max_tokens", 1), self.model.max_output_tokens
        refuse(tokens < 0, "negative", "max_tokens")
        refuse(tokens > most, "max_tokens", tokens, most, self.model.snapshot)
        self._conversation()
        self._tools()
        self._cache()
        self._output()
        self._thinking()
        self._options()

    def _conversation(self) -> None:
        turns, most = self.body["messages"], catalog.MESSAGE.max_messages
        refuse(not turns, "no_messages")
        refuse(len(turns) > most, "many_messages", most)
        for place, turn in enumerate(turns):
            where, role, content = f"messages.{place}", turn["role"], turn["content"]
            blank = isinstance(content, str) and not content.strip() and role != "assistant"
            refuse(blank or not content, "blank_turn", where, role)
            for n, block in enumerate(content if isinstance(content, list) else ()):
                self._block(f"{where}.content.{n}", role, block)
        refuse(turns[0]["role"] != "user", "first_turn")
        if turns[-1]["role"] == "assistant":
            content = turns[-1]["content"]
            text = content if isinstance(content, str) else str(content[-1].get("text", ""))
            refuse(self.model.id not in PREFILLED, "prefill")
            refuse(text[-1:].isspace(), "prefill_blank")
            refuse(self.format, "prefill_format")
        images = sum(block["type"] == "image" for block in self.blocks)
        is_long = self.model.context_tokens >= LONG_CONTEXT
        most = MEDIA["most_files" if is_long else "most_files_in_short_context"]
        refuse(images + self.pages > most, "many_files", self.pages, images, most)

    def _block(self, where: str, role: str, block: dict[str, Any]) -> None:
        kind: str = block["type"]
        source: dict[str, Any] = block.get("source") or {}
        only = role if kind == "document" and self.old else ROLES.get(kind, role)
        refuse(only != role, "role", where, kind, only)
        if kind == "text":
            refuse(not block["text"].strip(), "blank_text")
            cited = block.get("citations") and role == "user" and not self.old
            refuse(cited, "extra", f"{where}.text.citations")
        elif kind in ("image", "document") and source["type"] == "url":
            secure = source["url"].lower().startswith("https://")
            refuse(not secure, "insecure", f"{where}.{kind}.source.url.url")
        elif kind in ("image", "document") and source["type"] == "base64":
            self._file(f"{where}.{kind}.source.base64", kind, source)

    def _file(self, where: str, kind: str, source: dict[str, Any]) -> None:
        """Refuse a file that is not an image or a PDF."""
        kinds, raw = media.IMAGES if kind == "image" else (media.PDF,), b""
        refuse(source["media_type"] not in kinds, "media_type", where, " or ".join(map(repr, kinds)))
        with suppress(ValueError):  # not base64
            raw = base64.b64decode(source["data"], validate=True)
        refuse(media.media_type(raw[: media.HEAD_BYTES]) not in kinds, f"no_{kind}", where)
        self.pages += media.pdf_pages(raw)[0] if kind == "document" else 0

    def _tools(self) -> None:
        for place, tool in enumerate(self.tools):
            kind, name = tool.get("type") or "custom", tool.get("name")
            where, most = f"tools.{place}.{kind}", tool.get("max_uses", 1)
            if kind == "custom":
                refuse(not isinstance(name, str), "missing", f"{where}.name")
                refuse(not TOOL_NAME.fullmatch(str(name)), "tool_name", where, TOOL_NAME.pattern)
                refuse(not isinstance(tool.get("input_schema"), dict), "missing", f"{where}.input_schema")
            served = kind == "custom" or SERVED_TOOL.fullmatch(str(kind)) or self.betas
            refuse(not served, "tool_unknown", f"tools.{place}", kind)
            refuse(not isinstance(most, int) or most < 1, "max_uses", where)
        names, asked = [tool["name"] for tool in self.tools if tool.get("name")], self.choice.get("name")
        never = self.model.id in catalog.CHARGES.no_forced_tool
        refuse(any(names.count(name) > 1 for name in names), "tool_twice")
        refuse(self.forced and never, "not_here", f"tool_choice.type: {self.forced!r}")
        refuse(self.forced and not self.tools, "no_tools")
        refuse(self.forced == "tool" and asked not in names, "no_tool", asked)

    def _cache(self) -> None:
        system = self.body.get("system")
        blocks = [*self.tools, *(system if isinstance(system, list) else ()), *self.blocks, self.body]
        marks = [block["cache_control"] for block in blocks if block.get("cache_control") is not None]
        for mark in marks:
            refuse(not isinstance(mark, dict) or mark.get("type") != "ephemeral", "cache_type")
            refuse(mark.get("ttl", "5m") not in [*TTL_SECONDS], "cache_life")
        lives = [mark.get("ttl", "5m") for mark in marks]
        refuse(len(marks) > MAX_BREAKPOINTS, "cache_marks", MAX_BREAKPOINTS, len(marks))
        refuse(lives != sorted(lives), "cache_order")

    def _output(self) -> None:
        efforts = self.model.efforts
        refuse(self.effort is not None and not efforts, "no_effort")
        refuse(self.effort not in (None, *efforts), "effort", ", ".join(map(repr, efforts)))
        if self.format:
            refuse(not self.model.structured_outputs, "no_format")
            check_schema(self.format["schema"])
            citations = [block.get("citations") for block in self.blocks]
            cited = any(isinstance(value, dict) and value.get("enabled") for value in citations)
            refuse(cited, "cited_format")

    def _thinking(self) -> None:
        kind, allowed = self.thinking.get("type"), self.model.thinking_types
        refuse(kind and kind not in allowed, "thinking", kind, ", ".join(allowed) or "none")
        efforts, bound = self.model.efforts, self.model.thinking_off_up_to_effort
        if kind == "enabled":
            budget = self.thinking.get("budget_tokens") or 0
            refuse(budget < FEW_THINKING_TOKENS, "few_thinking", FEW_THINKING_TOKENS)
            refuse(budget >= self.body.get("max_tokens", math.inf), "many_thinking")
            refuse(self.forced, "forced_thinking")
        elif kind in ("disabled", "between_tools") and bound:
            above = self.effort in efforts[efforts.index(bound) + 1 :]
            refuse(above, "thinking_off", kind, self.effort, bound)

    def _options(self) -> None:
        body, model = self.body, self.model.id
        speed, stops = body.get("speed"), body.get("stop_sequences") or ()
        refuse(speed and model in BETAS and not _has(self.betas, model), "extra", "speed")
        refuse(speed == "fast" and model not in FAST, "not_here", "speed: fast mode")
        refuse(body.get("inference_geo") and model in catalog.CHARGES.no_inference_geo, "no_geo")
        refuse(not all(isinstance(stop, str) for stop in stops), "kind", "stop_sequences", "list")
        refuse(not all(stop.strip() for stop in stops), "blank_stop")
        refuse(body.get("stream", 0) is None, "kind", "stream", "boolean")
        for name, default in SAMPLING.items():
            other = body.get(name) not in (None, default)
            refuse(other and self.model.tokenizer == "2026", "sampling", name, model)


# ------------------------------------------------------------------------------------------------ schemas


def check_schema(schema: dict[str, Any]) -> None:
    """Refuse a schema that structured outputs do not support."""
    counts, limits = Counter[str](), catalog.MESSAGE
    optional, unions = limits.schema_optional_parameters, limits.schema_union_parameters
    try:
        _check_schema(schema, schema, frozenset(), counts)
    except (TypeError, AttributeError, RecursionError):
        refuse(schema, "no_schema")
    refuse(counts["optional"] > optional, "optional", counts["optional"], optional)
    refuse(counts["unions"] > unions, "unions", counts["unions"], unions)


def _check_schema(schema: dict[str, Any], root: Any, path: frozenset[str], counts: Counter[str]) -> None:
    """Refuse a schema with an error in it or its parts; `path` holds the references that led here."""
    kind, properties, form = schema.get("type"), schema.get("properties", {}), schema.get("format", "text")
    for word in SCHEMA["refused"]:
        refuse(word in schema, "keyword", kind, f"property '{word}' is")
    for name in kind if isinstance(kind, list) else [kind or "null"]:
        refuse(name not in SCHEMA["types"], "schema_type", name)
    refuse(schema.get("minItems", 0) not in {0, 1}, "keyword", "array", "'minItems' of more than 1 is")
    refuse(kind == "string" and form not in SCHEMA["formats"], "keyword", "string", f"format {form!r} is")
    closed = schema.get("additionalProperties") is False
    refuse((kind == "object" or properties) and not closed, "open")
    counts["unions"] += isinstance(kind, list) or "anyOf" in schema or "oneOf" in schema
    counts["optional"] += sum(name not in schema.get("required", ()) for name in properties)
    parts = [*properties.values(), *([schema["items"]] if "items" in schema else ())]
    parts += [part for word in ("anyOf", "oneOf", "allOf") for part in schema.get(word, ())]
    if reference := schema.get("$ref"):
        parts = [resolved(root, reference)]
        refuse(reference == "#" or reference in path, "recursive")
        refuse(parts == [None], "unresolved", reference)
        path |= {reference}
    for part in parts:
        _check_schema(part, root, path, counts)


def resolved(root: Any, reference: str) -> Any:
    """Return the part of a schema that a reference such as ``#/$defs/Topic`` points to, or None."""
    part = root
    for name in reference.split("/")[1:]:
        part = part.get(name) if isinstance(part, dict) else None
    return part


# ------------------------------------------------------------------------------------------------- tokens


class Prefix(NamedTuple):
    """A prompt up to the end of one block; `ttl` is set if it is marked and long enough to cache."""

    tokens: int
    digest: bytes
    ttl: str | None


class Shares(NamedTuple):
    """How the input tokens of one request are billed."""

    input_tokens: int
    cache_write_5m_input_tokens: int = 0
    cache_write_1h_input_tokens: int = 0
    cache_read_input_tokens: int = 0

    @property
    def limited_input_tokens(self) -> int:
        """Tokens that count against the input limit: all but cache reads."""
        return sum(self) - self.cache_read_input_tokens


def tokens_in(text: str, characters_per_token: float) -> int:
    """Return the token count of a text, always the same for the same text."""
    drawn = (zlib.crc32(text.encode("utf-8", "surrogatepass")) & 0xFFFF) / 0xFFFF
    return math.ceil(len(text) / (characters_per_token * (0.9 + 0.2 * drawn)))


class Piece(NamedTuple):
    """One block of a request: its text, its cache mark, and the file blocks in it."""

    text: str
    cache_control: Any = None
    files: tuple[dict[str, Any], ...] = ()  # images, and documents that are not text


def pieces(content: Any) -> Iterator[Piece]:
    """Yield each block of a `content`, `system` or `tools` field."""
    text = {"type": "text", "text": content}
    for block in [text] if isinstance(content, str) else content or []:
        kind, control = block.get("type"), block.get("cache_control")
        source = block["source"] if kind == "document" else block
        form = source.get("type")
        if form == "text":
            yield Piece(source["data" if kind == "document" else "text"], control)
        elif form in ("tool_result", "content"):
            inner = [*pieces(source.get("content"))]
            files = tuple(file for piece in inner for file in piece.files)
            yield Piece("".join(piece.text for piece in inner), control, files)
        elif kind in ("image", "document"):
            yield Piece("", control, (block,))
        else:
            rest = {key: value for key, value in block.items() if key not in {"cache_control", "signature"}}
            yield Piece(json.dumps(rest), control)


def file_tokens(block: dict[str, Any], tokenizer: str) -> int:
    """Return the token count of an image or a PDF; one of unreadable size counts as unseen."""
    with suppress(ValueError, LookupError, struct.error):  # broken, or stored elsewhere
        raw = base64.b64decode(block["source"].get("data", ""))
        kind = media.media_type(raw[: media.HEAD_BYTES])
        if kind == media.PDF:
            return media.pdf_pages(raw)[1]
        if kind is not None:
            return media.image_tokens(*media.pixels(io.BytesIO(raw)), tokenizer)
    return media.unseen_tokens(block["type"])


def measure(body: dict[str, Any], model: catalog.ModelFacts) -> list[Prefix]:
    """Return the prefixes of a valid request, block by block; the last one is the whole prompt."""
    per_token, messages, tools = model.characters_per_token, body["messages"], body.get("tools")
    reached = REQUEST_TOKENS + MESSAGE_TOKENS * len(messages) + (TOOLS_TOKENS if tools else 0)
    if wanted := (body.get("output_config") or {}).get("format"):
        reached += SCHEMA_TOKENS + tokens_in(json.dumps(wanted["schema"]), per_token)
    fields = [tools, body.get("system"), *(message["content"] for message in messages)]
    blocks, prefixes = [piece for part in fields for piece in pieces(part)], list[Prefix]()
    least = MINIMUM_TOKENS if model.cache_minimum_tokens is None else model.cache_minimum_tokens
    digest = json.dumps([body.get(name) for name in SALT], sort_keys=True).encode()
    for text, mark, files in blocks:
        reached += tokens_in(text, per_token) + sum(file_tokens(file, model.tokenizer) for file in files)
        whole = text + "".join(json.dumps(file["source"], sort_keys=True) for file in files)
        digest = blake2b(digest + b"\0" + whole.encode("utf-8", "surrogatepass"), digest_size=16).digest()
        is_last = len(prefixes) == len(blocks) - 1
        control = mark or (body.get("cache_control") if is_last else None)
        ttl = control.get("ttl", "5m") if control and reached >= least else None
        prefixes.append(Prefix(reached, digest, ttl))
    return prefixes


class Entry(NamedTuple):
    """A prompt cache entry: when it can be read, and for how long each use renews it."""

    since: float
    until: float
    ttl: str


class PromptCache:
    """Prefixes that requests have marked, each kept for five minutes or an hour after its last use."""

    def __init__(self) -> None:
        self._entries: dict[bytes, Entry] = {}

    def shares(self, now: float, prefixes: list[Prefix], *, may_read: bool = True) -> Shares:
        """Return how the request would be billed if it started now, without changing the cache."""
        hit = self._hit(now, prefixes) if may_read else None
        read = reached = hit.tokens if hit else 0
        written = dict.fromkeys(TTL_SECONDS, 0)
        for prefix in prefixes:
            if prefix.ttl and prefix.tokens > reached:
                written[prefix.ttl] += prefix.tokens - reached
                reached = prefix.tokens
        return Shares(prefixes[-1].tokens - reached, written["5m"], written["1h"], read)

    def keep(self, now: float, begins_at: float, prefixes: list[Prefix]) -> None:
        """Cache the marked prefixes of a request that starts at `now`, to be read from `begins_at`."""
        hit = self._hit(now, prefixes)
        read = hit.tokens if hit else 0
        lives = {prefix.digest: prefix.ttl for prefix in prefixes if prefix.ttl and prefix.tokens > read}
        if hit:
            lives[hit.digest] = self._entries[hit.digest].ttl
        for digest, ttl in lives.items():
            # An entry can be read only once its first reply begins, so calls that start together all write.
            since, until, entry = begins_at, now + TTL_SECONDS[ttl], self._entries.get(digest)
            if entry and entry.until > now:
                since, until = min(since, entry.since), max(until, entry.until)
            self._entries[digest] = Entry(since, until, ttl)

    def _hit(self, now: float, prefixes: list[Prefix]) -> Prefix | None:
        """Return the longest prefix that can be read now, at most the lookback before a mark."""
        reach = 0
        for prefix in reversed(prefixes):
            reach = LOOKBACK_BLOCKS if prefix.ttl else reach - 1
            entry = self._entries.get(prefix.digest)
            if reach > 0 and entry and entry.since <= now < entry.until:
                return prefix
        return None
