"""What is short on a command line, and what Hydra gets to read."""

import pytest

from stability.config.commandline import full_words
from stability.config.names import full_name, short_name
from stability.core.errors import StabilityError
from tests.support.configs import composed


@pytest.mark.parametrize(
    ("given", "read"),
    [
        ("epsilon=0.1", "optimizer.epsilon=0.1"),
        ("lr=0.1,0.2", "schedule.lr_max=0.1,0.2"),
        ("noise=0.25", "aug.white_noise_std=0.25"),
        ("batch_size=8", "batch.size=8"),
        ("eps=1", "optimizer.epsilon=1"),
        ("learning_rate=1", "schedule.lr_max=1"),
        ("batch=8,16", "batch.size=8,16"),
        ("batch=range(8,10)", "batch.size=range(8,10)"),
        ("hydra.sweeper.params.lr=0.1", "hydra.sweeper.params.schedule.lr_max=0.1"),
        ("white_noise_std=1", "aug.white_noise_std=1"),
        ("units=8", "model.units=8"),
        ("tags={team: speech}", "+tracking.tags={team: speech}"),
        ("tracking.tags={team: speech}", "+tracking.tags={team: speech}"),
        ("note=a", "tracking.note=a"),
    ],
)
def test_short_names_are_read_as_full_ones(given: str, read: str) -> None:
    assert full_words(["seed=1", given]) == ["seed=1", read]


@pytest.mark.parametrize(
    "word",
    ["batch=conservative", "loss=per_label_mean", "precision=fp16", "seed=1", "experiment=null", "study=lr", "--cfg",
     "+lr=1", "size", "optimizer.epsilon=1", "hydra.launcher.size=2", "nothing=1", "sweep.claims=null"],
)  # fmt: skip
def test_all_else_is_read_as_it_is(word: str) -> None:
    assert full_words([word]) == [word]


def test_the_names_that_tables_show_are_understood() -> None:
    from stability.config.names import flatten

    groups = {"loss", "precision", "batch", "experiment"}  # have the same names
    for name in flatten(composed()):
        assert full_name(short_name(name)) in (name, *groups), name


def test_an_experiment_is_a_sweep() -> None:
    assert full_words(["steps=1", "experiment=test1"]) == ["--multirun", "steps=1", "experiment=test1"]
    for words in (["-m", "experiment=test1"], ["experiment=test1", "hydra.mode=RUN"], ["--cfg", "job", "experiment=x"]):
        assert full_words(words) == words


def test_experiments_that_sweep_the_same_are_one_sweep() -> None:
    assert full_words(["experiment=test1,test2", "study=mine", "lr=1"]) == [
        "--multirun",
        "hydra/launcher=stacked",
        "hydra/sweeper=basic",
        "sweep.claims=original",
        'hydra.sweeper.params={seed: "range(3)"}',
        "experiment=test1,test2",
        "study=mine",
        "schedule.lr_max=1",
    ]
    assert "study=debug" in full_words(["experiment=test1,test2", "debug=fast"])
    with pytest.raises(StabilityError, match=r"^test1 and boundary differ in hydra/sweeper, study"):
        full_words(["experiment=test1,boundary"])
    with pytest.raises(StabilityError, match="experiment/nope"):
        full_words(["experiment=test1,nope"])
