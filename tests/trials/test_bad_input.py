"""Bad input on the command line: one message, a failing exit status, and nothing is lost."""

import resource
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

from stability.core.errors import StabilityError
from stability.data.t15_writer import Utterance, write_session
from stability.trials.run import run_trial
from tests.support.commandline import CommandLine, ended, rows, the_message, wait_for
from tests.support.configs import tiny

ENDLESS = ("steps=1000000", "checkpoint_every=5")
DAYS = ("day.1", "day.2", "day.3", "day.4")


def write_day(root: Path, day: str, features: int = 4) -> None:
    rng = np.random.default_rng(0)
    for split, count in (("train", 3), ("val", 2)):
        utterances = [
            Utterance(features=rng.normal(size=(60, features)), labels=rng.permutation(np.arange(1, 41))[:5])
            for _ in range(count)
        ]
        write_session(root / day, split, utterances)


@pytest.fixture
def root(cli: CommandLine) -> Path:
    """Four good days, each with three utterances to train on and two to validate on."""
    root = cli.folder / "data"
    for day in DAYS:
        write_day(root, day)
    return root


def fail_on(cli: CommandLine, path: Path, *overrides: str) -> str:
    """Return the message about bad data. Check that no trial is left that looks as if it had been trained."""
    message = cli.fail("data=t15", f"data.path={path}", *overrides)
    assert not [*cli.folder.glob("outputs/single/*/signals.csv")]
    return message


def test_a_path_without_data_is_named(cli: CommandLine) -> None:
    nowhere, empty, file = cli.folder / "nowhere", cli.folder / "empty", cli.folder / "file"
    empty.mkdir()
    file.touch()
    assert f"The data path {nowhere} does not exist" in fail_on(cli, nowhere)
    assert f"The data path {empty} contains no session folder" in fail_on(cli, empty)
    assert f"The data path {file} is a file, not a folder" in fail_on(cli, file)


def test_a_broken_file_is_named(cli: CommandLine, root: Path) -> None:
    file = root / "day.3/data_train.hdf5"
    whole = file.read_bytes()
    for content in (b"no HDF5 at all" * 99, whole[: len(whole) // 2]):
        file.write_bytes(content)
        assert f"Cannot read {file} as an HDF5 file" in fail_on(cli, root)


def test_days_that_do_not_fit_the_settings_or_each_other_are_named(cli: CommandLine, root: Path) -> None:
    message = fail_on(cli, root, "batch.days=5")
    assert f"batch.days=5, but only 4 days of {root} have utterances to train on: give batch.days=4 or less" in message
    write_day(root, "day.5", features=5)
    message = fail_on(cli, root)
    assert f"Feature counts differ in {root}" in message
    assert "day.1/data_train.hdf5 trial_0000 has 4" in message
    assert "day.5/data_train.hdf5 trial_0000 has 5" in message


def test_bad_utterances_are_an_error_or_left_out(cli: CommandLine, root: Path) -> None:
    with h5py.File(root / "day.1/data_train.hdf5", "a") as day:
        day["trial_0000/input_features"][3, 2] = np.nan
        day["trial_0001/input_features"][0, 0] = -np.inf
    with h5py.File(root / "day.2/data_train.hdf5", "a") as day:
        del day["trial_0000/seq_class_ids"], day["trial_0000"].attrs["seq_len"]
        day["trial_0001/seq_class_ids"][2] = 41
    with h5py.File(root / "day.3/data_val.hdf5", "a") as day:
        day["trial_0001/seq_class_ids"][:12] = 7  # 12 equal labels need 23 frames, and there are 12
        day["trial_0001"].attrs["seq_len"] = 12
    one = "features have 1 non-finite value among 240; the first is {}"
    bad = {
        "day.1/data_train.hdf5 trial_0000": one.format("nan at bin 3, feature 2"),
        "day.1/data_train.hdf5 trial_0001": one.format("-inf at bin 0, feature 0"),
        "day.2/data_train.hdf5 trial_0000": "has no labels, which the split train needs",
        "day.2/data_train.hdf5 trial_0001": "label 41 at position 2 of 5 is not in 1 to 40",
        "day.3/data_val.hdf5 trial_0001": "CTC cannot align 12 labels with 11 repeats: they need 23 frames",
    }
    message = fail_on(cli, root)
    assert f"{root} has 5 bad utterances among 20" in message
    assert "data.on_bad_utterance=exclude" in message
    for place, problem in bad.items():
        assert f"  {place}: {problem}" in message

    out = cli.run("data=t15", f"data.path={root}", "data.on_bad_utterance=exclude", "study=without").out
    assert "8 utterances to train on and 7 to validate on, 4 days, 4 features, 14.4 kB of float32 in memory" in out
    assert "Training without 5 bad utterances; excluded.txt lists them." in out
    listed = (cli.trial("without") / "excluded.txt").read_text().splitlines()
    assert [line.partition(": ")[0] for line in listed] == [*bad]
    assert len(rows(cli.trial("without") / "signals.csv")) == 12


def test_a_device_that_does_not_exist_is_named(cli: CommandLine) -> None:
    assert "device=nonsense is unknown: give auto, cpu, cuda or cuda:N" in cli.fail("device=nonsense")
    if not torch.cuda.is_available():
        message = cli.fail("device=cuda")
        assert "device=cuda, but PyTorch sees 0 CUDA devices here. Give device=auto" in message


def test_an_output_folder_that_is_a_file_is_named(cli: CommandLine) -> None:
    (cli.folder / "file").touch()
    message = cli.fail("outputs=file")
    assert "Cannot write in file/single/" in message
    assert "Not a directory" in message
    assert "outputs=FOLDER" in message
    assert (cli.folder / "file").read_bytes() == b""


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 400 kB. The test is skipped if none can be mounted."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount("-t", "tmpfs", "-o", "size=400k", "tmpfs", str(folder))
    yield folder
    subprocess.run(["umount", folder], check=True)


def mount(*arguments: str) -> None:
    try:
        subprocess.run(["mount", *arguments], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"no disk can be mounted here: {error}")


def test_a_trial_continues_after_a_full_disk_and_a_read_only_disk_is_named(cli: CommandLine, disk: Path) -> None:
    message = cli.fail(*ENDLESS, f"outputs={disk}")
    assert "No space left on device. Free some space, or give another folder with outputs=FOLDER" in message
    mount("-o", "remount,size=2m", str(disk))
    assert_continues(cli, disk)
    mount("-o", "remount,ro", str(disk))
    assert "Read-only file system. Free some space" in cli.fail(*ENDLESS, f"outputs={disk}")


@pytest.mark.skipif(not hasattr(resource, "prlimit"), reason="there is no prlimit here")
@pytest.mark.slow
def test_a_trial_continues_after_the_disk_filled_during_a_checkpoint(cli: CommandLine) -> None:
    process = cli.start(*ENDLESS)
    wait_for(lambda: any(cli.folder.glob("outputs/single/*/checkpoints/last.pt")), process)
    resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (50_000, 50_000))  # less than a checkpoint takes
    message = the_message(ended(process, 1))
    assert "File too large. Free some space, or give another folder with outputs=FOLDER" in message
    assert_continues(cli, cli.folder / "outputs")


def assert_continues(cli: CommandLine, outputs: Path) -> None:
    """Check that the trial is complete up to its last checkpoint, and that the same command continues it."""
    (trial,) = outputs.glob("single/*")
    step = torch.load(trial / "checkpoints/last.pt", weights_only=True)["stability"]["step"]
    assert step > 0
    assert not [*trial.rglob("*.part")]
    process = cli.start(*ENDLESS, f"outputs={outputs}")
    signals = trial / "signals.csv"
    wait_for(lambda: len(rows(signals)) > step + 20, process)
    process.terminate()
    end = ended(process, 75)
    assert f"steps {step} to 1000000 (resumed)" in end.out
    assert [int(row.split(",")[0]) for row in rows(signals)] == [*range(len(rows(signals)))]


def test_a_trial_of_another_version_is_kept_until_fresh_is_given(root: Path, tmp_path: Path) -> None:
    """If its signals lack a column, the trial is neither resumed nor changed; fresh=true trains it from scratch."""
    own = ("data=t15", f"data.path={root}", f"outputs={tmp_path}", "checkpoint_every=3", "validate_every=3")
    folder = tmp_path / "trial"
    run_trial(tiny(*own, "steps=5"), folder)
    signals, verdict = folder / "signals.csv", folder / "verdict.json"
    lines = [line.split(",") for line in signals.read_text().splitlines()]
    at = lines[0].index("applied_norm")
    signals.write_text("".join(",".join(line[:at] + line[at + 1 :]) + "\n" for line in lines))
    verdict.unlink()
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    with pytest.raises(StabilityError, match=r"signals\.csv has other columns .*\(no applied_norm\).*fresh=true"):
        run_trial(tiny(*own, "steps=9"), folder)
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before
    run_trial(tiny(*own, "steps=9", "fresh=true"), folder)
    assert signals.read_text().splitlines()[0].split(",") == [*lines[0]]
    assert len(rows(signals)) == 9


def _flip(path: Path, _: int) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def _cut(path: Path, keep: int) -> None:
    path.write_text("".join(path.read_text().splitlines(keepends=True)[: keep + 1]))


@pytest.mark.parametrize(
    ("name", "spoil", "keep"),
    [
        ("checkpoints/last.pt", _flip, 0),
        ("signals.csv", _cut, 5),
        ("validation.csv", _cut, 1),
    ],
)
def test_a_trial_goes_on_from_what_a_power_cut_has_left(
    root: Path,
    tmp_path: Path,
    name: str,
    spoil: Callable[[Path, int], None],
    keep: int,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """It has the same numbers in the end. If no checkpoint fits what is left, it says so and changes nothing."""
    own = ("data=t15", f"data.path={root}", f"outputs={tmp_path}", "checkpoint_every=3", "validate_every=4")
    whole, folder = tmp_path / "whole", tmp_path / "trial"
    run_trial(tiny(*own, "steps=8"), whole)
    run_trial(tiny(*own, "steps=6"), folder)  # its checkpoints are at steps 3 and 6, its validations at 0, 4 and 5
    (folder / "verdict.json").unlink()
    spoil(folder / name, keep)
    if name == "signals.csv":
        kept = {path: path.read_bytes() for path in folder.rglob("*.pt")}
        rest = (folder / "signals.csv").read_bytes()
        _cut(folder / name, 2)
        with pytest.raises(StabilityError, match=r"signals\.csv has 2 rows from before step 6, .* fresh=true"):
            run_trial(tiny(*own, "steps=8"), folder)
        assert kept == {path: path.read_bytes() for path in folder.rglob("*.pt")}
        (folder / "signals.csv").write_bytes(rest)
    caplog.clear()
    run_trial(tiny(*own, "steps=8"), folder)
    assert "The trial goes on from the checkpoint before the last, at step 3: " in caplog.text
    for table in ("signals.csv", "validation.csv"):
        assert (folder / table).read_text() == (whole / table).read_text()
