"""Answers of the rate-limit API, read whatever they are."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from claudescale.api.accountlimits import account_limits
from claudescale.api.limits import Limits
from claudescale.errors import UnknownTier

HAIKU = "claude-haiku-5-5"
THREE = {"requests_per_minute": 50, "input_tokens_per_minute": 40_000, "output_tokens_per_minute": 8_000}


def entry(kind, models=None, *, flat=False, **limits):
    """Return an entry of the list, with its type nested as the SDK has it, or flat as the page shows it."""
    group = {"group_type": kind} if flat else {"group": {"id": "rlg_1", "type": kind}}
    return {**group, "models": models, "limits": [{"type": name, "value": limits[name]} for name in limits]}


@pytest.mark.parametrize("flat", [False, True])
def test_every_kind_of_group_is_read(flat):
    """Limits of the model's group, of the batch endpoints and of counting; those of others are left out."""
    items = [
        entry("model_group", [HAIKU], flat=flat, **THREE),
        entry("model_group", ["claude-opus-5-5"], flat=flat, **dict.fromkeys(THREE, 1)),
        entry("batch", flat=flat, enqueued_batch_requests=100_000, requests_per_minute=60),
        entry("token_count", flat=flat, requests_per_minute=100),
        entry("files", flat=flat, requests_per_minute=7),
    ]
    assert account_limits(items, HAIKU) == {
        **THREE,
        "batch_queue_requests": 100_000,
        "batch_requests_per_minute": 60,
        "count_tokens_per_minute": 100,
    }


def test_of_two_limits_on_the_same_tokens_the_smaller_counts():
    """A limit on all input tokens may stand beside the one that leaves out reads of the cache."""
    both = {"input_tokens_per_minute": 30_000, "input_tokens_per_minute_cache_aware": 40_000}
    assert account_limits([entry("model_group", [HAIKU], **both)])["input_tokens_per_minute"] == 30_000


@pytest.mark.parametrize("value", [0, -1, None, "50", True, float("inf"), float("nan"), [50]])
def test_a_value_that_is_no_limit_is_not_told(value):
    """Nothing is guessed for it: a model without all three limits is an error that says what to type."""
    items = [entry("model_group", [HAIKU], **{**THREE, "requests_per_minute": value})]
    assert "requests_per_minute" not in account_limits(items, HAIKU)
    with pytest.raises(UnknownTier, match=r"tier=cs\.Limits"):
        Limits.read(items, HAIKU)


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["group", "group_type", "type", "models", "limits", "value"]), inner, max_size=4
        )
    ),
    max_leaves=12,
)


@given(st.lists(_JSON, max_size=4))
def test_no_answer_breaks_it(items):
    """Whatever JSON comes, the limits found are positive numbers."""
    assert all(0 < value < float("inf") for value in account_limits(items).values())
