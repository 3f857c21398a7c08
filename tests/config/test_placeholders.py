"""Placeholders in commands."""

from collections.abc import Sequence

import pytest

from stability.config.commandline import full_words
from stability.config.names import flatten, short_name, trial_name
from stability.config.placeholders import fill, fill_settings, settings_of_file, uses_seed
from stability.config.schema import Config
from tests.support.configs import composed


def of_command(*overrides: str) -> Config:
    return composed(*full_words(["trainer=command", "trainer.command=run {lr}", "settings.lr=0.1", *overrides]))


def test_values_are_written_as_on_the_command_line() -> None:
    values = {"lr": 1e-8, "amp": True, "none": None, "layers": [1, 2], "name": "a b", "n": 3}
    filled = fill("{lr} {amp} {none} {layers} {name} {n}", values)
    assert filled == "1e-08 true null [1, 2] a b 3"


def test_other_braces_stay() -> None:
    assert fill('{"a": {"b": {n}}} {{n}} ${n} {} {other}', {"n": 1}) == '{"a": {"b": 1}} {n} $1 {} {other}'


def test_the_value_of_a_setting_may_hold_what_the_trial_gives() -> None:
    config = of_command("trainer.config=a.yaml", "settings.seed={seed}", "settings.out={folder}/out")
    assert fill_settings(config, {"seed": 3, "folder": "/f"}) == {"lr": 0.1, "seed": 3, "out": "/f/out"}
    assert settings_of_file(config) == ["seed", "out"]
    assert uses_seed(config)
    assert not uses_seed(of_command())


@pytest.mark.parametrize(
    "value",
    ["python a.py --lr {lr}", "a '{lr}'", 'a "{lr}"', """a '{lr}' "b" """, "'a {lr}'", "a={lr},b=[1", r"a \{lr}"],
)
def test_a_command_is_taken_as_it_stands(value: str) -> None:
    command = of_command(f"trainer.command={value}").trainer.command
    assert command == (value[1:-1] if value.startswith("'") else value)


def test_settings_are_swept_without_a_plus() -> None:
    words: Sequence[str] = full_words(["settings.lr=0.1,1", "settings.optim.eps=1e-8"])
    assert [*words] == ["settings.lr=0.1,1", "settings.optim.eps=1e-8"]


def test_a_command_has_no_settings_of_the_decoder() -> None:
    names = [*flatten(of_command())]
    assert "settings.lr" in names
    assert not any(name.startswith(("optimizer", "data", "steps", "device")) for name in names)
    assert not any(name.startswith(("settings", "trainer")) for name in flatten(composed()))
    assert short_name("settings.optim.lr") == "optim.lr"


def test_a_trial_of_a_command_is_named_after_what_can_change_its_result() -> None:
    name = trial_name(of_command())
    assert name.startswith("lr0.1-seed0-")
    for same in ("trainer.log=a.csv", "trainer.limit=3", "trainer.resume=again", "study=other", "trainer.steps=3"):
        assert trial_name(of_command(same)) == name
    for other in ("settings.lr=0.2", "seed=1", "trainer.command=walk {lr}", "diagnosis=eager"):
        assert trial_name(of_command(other)) != name
    assert "/" not in trial_name(of_command("settings.lr=a/b c"))
