"""Plans as they are not: on another tier, with another model, without their savings."""

import polars as pl
import pytest
from running import MODEL, WIDE_LIMITS, a_plan, finished, reviews, simulator

import claudescale as cs
from claudescale.api import prices
from claudescale.api.limits import Learned
from claudescale.planning import whatif

TEXTS = reviews(5_000)


def plan(frame=TEXTS, **options):
    return a_plan(frame, **{"tier": "start", "max_tokens": 1024, **options})


def test_each_tier_takes_what_a_plan_on_it_would_take():
    """Minutes and what limits them are those of `Plan.options`, and the gain is their ratio."""
    mine = plan(tier=2)
    found = whatif.tiers(mine)
    assert found.schema == whatif.TIERS
    assert found["tier"].to_list() == ["tier 1", "tier 2", "tier 3", "tier 4"]
    for row in found.iter_rows(named=True):
        option = mine.replace(tier=row["tier"]).options.row(0, named=True)
        assert row["minutes"] == pytest.approx(option["minutes"])
        assert row["minutes_p90"] == pytest.approx(option["minutes_p90"])
        assert row["binding"] == option["binding"]
        assert row["gain"] == pytest.approx(mine.options["minutes"][0] / row["minutes"])


@pytest.mark.parametrize(
    ("options", "tier", "note"),
    [
        ({}, "build", r"\d\.\d times faster, still limited by requests"),
        ({"tier": "build"}, "start", r"\d\.\d times slower, limited by requests"),
        (
            {"tier": "build"},
            "build",
            r"this plan's tier; scale: [12]\.\d times faster, (still|then) limited by (requests|latency)",
        ),
        ({"tier": "scale"}, "scale", r"this plan's tier; no higher tier has published limits"),
        ({"frame": reviews(20)}, "scale", r"gains nothing: the latency of a call limits it"),
        ({"concurrency": 2}, "scale", r"gains nothing: concurrency=2 limits it"),
        ({"mode": "batch"}, "scale", r"gains nothing: a batch takes its time"),
        (
            {"mode": "hybrid", "deadline": 90},
            "scale",
            r"gains nothing: a hybrid takes what its deadline leaves",
        ),
        ({"frame": reviews(0)}, "scale", r"gains nothing: there is nothing to send"),
        ({"tier": WIDE_LIMITS}, "your limits", r"this plan's tier; no higher tier has published limits"),
        ({"frame": reviews(40), "concurrency": 9}, "scale", r"gains nothing: concurrency=9 limits it"),
    ],
)
def test_the_note_says_what_a_tier_gains_or_why_it_gains_nothing(options, tier, note):
    """A tier gains where a bucket of this workload binds, and nothing where something else does."""
    options = {"frame": TEXTS, **options}
    found = whatif.tiers(plan(options.pop("frame"), **options))
    assert found.filter(tier=tier).height == 1
    assert pl.Series([found.filter(tier=tier)["note"].item()]).str.contains(f"^{note}$").item()


def test_a_tier_that_is_no_faster_than_one_below_it_says_so():
    """What concurrency bounds from the second tier on does not get better on the third."""
    notes = whatif.tiers(plan(concurrency=100))["note"]
    assert notes[2] == f"{notes[2].split()[0]} times faster as on build, then limited by concurrency"


def test_a_plan_that_costs_more_than_a_tier_allows_in_a_month_is_told():
    """The spend limit of the tier is part of what it allows."""
    dear = plan(reviews(220_000), model="claude-opus-5-5")
    notes = whatif.tiers(dear)["note"]
    assert dear.options["dollars"][0] > 1_000
    assert notes[0].endswith("; its $500 a month are less than this costs")
    assert notes[1].endswith("; its $1,000 a month are less than this costs")
    assert "a month" not in notes[2]


def test_limits_that_were_learned_are_those_of_the_own_tier():
    """Of the plan's own tier its limits count, not the table; others may be named in any way."""
    mine = plan()
    own = whatif.tiers(mine, [1, "Start", WIDE_LIMITS])
    assert own["tier"].to_list() == ["tier 1", "start", "your limits"]
    assert own["minutes"][1] == mine.options["minutes"][0]
    with pytest.raises(cs.UnknownTier, match="not published"):
        whatif.tiers(mine, ["custom"])


def test_the_next_tier_in_a_few_words():
    """For the card of a plan: what it gains, or why not, or that there is none."""
    assert whatif.upgrade(plan()).startswith("build: ")
    assert "times faster" in whatif.upgrade(plan())
    assert whatif.upgrade(plan(concurrency=1)) == "build: gains nothing: concurrency=1 limits it"
    assert whatif.higher(plan(tier="scale")) is None


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"mode": "batch"}, "build: gains nothing: a batch takes its time"),
        ({"mode": "hybrid", "deadline": 90}, "build: gains nothing: a hybrid takes what its deadline leaves"),
        ({"mode": "auto"}, "build: gains nothing: a batch takes its time"),
        (
            {"mode": "auto", "deadline": 600, "tier": 1},
            "tier 2: gains nothing: a hybrid takes what its deadline leaves",
        ),
    ],
)
def test_the_next_tier_of_a_mode_that_does_not_wait_for_it(options, words):
    """A batch takes its time on every tier, and auto means the mode that it chooses."""
    assert whatif.upgrade(plan(**options)) == words


def test_a_tier_on_which_auto_finds_a_cheaper_mode_says_so():
    """Where only live calls are in time here, and there a hybrid is too, the gain is in dollars."""
    live = plan(tier=1).options["minutes_p90"][0]
    mine = plan(tier=1, mode="auto", deadline=live + 2)
    above = mine.replace(tier=2)
    assert [whatif.mode_of(each) for each in (mine, above)] == ["live", "hybrid"]
    assert whatif.upgrade(mine).startswith("tier 2: mode='hybrid' is in time there and costs $")
    saved = mine.options["dollars"][0] - above.options["dollars"][2]
    assert whatif.upgrade(mine).endswith(f"costs ${saved:.2f} less")


def test_the_next_tier_is_that_above_the_limits_which_the_api_told():
    """Who has the limits of build gains from scale, whatever was named; with no tier's, the name counts."""
    learned = Learned(cs.Limits.of("build", MODEL), "start", plan().facts.rate_group)
    assert whatif.higher(plan(tier="start").replace(learned=learned)) == "scale"
    assert whatif.higher(plan(tier="start").replace(learned=learned._replace(limits=WIDE_LIMITS))) == "build"


def test_the_next_tier_may_be_worth_it_for_its_spend_limit_alone():
    """What a tier's dollars a month do not reach for, the next one may allow; or neither does."""
    dear = plan(reviews(220_000), model="claude-opus-5-5", mode="batch")
    assert 500 < dear.options["dollars"][1] < 1_000
    assert whatif.upgrade(dear).endswith("; its spend limit is enough, that of start is not")
    live = whatif.upgrade(dear.replace(mode="live"))
    assert live.endswith("; its $1,000 a month are less than this costs")


SYSTEM = "You read complaints of customers and answer in one word. " * 400
REPEATED = pl.concat([reviews(50), reviews(30)])


@pytest.mark.parametrize("mode", ["live", "batch"])
@pytest.mark.parametrize("cache", [False, True])
def test_the_savings_of_a_plan_go_from_everything_plain_to_what_it_costs(mode, cache):
    """Every step begins where the one before ended; the last ends with the price of the plan's mode."""
    mine = plan(REPEATED, mode=mode, system=SYSTEM, cache=cache)
    found = whatif.savings(mine, model=["claude-opus-5-5", "claude-sonnet-5-5", MODEL])
    assert found.schema == prices.SAVINGS
    assert found["strategy"].to_list() == ["model", "model", "deduplication", "cache", "batch"]
    assert found["dollars_without"][1:].to_list() == found["dollars_with"][:-1].to_list()
    saved = found["dollars_without"] - found["dollars_with"]
    assert found["dollars_saved"].to_list() == pytest.approx(saved.to_list())
    assert found["share"].sum() == pytest.approx(1 - found["dollars_with"][-1] / found["dollars_without"][0])
    option = mine.options.row(by_predicate=pl.col("mode") == mode, named=True)
    assert found["dollars_with"][-1] == pytest.approx(option["dollars"])
    plain = plan(REPEATED, model="claude-opus-5-5", system=SYSTEM).totals.plain_dollars
    assert found["dollars_without"][0] == pytest.approx(plain)
    assert found["dollars_without"][2] - found["dollars_with"][-1] == pytest.approx(option["dollars_saved"])


def test_what_is_not_used_saves_nothing():
    """Of different rows, live, without a cache, the plain price is the price."""
    found = whatif.savings(plan())
    assert found["dollars_saved"].to_list() == pytest.approx([0, 0, 0])
    assert found["dollars_with"][-1] == pytest.approx(plan().options["dollars"][0])


def test_planned_savings_are_named_as_those_of_a_run_and_come_near_them():
    """A calibrated plan says before what the run says after: same strategies, same counterfactuals."""
    with simulator() as api:
        mine = plan(REPEATED, tier=WIDE_LIMITS, system=SYSTEM, cache=True)
        run = finished(mine, api.client())
        planned = whatif.savings(mine.calibrate(run))
    assert planned["strategy"].to_list() == run.savings["strategy"].to_list()
    assert planned["counterfactual"].to_list() == run.savings["counterfactual"].to_list()
    for name in ("dollars_without", "dollars_with"):
        assert planned[name].to_list() == pytest.approx(run.savings[name].to_list(), rel=0.1)


def test_what_another_model_would_cost_is_what_a_comparison_says():
    """One figure for the same rows on the same model: measured replies, and what it thinks by default."""
    with simulator() as api:
        mine = plan(reviews(30), tier=WIDE_LIMITS)
        mine = mine.calibrate(finished(mine, api.client()))
    row = whatif.savings(mine, "claude-opus-5-5").row(0, named=True)
    assert row["counterfactual"] == "the same on claude-opus-5-5"
    other = mine.compare(model=["claude-opus-5-5"], mode=["live"])
    assert row["dollars_without"] == pytest.approx(other["dollars"].item())


def test_other_lines_stand_for_the_model_only_where_they_can_take_its_place():
    """The newest of each line that stays, is for anyone, priced, and able to do what is asked."""
    found = whatif.current_models(plan(model="claude-sonnet-4-6"), ["start"])
    lines = cs.models().filter(pl.col("model").is_in(found))
    assert found[0] == "claude-sonnet-4-6"
    assert len(found) == lines["line"].n_unique() == lines.height
    assert not any("mythos" in name for name in found)
    assert set(lines.filter(pl.col("model") != found[0])["lifecycle"]) <= {"active", "legacy"}


def test_a_plan_that_leaves_its_mode_open_is_taken_the_cheapest_way():
    """So that a picture of it can be drawn."""
    assert [whatif.mode_of(plan(mode=mode)) for mode in ("live", "batch", "auto")] == [
        "live",
        "batch",
        "batch",
    ]
    assert whatif.mode_of(plan(mode="auto", deadline=600)) == "hybrid"
    assert whatif.mode_of(plan(mode="auto", deadline=0.001)) == "batch"
    assert "batch" in repr(plan(mode="auto").plot.minutes())
