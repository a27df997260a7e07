"""Recorded values that must not change: JSON beside the tests, rewritten with CLAUDESCALE_RECORD=1."""

import json
import os
from pathlib import Path


def check(name, value):
    """Compare a JSON value with the recorded one, or record it."""
    path = Path(__file__).with_name(f"{name}.json")
    if os.environ.get("CLAUDESCALE_RECORD"):
        text = json.dumps(value, indent=1, ensure_ascii=False, sort_keys=True)
        path.write_text(text + "\n", encoding="utf-8")
    recorded = json.loads(path.read_text(encoding="utf-8"))
    assert json.loads(json.dumps(value)) == recorded
