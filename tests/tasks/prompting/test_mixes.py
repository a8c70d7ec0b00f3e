from typing import Any

import pytest
from prefect_imageqa.tasks.errors import ImageQAError
from prefect_imageqa.tasks.prompting.mixes import check_weights, parse_mix


@pytest.mark.parametrize(
    ("text", "weights"),
    [
        ("single=2, yes-no=1", {"single": 2, "yes-no": 1}),
        ("knowledge/chart=0.5,s3://b/a=b/c.md = 3", {"knowledge/chart": 0.5, "s3://b/a=b/c.md": 3}),
        ("single=1", {"single": 1}),
    ],
)
def test_a_mix_is_read_from_text(text: str, weights: dict[str, float]) -> None:
    assert parse_mix(text) == weights


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("single, yes-no=1", "style 'single' of a mix has no weight: write it as in single=2"),
        ("single=1,", "style '' of a mix has no weight"),
        ("=1", "style '=1' of a mix has no weight"),
        ("single=two", "the weight of 'single=two' is no number"),
        ("single=", "the weight of 'single=' is no number"),
        ("single=1, single=2", "style single is in the mix twice"),
        ("single=0, yes-no=1", "the weight of style single is 0.0: give a number above 0"),
        ("single=-1", "the weight of style single is -1.0"),
        ("single=nan", "the weight of style single is nan"),
        ("single=inf", "the weight of style single is inf"),
        (",".join(f"s{number}=1" for number in range(51)), "1 to 50 styles, not 51"),
    ],
)
def test_weights_that_do_not_fit_are_named(text: str, reason: str) -> None:
    with pytest.raises(ImageQAError) as caught:
        parse_mix(text)
    assert reason in str(caught.value)


@pytest.mark.parametrize("weights", [{}, {"a": "1"}, {"a": True}, {"a": None}], ids=str)
def test_a_mapping_must_have_numbers(weights: dict[str, Any]) -> None:
    with pytest.raises(ImageQAError, match=r"1 to 50 styles|the weight of style a is"):
        check_weights(weights)
