"""How a trial looks before and after it has run, as one `Card`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from claudescale.views import card

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from claudescale.evidence.trials import Trial

_MEASURED = ("$ per 1,000 rows", "latency", "tokens/s", "failed")
_INVENTED = "The simulator's models differ by invented skills: this says nothing of the real ones."


def trial_card(trial: Trial) -> card.Card:
    """Return what is shown of a trial."""
    table = trial.table
    total = card.dollars(float(table["dollars"].sum()))
    what = f"{table.height} models on {trial.sample.height:,} rows, scored {trial.scoring.told}"
    if not trial.runs:
        rows = [
            (row["model"], card.dollars(row["dollars"]), card.duration(row["minutes"]))
            for row in table.iter_rows(named=True)
        ]
        minutes = card.duration(float(table["minutes"].sum()))
        return card.Card(
            title=f"Trial of {what}: about {total} in all. Nothing is sent yet.",
            header=("model", "dollars", "time"),
            rows=[*rows, ("in all", total, minutes)],
            notes=(f"Budget: {card.dollars(trial.budget)}.",) if trial.budget is not None else (),
            next="await trial.run(client)",
        )
    simulated = bool(table["simulated"].any())
    rest = [
        f"{run.counts.missing:,} rows of {model}" for model, run in trial.runs.items() if run.counts.missing
    ]
    waiting = [model for model in trial.plans if model not in trial.runs]
    missing = ", ".join([*rest, *waiting])
    return card.Card(
        title=f"{'SIMULATED ' * simulated}Trial of {what}: {total} in all.",
        header=("model", "score", f"{trial.confidence:.0%} interval", *_MEASURED),
        rows=[_row(row) for row in table.iter_rows(named=True)],
        notes=(
            *(
                [f"Not answered: {missing}. The same cell again sends only what is missing."]
                if missing
                else []
            ),
            *([_INVENTED] * simulated),
        ),
        next="plan = trial.pick(min_score=0.9)",
    )


def _row(row: Mapping[str, Any]) -> tuple[str, ...]:
    def shown(name: str, form: Callable[[float], str]) -> str:
        return "" if row[name] is None else form(row[name])

    failed = {name: row[name] for name in ("truncated", "refused", "errors") if row[name]}
    low, high = shown("score_low", "{:.3f}".format), shown("score_high", "{:.3f}".format)
    return (
        row["model"],
        shown("score", "{:.3f}".format),
        f"{low} to {high}" if low else "",
        shown("dollars_per_1000_rows", card.dollars),
        shown("seconds", "{:.1f} s".format),
        shown("output_tokens_per_second", "{:,.0f}".format),
        ", ".join(f"{count} {name}" for name, count in failed.items()) or ("0" if row["errors"] == 0 else ""),
    )
