"""What a request is to the API: what it refuses, with a 400 or 404 and in which words, and what it weighs.

First the shape of a request is held against `tables.toml`, then its sense is looked into: pairs of what is
wrong and the words for it, the first of which counts. The messages follow the API's where they are known;
their exact wording is promised by nobody.

Tokens are deterministic: characters by the tokenizer's generation, each text up to a tenth off, so
that an estimate from characters has an error as it has on the API. Images and PDFs count by their pixels
and pages as they do in an estimate, one behind a URL or an id as many tokens as an estimate assumes.
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
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

from claudescale.api import catalog, media
from claudescale.api.catalog import MEDIA
from claudescale.errors import UnknownModel
from claudescale.simulator.wire import TABLES, Problem

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

OLD_VERSION = "2023-06-01"
VERSIONS = frozenset({OLD_VERSION, "2026-10-21"})
GENERATION = re.compile(r"-(\d+)(?:-(\d{1,2}))?(?:-|$)")
PREFILL_UNTIL = (4, 5)  # Claude 4.6 and later refuse an assistant message at the end
FAST = frozenset({"claude-fable-5-2", "claude-opus-5-5", "claude-opus-5", "claude-opus-4-8"})
FEW_THINKING_TOKENS = 1024
MAX_BREAKPOINTS = 4
LONG_CONTEXT = 1_000_000
ROLES, BETAS, SAMPLING, WORDS = (TABLES[name] for name in ("roles", "betas", "sampling", "refusals"))
FIELDS, TYPED, SCHEMA = (TABLES[name] for name in ("fields", "typed", "schema"))
TOOL_NAME = re.compile(r"[a-zA-Z0-9_-]{1,64}")
SERVED_TOOL = re.compile(TABLES["served_tools"])
KINDS = {"string": str, "integer": int, "boolean": bool, "list": list, "dictionary": dict}
KINDS |= dict.fromkeys(FIELDS, dict)
REQUEST_TOKENS = 4
MESSAGE_TOKENS = 3
SCHEMA_TOKENS = 80  # the hidden system prompt of structured outputs
TOOLS_TOKENS = 290
LOOKBACK_BLOCKS = 20
TTL_SECONDS = {"5m": 300.0, "1h": 3600.0}
MINIMUM_TOKENS = 512  # cacheable prefix of models whose own is not published
SALT = ("model", "thinking", "output_config", "tool_choice", "speed")  # another one finds no entry

Refusals: TypeAlias = "Iterator[tuple[Any, ...]]"  # what is wrong, the name of its words, what stands in them


def found_model(body: Mapping[str, Any], now: float) -> catalog.Model:
    """Return the model a request names."""
    name = body.get("model")
    if not isinstance(name, str):
        raise Problem(400, f"model: {'Field required' if name is None else 'Input should be a valid string'}")
    with suppress(UnknownModel):
        model = catalog.model(name)
        if not model.verified_only and catalog.refusal(model, datetime.fromtimestamp(now, UTC)) is None:
            return model
    raise Problem(404, f"model: {name}")


def check(
    body: dict[str, Any], model: catalog.Model, headers: Mapping[str, str], *, counting: bool = False
) -> None:
    """Refuse the first thing the API would refuse in a request, or in one for a token count."""
    old, betas = headers["anthropic-version"] == OLD_VERSION, headers.get("anthropic-beta", "")
    fields = {**TABLES["counted"], **({} if counting else TABLES["request"])}
    fields |= dict.fromkeys(SAMPLING if old else (), "any")
    fields |= {name: "any" for name in BETAS if _has(betas, name)}
    wrong = next(misfits("", body, fields, loose=bool(betas)), None)
    if wrong := wrong or _first(Call(body, model, betas, old=old).refusals()):
        raise Problem(400, wrong)


def _first(refusals: Refusals) -> str | None:
    return next((WORDS[words].format(*values) for wrong, words, *values in refusals if wrong), None)


def _has(betas: str, name: str) -> bool:
    """Return whether the beta header that `name` needs was sent."""
    return any(beta.strip().startswith(tuple(BETAS[name])) for beta in betas.split(","))


# ------------------------------------------------------------------------------------------------- shapes


def misfits(where: str, value: Any, spec: dict[str, Any], *, loose: bool) -> Iterator[str]:
    """Yield where an object has other fields than a shape in `tables.toml`; `loose` takes unknown ones."""
    at = f"{where}." if where else ""
    for name, part in value.items():
        key = name if name in spec else f"{name}!"
        if key not in spec and not (loose and where):
            yield f"{at}{name}: Extra inputs are not permitted"
        elif part is not None and key in spec:
            yield from _shape(at + name, part, spec[key], loose=loose)
    for key in spec:
        if key.endswith("!") and value.get(key[:-1]) is None:
            yield f"{at}{key[:-1]}: Field required"


def _shape(where: str, value: Any, spec: Any, *, loose: bool) -> Iterator[str]:
    """Yield where a value is not of a shape; of alternatives the first whose kind it has counts."""
    if isinstance(spec, list):
        if value not in spec:
            yield f"{where}: Input should be {_either(spec)}"
        return
    word, own = spec.partition(" ")[0], type(value)
    name = next((one for one in spec.split(" or ") if KINDS.get(one.partition(" ")[0], own) is own), None)
    if name is None:
        yield f"{where}: Input should be a valid {'dictionary' if word in FIELDS else word}"
    elif name.startswith("list of "):
        for place, item in enumerate(value):
            yield from _shape(f"{where}.{place}", item, name.removeprefix("list of "), loose=loose)
    elif name in FIELDS:
        yield from misfits(where, value, FIELDS[name], loose=loose)
    elif shapes := TYPED.get(name):
        kind = value.get("type") if isinstance(value, dict) else None
        kind = kind if isinstance(kind, str) else None
        if kind not in shapes and not (loose and kind):
            tag = f": Input tag {kind!r} found using 'type' does not match any of the expected tags: "
            in_list = f"{tag}{', '.join(map(repr, shapes))}"
            yield where + (in_list if "." in where else f".type: Input should be {_either(shapes)}")
        elif shapes.get(kind, "any") != "any":
            yield from misfits(f"{where}.{kind}", value, {**shapes[kind], "type": "string"}, loose=loose)


def _either(values: Iterable[str]) -> str:
    *most, last = map(repr, values)
    return f"{', '.join(most)} or {last}" if most else last


# -------------------------------------------------------------------------------------------------- sense


class Call:
    """A request of the right shape, and what decides how strictly it is read."""

    def __init__(self, body: dict[str, Any], model: catalog.Model, betas: str, *, old: bool) -> None:
        self.body, self.model, self.betas, self.old = body, model, betas, old
        self.tools, self.choice, config, self.thinking = (
            body.get(name) or {} for name in ("tools", "tool_choice", "output_config", "thinking")
        )
        self.forced = self.choice["type"] if self.choice.get("type") in ("any", "tool") else None
        self.effort, self.format = config.get("effort"), config.get("format")
        found = GENERATION.search(model.id)
        self.generation = (int(found[1]), int(found[2] or 0)) if found else (0, 0)
        contents = [turn["content"] for turn in body["messages"]]
        self.blocks = [block for content in contents if isinstance(content, list) for block in content]
        self.images = sum(block["type"] == "image" for block in self.blocks)
        self.pages = 0  # of PDFs, counted as each is looked into
        is_long = model.context_tokens >= LONG_CONTEXT
        self.most_files: int = MEDIA["most_files" if is_long else "most_files_in_short_context"]

    def refusals(self) -> Refusals:
        """Yield what may be wrong, and the words for it; each may rely on all before it being right."""
        tokens, most = self.body.get("max_tokens", 1), self.model.max_output_tokens
        yield tokens < 0, "negative", "max_tokens"
        yield tokens > most, "max_tokens", tokens, most, self.model.snapshot
        for part in (self._conversation, self._tools, self._cache, self._output, self._options):
            yield from part()

    def _conversation(self) -> Refusals:
        turns, most = self.body["messages"], catalog.MESSAGE.max_messages
        yield not turns, "no_messages"
        yield len(turns) > most, "many_messages", most
        for place, turn in enumerate(turns):
            where, role, content = f"messages.{place}", turn["role"], turn["content"]
            blank = isinstance(content, str) and not content.strip() and role != "assistant"
            yield blank or not content, "blank_turn", where, role
            for n, block in enumerate(content if isinstance(content, list) else ()):
                yield from self._block(f"{where}.content.{n}", role, block)
        yield turns[0]["role"] != "user", "first_turn"
        if role == "assistant":
            last = content if isinstance(content, str) else str(content[-1].get("text", ""))
            yield self.generation > PREFILL_UNTIL, "prefill"
            yield last[-1:].isspace(), "prefill_blank"
            yield self.format, "prefill_format"
        over = self.images + self.pages > self.most_files
        yield over, "many_files", self.pages, self.images, self.most_files

    def _block(self, where: str, role: str, block: dict[str, Any]) -> Refusals:
        kind: str = block["type"]
        source: dict[str, Any] = block.get("source") or {}
        only = role if kind == "document" and self.old else ROLES.get(kind, role)
        yield only != role, "role", where, kind, only
        if kind == "text":
            cited = block.get("citations") and role == "user" and not self.old
            yield not block["text"].strip(), "blank_text"
            yield cited, "extra", f"{where}.text.citations"
        elif kind in ("image", "document") and source["type"] == "url":
            secure = source["url"].lower().startswith("https://")
            yield not secure, "insecure", f"{where}.{kind}.source.url.url"
        elif kind in ("image", "document") and source["type"] == "base64":
            yield from self._media(f"{where}.{kind}.source.base64", kind, source)

    def _media(self, where: str, kind: str, source: dict[str, Any]) -> Refusals:
        """Yield what may be wrong with an image or a PDF."""
        kinds, raw = media.IMAGES if kind == "image" else (media.PDF,), b""
        yield source["media_type"] not in kinds, "media_type", where, " or ".join(map(repr, kinds))
        with suppress(ValueError):  # no base64
            raw = base64.b64decode(source["data"], validate=True)
        yield media.media_type(raw[: media.HEAD_BYTES]) not in kinds, f"no_{kind}", where
        self.pages += media.pdf_pages(raw)[0] if kind == "document" else 0

    def _tools(self) -> Refusals:
        for place, tool in enumerate(self.tools):
            kind, name = tool.get("type") or "custom", tool.get("name")
            at, most = f"tools.{place}.{kind}", tool.get("max_uses", 1)
            if kind == "custom":
                yield not isinstance(name, str), "missing", f"{at}.name"
                yield not TOOL_NAME.fullmatch(str(name)), "tool_name", at, TOOL_NAME.pattern
                yield not isinstance(tool.get("input_schema"), dict), "missing", f"{at}.input_schema"
            served = kind == "custom" or SERVED_TOOL.fullmatch(str(kind)) or self.betas
            yield not served, "tool_unknown", f"tools.{place}", kind
            yield not isinstance(most, int) or most < 1, "max_uses", at
        names, asked = [tool["name"] for tool in self.tools if tool.get("name")], self.choice.get("name")
        never = self.model.id in catalog.CHARGES.no_forced_tool
        yield any(names.count(name) > 1 for name in names), "tool_twice"
        yield self.forced and never, "not_here", f"tool_choice.type: {self.forced!r}"
        yield self.forced and not self.tools, "no_tools"
        yield self.forced == "tool" and asked not in names, "no_tool", asked

    def _cache(self) -> Refusals:
        system = self.body.get("system")
        blocks = [*self.tools, *(system if isinstance(system, list) else ()), *self.blocks, self.body]
        marks = [block["cache_control"] for block in blocks if block.get("cache_control") is not None]
        for mark in marks:
            yield not isinstance(mark, dict) or mark.get("type") != "ephemeral", "cache_type"
            yield mark.get("ttl", "5m") not in [*TTL_SECONDS], "cache_life"
        lives = [mark.get("ttl", "5m") for mark in marks]
        yield len(marks) > MAX_BREAKPOINTS, "cache_marks", MAX_BREAKPOINTS, len(marks)
        yield lives != sorted(lives), "cache_order"

    def _output(self) -> Refusals:
        efforts, bound = self.model.efforts, self.model.thinking_off_up_to_effort
        yield self.effort is not None and not efforts, "no_effort"
        yield self.effort not in (None, *efforts), "effort", ", ".join(map(repr, efforts))
        if self.format:
            problem = schema_problem(self.format["schema"])
            cited = [block.get("citations") for block in self.blocks]
            yield not self.model.structured_outputs, "no_format"
            yield problem, "schema", "output_config.format.schema", problem
            yield any(isinstance(one, dict) and one.get("enabled") for one in cited), "cited_format"
        kind, may = self.thinking.get("type"), self.model.thinking_types
        yield kind and kind not in may, "thinking", kind, ", ".join(may) or "none"
        if kind == "enabled":
            budget = self.thinking.get("budget_tokens") or 0
            yield budget < FEW_THINKING_TOKENS, "few_thinking", FEW_THINKING_TOKENS
            yield budget >= self.body.get("max_tokens", math.inf), "many_thinking"
            yield self.forced, "forced_thinking"
        elif kind != "adaptive" and kind and bound:
            late = self.effort in efforts[efforts.index(bound) + 1 :]
            yield late, "thinking_off", kind, self.effort, bound

    def _options(self) -> Refusals:
        body, model = self.body, self.model.id
        speed, stops = body.get("speed"), body.get("stop_sequences") or ()
        yield speed and model in BETAS and not _has(self.betas, model), "extra", "speed"
        yield speed == "fast" and model not in FAST, "not_here", "speed: fast mode"
        yield body.get("inference_geo") and model in catalog.CHARGES.no_inference_geo, "no_geo"
        yield not all(isinstance(stop, str) for stop in stops), "kind", "stop_sequences", "list"
        yield not all(stop.strip() for stop in stops), "blank_stop"
        yield body.get("stream", 0) is None, "kind", "stream", "boolean"
        for name, default in SAMPLING.items():
            other = body.get(name) not in (None, default)
            yield other and self.model.tokenizer == "2026", "sampling", name, model


# ------------------------------------------------------------------------------------------------ schemas


def schema_problem(schema: dict[str, Any]) -> str | None:
    """Return why structured outputs do not take a schema."""
    counts, limits = Counter[str](), catalog.MESSAGE

    def refusals() -> Refusals:
        yield from _schema(schema, schema, frozenset(), counts)
        optional, unions = limits.schema_optional_parameters, limits.schema_union_parameters
        yield counts["optional"] > optional, "optional", counts["optional"], optional
        yield counts["unions"] > unions, "unions", counts["unions"], unions

    try:
        return _first(refusals())
    except (TypeError, AttributeError, RecursionError):
        return "JSON schema is invalid"


def _schema(schema: dict[str, Any], root: Any, path: frozenset[str], counts: Counter[str]) -> Refusals:
    """Yield what may be wrong with a schema and those in it; `path` are the references that led here."""
    kind, properties, form = schema.get("type"), schema.get("properties", {}), schema.get("format", "text")
    for word in filter(schema.__contains__, SCHEMA["refused"]):
        yield True, "keyword", kind, f"property '{word}' is"
    for one in kind if isinstance(kind, list) else [kind or "null"]:
        yield one not in SCHEMA["types"], "schema_type", one
    yield schema.get("minItems", 0) not in {0, 1}, "keyword", "array", "'minItems' of more than 1 is"
    yield kind == "string" and form not in SCHEMA["formats"], "keyword", "string", f"format {form!r} is"
    yield (kind == "object" or properties) and schema.get("additionalProperties") is not False, "open"
    counts["unions"] += isinstance(kind, list) or "anyOf" in schema or "oneOf" in schema
    counts["optional"] += sum(name not in schema.get("required", ()) for name in properties)
    parts = [*properties.values(), *([schema["items"]] if "items" in schema else ())]
    parts += [part for word in ("anyOf", "oneOf", "allOf") for part in schema.get(word, ())]
    if reference := schema.get("$ref"):
        parts = [resolved(root, reference)]
        yield reference == "#" or reference in path, "recursive"
        yield parts == [None], "unresolved", reference
        path |= {reference}
    for part in parts:
        yield from _schema(part, root, path, counts)


def resolved(root: Any, reference: str) -> Any:
    """Return the part of a schema that a reference such as ``#/$defs/Topic`` means, or None."""
    found = root
    for part in reference.split("/")[1:]:
        found = found.get(part) if isinstance(found, dict) else None
    return found


# ------------------------------------------------------------------------------------------------- tokens


class Prefix(NamedTuple):
    """A prompt from its beginning to the end of one block; `ttl` where it is marked and long enough."""

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
        """What counts against the input limit: everything but cache reads."""
        return sum(self) - self.cache_read_input_tokens


def tokens_in(text: str, characters_per_token: float) -> int:
    """Return the tokens of one text; the same text always has the same."""
    drawn = (zlib.crc32(text.encode("utf-8", "surrogatepass")) & 0xFFFF) / 0xFFFF
    return math.ceil(len(text) / (characters_per_token * (0.9 + 0.2 * drawn)))


class Piece(NamedTuple):
    """One block of a request, its text and the blocks of files in it."""

    text: str
    cache_control: Any = None
    files: tuple[dict[str, Any], ...] = ()  # blocks of images and of documents that are no text


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
    """Return the tokens of an image or a PDF; one that does not show its size counts as one unseen."""
    with suppress(ValueError, LookupError, struct.error):  # broken, or elsewhere
        raw = base64.b64decode(block["source"].get("data", ""))
        found = media.media_type(raw[: media.HEAD_BYTES])
        if found == media.PDF:
            return media.pdf_pages(raw)[1]
        if found is not None:
            return media.image_tokens(*media.pixels(io.BytesIO(raw)), tokenizer)
    return media.unseen_tokens(block["type"])


def measure(body: dict[str, Any], model: catalog.Model) -> list[Prefix]:
    """Weigh a valid request for `model`, block by block; the last prefix is the whole of it."""
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
        said = text + "".join(json.dumps(file["source"], sort_keys=True) for file in files)
        digest = blake2b(digest + b"\0" + said.encode("utf-8", "surrogatepass"), digest_size=16).digest()
        control = mark or (body.get("cache_control") if len(prefixes) == len(blocks) - 1 else None)
        prefixes.append(
            Prefix(reached, digest, control.get("ttl", "5m") if control and reached >= least else None)
        )
    return prefixes


class PromptCache:
    """Prefixes that requests have marked, each for five minutes or an hour after its last use.

    An entry can be read only once the first reply that wrote it has begun, so calls that start
    together all write.
    """

    def __init__(self) -> None:
        self._entries: dict[bytes, tuple[float, float, str]] = {}  # can be read from and until when; its life

    def shares(self, now: float, prefixes: list[Prefix], *, may_read: bool = True) -> Shares:
        """Return how the request would be billed if it started now; changes nothing."""
        hit = self._hit(now, prefixes) if may_read else None
        read = reached = hit.tokens if hit else 0
        written = dict.fromkeys(TTL_SECONDS, 0)
        for prefix in prefixes:
            if prefix.ttl and prefix.tokens > reached:
                written[prefix.ttl] += prefix.tokens - reached
                reached = prefix.tokens
        return Shares(prefixes[-1].tokens - reached, written["5m"], written["1h"], read)

    def keep(self, now: float, begins_at: float, prefixes: list[Prefix]) -> None:
        """Remember the marked prefixes of a request that starts `now` and whose reply begins later."""
        hit = self._hit(now, prefixes)
        used = [hit._replace(ttl=self._entries[hit.digest][2])] if hit else []
        used += [one for one in prefixes if one.ttl and not (hit and one.tokens <= hit.tokens)]
        for _, digest, ttl in used:
            since, until, _ = self._entries.get(digest, (math.inf, 0.0, ttl))
            since, until = (since, until) if until > now else (math.inf, 0.0)
            life = TTL_SECONDS[ttl or "5m"]
            self._entries[digest] = min(begins_at, since), max(now + life, until), ttl or "5m"

    def _hit(self, now: float, prefixes: list[Prefix]) -> Prefix | None:
        """Return the longest prefix that can be read now, near enough before a mark."""
        reach = 0
        for prefix in reversed(prefixes):
            reach = LOOKBACK_BLOCKS if prefix.ttl else reach - 1
            since, until, _ = self._entries.get(prefix.digest, (math.inf, 0.0, ""))
            if reach > 0 and since <= now < until:
                return prefix
        return None
