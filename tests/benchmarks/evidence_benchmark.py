"""How often is a model chosen whose true score is below the gate? Simulated trials, and what they chose.

Run: ``python tests/benchmarks/evidence_benchmark.py [trials]`` with the package importable. In every trial
some models answer the same rows, whose difficulty they share, and the cheapest that is good enough is
picked at 95% confidence. "wrong" is the share of trials in which a model truly below the gate was chosen: it
must not be above 5%. "naive" is the same for the cheapest model whose plain Wilson interval (or bootstrap
interval) lies above the gate, "by score" for the cheapest whose score does.
"""

import random
import sys

import polars as pl

from claudescale.evidence import evidence

GATE = 0.9
CASES = {
    "all just below": (0.899, 0.899, 0.899),
    "six just below": (0.899,) * 6,
    "cheap just below, dear good": (0.899, 0.94, 0.97),
    "cheap below, dear good": (0.86, 0.94, 0.97),
    "all good": (0.95, 0.97, 0.98),
}
KINDS = ("right or wrong", "a number from 0 to 1", "a number from 1 to 5")


def scores_of(chance, kind, truths, rows):
    """Return the scores of each model on the same rows: of the mean asked for, and correlated."""
    found = [[] for _ in truths]
    for _ in range(rows):
        row = chance.random()
        for scores, truth in zip(found, truths, strict=True):
            luck = row if chance.random() < 0.5 else chance.random()
            if kind == KINDS[0]:
                score = float(luck < truth)
            else:  # most are perfect, the others anything: the mean is 1 - share / 2
                share = 2 * (1 - truth)
                score = 1.0 if luck > share else luck / share
                score = score if kind == KINDS[1] else 1 + 4 * score
            scores.append(score)
    return found


def chosen(scores, gate):
    """Return the number of the model that each way of choosing takes, or None."""
    names = [str(number) for number in range(len(scores))]
    order = [float(number) for number in range(len(scores))]
    table = pl.DataFrame([names, scores, order, order], schema=evidence.CANDIDATES)
    ours = evidence.pick(table, gate).model
    series = [pl.Series(each) for each in scores]
    naive = next((n for n, each in enumerate(series) if evidence.interval(each).low >= gate), None)
    plain = next((n for n, each in enumerate(series) if each.mean() >= gate), None)
    return (None if ours is None else int(ours)), naive, plain


def main():
    trials = int(sys.argv[1]) if len(sys.argv) > 1 else 1_000
    rows = []
    for kind in KINDS:
        gate = GATE if kind != KINDS[2] else 1 + 4 * GATE
        for case, truths in CASES.items():
            for n in (20, 50, 200):
                chance = random.Random(f"{kind} {case} {n}")
                several = trials if kind == KINDS[0] else trials // 8
                picks = [chosen(scores_of(chance, kind, truths, n), gate) for _ in range(several)]
                wrong = [
                    sum(each is not None and truths[each] < GATE for each in way) / several
                    for way in zip(*picks, strict=True)
                ]
                none = sum(each[0] is None for each in picks) / several
                cheapest = next((k for k, truth in enumerate(truths) if truth >= GATE), None)
                best = sum(each[0] == cheapest for each in picks if each[0] is not None) / several
                rows.append((kind, case, n, several, wrong[0], best, none, wrong[1], wrong[2]))
                print(*rows[-1], file=sys.stderr)
    names = ["scores", "truths", "n", "trials", "wrong", "cheapest good", "not enough", "naive", "by score"]
    table = pl.DataFrame(rows, schema=names, orient="row")
    with pl.Config(
        tbl_rows=-1, tbl_cols=-1, tbl_width_chars=160, fmt_str_lengths=40, tbl_formatting="ASCII_MARKDOWN"
    ):
        print(f"gate {GATE}, confidence 95%")
        print(table)


if __name__ == "__main__":
    main()
