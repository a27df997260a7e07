"""Thirty plans over one small frame: every form of a request."""

from datetime import date

import polars as pl
from pydantic import BaseModel, Field
from running import WIDE_LIMITS as WIDE

import claudescale as cs

FRAME = pl.DataFrame(
    {
        "text": ["late again", 'said "no"\n\ttwice', "late again", None, "naïve café 🙂 \\ {x}"],
        "stars": [1, 5, 1, 3, None],
        "when": [date(2026, 11, 1), None, date(2026, 11, 1), date(2026, 11, 2), date(2026, 11, 3)],
        "tags": [["a", "b"], [], ["a", "b"], None, ["ü"]],
    },
    schema={"text": pl.String, "stars": pl.Int64, "when": pl.Date, "tags": pl.List(pl.String)},
)
LABELS = pl.Enum(["good", "bad"])
HAIKU, SONNET, OPUS = "claude-haiku-5-5", "claude-sonnet-5-5", "claude-opus-5-5"


class Mood(BaseModel):
    """What a customer feels."""

    mood: str = Field(description="one word", max_length=20)
    score: float
    reasons: list[str]


RETURNS = {
    "enum": LABELS,
    "string": pl.String,
    "integer": pl.Int8,
    "number": pl.Float64,
    "boolean": pl.Boolean,
    "date": pl.Date,
    "list": pl.List(pl.String),
    "struct": pl.Struct({"a": pl.Int64, "b": pl.String}),
    "dict": {"label": LABELS, "sure": pl.Float64 | None},
    "schema": pl.Schema({"label": pl.String, "count": pl.UInt8}),
    "decimal": pl.Decimal(10, 2),
    "pydantic": Mood,
}

_BUDGET = {"type": "enabled", "budget_tokens": 1_024}
OPTIONS = {
    "plain": {},
    "two columns": {"prompt": "{text}: {stars}"},
    "date": {"prompt": "On {when}: {text}"},
    "list": {"prompt": "Tags {tags}"},
    "braces": {"prompt": 'As {{"a": 1}}: {text}'},
    "expression": {"prompt": pl.format("Read {}", "text")},
    "column": {"prompt": pl.col("text")},
    "system": {"system": "You are brief."},
    "system cached": {"system": "You are brief. " * 400, "cache": True},
    "system cached in a batch": {"system": "You are brief. " * 400, "cache": True, "mode": "batch"},
    "max_tokens": {"max_tokens": 7},
    "many tokens": {"max_tokens": 30_000},
    "sonnet": {"model": SONNET},
    "opus": {"model": OPUS},
    "fable": {"model": "claude-fable-5-2"},
    "haiku 4.5": {"model": "claude-haiku-4-5"},
    "effort": {"effort": "low"},
    "high effort": {"model": OPUS, "effort": "high"},
    "thinking": {"thinking": {"type": "adaptive"}, "max_tokens": 4_000},
    "thinking off": {"thinking": {"type": "disabled"}},
    "thinking by budget": {"model": "claude-haiku-4-5", "thinking": _BUDGET, "max_tokens": 2_000},
    "stop": {"params": {"stop_sequences": ["END"]}},
    "tier of service": {"params": {"service_tier": "standard_only"}},
    "enum": {"returns": LABELS},
    "dict": {"returns": RETURNS["dict"]},
    "pydantic": {"returns": Mood},
    "pydantic with system": {"returns": Mood, "system": "Ünïcode: 🙂"},
    "batch": {"mode": "batch"},
    "hybrid": {"mode": "hybrid", "deadline": 90},
    "auto": {"mode": "auto", "deadline": 2_000},
}


def a_plan(prompt="Name it: {text}", **options):
    """Return a plan over the frame."""
    return cs.plan(FRAME, prompt, **{"model": HAIKU, "tier": WIDE, "max_tokens": 64, **options})
