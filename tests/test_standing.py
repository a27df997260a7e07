"""Whose limits those in force are, against the tier that was named."""

from dataclasses import replace

import pytest

from claudescale.api import catalog
from claudescale.api.limits import Limits
from claudescale.api.standing import differs, nearest_tier, tiers_with

HAIKU = catalog.model("claude-haiku-5-5")
FABLE = catalog.model("claude-fable-5-1")


def limits(requests, input_tokens, output_tokens):
    return Limits(
        requests_per_minute=requests,
        input_tokens_per_minute=input_tokens,
        output_tokens_per_minute=output_tokens,
    )


START, BUILD = (1_000, 2_000_000, 400_000), (5_000, 5_000_000, 1_000_000)
MINE = limits(10, 1_000, 1_000)
ALL_OF_BUILD = "5,000 requests, 5 M input tokens and 1 M output tokens"
OF_BUILD = "those are the limits of tier='build'"
LESS = "a workspace or a contract may set less"


@pytest.mark.parametrize(
    ("per_minute", "tier", "model", "allows", "nots", "whose"),
    [
        (BUILD, "start", HAIKU, ALL_OF_BUILD, "1,000, 2 M and 400 k as tier 'start' has", OF_BUILD),
        (
            (1_000, 80_000, 16_000), 1, HAIKU,
            "1,000 requests, 80,000 input tokens and 16,000 output tokens",
            "50, 40,000 and 8,000 as tier 'tier 1' has",
            "those are the limits of tier='tier 2'",
        ),
        (
            (2_000, 1_500_000, 300_000), "start", FABLE,
            "2,000 requests, 1.5 M input tokens and 300 k output tokens",
            "1,000, 500 k and 100 k as tier 'start' has",
            OF_BUILD,
        ),
        ((500, *START[1:]), "start", HAIKU, "500 requests", "1,000 as tier 'start' has", LESS),
        (
            (500, 1_900_000, START[2]), "start", HAIKU,
            "500 requests and 1.9 M input tokens",
            "1,000 and 2 M as tier 'start' has",
            LESS,
        ),
        (
            (1_200, *START[1:]), "start", HAIKU,
            "1,200 requests",
            "1,000 as tier 'start' has",
            "limits of the account's own",
        ),
        (
            (5_000, 5_000_000, 900_000), "scale", HAIKU,
            "5,000 requests, 5 M input tokens and 900 k output tokens",
            "10,000, 10 M and 2 M as tier 'scale' has",
            "nearest is tier='build', or a workspace sets less",
        ),
        ((900, 80_000, 16_000), 1, HAIKU, "900 requests, 80,000 input tokens and 16,000 output tokens",
         "50, 40,000 and 8,000 as tier 'tier 1' has", "nearest is tier='tier 2'"),
        (BUILD, MINE, HAIKU, ALL_OF_BUILD, "10, 1,000 and 1,000 as your Limits have", OF_BUILD),
    ],
)  # fmt: skip
def test_a_mismatch_is_told_with_the_tier_it_looks_like(per_minute, tier, model, allows, nots, whose):
    """Only the limits that differ are named, then what the tier named has, then whose they are."""
    expected = f"The API allows {allows} a minute, not {nots}: {whose}."
    assert differs(limits(*per_minute), tier, model) == expected


@pytest.mark.parametrize("tier", ["start", "Start", 1, "tier 4", MINE])
def test_nothing_is_said_where_they_agree(tier):
    """However the tier is written, and whatever the source of the limits."""
    own = Limits.of(tier, HAIKU.id)
    assert differs(replace(own, source="the rate-limit API"), tier, HAIKU) is None


def test_every_tier_is_recognized_by_its_limits():
    """The table of each published tier leads back to its name, for models of every group."""
    for model in (HAIKU, FABLE):
        for tier in catalog.TIERS.values():
            if tier.limits.get(model.rate_group):
                own = Limits.of(tier.name, model.id)
                assert tiers_with(own, model) == [tier.name]
                assert nearest_tier(
                    replace(own, requests_per_minute=own.requests_per_minute * 1.1), model
                ) == (tier.name)


def test_a_model_without_published_limits_has_no_nearest_tier():
    """Nothing is made up where no table has a row of the model."""
    mythos = next(each for each in catalog.MODELS.values() if each.verified_only)
    every = all(each.limits.get(mythos.rate_group) is None for each in catalog.TIERS.values())
    assert (nearest_tier(limits(*START), mythos) is None) is every
