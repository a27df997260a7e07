"""What the simulated models answer: synthetic, plausible, and the same for the same request.

A reply depends on the seed and the body alone, never on the order or the time of the calls.
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
    from claudescale.simulator.desk import Options
    from claudescale.simulator.requests import Shares

MARK = "[simulated] "
SORTED = json.JSONEncoder(sort_keys=True, separators=(",", ":"))
ASIDE = frozenset({"stream", "metadata", "service_tier", "max_tokens", "cache_control", "diagnostics"})
LINES, WORDS = TABLES["lines"], TABLES["words"]
EFFORTS: dict[str, tuple[float, int]] = TABLES["efforts"]
FORMATS: dict[str, str] = TABLES["formats"]
OLD_SKILL_LOSS = 0.03  # of the models with the older tokenizer
SHOWN_THINKING = "[simulated] What is asked is weighed against what the text says."
FAST_MODE_SPEEDUP = 2.5
READING_TOKENS_PER_SECOND = 60_000.0
MAX_WORDS = 3_000
REFUSALS = ("general_harms", "cyber", "bio", "frontier_llm")
REASONING = re.compile(r'"(?:reasoning|thinking|trace)": \{')  # as a field of a schema
MOST_SEARCHES, SEARCH_TOKENS = 3, 40  # tokens of output, to ask for one
BLOCK_TOKENS = 3  # a reply is never free of output tokens, even an empty one


WORD, NUMBER = re.compile(r"[^\W_]+"), re.compile(r"-?\d+(?:\.\d+)?")
SENTENCE = re.compile(r"[^.!?\n]+[.!?]*")
WORDS_ASKED = re.compile(r"\b(\d{1,4})[ -]words?\b")
FEW_CHARACTERS, FEW_WORDS, PROSE_SHARE = 12, 3, 0.9
READ_CHARACTERS = 20_000
BOUND = re.compile(r"((?:exclusive )?(?:minimum|maximum)|(?:max|min) (?:items|length)): (-?[\d.]+)")
MAX_DEPTH = 24
NULL_SHARE, OPTIONAL_SHARE, YES_SHARE = 0.15, 0.8, 0.2  # how often what may be is so
MAX_VALUES = 5_000  # a tool may have a schema that contains itself


@dataclass(slots=True, kw_only=True)
class Reply:
    """One answer of a model, before it is put on the wire."""

    shares: Shares  # of its input
    content: list[dict[str, Any]] = field(default_factory=list)
    stop_reason: str = "end_turn"
    stop_sequence: str | None = None
    stop_details: dict[str, Any] | None = None
    output_tokens: int = 0
    thinking_tokens: int = 0
    geo: str = "global"
    speed: str = "standard"
    searches: int | None = None  # of the web; None where they are not offered
    found_tokens: int = 0  # of what they found, which is input

    @property
    def billed(self) -> bool:
        """Whether it costs anything: a refusal before any output does only in some categories."""
        category = (self.stop_details or {}).get("category")
        free = self.stop_reason == "refusal" and category not in catalog.CHARGES.billed_refusals
        return not free or self.output_tokens > 0


def digest(seed: int, body: dict[str, Any]) -> bytes:
    """Return what decides the reply to a request: the seed and everything the model would see."""
    seen = {key: value for key, value in body.items() if key not in ASIDE}
    return hashed(seed, SORTED.encode(seen), 16)


def hashed(seed: int, text: str, size: int) -> bytes:
    """Return a hash of a text that is another for every seed."""
    raw, salt = text.encode("utf-8", "surrogatepass"), str(seed).encode()[:64]
    return blake2b(raw, digest_size=size, key=salt).digest()


def seconds(key: bytes, line: str | None, reply: Reply) -> tuple[float, float]:
    """Return the API seconds until a reply begins, and until it is complete."""
    own, pace = draws(key, "latency"), LINES.get(line, LINES["sonnet"])
    begins = pace["seconds_to_first_token"] * own.lognormvariate(0.0, 0.25)
    begins += sum(reply.shares) / READING_TOKENS_PER_SECOND
    speed = pace["output_tokens_per_second"] * (FAST_MODE_SPEEDUP if reply.speed == "fast" else 1.0)
    return begins, begins + reply.output_tokens / (speed * own.lognormvariate(0.0, 0.2))


def _stems(words: str) -> frozenset[str]:
    return frozenset(word[:5].lower() for word in WORD.findall(words))


NEGATORS, GOOD, BAD = (_stems(WORDS[kind]) for kind in ("negators", "good", "bad"))
FALLBACKS, RATINGS, ASIDES, PRAISE, BLAME = (_stems(stems) for stems in TABLES["stems"].values())
RELATED = {stem: _stems(words) for stems, words in TABLES["topics"].items() for stem in stems.split()}


def label_stems(label: str) -> list[str]:
    """Return the stems of a label's words; camelCase and snake_case count as separate words."""
    return [word[:5].lower() for word in WORD.findall(re.sub(r"(?<=[a-z])(?=[A-Z])", " ", label))]


def subject(text: str) -> str:
    """Return the part of a prompt that is its material, without the instruction before or after it.

    Of several paragraphs that is what follows the first, or what precedes the last, whichever is longer; of
    one it is what stands after a line break or a colon, if enough is left.
    """
    text = text.strip()
    after, before = text.partition("\n\n")[2].strip(), text.rpartition("\n\n")[0].strip()
    if max(len(after), len(before)) >= FEW_CHARACTERS:
        return max(after, before, key=len)
    for mark in ("\n", ": "):
        after = text.rpartition(mark)[2].strip()
        text = after if len(after) >= FEW_CHARACTERS else text
    return text


def sentences(text: str) -> list[str]:
    """Return the sentences of a text, those made of words if there are any."""
    found = [one.strip() for one in SENTENCE.findall(text[:READ_CHARACTERS]) if one.strip()]
    return list(filter(_is_prose, found)) or found or [text.strip() or "nothing"]


def _is_prose(sentence: str) -> bool:
    letters = sum(letter.isalpha() or letter == " " for letter in sentence)
    return len(WORD.findall(sentence)) > FEW_WORDS and letters >= PROSE_SHARE * len(sentence)


class Writer:
    """A simulated model at work on one valid request, whose `digest` is `key`."""

    def __init__(self, key: bytes, options: Options, body: dict[str, Any], model: catalog.Model) -> None:
        self._key, self._options, self._body, self._model = key, options, body, model
        self._old = model.tokenizer == "2024"
        self._skill = LINES.get(model.line, LINES["sonnet"])["skill"] - OLD_SKILL_LOSS * self._old
        fields = ("tool_choice", "thinking", "output_config", "tools")
        self._choice, self._thinking, self._config, self._tools = (body.get(field) or {} for field in fields)
        asked = [*pieces(body["messages"][-1]["content"])]
        self._asked = "\n".join(piece.text for piece in asked)
        self._subject = subject(self._asked)
        files = [file["source"] for piece in asked for file in piece.files]
        # What is right is drawn the same for every model; where one errs, and all else, by its own luck.
        text = self._subject + (SORTED.encode(files) if files else "")
        self._fair, self._own = draws(hashed(options.seed, text, 64), "fair"), draws(key)
        self._root, self._written = (self._config.get("format") or {}).get("schema"), 0

    def reply(self, shares: Shares) -> Reply:
        """Return its reply."""
        body, written = self._body, self._options.replies
        reply = Reply(shares=shares, speed=body.get("speed") or "standard")
        nowhere = self._model.id in catalog.CHARGES.no_inference_geo
        reply.geo = body.get("inference_geo") or ("not_available" if nowhere else "global")
        if body["max_tokens"] == 0:
            reply.stop_reason = "max_tokens"
            return reply
        reply.thinking_tokens = self._thinking_tokens()
        tool = None if written else self._forced_tool()
        self._root = tool["input_schema"] if tool else self._root
        if written or self._root is None:
            value = written(body) if written else self._text()
            text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
        else:
            text = self._json()
        if stops := [stop for stop in body.get("stop_sequences") or () if stop in text and not tool]:
            reply.stop_reason, reply.stop_sequence = "stop_sequence", min(stops, key=text.index)
            text = text.partition(reply.stop_sequence)[0]
        self._cut(reply, text, tool)
        self._search(reply)
        return reply

    def spoil(self, kind: str, reply: Reply) -> None:
        """Make of a reply what a fault makes of it: empty, thinking alone, refused or cut short."""
        reply.stop_reason, reply.stop_sequence = "max_tokens", None
        if kind == "empty_content":
            reply.content, reply.stop_reason = [], "end_turn"
            reply.output_tokens, reply.thinking_tokens = BLOCK_TOKENS, 0
        elif kind == "thinking_only":
            reply.content = [self._thought("")]
            reply.output_tokens = reply.thinking_tokens = max(reply.thinking_tokens, EFFORTS["medium"][1])
        elif kind == "refusal":
            reply.content, reply.searches = [], reply.searches and 0
            reply.output_tokens = reply.thinking_tokens = reply.found_tokens = 0
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
        """Return how many tokens it would think, if nothing cut it short."""
        kind = self._thinking.get("type") or ("adaptive" if self._model.thinks_by_default else "disabled")
        if kind in {"disabled", "between_tools"}:
            return 0
        likely, usual = EFFORTS[self._config.get("effort") or self._model.default_effort or "high"]
        chance, wanted = self._own.random(), math.ceil(usual * self._own.lognormvariate(0.0, 0.5))
        if kind == "adaptive" and chance > likely:
            return 0
        return min(wanted, int(self._thinking.get("budget_tokens") or wanted))

    def _thought(self, text: str) -> dict[str, Any]:
        return {"type": "thinking", "thinking": text, "signature": f"c2ltdWxhdGVk{self._key.hex()}"}

    def _forced_tool(self) -> dict[str, Any] | None:
        forced, name = self._choice.get("type"), self._choice.get("name")
        tools = [tool for tool in self._tools if "input_schema" in tool and name in (None, tool["name"])]
        return tools[0] if tools and forced in ("any", "tool") else None

    def _cut(self, reply: Reply, text: str, tool: dict[str, Any] | None) -> None:
        """Put text and thinking together within `max_tokens`, which counts both."""
        if reply.thinking_tokens:
            # Opus 4.7 and later leave the text of their thinking out unless asked for it.
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
        """Put a few searches of the web before the text, or none, where the request offers them."""
        tools = [tool for tool in self._tools if str(tool.get("type")).startswith("web_search_")]
        if not tools:
            return
        own, key = draws(self._key, "search"), self._key.hex()
        count = own.randint(0, min(MOST_SEARCHES, tools[0].get("max_uses") or MOST_SEARCHES))
        count = min(count, (self._body["max_tokens"] - reply.output_tokens) // SEARCH_TOKENS)
        never = self._choice.get("type") == "none" or reply.stop_reason == "max_tokens"
        reply.searches = 0 if never else count
        thoughts = sum(block["type"] == "thinking" for block in reply.content)
        for number in range(reply.searches):
            name, query = f"srvtoolu_sim{key[:16]}{number:02d}", {"query": f"{MARK}{number + 1}"}
            page = {"url": f"https://example.com/{number + 1}", "title": MARK.strip(), "page_age": None}
            found = {"type": "web_search_result", **page, "encrypted_content": f"c2ltdWxhdGVk{key}"}
            asks = {"type": "server_tool_use", "id": name, "name": "web_search", "input": query}
            gives = {"type": "web_search_tool_result", "tool_use_id": name, "content": [found]}
            place = thoughts + 2 * number
            reply.content[place:place] = [{**block, "caller": {"type": "direct"}} for block in (asks, gives)]
            reply.found_tokens += own.randint(500, 2_000)
        reply.output_tokens += SEARCH_TOKENS * reply.searches

    def _json(self) -> str:
        try:
            return json.dumps(self.value(self._root), ensure_ascii=False)
        except (TypeError, ValueError, LookupError, AttributeError) as error:
            raise Problem(400, f"The JSON schema is invalid: {error}") from None

    def _text(self) -> str:
        chosen = sentences(self._subject)
        if asked := WORDS_ASKED.search(self._asked):
            words = " ".join(chosen).split()
            count = min(MAX_WORDS, int(asked[1]))
            return MARK + " ".join((words * (count // len(words) + 1))[:count])
        first = self._own.randrange(len(chosen))
        chosen = chosen[first : first + self._own.randrange(1, 4)]
        return MARK + " ".join(" ".join(chosen).split()[: self._own.randrange(25, 70)])

    # ---------------------------------------------------------------------------------- values of a schema

    @cached_property
    def _read(self) -> tuple[Counter[str], int]:
        """The stems of the text, and how many more good words it has than bad ones; a negator turns three."""
        stems, found, flipped = Counter[str](), 0, 0
        for word in WORD.findall(self._subject[:READ_CHARACTERS].lower()):
            stem = word[:5]
            stems[stem] += 1
            value = (stem in GOOD) - (stem in BAD)
            found += -value if flipped > 0 else value
            flipped = 3 if stem in NEGATORS else flipped - 1
        return stems, found

    def value(self, schema: Any, name: str = "", depth: int = 0) -> Any:  # noqa: PLR0911 - one a kind
        """Return a value of the field `name` that obeys a schema."""
        self._written += 1
        if not isinstance(schema, dict) or depth > MAX_DEPTH or self._written > MAX_VALUES:
            return None
        if "$ref" in schema:
            return self.value(resolved(self._root, schema["$ref"]), name, depth + 1)
        kind = schema.get("type")
        branches = schema.get("anyOf") or schema.get("oneOf")
        if isinstance(kind, list):
            branches = [{**schema, "type": one} for one in kind]
        if branches:
            rich = [branch for branch in branches if branch.get("type") != "null"]
            if len(rich) < len(branches) and (not rich or self._fair.random() < NULL_SHARE):
                return None
            return self.value(rich[self._fair.randrange(len(rich))], name, depth + 1)
        if parts := schema.get("allOf"):
            values = [self.value(part, name, depth + 1) for part in parts]
            objects = [value for value in values if isinstance(value, dict)]
            return {key: value for found in objects for key, value in found.items()} if objects else values[0]
        if "const" in schema:
            return schema["const"]
        if schema.get("enum"):
            return self._label(schema["enum"])
        if kind == "object" or "properties" in schema:
            properties = schema.get("properties") or {}
            keys = [key for key in schema.get("required") or () if key in properties]
            keys += [key for key in properties if key not in keys and self._fair.random() < OPTIONAL_SHARE]
            return {key: self.value(properties[key], key, depth + 1) for key in keys}
        return self._array(schema, name, depth) if kind == "array" else self._scalar(kind, schema, name)

    def _array(self, schema: dict[str, Any], name: str, depth: int) -> list[Any]:
        bounds, found = _bounds(schema), list[Any]()
        least = int(bounds.get("min items", schema.get("minItems", 0)))
        many = max(least, self._fair.randrange(1, 4))
        for _ in range(min(many, int(bounds.get("max items", many)))):
            value = self.value(schema.get("items") or {"type": "string"}, name, depth + 1)
            if value not in found or len(found) < least:
                found.append(value)
        return found

    def _scalar(self, kind: Any, schema: dict[str, Any], name: str) -> Any:
        bounds = _bounds(schema)
        if kind == "boolean":
            stems = [stem for stem in label_stems(name) if stem not in ASIDES]
            answer = sum(map(self._likeness, stems)) > 0 or self._fair.random() < YES_SHARE
            return answer if self._own.random() <= self._skill else not answer
        if kind in {"integer", "number"}:
            whole = kind == "integer"
            step, value = 1 if whole else 0.01, self._number(name, whole=whole)
            least = max(bounds.get("minimum", -math.inf), bounds.get("exclusive minimum", -math.inf) + step)
            most = min(bounds.get("maximum", math.inf), bounds.get("exclusive maximum", math.inf) - step)
            value = min(max(value, least), most)
            return round(value) if whole else value
        if kind == "null":
            return None
        text = self._string(schema.get("format"))
        return text[: int(bounds.get("max length", len(text)))].ljust(int(bounds.get("min length", 0)), ".")

    def _likeness(self, label: str) -> float:
        """Return how much the text speaks of `label`; 0 means not at all."""
        score, (stems, sentiment) = 0.0, self._read
        for stem in label_stems(label):
            score += 2.0 * min(stems[stem], 3)
            if stem in PRAISE | BLAME:
                score += max(0, sentiment if stem in PRAISE else -sentiment)
            elif stem in RELATED:
                score += len(RELATED[stem] & stems.keys())
            else:
                score += 0.5 * (stem in FALLBACKS)
        return score

    def _label(self, labels: list[Any]) -> Any:
        texts = [label if isinstance(label, str) else json.dumps(label) for label in labels]
        places = range(len(labels))
        if all(map(NUMBER.fullmatch, texts)):
            best = sorted(places, key=lambda place: float(texts[place]))[self._place(len(labels))]
        else:
            scores = [self._likeness(text) for text in texts]
            ties = [place for place in places if 0 < scores[place] == max(scores)] or [*places]
            best = ties[self._fair.randrange(len(ties))]
        if len(labels) > 1 and self._own.random() > self._skill:
            best = (best + self._own.randrange(1, len(labels))) % len(labels)
        return labels[best]

    def _place(self, steps: int) -> int:
        """Return where the text stands on a scale of `steps`, from its worst words to its best."""
        share = 0.5 + 0.2 * self._read[1] + self._fair.uniform(-0.12, 0.12)
        return min(steps - 1, max(0, int(share * steps)))

    def _number(self, name: str, *, whole: bool) -> float:
        stems, fair = set(label_stems(name)), self._fair
        if RATINGS & stems:
            return self._place(5) + 1 if whole else round(min(1.0, max(0.0, 0.5 + 0.15 * self._read[1])), 2)
        found = [one for one in NUMBER.findall(self._subject[:4000]) if len(one) <= len("123456.789")]
        if found:
            value = float(found[fair.randrange(len(found))])
            return int(value) if whole else value
        return fair.randrange(1, 100) if whole else round(fair.uniform(0, 100), 2)

    def _string(self, form: Any) -> str:
        if form in FORMATS:
            return FORMATS[form].format(day=self._fair.randrange(1, 28), hour=self._fair.randrange(24))
        choice = sentences(self._subject)
        words = choice[self._fair.randrange(len(choice))].split()
        return " ".join(words[: self._fair.randrange(6, 16)]).rstrip(",;:") or "nothing"


def _bounds(schema: dict[str, Any]) -> dict[str, float]:
    """Return the bounds that a description tells in words, where the API has no keyword for them."""
    found = BOUND.findall(str(schema.get("description")))
    return {name: float(value.rstrip(".")) for name, value in found}
