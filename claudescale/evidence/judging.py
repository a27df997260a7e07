"""Judging replies: how good they are (`score=`), which are good enough (`accept=`), and with what certainty.

Right-or-wrong scores have exact statistics: binomial tail, Clopper-Pearson, Holm. Other scores are
bootstrapped, which is approximate.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from statistics import NormalDist
from typing import TYPE_CHECKING, Any

import polars as pl

from claudescale.errors import PlanError, refuse
from claudescale.prompts.requests import schema_of
from claudescale.prompts.templates import unknown_column

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from claudescale.planning.plans import Plan
    from claudescale.prompts.requests import Prompt
    from claudescale.running.runs import Run

EVIDENCE = pl.Schema(
    {"choice": pl.String(), "rows": pl.Int64(), "score": pl.Float64()}
    | {"chance": pl.Float64(), "clears": pl.Boolean()}
)
"""Columns of `Trial.evidence`: `chance` is the probability of a score this high by luck if the true score is
below the gate, corrected for the number of choices."""

REFERENCE = " of the reference"
"""Suffix of the columns with which a choice has to agree."""

TOO_LITTLE = 1e-9  # a budget or deadline above 0 that is too small for any request
INVENTED = "The simulator's models differ by invented skills: this says nothing about the real ones."
_TAKES = {
    "score": "Give an expression over the results, a function of them, or a column with the right answers.",
    "accept": "Give an expression over the results that is true where a reply is good enough, or a function.",
}
_YES_NO = {pl.Boolean(), pl.Null()}
_FEWEST_BOOTSTRAPPED = 30
_FEWEST_CHOICES = 2


def choices(plan: Plan, **compared: Any) -> dict[str, Plan]:
    """Return one plan per model, effort or prompt, by name; raise PlanError if they cannot be compared."""
    if plan.samples > 1:
        refuse("Each row is judged by one reply, and the plan has samples=. Use plan.replace(samples=1).")
    kinds = [kind for kind, values in compared.items() if values is not None] or ["models"]
    if len(kinds) > 1:
        refuse(f"A trial compares one thing, not {' and '.join(kinds)}: give the others to plan.")
    kind, values = kinds[0], compared[kinds[0]]
    several = list(values) if isinstance(values, Iterable) and not isinstance(values, str) else []
    if len(several) < _FEWEST_CHOICES:
        such_as = ", such as models=['claude-haiku-5-5', 'claude-opus-5-5']" if kind == "models" else ""
        refuse(f"{kind}={values!r:.60}: give two or more{such_as}.")
    name, plans = kind.removesuffix("s"), {}
    for number, value in enumerate(several, 1):
        other = plan.replace(**{name: value})
        names = {"model": other.compiled.model.id, "effort": value, "prompt": f"prompt {number}"}
        plans[names[name]] = other
    if len(plans) < len(several):
        refuse(f"{kind}={several!r} names a {name} twice. Give different ones.")
    return plans


@dataclass(frozen=True, kw_only=True, eq=False)
class Judge:
    """An expression over the results or a function of them, its description and its column of truth."""

    name: str
    by: pl.Expr | Callable[[pl.DataFrame], Any]
    words: str
    truth: str | None = None
    agrees_on: tuple[str, ...] = ()

    def values(self, results: pl.DataFrame) -> pl.Series:
        """Return one value for each row."""
        if isinstance(self.by, pl.Expr):
            values: Any = results.with_columns(claudescale_judged=self.by).to_series(results.width)
        else:
            values = self.by(results)
        may_be_number, is_series = self.name == "score", isinstance(values, pl.Series)
        fits = is_series and (values.dtype in _YES_NO or (may_be_number and values.dtype.is_numeric()))
        if not fits or values.len() != results.height:
            kinds = "Booleans or numbers" if may_be_number else "Booleans"
            gives = f"{values.len():,} of {values.dtype}" if is_series else f"a {type(values).__name__}"
            wanted = f"a Series of {results.height:,} {kinds}, one for each row"
            refuse(f"{self.name}= gives {gives}, not {wanted}.")
        return values  # type: ignore[no-any-return]  # a Series

    def scores(self, results: pl.DataFrame, judged: pl.Series) -> pl.Series:
        """Return the score of each row: null where there is nothing to judge, 0 where the row failed."""
        number, failed = pl.col("value").cast(pl.Float64), pl.col("error").is_not_null()
        score = pl.when(number.is_finite()).then(number).when(failed).then(0.0)
        values = results.select("error", value=self.values(results))
        return values.select(pl.when(judged).then(score).alias("score")).to_series()


def judge(name: str, by: Any, schema: Mapping[str, Any]) -> Judge:
    """Return a judge that was tried on empty results; raise PlanError if it fails on them."""
    if not isinstance(by, pl.Expr) and not callable(by):
        refuse(f"{name}={by!r:.60} cannot be used. {_TAKES[name]}")
    names = by.meta.root_names() if isinstance(by, pl.Expr) else []
    for column in names:
        if column not in schema and not column.startswith("^"):  # a pattern of names
            raise unknown_column(column, pl.Schema(schema), f"{name}=")
    words = "your expression" if isinstance(by, pl.Expr) else getattr(by, "__name__", "your function")
    made = Judge(name=name, by=by, words=words.replace("<lambda>", "your function"))
    try:
        made.values(pl.DataFrame(schema=schema))
    except Exception as error:
        msg = f"{name}= fails on results without a row: {type(error).__name__}: {error} {_TAKES[name]}"
        raise PlanError(msg) from error
    return made


def scoring(score: Any, plan: Plan) -> Judge:
    """Return the judge of a plan's replies; raise PlanError for a bad `score` before anything is sent."""
    prompt = plan.compiled.prompt
    if score is None:
        return _agreement(typed(prompt))
    if isinstance(score, str):
        return _truth(score, plan)
    return judge("score", score, prompt.results_schema(plan.frame))


def typed(prompt: Prompt) -> Mapping[str, Any]:
    """Return the typed columns of `returns`."""
    return {} if prompt.returns is None else prompt.returns.columns


def _truth(name: str, plan: Plan) -> Judge:
    """Return a judge that compares the one typed column, or the reply, with the right answers."""
    prompt, given = plan.compiled.prompt, schema_of(plan.frame)
    schema, there = prompt.results_schema(plan.frame), prompt.renamed.get(name, name)
    if name not in given:
        raise unknown_column(name, given, "score=")
    own, *more = typed(prompt) or ["reply"]
    if more:
        such_as = f"score=pl.col({own!r}) == pl.col({there!r})"
        columns = ", ".join([own, *more])
        refuse(f"The replies have the columns {columns}: say what {name!r} is the truth of, as {such_as}.")
    reply, truth = pl.col(own), pl.col(there)
    if {schema[own].base_type(), given[name].base_type()} & {pl.String, pl.Enum, pl.Categorical}:
        reply, truth = (side.cast(pl.String).str.strip_chars().str.to_lowercase() for side in (reply, truth))
    return replace(judge("score", reply == truth, schema), words=f"the truth in {name!r}", truth=name)


def _agreement(columns: Mapping[str, Any]) -> Judge:
    """Return a judge of how often a choice agrees with another, on labels, flags, counts and dates."""
    loose = {pl.String, pl.Decimal, pl.List, pl.Array, pl.Struct, *pl.datatypes.group.FLOAT_DTYPES}
    agree = tuple(name for name, dtype in columns.items() if dtype.base_type() not in loose)
    if not agree:
        refuse(
            "score=None counts how often a model replies as the most expensive one does. Free text, lists "
            "and fractions are hardly ever the same: ask for labels, as returns=pl.Enum(['yes', 'no'])."
        )
    same = [pl.col(name).eq_missing(pl.col(name + REFERENCE)) for name in agree]
    by = pl.all_horizontal(*same, pl.col("error").is_null())
    return Judge(name="score", by=by, words="agreement", agrees_on=agree)


def why(errors: pl.Series) -> str:
    """Return how often each error occurred: ``97 not_accepted, 2 refusal``."""
    return ", ".join(f"{count:,} {error}" for error, count in errors.value_counts(sort=True).iter_rows())


def paid(run: Run) -> float:
    """Return the dollars of a run's replies, whichever run paid for them."""
    return float(run.job.replies(["dollars"])["dollars"].sum())


def tail(right: int, rows: int, share: float) -> float:
    """Return the exact binomial probability of `right` or more of `rows`, each with probability `share`."""
    if right <= 0 or not 0 < share < 1:
        return float(right <= 0 or share >= 1)
    before = pl.int_range(rows, eager=True)  # each term is the one before it times a factor
    factors = (rows - before) / (before + 1) * (share / (1 - share))
    logs = rows * math.log1p(-share) + factors.log().cum_sum()
    return min(float(logs[right - 1 :].exp().sum()), 1.0)


def clopper_pearson(right: int, rows: int, confidence: float = 0.95) -> tuple[float, float]:
    """Return the exact two-sided interval of a share (Clopper and Pearson, Biometrika 26, 1934)."""
    ends = []
    for count in (right, rows - right):  # bisect for the share whose tail is half the error probability
        low, high = 0.0, count / max(rows, 1)
        for _ in range(60):
            middle = (low + high) / 2
            rare = tail(count, rows, middle) < (1 - confidence) / 2
            low, high = (middle, high) if rare else (low, middle)
        ends.append(low)
    return ends[0], 1 - ends[1]


def interval(
    scores: pl.Series, confidence: float = 0.95, *, seed: int = 0
) -> tuple[float | None, float | None]:
    """Return the interval of a mean: exact for right or wrong, otherwise a percentile bootstrap or nulls."""
    if _is_right_or_wrong(scores):
        return clopper_pearson(int(scores.sum()), scores.len(), confidence)
    means, half = _resampled(scores, seed), (1 - confidence) / 2
    return means.quantile(half, "linear"), means.quantile(1 - half, "linear")


def chance(scores: pl.Series, gate: float, *, seed: int = 0) -> float:
    """Return the probability of scores this high by luck if the true mean is below `gate`."""
    if _is_right_or_wrong(scores):
        return tail(int(scores.sum()), scores.len(), gate)
    # Repeats the worst score seen, as a small sample lacks rare cases.
    means = _resampled(pl.concat([scores, scores.bottom_k(1)]), seed)
    return (1 + int((means < gate).sum())) / (1 + means.len())


def _is_right_or_wrong(scores: pl.Series) -> bool:
    return bool(scores.is_in([0.0, 1.0]).all())


def _resampled(scores: pl.Series, seed: int) -> pl.Series:
    """Return bootstrap means of the scores; none if the scores are too few or all the same."""
    rows = scores.len()
    if rows < _FEWEST_BOOTSTRAPPED or scores.n_unique() == 1:
        return scores.clear()
    samples = max(200, min(2_000, 5_000_000 // rows))
    return scores.sample(rows * samples, with_replacement=True, seed=seed).reshape((samples, rows)).arr.mean()


def evidence(
    scores: Mapping[str, pl.Series],
    gate: float,
    confidence: float,
    *,
    certain: str | None = None,
    seed: int = 0,
) -> pl.DataFrame:
    """Return for each choice whether it clears the gate, as `EVIDENCE`, the most certain first."""
    rows = []
    for choice, values in scores.items():
        mean: Any = values.mean()
        # The reference agrees with itself.
        is_certain = choice == certain and mean is not None and mean >= gate
        rows.append((choice, values.len(), mean, 0.0 if is_certain else chance(values, gate, seed=seed)))
    ranked = pl.DataFrame(rows, schema=list(EVIDENCE.items())[:4], orient="row")
    ranked = ranked.sort("chance", maintain_order=True)
    # The probability that any choice clears whose true score is below the gate is at most ``1 - confidence``,
    # by Holm's method (Scand. J. Stat. 6, 1979), however the choices depend on each other.
    holm = (pl.col("chance") * pl.int_range(pl.len(), 0, -1)).cum_max().clip(upper_bound=1.0)
    return ranked.with_columns(chance=holm, clears=holm <= 1 - confidence)


def rows_more(scores: pl.Series, gate: float, alpha: float) -> int | None:
    """Return how many more rows like these show a share above the gate with a power of 80%."""
    share: Any = scores.mean()
    if not (_is_right_or_wrong(scores) and 0 < gate < share):
        return None
    sure, power = NormalDist().inv_cdf(1 - alpha), NormalDist().inv_cdf(0.8)
    spread = sure * math.sqrt(gate * (1 - gate)) + power * math.sqrt(share * (1 - share))
    rows = (spread / (share - gate)) ** 2 if share < 1 else math.log(alpha) / math.log(gate)
    return max(1, math.ceil(rows) - scores.len())


def shortfall(scores: Mapping[str, pl.Series], gate: float, confidence: float) -> tuple[str, int | None]:
    """Return why no choice clears the gate, and about how many more rows would settle it for the best."""
    means: dict[str, Any] = {choice: rows.mean() for choice, rows in scores.items() if rows.len()}
    if not means:
        return "Not enough evidence: no row has a score.", None
    best = max(means, key=means.__getitem__)
    more = rows_more(scores[best], gate, (1 - confidence) / len(scores))
    settle = f"about {more:,} rows more would settle it" if more else "how many rows would do is not known"
    if means[best] <= gate:
        settle = "no choice scores above it"
    wanted = f"Not enough evidence for a score of {gate:g} at {confidence:.0%} confidence"
    return f"{wanted}: {best} scores {means[best]:.3g} on {scores[best].len():,} rows; {settle}.", more
