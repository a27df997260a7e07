"""How often a choice clears a gate above its true score, and how often intervals contain the truth.

Run: ``python tests/benchmarks/evidence_benchmark.py [trials]`` with the package importable. In every trial
some models answer the same rows and share their difficulty. At 95% confidence "wrong" must not exceed 0.05
for right-or-wrong scores, whose test is exact; for other scores, here badly skewed, it shows the error.
"covered" is the share of the first model's intervals that contain its true mean, "enough" is how often the
requested number of rows settles the question.
"""

import random
import sys

import polars as pl

from claudescale.evidence import judging

GATE = 0.9
CASES = {
    "all just below": (0.899, 0.899, 0.899),
    "six just below": (0.899,) * 6,
    "cheap below, dear good": (0.86, 0.94, 0.97),
}
KINDS = ("right or wrong", "a number from 0 to 1", "a number from 1 to 5")


def scores_of(luck, kind, truths, rows):
    """Return the scores of each model on the same rows, with the given mean, correlated and skewed."""
    scores = {f"m{number}": [] for number in range(len(truths))}
    for _ in range(rows):
        row = luck.random()
        for name, truth in zip(scores, truths, strict=True):
            own = row if luck.random() < 0.5 else luck.random()
            if kind == KINDS[0]:
                score = float(own < truth)
            else:  # most are perfect, the others anything: the mean is 1 - share / 2
                share = 2 * (1 - truth)
                score = 1.0 if own > share else own / share
            scores[name].append(score if kind != KINDS[2] else 1 + 4 * score)
    return {name: pl.Series(values) for name, values in scores.items()}


def one(luck, kind, truths, rows):
    """Return whether a bad model cleared, whether none did, and whether the first interval has the truth."""
    scale = (lambda value: 1 + 4 * value) if kind == KINDS[2] else float
    scores = scores_of(luck, kind, truths, rows)
    cleared = judging.evidence(scores, scale(GATE), 0.95).filter("clears")["choice"].to_list()
    low, high = judging.interval(scores["m0"])
    wrong = any(truths[int(name[1:])] < GATE for name in cleared)
    return wrong, not cleared, low is not None and low <= scale(truths[0]) <= high


def enough(luck, truth, gate, trials):
    """Return how often the requested rows, after a sample that matches the truth, settle it."""
    first = pl.Series([1.0] * round(40 * truth) + [0.0] * (40 - round(40 * truth)))
    rows = 40 + judging.rows_more(first, gate, 0.05)
    right = [sum(luck.random() < truth for _ in range(rows)) for _ in range(trials)]
    return sum(judging.tail(count, rows, gate) <= 0.05 for count in right) / trials


def main():
    trials = int(sys.argv[1]) if len(sys.argv) > 1 else 1_000
    print(f"{'scores':22}{'truths':24}{'rows':>5}{'wrong':>8}{'none':>8}{'covered':>9}")
    for kind in KINDS:
        for case, truths in CASES.items():
            for rows in (20, 50, 200):
                luck = random.Random(f"{kind} {case} {rows}")
                several = trials if kind == KINDS[0] else trials // 5
                found = [one(luck, kind, truths, rows) for _ in range(several)]
                wrong, none, covered = (sum(column) / several for column in zip(*found, strict=True))
                print(f"{kind:22}{case:24}{rows:5}{wrong:8.3f}{none:8.3f}{covered:9.3f}")
    for truth, gate in ((0.95, 0.9), (0.9, 0.8), (0.8, 0.75)):
        print(f"enough, {truth} above {gate}: {enough(random.Random(6), truth, gate, trials):.2f}")


if __name__ == "__main__":
    main()
