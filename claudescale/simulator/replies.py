"""Replies of the simulated models: synthetic, plausible, and the same for the same request.

A reply depends only on the seed and the body, never on the order or time of calls.
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from dataclasses import dataclass, field
from functools import cached_property
from hashlib import blake2b
from typing import TYPE_CHECKING, Any

from claudescale.api import catalog
from claudescale.simulator.faults import draws
from claudescale.simulator.requests import pieces, resolved, tokens_in
from claudescale.simulator.wire import TABLES, Problem

if TYPE_CHECKING:
    from random import Random

    from claudescale.simulator.account import Options
    from claudescale.simulator.requests import Shares

MARK = "[simulated] "
SORTED = json.JSONEncoder(sort_keys=True, separators=(",", ":"))
ASIDE = frozenset({"stream", "metadata", "service_tier", "max_tokens", "cache_control", "diagnostics"})
LINES, WORDS = TABLES["lines"], TABLES["words"]
EFFORTS: dict[str, tuple[float, int]] = TABLES["efforts"]
FORMATS: dict[str, str] = TABLES["formats"]
OLD_SKILL_LOSS = 0.03  # for models with the older tokenizer
SHOWN_THINKING = "[simulated] What is asked is weighed against what the text says."
FAST_MODE_SPEEDUP = 2.5
READING_TOKENS_PER_SECOND = 60_000.0
REFUSALS = ("general_harms", "cyber", "bio", "frontier_llm")
REASONING = re.compile(r'"(?:reasoning|thinking|trace)": \{')  # as a field of a schema
MOST_SEARCHES, SEARCH_TOKENS = 3, 40  # output tokens to ask for one
BLOCK_TOKENS = 3  # even an empty reply has output tokens


WORD, NUMBER = re.compile(r"[^\W_]+"), re.compile(r"-?\d+(?:\.\d+)?")
SENTENCE = re.compile(r"[^.!?\n]+[.!?]*")
FEW_CHARACTERS, FEW_WORDS, PROSE_SHARE = 12, 3, 0.9
READ_CHARACTERS, MOST_DIGITS = 20_000, 10
BOUND = re.compile(r"((?:exclusive )?(?:minimum|maximum)|(?:max|min) (?:items|length)): (-?[\d.]+)")
MAX_DEPTH = 24
NULL_SHARE, OPTIONAL_SHARE, YES_SHARE = 0.15, 0.8, 0.2  # chances of null, an optional field, a yes
MAX_VALUES = 5_000  # the schema of a tool may be recursive


@dataclass(slots=True, kw_only=True)
class Reply:
    """A model's reply, before it is put on the wire."""

    shares: Shares  # how its input is billed
    content: list[dict[str, Any]] = field(default_factory=list)
    stop_reason: str = "end_turn"
    stop_sequence: str | None = None
    stop_details: dict[str, Any] | None = None
    output_tokens: int = 0
    thinking_tokens: int = 0
    geo: str = "global"
    speed: str = "standard"
    searches: int | None = None  # on the web; None if the request does not offer them
    searched_tokens: int = 0  # from search results, which are billed as input

    @property
    def billed(self) -> bool:
        """Whether it costs anything; a refusal before any output does so only in some categories."""
        category = (self.stop_details or {}).get("category")
        free = self.stop_reason == "refusal" and category not in catalog.CHARGES.billed_refusals
        return not free or self.output_tokens > 0


def digest(seed: int, body: dict[str, Any]) -> bytes:
    """Return a hash of the seed and of everything in a request that the model would see."""
    seen = {key: value for key, value in body.items() if key not in ASIDE}
    return hashed(seed, SORTED.encode(seen), 16)


def hashed(seed: int, text: str, size: int) -> bytes:
    """Return a hash of a text, salted with the seed."""
    raw, salt = text.encode("utf-8", "surrogatepass"), str(seed).encode()[:64]
    return blake2b(raw, digest_size=size, key=salt).digest()


def seconds(key: bytes, line: str | None, reply: Reply) -> tuple[float, float]:
    """Return the API seconds until a reply begins, and until it is complete."""
    luck, pace = draws(key, "latency"), LINES.get(line, LINES["sonnet"])
    begins = pace["seconds_to_first_token"] * luck.lognormvariate(0.0, 0.25)
    begins += sum(reply.shares) / READING_TOKENS_PER_SECOND
    speed = pace["output_tokens_per_second"] * (FAST_MODE_SPEEDUP if reply.speed == "fast" else 1.0)
    return begins, begins + reply.output_tokens / (speed * luck.lognormvariate(0.0, 0.2))


def _stems(words: str) -> frozenset[str]:
    return frozenset(word[:5].lower() for word in WORD.findall(words))


NEGATORS, GOOD, BAD = (_stems(WORDS[kind]) for kind in ("negators", "good", "bad"))
FALLBACKS, RATINGS, ASIDES, PRAISE, BLAME = (_stems(stems) for stems in TABLES["stems"].values())
RELATED = {stem: _stems(words) for stems, words in TABLES["topics"].items() for stem in stems.split()}


def label_stems(label: str) -> list[str]:
    """Return the stems of a label's words; camelCase and snake_case count as separate words."""
    return [word[:5].lower() for word in WORD.findall(re.sub(r"(?<=[a-z])(?=[A-Z])", " ", label))]


def subject(text: str) -> str:
    """Return the material of a prompt, without the instruction before or after it."""
    # The first or the last of several paragraphs is the instruction, whichever leaves more. A single one ends
    # its instruction with a line break or a colon, if enough is left.
    text = text.strip()
    after, before = text.partition("\n\n")[2].strip(), text.rpartition("\n\n")[0].strip()
    if max(len(after), len(before)) >= FEW_CHARACTERS:
        return max(after, before, key=len)
    for mark in ("\n", ": "):
        after = text.rpartition(mark)[2].strip()
        text = after if len(after) >= FEW_CHARACTERS else text
    return text


def sentences(text: str) -> list[str]:
    """Return the sentences of a text, without those that are not prose if any are."""
    pieces = [piece.strip() for piece in SENTENCE.findall(text[:READ_CHARACTERS]) if piece.strip()]
    return list(filter(_is_prose, pieces)) or pieces or [text.strip() or "nothing"]


def _is_prose(sentence: str) -> bool:
    letters = sum(letter.isalpha() or letter == " " for letter in sentence)
    return len(WORD.findall(sentence)) > FEW_WORDS and letters >= PROSE_SHARE * len(sentence)


class StandIn:
    """A simulated model that answers one valid request, with draws seeded by `key`."""

    def __init__(self, key: bytes, options: Options, body: dict[str, Any], model: catalog.ModelFacts) -> None:
        self._key, self._options, self._body, self._model = key, options, body, model
        self._luck, self._old = draws(key), model.tokenizer == "2024"
        self._thinking, self._config = body.get("thinking") or {}, body.get("output_config") or {}
        self._tools, self._choice = body.get("tools") or [], body.get("tool_choice") or {}

    def reply(self, shares: Shares) -> Reply:
        """Return the reply."""
        body, replies = self._body, self._options.replies
        nowhere = self._model.id in catalog.CHARGES.no_inference_geo
        geo = body.get("inference_geo") or ("not_available" if nowhere else "global")
        reply = Reply(shares=shares, speed=body.get("speed") or "standard", geo=geo)
        if body["max_tokens"] == 0:
            reply.stop_reason = "max_tokens"
            return reply
        reply.thinking_tokens = self._thinking_tokens()
        tool = None if replies else self._forced_tool()
        if replies:
            value = replies(body)
            text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
        else:
            text = self._written(tool)
        if stops := [stop for stop in body.get("stop_sequences") or () if stop in text and not tool]:
            reply.stop_reason, reply.stop_sequence = "stop_sequence", min(stops, key=text.index)
            text = text.partition(reply.stop_sequence)[0]
        self._fill(reply, text, tool)
        self._search(reply)
        return reply

    def spoil(self, kind: str, reply: Reply) -> None:
        """Spoil a reply as a fault does: make it empty, thinking only, refused or cut short."""
        reply.stop_reason, reply.stop_sequence = "max_tokens", None
        if kind == "empty_content":
            reply.content, reply.stop_reason = [], "end_turn"
            reply.output_tokens, reply.thinking_tokens = BLOCK_TOKENS, 0
        elif kind == "thinking_only":
            reply.content = [self._thought("")]
            reply.output_tokens = reply.thinking_tokens = max(reply.thinking_tokens, EFFORTS["medium"][1])
        elif kind == "refusal":
            reply.content, reply.searches = [], reply.searches and 0
            reply.output_tokens = reply.thinking_tokens = reply.searched_tokens = 0
        else:
            for block in reply.content:
                if "text" in block:
                    block["text"] = block["text"][: len(block["text"]) // 2]
            reply.output_tokens = max(reply.thinking_tokens + 1, reply.output_tokens // 2)
        if kind.startswith("refusal"):
            reasons = REASONING.search(json.dumps(self._config.get("format")))
            category = "reasoning_extraction" if reasons else draws(self._key, "category").choice(REFUSALS)
            details = {"type": "refusal", "category": category, "explanation": "A simulated refusal."}
            reply.stop_reason, reply.stop_details = "refusal", details

    def _thinking_tokens(self) -> int:
        """Return the number of thinking tokens, before `max_tokens` cuts them short."""
        kind = self._thinking.get("type") or ("adaptive" if self._model.thinks_by_default else "disabled")
        if kind in {"disabled", "between_tools"}:
            return 0
        likely, usual = EFFORTS[self._config.get("effort") or self._model.default_effort or "high"]
        chance, wanted = self._luck.random(), math.ceil(usual * self._luck.lognormvariate(0.0, 0.5))
        if kind == "adaptive" and chance > likely:
            return 0
        return min(wanted, int(self._thinking.get("budget_tokens") or wanted))

    def _thought(self, text: str) -> dict[str, Any]:
        return {"type": "thinking", "thinking": text, "signature": f"c2ltdWxhdGVk{self._key.hex()}"}

    def _forced_tool(self) -> dict[str, Any] | None:
        forced, name = self._choice.get("type"), self._choice.get("name")
        tools = [tool for tool in self._tools if "input_schema" in tool and name in (None, tool["name"])]
        return tools[0] if tools and forced in ("any", "tool") else None

    def _written(self, tool: dict[str, Any] | None) -> str:
        """Return JSON for a tool's input or for the request's format, or a plain text."""
        skill = LINES.get(self._model.line, LINES["sonnet"])["skill"] - (OLD_SKILL_LOSS if self._old else 0.0)
        writer = Writer(self._options.seed, self._body["messages"][-1]["content"], self._luck, skill)
        schema = tool["input_schema"] if tool else (self._config.get("format") or {}).get("schema")
        return writer.text() if schema is None else writer.json(schema)

    def _fill(self, reply: Reply, text: str, tool: dict[str, Any] | None) -> None:
        """Fill the reply with thinking and text, within `max_tokens` for both together."""
        if reply.thinking_tokens:
            # Opus 4.7 and later omit the text of their thinking unless asked for it.
            shown = self._thinking.get("display", "summarized" if self._old else "omitted") == "summarized"
            reply.content.append(self._thought(SHOWN_THINKING if shown else ""))
        reply.thinking_tokens = min(reply.thinking_tokens, self._body["max_tokens"])
        room = self._body["max_tokens"] - reply.thinking_tokens
        needed = BLOCK_TOKENS + tokens_in(text, self._model.characters_per_token)
        reply.output_tokens = reply.thinking_tokens + min(needed, room)
        if needed > room:
            text = text[: len(text) * max(0, room - BLOCK_TOKENS) // max(1, needed - BLOCK_TOKENS)]
            tool, reply.stop_reason, reply.stop_sequence = None, "max_tokens", None
        if tool:
            used = {"type": "tool_use", "id": f"toolu_sim{self._key.hex()[:20]}", "name": tool["name"]}
            reply.content.append({**used, "input": json.loads(text)})
            reply.stop_reason = "tool_use"
        elif room > 0:
            reply.content.append({"type": "text", "text": text, "citations": None})

    def _search(self, reply: Reply) -> None:
        """Put a few web searches, or none, before the text if the request offers them."""
        tools = [tool for tool in self._tools if str(tool.get("type")).startswith("web_search_")]
        if not tools:
            return
        luck, key, never = draws(self._key, "search"), self._key.hex(), self._choice.get("type") == "none"
        reply.searches = luck.randint(0, min(MOST_SEARCHES, tools[0].get("max_uses") or MOST_SEARCHES))
        room = (self._body["max_tokens"] - reply.output_tokens) // SEARCH_TOKENS
        reply.searches = 0 if never or reply.stop_reason == "max_tokens" else min(reply.searches, room)
        blocks = []
        for number in range(reply.searches):
            name, query = f"srvtoolu_sim{key[:16]}{number:02d}", {"query": f"{MARK}{number + 1}"}
            page = {"url": f"https://example.com/{number + 1}", "title": MARK.strip(), "page_age": None}
            result = {"type": "web_search_result", **page, "encrypted_content": f"c2ltdWxhdGVk{key}"}
            asked = {"type": "server_tool_use", "id": name, "name": "web_search", "input": query}
            given = {"type": "web_search_tool_result", "tool_use_id": name, "content": [result]}
            blocks += [{**block, "caller": {"type": "direct"}} for block in (asked, given)]
            reply.searched_tokens += luck.randint(500, 2_000)
        thoughts = sum(block["type"] == "thinking" for block in reply.content)
        reply.content[thoughts:thoughts] = blocks
        reply.output_tokens += SEARCH_TOKENS * reply.searches


class Writer:
    """Writes a simulated model's answer to the last turn of a request: text, or a value of a schema."""

    def __init__(self, seed: int, content: Any, luck: Random, skill: float) -> None:
        asked = [*pieces(content)]
        self._subject = subject("\n".join(piece.text for piece in asked))
        files = [file["source"] for piece in asked for file in piece.files]
        # `_fair` draws the right answers, the same for every model; `_luck` draws its errors and all else.
        text = self._subject + (SORTED.encode(files) if files else "")
        self._fair, self._luck, self._skill = draws(hashed(seed, text, 64), "fair"), luck, skill
        self._root: Any = None  # the whole schema, to resolve references
        self._values = 0  # written so far

    def text(self) -> str:
        """Return a few sentences of the subject, marked as simulated."""
        chosen = sentences(self._subject)
        first = self._luck.randrange(len(chosen))
        chosen = chosen[first : first + self._luck.randrange(1, 4)]
        return MARK + " ".join(" ".join(chosen).split()[: self._luck.randrange(25, 70)])

    def json(self, schema: Any) -> str:
        """Return a value that obeys a schema, as JSON."""
        self._root = schema
        try:
            return json.dumps(self._value(schema), ensure_ascii=False)
        except (TypeError, ValueError, LookupError, AttributeError) as error:
            raise Problem(400, f"The JSON schema is invalid: {error}") from None

    def _value(self, schema: Any, name: str = "", depth: int = 0) -> Any:  # noqa: PLR0911 - one per kind
        """Return a value for the field `name`."""
        self._values += 1
        if not isinstance(schema, dict) or depth > MAX_DEPTH or self._values > MAX_VALUES:
            return None
        meant = self._meant(schema)
        if meant is not schema:
            return self._value(meant, name, depth + 1)
        if "const" in schema:
            return schema["const"]
        if schema.get("enum"):
            return self._label(schema["enum"])
        match "object" if "properties" in schema else schema.get("type"):
            case "object":
                return self._object(schema, depth)
            case "array":
                return self._array(schema, name, depth)
            case "boolean":
                return self._flag(name)
            case "integer" | "number" as kind:
                return self._number(schema, name, whole=kind == "integer")
            case "null":
                return None
        return self._string(schema)

    def _meant(self, schema: dict[str, Any]) -> Any:
        """Return the schema that `schema` refers to, or one of its alternatives, or itself."""
        if "$ref" in schema:
            return resolved(self._root, schema["$ref"])
        if schema.get("allOf"):
            return schema["allOf"][0]
        branches = schema.get("anyOf") or schema.get("oneOf") or []
        if isinstance(schema.get("type"), list):
            branches = [{**schema, "type": kind} for kind in schema["type"]]
        rich = [branch for branch in branches if branch.get("type") != "null"]
        if len(rich) < len(branches) and (not rich or self._fair.random() < NULL_SHARE):
            return {"type": "null"}
        return rich[self._fair.randrange(len(rich))] if rich else schema

    def _object(self, schema: dict[str, Any], depth: int) -> dict[str, Any]:
        properties = schema.get("properties") or {}
        keys = [key for key in schema.get("required") or () if key in properties]
        keys += [key for key in properties if key not in keys and self._fair.random() < OPTIONAL_SHARE]
        return {key: self._value(properties[key], key, depth + 1) for key in keys}

    def _array(self, schema: dict[str, Any], name: str, depth: int) -> list[Any]:
        bounds, values = _bounds(schema), list[Any]()
        least = int(bounds.get("min items", schema.get("minItems", 0)))
        many = max(least, self._fair.randrange(1, 4))
        for _ in range(min(many, int(bounds.get("max items", many)))):
            value = self._value(schema.get("items") or {"type": "string"}, name, depth + 1)
            if value not in values or len(values) < least:
                values.append(value)
        return values

    def _flag(self, name: str) -> bool:
        stems = [stem for stem in label_stems(name) if stem not in ASIDES]
        right = sum(map(self._likeness, stems)) > 0 or self._fair.random() < YES_SHARE
        return right if self._luck.random() <= self._skill else not right

    def _label(self, labels: list[Any]) -> Any:
        texts = [label if isinstance(label, str) else json.dumps(label) for label in labels]
        places = range(len(labels))
        if all(map(NUMBER.fullmatch, texts)):
            best = sorted(places, key=lambda place: float(texts[place]))[self._grade(len(labels))]
        else:
            scores = [self._likeness(text) for text in texts]
            ties = [place for place in places if 0 < scores[place] == max(scores)] or [*places]
            best = ties[self._fair.randrange(len(ties))]
        if len(labels) > 1 and self._luck.random() > self._skill:
            best = (best + self._luck.randrange(1, len(labels))) % len(labels)
        return labels[best]

    def _number(self, schema: dict[str, Any], name: str, *, whole: bool) -> float:
        """Return a grade, a number from the text, or any number, within the bounds."""
        numbers = [digits for digits in NUMBER.findall(self._subject[:4000]) if len(digits) <= MOST_DIGITS]
        if not RATINGS & {*label_stems(name)}:
            value = float(self._fair.choice(numbers or range(1, 100)))
        elif whole:
            value = 1.0 + self._grade(5)
        else:
            value = round(min(1.0, max(0.0, 0.5 + 0.15 * self._sentiment)), 2)
        bounds, step = _bounds(schema), 1 if whole else 0.01
        least = max(bounds.get("minimum", -math.inf), bounds.get("exclusive minimum", -math.inf) + step)
        most = min(bounds.get("maximum", math.inf), bounds.get("exclusive maximum", math.inf) - step)
        value = min(max(value, least), most)
        return round(value) if whole else value

    def _string(self, schema: dict[str, Any]) -> str:
        form, bounds = schema.get("format"), _bounds(schema)
        if form in FORMATS:
            text = FORMATS[form].format(day=self._fair.randrange(1, 28), hour=self._fair.randrange(24))
        else:
            choice = sentences(self._subject)
            words = choice[self._fair.randrange(len(choice))].split()
            text = " ".join(words[: self._fair.randrange(6, 16)]).rstrip(",;:") or "nothing"
        return text[: int(bounds.get("max length", len(text)))].ljust(int(bounds.get("min length", 0)), ".")

    # -------------------------------------------------------------------------------- topics and sentiment

    @cached_property
    def _words(self) -> list[str]:
        return WORD.findall(self._subject[:READ_CHARACTERS].lower())

    @cached_property
    def _stems(self) -> Counter[str]:
        return Counter(word[:5] for word in self._words)

    @cached_property
    def _sentiment(self) -> int:
        """The number of good words minus bad ones; a negator flips the next three words."""
        total, flipped = 0, 0
        for word in self._words:
            stem = word[:5]
            value = (stem in GOOD) - (stem in BAD)
            total += -value if flipped > 0 else value
            flipped = 3 if stem in NEGATORS else flipped - 1
        return total

    def _likeness(self, label: str) -> float:
        """Return how well `label` matches the text; 0 means not at all."""
        score = 0.0
        for stem in label_stems(label):
            score += 2.0 * min(self._stems[stem], 3)
            if stem in PRAISE:
                score += max(0, self._sentiment)
            elif stem in BLAME:
                score += max(0, -self._sentiment)
            elif stem in RELATED:
                score += len(RELATED[stem] & self._stems.keys())
            elif stem in FALLBACKS:
                score += 0.5
        return score

    def _grade(self, steps: int) -> int:
        """Return the sentiment of the text as a step from 0 to `steps` - 1, with a little noise."""
        share = 0.5 + 0.2 * self._sentiment + self._fair.uniform(-0.12, 0.12)
        return min(steps - 1, max(0, int(share * steps)))


def _bounds(schema: dict[str, Any]) -> dict[str, float]:
    """Return the bounds that a description states in words, as the API does not take their keywords."""
    bounds = BOUND.findall(str(schema.get("description")))
    return {name: float(value.rstrip(".")) for name, value in bounds}
