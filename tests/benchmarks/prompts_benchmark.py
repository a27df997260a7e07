"""CPU and memory to render, hash and read a million rows, next to plain Python in the same run.

Run: ``python tests/benchmarks/prompts_benchmark.py [rows]`` with the package importable.
"""

from __future__ import annotations

import json
import resource
import sys
import time

import polars as pl

from claudescale.api.catalog import model
from claudescale.prompts.replies import compile_returns
from claudescale.prompts.requests import Prompt, compile_prompt

SYSTEM = "You name the one complaint in a customer's review, in five words at most."
TEMPLATE = "Name the complaint in: {text} (rated {rating})"


def main(rows: int) -> None:
    frame = pl.DataFrame({"number": pl.int_range(rows, eager=True)}).select(
        text=pl.format(
            'The "parcel" {} came late.\nThe box was broken, and nobody answers \U0001f600.', "number"
        ),
        rating=pl.col("number") % 5,
    )
    labels = pl.Enum(["late", "broken", "rude"])
    prompt = compile_prompt(
        TEMPLATE, frame.schema, model=model("claude-haiku-5-5"), system=SYSTEM, returns={"label": labels}
    )
    print(f"{rows:,} rows")
    contents = measured("Prompt.contents", rows, lambda: prompt.contents(frame))
    work = prompt.work(frame, "api")
    bodies = measured("Work.bodies", rows, lambda: list(work.bodies(work.requests["row"])))
    measured("Prompt.sizes", rows, lambda: prompt.sizes(frame))
    measured("Prompt.keys", rows, lambda: prompt.keys(contents["content"], "api"))
    # Last of its kind: its two gigabytes make every later page allocation more expensive.
    python = measured("plain Python: dict per row, json.dumps", rows, lambda: in_python(frame, prompt))
    assert bodies[0].decode() == python[0]
    del python

    fields = {"label": labels, "score": pl.Float64, "quote": pl.String}
    returns = compile_returns(fields)
    replies = frame.select(
        pl.concat_str(
            pl.lit('{"label":"late","score":0.'),
            pl.col("rating"),
            pl.lit(',"quote":"came late '),
            pl.int_range(pl.len()),
            pl.lit('"}'),
        ).alias("reply")
    )["reply"]
    measured("plain Python: json.loads", rows, lambda: [json.loads(reply) for reply in replies])
    measured("Returns.decode, all different", rows, lambda: returns.decode(replies))
    few = pl.select(
        pl.concat_str(pl.lit('{"reply":"'), pl.int_range(rows) % 3 + 1, pl.lit('"}')).alias("reply")
    )["reply"]
    measured(
        "Returns.decode, three labels", rows, lambda: compile_returns(pl.Enum(["1", "2", "3"])).decode(few)
    )


def in_python(frame: pl.DataFrame, prompt: Prompt) -> list[str]:
    base = json.loads(prompt.head + '""' + prompt.tail)
    bodies = []
    for text, rating in frame.iter_rows():
        content = TEMPLATE.format(text=text, rating=rating)
        body = base | {"messages": [{"role": "user", "content": content}]}
        bodies.append(json.dumps(body, ensure_ascii=False, separators=(",", ":")))
    return bodies


def measured(name, rows, act):
    before, cpu = memory_megabytes(), time.process_time()
    made = act()
    seconds = time.process_time() - cpu
    more = memory_megabytes() - before
    print(f"{name:42} {seconds / rows * 1e6:7.2f} us CPU a row   peak memory +{more:,.0f} MB")
    return made


def memory_megabytes() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 1_000_000)
