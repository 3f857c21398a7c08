"""Claims are read strictly: whatever is wrong with one is reported."""

from pathlib import Path

import pytest

from stability.analysis.claims import find_claims, read_claims
from stability.analysis.rulings import rule
from stability.analysis.trial import Trials
from stability.core.errors import StabilityError
from tests.support.claims import write_claims


@pytest.mark.parametrize(
    ("claim", "message"),
    [
        (
            "expects: lower",
            "there is no expects; there are id, claim, source, budget, scale, where, compare, response, expect",
        ),
        ("where: {a: 1}", "give expect."),
        ("expect: {all: fine}", "fine is no outcome; there are stable, slow"),
        ("expect: nice", "expect nice is none of lower, higher"),
        ("expect: lower", "lower needs compare: "),
        ("compare: {a: [0, 1]}, expect: lower", "needs a response: healthy, per, steps, norm_spike"),
        ("compare: {a: [0, 1]}, response: speed, expect: lower", "there is no response speed"),
        ("compare: {a: [0]}, response: per, expect: lower", "compare must be"),
        ("compare: {a: [0, 1, 2]}, response: per, expect: lower", "for 3 cells, expect rising or falling"),
        (
            "compare: {a: [0, 1], b: [0, 1]}, response: per, expect: {same: 1}",
            "for two factors, expect",
        ),
        ("compare: {a: [0, 1]}, response: per, expect: {lower: much}", "the margin of lower is much"),
        ("compare: {a: [0, 1]}, response: per, expect: {lower: -1}", "must be above 0"),
        ("compare: {a: [0, 1]}, response: per, expect: same", "the margin of same is None"),
        ("compare: {a: [0, 1]}, response: steps, expect: {lower: 0.5}", "must be above 1"),
        ("compare: {a: [0, 1]}, response: healthy, expect: {lower: 0.5}", "healthy has no margin"),
        ("compare: {a: [0, 1]}, response: per, expect: {all: stable}", "leave compare out"),
        ("response: per, expect: {all: [1]}", "is no range of per: give"),
        ("where: [a], expect: {all: stable}", "where must be"),
        ("compare: {a: [1, 1]}, response: per, expect: lower", "it compares a cell with itself"),
        ("budget: 10, expect: {all: slow}", "with a budget, give {model: NAME, data: NAME}"),
        ("budget: 10, scale: {model: small}, expect: {all: slow}", "with a budget, give {model: NAME, data: NAME}"),
        ("scale: {model: small, data: t15}, expect: {all: slow}", "the budget is None: with a scale, give"),
        ("budget: 0, scale: {model: small, data: t15}, expect: {all: slow}", "the budget is 0: with a scale, give"),
        ("budget: 9, scale: {model: nope, data: t15}, expect: {all: slow}", "Could not find 'model/nope'"),
    ],
)
def test_a_wrong_claim_is_refused(tmp_path: Path, claim: str, message: str) -> None:
    with pytest.raises(StabilityError, match=r"claims\.yaml, claim c0: ") as error:
        read_claims(write_claims(tmp_path, claim))
    assert message in str(error.value)


def test_a_file_that_is_no_list_of_claims_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "claims.yaml"
    with pytest.raises(StabilityError, match=r"Cannot read the claims in .*claims\.yaml: No such file"):
        read_claims(path)
    for text, message in (
        ("", "is no list of claims"),
        ("id: x\n", "is no list of claims"),
        ("- [\n", "is not YAML"),
        ("- x\n", "claim number 1: give id"),
        ("- {id: x, claim: y, source: z, expect: {all: slow}}\n" * 2, "more than one claim has the id x"),
    ):
        path.write_text(text)
        with pytest.raises(StabilityError, match=message):
            read_claims(path)


def test_the_original_claims_can_be_read() -> None:
    claims = read_claims(find_claims())
    assert len(claims) == 23
    assert {claim.source == "ours" for claim in claims} == {True, False}
    names = {name for claim in claims for cell in (claim.where, *claim.cells) for name in cell}
    known = {
        "optimizer.epsilon",
        "schedule.lr_max",
        "aug.white_noise_std",
        "loss.reduction",
        "precision.clip_before_unscale",
    }
    assert names == known
    small, full = "500 steps with model=small data=synthetic", "10,000 steps with model=official data=t15"
    official = {"official-loss-2000": 2000, "official-per-120000": 120000}
    for claim in claims:
        if claim.id in official:
            assert [cell["steps"] for cell in claim.scales.values()] == [official[claim.id]]
        else:
            assert [*claim.scales] == [small, full]
    assert claims[0].scales[small]["model.units"] == 96
    assert claims[0].scales[small]["data.synthetic.features"] == 32
    assert claims[0].scales[full]["model.units"] == 768
    assert all(r.ruling == "inconclusive" for r in rule(claims, Trials(())))
