"""Files that are empty, cut, of another kind, or somebody else's: each door says which one is wrong, and ends."""

import json
import random
import shutil
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from stability import diagnose, send
from stability.analysis.claims import read_claims
from stability.analysis.trials import read_trials
from stability.config.schema import Config
from stability.core.errors import StabilityError
from stability.engine.decoder import init_parameters
from stability.tracking.state import State, write_state
from stability.trials.checkpoint import load_weights
from stability.trials.run import run_trial
from tests.support.configs import tiny
from tests.support.sessions import failure, opened, write_ragged_days
from tests.support.trial_folders import without_figure

pytestmark = pytest.mark.timeout(60)  # a door that hangs fails

STORE = "http://localhost:9"  # nobody listens there: what cannot be sent has to be refused before

ANY = {"empty": b"", "zeros": bytes(100), "not UTF-8": b"\xff\xfe\xfd", "binary": bytes(range(256))}
JSON = {
    **ANY,
    "open": b"{",
    "null": b"null",
    "list": b"[]",
    "number": b"3",
    "text": b'"x"',
    "object": b"{}",
    "deep": b"[" * 100_000,
    "large": b'{"a": 1e999}',
    "long number": b'{"a": ' + b"9" * 5000 + b"}",
}
YAML = {
    **ANY,
    "open": b"{",
    "list": b"- 1\n",
    "number": b"3",
    "itself": b"a: &a [*a]\n",
    "unknown": b"a: ${nowhere}\n",
    "code": b"!!python/object/apply:os.system [exit]\n",
    "deep": b"a: " + b"[" * 3000,
    "tab": b"\t- x",
}
TABLE = {
    **ANY,
    "header": b"loss\n1\n",
    "words": b"words\nof a log\n",
    "text": b"step,loss\nx,y\n",
    "formula": b"step,loss\n1,$x$\n",
    "wide": b"step,loss\n1,2,3\n",
    "long number": b"step,loss\n" + b"9" * 40 + b",1\n",
    "negative": b"step,loss\n-5,1\n",
    "descending": b"step,loss\n3,1\n2,1\n",
    "nameless": b"step,,\n1,2,3\n",
    "twice": b"step,loss,loss\n1,2,3\n",
    "blank": b"step,loss\n\n1,2\n",
    "Windows": b"step,loss\r\n1,2\r\n",
}
TORCH = {**ANY, "zip": b"PK\x03\x04", "pickle": b"\x80\x04cos\nsystem\n\x94."}


class Base(NamedTuple):
    """A trial that ended in a fault, with everything that a trial can leave."""

    config: Config
    folder: Path
    data: Path


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Base:
    root = tmp_path_factory.mktemp("base")
    data = write_ragged_days(root / "data")
    config = tiny(
        *("data=t15", f"data.path={data}", f"outputs={root}", "steps=8", "checkpoint_every=2", "validate_every=3"),
        *("schedule.lr_max=1e30", "schedule.lr_max_day=1e30", "schedule.warmup_steps=0"),
    )
    folder = without_figure(root / "trial")
    run_trial(config, folder, quiet=True)
    assert (folder / "flight/flight.json").exists()
    return Base(config, folder, data)


@pytest.fixture
def trial(base: Base, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy to spoil. The test is run next to it."""
    shutil.copytree(base.folder, tmp_path / "trial")
    write_state(tmp_path / "trial", State(STORE, "study", {}))
    monkeypatch.chdir(tmp_path)
    return tmp_path / "trial"


Door = Callable[[Base, Path], object]


def continue_trial(base: Base, trial: Path) -> None:
    run_trial(base.config, trial, quiet=True)


def continue_training(base: Base, trial: Path) -> None:
    (trial / "verdict.json").unlink()
    run_trial(base.config, trial, quiet=True)


def report(base: Base, trial: Path) -> None:
    for _, reason in read_trials([trial]).left_out:
        raise StabilityError(reason)


def diagnose_it(base: Base, trial: Path) -> None:
    _succeed(diagnose.main([str(trial)]))


def replay_it(base: Base, trial: Path) -> None:
    _succeed(diagnose.main(["--replay", str(trial)]))


def send_it(base: Base, trial: Path) -> None:
    _succeed(send.main([str(trial), "--uri", STORE]))


def use_weights(base: Base, trial: Path) -> None:
    load_weights(trial / "checkpoints/best.pt", init_parameters(base.config.model, 4, 4, 0))


class _Failed(Exception):
    """A door ended with a status that is not 0, and has printed why."""


def _succeed(status: int) -> None:
    if status:
        raise _Failed


# The files of a trial, what may be in them, and the doors that read them.
FILES: list[tuple[str, dict[str, bytes], list[Door]]] = [
    ("verdict.json", JSON, [continue_trial, report]),
    ("signals.csv", TABLE, [continue_training, report, diagnose_it, replay_it]),
    ("validation.csv", TABLE, [diagnose_it]),
    ("config.yaml", YAML, [report, replay_it, send_it]),
    ("tracking.json", JSON, [send_it]),
    ("flight/flight.json", JSON, [replay_it]),
    ("flight/state.pt", TORCH, [replay_it]),
    ("checkpoints/last.pt", TORCH, [continue_training]),
    ("checkpoints/best.pt", TORCH, [use_weights]),
]
# A trial that has not validated has no such file, or an empty one.
FINE = {("validation.csv", "empty", diagnose_it)}


def _cases() -> Iterator[Any]:
    """All cases, each third of them for the ordinary tests."""
    every = [
        (name, kind, content, door)
        for name, contents, doors in FILES
        for kind, content in contents.items()
        for door in doors
        if (name, kind, door) not in FINE
    ]
    for place, (name, kind, content, door) in enumerate(every):
        marks = [pytest.mark.slow] if place % 3 else []
        yield pytest.param(name, content, door, id=f"{door.__name__}-{name}-{kind}", marks=marks)


def said(door: Callable[[], object], capsys: pytest.CaptureFixture[str]) -> str:
    """Go through a door that must fail, and return its message. Any other exception is a traceback."""
    with pytest.raises((StabilityError, _Failed)) as error:
        door()
    printed = capsys.readouterr()
    assert printed.err.count("error: ") == isinstance(error.value, _Failed)
    message = printed.err or str(error.value)
    assert message.isprintable() or message.replace("\n", "").isprintable(), message
    return message


@pytest.mark.parametrize(("name", "content", "door"), [*_cases()])
def test_a_bad_file_is_named(
    base: Base, trial: Path, name: str, content: bytes, door: Door, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.rmtree(trial / "checkpoints" if "last" in name else trial / "absent", ignore_errors=True)
    (trial / name).parent.mkdir(exist_ok=True)
    (trial / name).write_bytes(content)
    before = {path: path.read_bytes() for path in trial.rglob("*.*") if path.is_file() and path.name != "verdict.json"}
    message = said(lambda: door(base, trial), capsys)
    assert Path(name).name in message
    assert {path: path.read_bytes() for path in before} == before


@pytest.mark.parametrize("ending", ["csv", "json", "jsonl", "txt"])
@pytest.mark.parametrize("kind", ANY)
def test_a_bad_log_is_named(
    tmp_path: Path, kind: str, ending: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path(f"run.{ending}").write_bytes(ANY[kind])
    assert f"run.{ending}" in said(lambda: _succeed(diagnose.main([f"run.{ending}"])), capsys)


def _bad_hdf5(whole: bytes) -> dict[str, bytes]:
    parts = {f"first {share} %": whole[: len(whole) * share // 100] for share in range(1, 100, 11)}
    return {**ANY, **parts, "not the first byte": whole[1:], "zeros inside": whole[:100] + bytes(400) + whole[500:]}


@pytest.mark.parametrize("kind", _bad_hdf5(b""))
def test_a_bad_hdf5_file_is_named(base: Base, tmp_path: Path, kind: str) -> None:
    file = shutil.copytree(base.data, tmp_path / "data") / "day.2/data_val.hdf5"
    file.write_bytes(_bad_hdf5(file.read_bytes())[kind])
    assert str(file) in failure(tmp_path / "data")


@pytest.mark.parametrize("kind", YAML)
def test_a_bad_file_of_claims_is_named(tmp_path: Path, kind: str) -> None:
    (tmp_path / "claims.yaml").write_bytes(YAML[kind])
    with pytest.raises(StabilityError, match=r"claims\.yaml"):
        read_claims(tmp_path / "claims.yaml")


def _other_values(whole: bytes) -> Iterator[bytes]:
    """JSON objects in which a value is missing or of another kind, and halves of them."""
    content = json.loads(whole)
    yield whole[: len(whole) // 2]
    for name in content:
        yield json.dumps({key: value for key, value in content.items() if key != name}).encode()
        values: list[Any] = [None, [], [[]], "\x1b[2J", {}, {"a": []}, -1, 1e300, True]
        for value in values:
            yield json.dumps(content | {name: value}).encode()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "doors"),
    [
        ("verdict.json", [continue_trial, report, send_it]),
        ("flight/flight.json", [replay_it]),
        ("tracking.json", [send_it]),
    ],
)
def test_a_value_of_another_kind_is_no_traceback(
    base: Base, trial: Path, name: str, doors: list[Door], capsys: pytest.CaptureFixture[str]
) -> None:
    for content in _other_values((trial / name).read_bytes()):
        for door in doors:
            (trial / name).write_bytes(content)
            with suppress(StabilityError, _Failed):  # many values do no harm
                door(base, trial)
            assert "\x1b" not in "".join(capsys.readouterr())


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_logs_of_any_content_are_no_traceback(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    contents = {
        **JSON,
        **TABLE,
        **YAML,
        "one line": b"x" * 5_000_000,
        "one row": b"step,loss\n" + b"1," * 200_000,
        "columns": b",".join(b"c%d" % column for column in range(20_000)) + b"\n" + b"1," * 19_999 + b"1\n",
        "escape": b"step,\x1b[31mloss,loss\n1,\x1b[2J,2\n2,3,3\n",
        "markup": b"step,[/red],loss\n1,2,3\n2,3,3\n",
        "formula": b"step,$a_{$,loss\n1,2,3\n2,3,3\n",
        "UTF-16": "step,loss\n1,2\n2,3\n".encode("utf-16"),
        "large steps": b'{"step": 1e300, "loss": 1}\n{"step": 2, "loss": 1}\n',
    }
    for content in contents.values():
        for ending in ("csv", "tsv", "json", "jsonl", "log", "$x$"):
            log = tmp_path / f"run [red] $a_$.{ending}"
            log.write_bytes(content)
            status = diagnose.main([str(log)])
            printed = capsys.readouterr()
            assert printed.err.count("error: ") == status
            assert (printed.out + printed.err).replace("\n", "").isprintable()


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_hdf5_files_with_flipped_bytes_are_no_traceback(base: Base, tmp_path: Path) -> None:
    """A flipped byte in the features is still a number: HDF5 has no checksums."""
    data = shutil.copytree(base.data, tmp_path / "data")
    file = data / "day.2/data_val.hdf5"
    whole = file.read_bytes()
    for seed in range(300):
        spoilt = bytearray(whole)
        for place in random.Random(seed).sample(range(len(whole)), 5):
            spoilt[place] ^= 1 << seed % 8
        file.write_bytes(spoilt)
        with suppress(StabilityError):
            dataset = opened(data)
            for record in range(len(dataset.val.records)):
                dataset.val.read(record)
