"""The schema, and its files in `conf/`."""

import re
from dataclasses import fields, is_dataclass, replace
from typing import Any

import pytest

from stability.config import schema
from stability.config.hydra import conf_folder
from stability.config.schema import Command, check
from stability.core.errors import StabilityError
from tests.support.configs import composed

GROUPS = [kind for kind in vars(schema).values() if is_dataclass(kind) and kind not in (schema._Bound, Command)]


@pytest.mark.parametrize("group", GROUPS)
def test_the_file_that_a_docstring_names_has_all_fields(group: Any) -> None:
    _, found, name = group.__doc__.rstrip("`.").partition("see `conf/")
    assert found
    path = conf_folder() / name
    text = "".join(file.read_text() for file in ([path] if path.is_file() else path.glob("*.yaml")))
    for field in fields(group):
        assert re.search(rf"^ *-? *{field.name}:", text, re.MULTILINE), field.name


def test_bounds_and_contradictions_are_errors() -> None:
    config = composed()
    check(config)
    with pytest.raises(StabilityError, match=r"^steps=0: it has to be 1 or more\.$"):
        check(replace(config, steps=0))
    with pytest.raises(StabilityError, match=r"^schedule\.lr_max=1e\+39: float32 holds numbers of up to 3e\+38\.$"):
        check(replace(config, schedule=replace(config.schedule, lr_max=1e39)))
    with pytest.raises(StabilityError, match=r"bad_data, non_finite must be in the list"):
        check(replace(config, diagnosis=schema.Diagnosis(stop_on=["exploded"])))
    with pytest.raises(StabilityError, match=r"^batch\.size=3 is smaller than batch\.days=4: "):
        check(replace(config, batch=replace(config.batch, size=3)))
