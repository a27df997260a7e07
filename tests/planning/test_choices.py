"""Plans side by side: which options nothing beats, which way auto takes, what another tier or model gains."""

import re
from datetime import timedelta

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st
from running import MODEL, WIDE_LIMITS, a_plan, finished, reviews, simulator

import claudescale as cs
from claudescale.api import prices
from claudescale.api.limits import Learned
from claudescale.errors import PlanError
from claudescale.planning import choices, estimates
from claudescale.planning.choices import CACHE_HIT_SHARE, FELT_MINUTES, FELT_SHARE, FELT_SLOW, frontier

NAMES = ("dollars", "minutes", "minutes_p90")
OPUS, SONNET = "claude-opus-5-5", "claude-sonnet-5-5"
SYSTEM = "You read complaints of customers and answer in one word. " * 400
TEXTS = reviews(5_000)
REPEATED = pl.concat([reviews(50), reviews(30)])
figure = st.sampled_from([0.0, 0.5, 1.0, 1.005, 2.0, 3.0, 60.0, 1e6]) | st.floats(0, 1e6).map(
    lambda x: round(x, 3)
)


def plan(frame=TEXTS, **options):
    return a_plan(frame, **{"tier": "start", "max_tokens": 1024, **options})


def options(*rows):
    return pl.DataFrame(rows, schema=dict.fromkeys(NAMES, pl.Float64), orient="row")


def worse(one, other):
    """Whether an option is felt to be worse than another in dollars, usual minutes or slow ones."""
    (dollars, *times), (other_dollars, *other_times) = one, other
    alike = max(min(times[1] - times[0], other_times[1] - other_times[0]), FELT_MINUTES)
    dearer = dollars - other_dollars > FELT_SHARE * min(dollars, other_dollars)
    slow = max(alike, FELT_SLOW * min(times[1], other_times[1]))
    return dearer or times[0] - other_times[0] > alike or times[1] - other_times[1] > slow


@given(st.lists(st.tuples(figure, figure, figure), max_size=30))
def test_the_frontier_is_what_nothing_dominates(rows):
    """By the definition, pair by pair: nothing is felt to be as good in all and better in one; never all."""
    rows = [(dollars, minutes, minutes + span) for dollars, minutes, span in rows]
    marked = frontier(options(*rows))
    assert marked.select(NAMES).rows() == rows
    for one, on_it in zip(rows, marked["frontier"], strict=True):
        assert on_it is not any(worse(one, other) and not worse(other, one) for other in rows)
    assert marked["frontier"].any() or not rows


@pytest.mark.parametrize(
    ("dear", "cheap"),
    [
        ((30.85, 15.0, 15.3), (1.54, 15.0 + 0.19 / 60, 15.3)),  # by 0.19 s
        ((12.0, 30.0, 34.0), (11.0, 32.0, 36.0)),  # by less than either may vary
        ((2.0, 60.0, 1440.0), (1.0, 60.0, 1440.0)),  # batches
        ((1.004, 60.0, 61.0), (1.0, 10.0, 10.1)),  # as cheap as one that is far slower
    ],
)
def test_a_difference_that_nobody_feels_buys_nothing(dear, cheap):
    """Time that is won is worth dollars only where it is felt; the dearer option is beaten."""
    assert frontier(options(dear, cheap))["frontier"].to_list() == [False, True]


def test_what_a_batch_may_take_counts_and_unknown_figures_do_not():
    """An hour that may become a day is no hour; null, NaN and infinity beat nothing, nor does rounding."""
    assert frontier(options((2.0, 60.0, 61.0), (1.0, 60.0, 1440.0)))["frontier"].to_list() == [True, True]
    unknown = options((None, 1.0, 1.0), (float("nan"), 1.0, 1.0), (1.0, float("inf"), 1.0), (5.0, 5.0, 5.0))
    assert frontier(unknown)["frontier"].to_list() == [False, False, False, True]
    assert frontier(options((0.1 + 0.2, 1, 1), (0.3, 1, 1)))["frontier"].to_list() == [True, True]


def test_the_frontier_of_a_plan_has_its_cheapest_and_its_fastest():
    """Over tiers and modes: a batch is cheapest, live on the higher tier fastest, on the lower beaten."""
    compared = a_plan(reviews(3000)).compare(tier=["start", "scale"])
    marked = frontier(compared).filter("frontier").select("tier", "mode").rows()
    assert marked == [("start", "batch"), ("scale", "live"), ("scale", "batch")]


@pytest.mark.parametrize(
    ("lists", "words"),
    [
        ({"model": MODEL}, r"model=\[\.\.\.\]"),
        ({"tiers": ["start"]}, r"plan\.compare\(\) knows no 'tiers'"),
        ({"mode": ["bath"]}, "'live', 'batch', 'hybrid'"),
        ({"mode": ["auto"]}, "leave mode out"),
        ({"mode": ["hybrid"]}, r"deadline=\[60, 90\]"),
    ],
)
def test_what_cannot_be_compared_says_what_to_type(lists, words):
    """No list, an unknown name, a mode that would leave nothing: an error, not an empty table."""
    with pytest.raises(PlanError, match=words):
        a_plan(reviews(1)).compare(**lists)


def test_choices_can_be_read_in_their_columns():
    """Tiers have one name however they are given, limits of one's own are short, deadlines are minutes."""
    mine = a_plan(reviews(3), tier="start")
    table = mine.compare(tier=[1, "Build", WIDE_LIMITS], mode=["live"])
    assert table["tier"].to_list() == ["tier 1", "build", "Limits(60 k, 100 M, 100 M)"]
    times = mine.compare(deadline=[None, 30, timedelta(hours=2)], mode=["hybrid"])
    assert times["deadline"].to_list() == [30, 120]


def test_where_the_cache_varies_its_hits_are_told():
    """All but the first live, the middle of the documented range in batches, none where nothing is cached."""
    mine = a_plan(reviews(100), system=SYSTEM)
    table = mine.compare(model=[MODEL, "claude-haiku-4-5"], cache=[False, True], deadline=[90])
    hits = {row[:3]: row[3] for row in table.select("model", "cache", "mode", CACHE_HIT_SHARE).rows()}
    assert hits[MODEL, True, "live"] == 0.99
    assert hits[MODEL, True, "batch"] == estimates.BATCH_HIT_SHARE == 0.64
    assert hits[MODEL, True, "hybrid"] is None
    assert {hits[MODEL, False, mode] for mode in ("live", "batch", "hybrid")} == {0.0}
    assert mine.replace(system="Be brief.").compare(cache=[True])[CACHE_HIT_SHARE].to_list() == [0.0, 0.0]
    assert CACHE_HIT_SHARE not in mine.compare(tier=["start"]).columns


def test_combinations_are_what_the_changed_plan_says():
    """Every row is that of `replace` and `options`, though totals are shared between tiers."""
    mine = a_plan(reviews(50), system=SYSTEM)
    lists = {"tier": [1, "build"], "model": [MODEL, OPUS], "cache": [True, False], "share": [0.5, 1.0]}
    table = mine.compare(**lists)
    assert table.height == 32
    for row in table.iter_rows(named=True):
        other = mine.replace(**{name: row[name] for name in lists})
        assert {name: row[name] for name in estimates.OPTIONS} == pytest.approx(
            estimates.option(other.options, row["mode"])
        )


def test_a_pilot_speaks_for_what_it_was_run_on_and_tells_how_long_other_replies_are():
    """The own model stays calibrated; another's replies are as long, in doubt, and think in addition."""
    with simulator() as api:
        mine = a_plan(reviews(60), system=SYSTEM, max_tokens=1024)
        mine = mine.calibrate(finished(mine.head(20), api.client()))
    table = mine.compare(model=[MODEL, SONNET, OPUS], cache=[False, True], mode=["live"])
    own, cached, sonnet, _, opus, _ = table.iter_rows(named=True)
    assert own["dollars"] == pytest.approx(mine.options["dollars"][0])
    assert own["dollars_p90"] == pytest.approx(mine.options["dollars_p90"][0])
    assert cached["output_tokens"] == own["output_tokens"] == sonnet["output_tokens"]
    assert cached["dollars"] < own["dollars"] / 2
    assert opus["output_tokens"] == pytest.approx(own["output_tokens"] + 60 * 50, abs=1)
    assert sonnet["dollars_p90"] / sonnet["dollars"] > own["dollars_p90"] / own["dollars"]
    brief = mine.compare(model=[SONNET], system=["Be brief."], mode=["live"])
    assert brief["output_tokens"][0] == 60 * 195


# ------------------------------------------------------------------------------------- the way auto takes


def auto(rows=200, **given):
    """Return a plan that takes some minutes live."""
    limits = cs.Limits(requests_per_minute=20, input_tokens_per_minute=1e6, output_tokens_per_minute=1e6)
    return a_plan(reviews(rows), mode="auto", tier=limits, **given)


@pytest.mark.parametrize(
    ("deadline", "mode"), [(None, "batch"), (25 * 60, "batch"), (120, "hybrid"), (30, "live"), (12, "live")]
)
def test_the_cheapest_that_is_in_time(deadline, mode):
    """Half the price where there is a day, a hybrid where there are hours, live where there are minutes."""
    assert choices.resolved(auto(deadline=deadline)).mode == mode


@given(st.floats(1, 3_000), st.floats(1e-4, 10))
def test_what_is_chosen_meets_both(deadline, budget):
    """Whatever the wishes: what is chosen meets them at the 90th percentile, and nothing cheaper does."""
    mine = auto(deadline=deadline, budget=budget)
    try:
        mode = choices.resolved(mine).mode
    except cs.PlanError:
        return
    rows = {row["mode"]: row for row in mine.options.iter_rows(named=True)}
    assert rows[mode]["minutes_p90"] <= deadline
    assert rows[mode]["dollars_p90"] <= budget
    for other, row in rows.items():
        fits = row["minutes_p90"] <= deadline and row["dollars_p90"] <= budget
        if other == "hybrid":
            fits = fits and rows["live"]["minutes_p90"] + estimates.CANCEL_MINUTES <= deadline
        assert not fits or row["dollars"] >= rows[mode]["dollars"]


def test_what_cannot_be_met_names_what_can():
    """An impossible deadline says one that would do, and that does; a budget, the cheapest way's price."""
    with pytest.raises(cs.ImpossibleDeadline, match="mode='live', the quickest") as refused:
        choices.resolved(auto(deadline=2))
    minutes = float(re.search(r"deadline=(\d+)", str(refused.value))[1])
    assert choices.resolved(auto(deadline=minutes)).mode == "live"
    with pytest.raises(cs.ImpossibleBudget, match=r"up to \$0\.\d+ in mode='batch'"):
        choices.resolved(auto(budget=1e-6))
    with pytest.raises(cs.ImpossibleDeadline, match=r"live, and mode='hybrid' keeps 5 m 00 s"):
        choices.check(auto().replace(mode="hybrid", deadline=12))


def test_a_plan_shows_and_runs_what_it_chose():
    """The card marks the mode, and the run is one of that mode."""
    mine = auto(rows=3, deadline=30, prompt="Name it: {text}")
    assert "live <-" in repr(mine)
    with simulator(speed=60, batch_seconds=60.0) as api:
        assert finished(mine, api.client()).attempts["mode"].unique().to_list() == ["live"]
        cheap = finished(a_plan(reviews(3), mode="auto"), api.client())
    assert cheap.attempts["mode"].unique().to_list() == ["batch"]
    assert choices.resolved(cheap.plan) is cheap.plan


# ------------------------------------------------------------------------- another tier, model or strategy


def test_each_tier_takes_what_a_plan_on_it_would_take():
    """Minutes and what limits them are those of `Plan.options`, and the gain is their ratio."""
    mine = plan(tier=2)
    table = choices.tiers(mine)
    assert table["tier"].to_list() == ["tier 1", "tier 2", "tier 3", "tier 4"]
    for row in table.iter_rows(named=True):
        option = mine.replace(tier=row["tier"]).options.row(0, named=True)
        assert {name: row[name] for name in (*NAMES, "binding")} == pytest.approx(
            {name: option[name] for name in (*NAMES, "binding")}
        )
        assert row["gain"] == pytest.approx(mine.options["minutes"][0] / row["minutes"])
    both = mine.compare(model=[MODEL, OPUS], tier=[2], mode=["live"])
    assert both["gain"].to_list() == [1.0, 1.0], "on the own tier, whatever the model"


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({}, r"build: \d\.\d times faster, limited by requests"),
        ({"tier": "scale"}, "no higher tier has published limits"),
        ({"tier": WIDE_LIMITS}, "no higher tier has published limits"),
        ({"frame": reviews(20)}, "build: gains nothing: latency limits it"),
        ({"concurrency": 1}, "build: gains nothing: concurrency limits it"),
        ({"frame": reviews(0)}, "build: gains nothing: nothing to send"),
        ({"mode": "batch"}, "build: gains nothing: batch processing limits it"),
        ({"mode": "hybrid", "deadline": 90}, "build: gains nothing: deadline limits it"),
        ({"mode": "auto"}, "build: gains nothing: batch processing limits it"),
    ],
)
def test_the_next_tier_says_what_it_gains_or_why_it_gains_nothing(given, words):
    """A tier gains where a bucket of this workload binds, and nothing where something else does."""
    assert re.fullmatch(words, choices.upgrade(plan(**given)))


def test_a_tier_on_which_auto_finds_a_cheaper_mode_says_so():
    """Where only live calls are in time here, and there a hybrid is too, the gain is in dollars."""
    mine = plan(tier=1, mode="auto", deadline=plan(tier=1).options["minutes_p90"][0] + 2)
    above = mine.replace(tier=2)
    assert [choices.mode_of(each) for each in (mine, above)] == ["live", "hybrid"]
    saved = mine.options["dollars"][0] - above.options["dollars"][2]
    assert choices.upgrade(mine) == f"tier 2: mode='hybrid' is in time there and costs ${saved:.2f} less"


def test_the_next_tier_may_be_worth_it_for_its_spend_limit_alone():
    """What a tier's dollars a month do not reach for, the next one may allow; or neither does."""
    dear = plan(reviews(220_000), model=OPUS, mode="batch")
    assert 500 < dear.options["dollars"][1] < 1_000
    assert choices.upgrade(dear).endswith("; its spend limit is enough, that of start is not")
    assert choices.upgrade(dear.replace(mode="live")).endswith(
        "; its $1,000 a month are less than this costs"
    )


def test_the_next_tier_is_that_above_the_limits_which_the_api_told():
    """Who has the limits of build gains from scale, whatever was named; with no tier's, the name counts."""
    learned = Learned(cs.Limits.of("build", MODEL), "start", plan().facts.rate_group)
    assert choices.higher(plan(tier="start").replace(learned=learned)) == "scale"
    assert choices.higher(plan(tier="start").replace(learned=learned._replace(limits=WIDE_LIMITS))) == "build"


@pytest.mark.parametrize("mode", ["live", "batch"])
@pytest.mark.parametrize("cache", [False, True])
def test_the_savings_of_a_plan_go_from_everything_plain_to_what_it_costs(mode, cache):
    """Every step begins where the one before ended; the last ends with the price of the plan's mode."""
    mine = plan(REPEATED, mode=mode, system=SYSTEM, cache=cache)
    steps = choices.savings(mine, model=[OPUS, SONNET, MODEL])
    assert steps.schema == prices.SAVINGS
    assert steps["strategy"].to_list() == ["model", "model", "deduplication", "cache", "batch"]
    assert steps["dollars_without"][1:].to_list() == steps["dollars_with"][:-1].to_list()
    saved = steps["dollars_without"] - steps["dollars_with"]
    assert steps["dollars_saved"].to_list() == pytest.approx(saved.to_list())
    option = estimates.option(mine.options, mode)
    assert steps["dollars_with"][-1] == pytest.approx(option["dollars"])
    plain = plan(REPEATED, model=OPUS, system=SYSTEM).totals.plain_dollars
    assert steps["dollars_without"][0] == pytest.approx(plain)
    assert choices.savings(plan())["dollars_saved"].to_list() == pytest.approx([0, 0, 0])


def test_planned_savings_are_named_as_those_of_a_run_and_come_near_them():
    """A calibrated plan says before what the run says after: same strategies, same counterfactuals."""
    with simulator() as api:
        mine = plan(REPEATED, tier=WIDE_LIMITS, system=SYSTEM, cache=True)
        run = finished(mine, api.client())
        mine = mine.calibrate(run)
    planned = choices.savings(mine)
    for name in ("strategy", "counterfactual"):
        assert planned[name].to_list() == run.savings[name].to_list()
    for name in ("dollars_without", "dollars_with"):
        assert planned[name].to_list() == pytest.approx(run.savings[name].to_list(), rel=0.1)
    other = mine.compare(model=[OPUS], mode=["live"], cache=[False])
    assert choices.savings(mine, OPUS)["counterfactual"][0] == f"the same on {OPUS}"
    assert other["dollars"].item() < choices.savings(mine, OPUS)["dollars_without"][0], "repeated rows"


def test_other_lines_stand_for_the_model_only_where_they_can_take_its_place():
    """The newest of each line that stays, is for anyone, priced, and able to do what is asked."""
    names = choices.current_models(plan(model="claude-sonnet-4-6"), ["start"])
    lines = cs.models().filter(pl.col("model").is_in(names))
    assert names[0] == "claude-sonnet-4-6"
    assert len(names) == lines["line"].n_unique() == lines.height
    assert not any("mythos" in name for name in names)
    assert set(lines.filter(pl.col("model") != names[0])["lifecycle"]) <= {"active", "legacy"}


def test_a_plan_that_leaves_its_mode_open_is_taken_the_cheapest_way():
    """So that a picture of it can be drawn, even where no mode will do."""
    modes = [choices.mode_of(plan(mode=mode)) for mode in ("live", "batch", "auto")]
    assert modes == ["live", "batch", "batch"]
    assert choices.mode_of(plan(mode="auto", deadline=600)) == "hybrid"
    assert choices.mode_of(plan(mode="auto", deadline=0.001)) == "batch"
