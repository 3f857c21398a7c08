"""Bad input, through the command line: one message, a failing exit status, nothing lost."""

import resource
import subprocess
from collections.abc import Iterator
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

from stability.core.errors import StabilityError
from stability.data.t15 import Trial, write_session
from stability.trials.run import run_trial
from tests.support.commandline import CommandLine, ended, rows, the_message, wait_for
from tests.support.configs import tiny

ENDLESS = ("steps=1000000", "checkpoint_every=5")
DAYS = ("day.1", "day.2", "day.3", "day.4")


def write_day(root: Path, day: str, features: int = 4) -> None:
    rng = np.random.default_rng(0)
    for split, count in (("train", 3), ("val", 2)):
        trials = [
            Trial(rng.normal(size=(60, features)), rng.permutation(np.arange(1, 41))[:5], "", 0, number)
            for number in range(count)
        ]
        write_session(root / day, split, trials)


@pytest.fixture
def root(cli: CommandLine) -> Path:
    """Four good days of three trials to train and two to validate."""
    root = cli.folder / "data"
    for day in DAYS:
        write_day(root, day)
    return root


def fail_on(cli: CommandLine, path: Path, *overrides: str) -> str:
    """The message about bad data, which leaves no trial that could be taken for one."""
    message = cli.fail("data=t15", f"data.path={path}", *overrides)
    assert not [*cli.folder.glob("outputs/single/*/signals.csv")]
    return message


def test_a_path_without_data(cli: CommandLine) -> None:
    nowhere, empty, file = cli.folder / "nowhere", cli.folder / "empty", cli.folder / "file"
    empty.mkdir()
    file.touch()
    assert f"data path {nowhere} does not exist" in fail_on(cli, nowhere)
    assert f"data path {empty} holds no session folder" in fail_on(cli, empty)
    assert f"data path {file} is a file, not a folder" in fail_on(cli, file)


def test_files_that_are_broken(cli: CommandLine, root: Path) -> None:
    file = root / "day.3/data_train.hdf5"
    whole = file.read_bytes()
    for content in (b"no HDF5 at all" * 99, whole[: len(whole) // 2]):
        file.write_bytes(content)
        assert f"{file} cannot be read as HDF5" in fail_on(cli, root)


def test_days_that_do_not_belong_together(cli: CommandLine, root: Path) -> None:
    message = fail_on(cli, root, "batch.days=5")
    assert f"batch.days=5, but only 4 days of {root} have training trials: give batch.days=4 or less" in message
    write_day(root, "day.5", features=5)
    message = fail_on(cli, root)
    assert f"feature counts differ in {root}" in message
    assert "day.1/data_train.hdf5 trial_0000 has 4" in message
    assert "day.5/data_train.hdf5 trial_0000 has 5" in message


def test_bad_trials_are_fatal_or_left_out(cli: CommandLine, root: Path) -> None:
    with h5py.File(root / "day.1/data_train.hdf5", "a") as day:
        day["trial_0000/input_features"][3, 2] = np.nan
        day["trial_0001/input_features"][0, 0] = -np.inf
    with h5py.File(root / "day.2/data_train.hdf5", "a") as day:
        del day["trial_0000/seq_class_ids"], day["trial_0000"].attrs["seq_len"]
        day["trial_0001/seq_class_ids"][2] = 41
    with h5py.File(root / "day.3/data_val.hdf5", "a") as day:
        day["trial_0001/seq_class_ids"][:12] = 7  # 12 equal labels need 23 frames, and there are 12
        day["trial_0001"].attrs["seq_len"] = 12
    bad = {
        "day.1/data_train.hdf5 trial_0000": "1 of 240 features are not finite, the first is nan at bin 3, feature 2",
        "day.1/data_train.hdf5 trial_0001": "1 of 240 features are not finite, the first is -inf at bin 0, feature 0",
        "day.2/data_train.hdf5 trial_0000": "has no labels, which train trials need",
        "day.2/data_train.hdf5 trial_0001": "label 41 at position 2 of 5 is not in 1 to 40",
        "day.3/data_val.hdf5 trial_0001": "CTC cannot align 12 labels with 11 repeats, which need 23 frames",
    }
    message = fail_on(cli, root)
    assert f"5 of 20 trials in {root} are bad" in message
    assert "data.on_bad_utterance=exclude" in message
    for place, problem in bad.items():
        assert f"  {place}: {problem}" in message

    out = cli.run("data=t15", f"data.path={root}", "data.on_bad_utterance=exclude", "study=without").out
    assert "8 trials to train and 7 to validate, 4 days, 4 features, 14.4 kB of float32 in memory" in out
    assert "5 bad trials are left out, listed in excluded.txt" in out
    listed = (cli.trial("without") / "excluded.txt").read_text().splitlines()
    assert [line.partition(": ")[0] for line in listed] == [*bad]
    assert len(rows(cli.trial("without") / "signals.csv")) == 12


def test_a_device_that_is_not_there(cli: CommandLine) -> None:
    assert "device=nonsense is none of auto, cpu, cuda and cuda:N" in cli.fail("device=nonsense")
    if not torch.cuda.is_available():
        message = cli.fail("device=cuda")
        assert "device=cuda, but PyTorch sees 0 CUDA devices here. Give device=auto" in message


def test_an_output_folder_that_cannot_be(cli: CommandLine) -> None:
    (cli.folder / "file").touch()
    message = cli.fail("outputs=file")
    assert "Cannot write in file/single/" in message
    assert "Not a directory" in message
    assert "outputs=FOLDER" in message
    assert (cli.folder / "file").read_bytes() == b""


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 400 kB, where the tests may mount one."""
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


def test_a_full_disk_and_a_read_only_one(cli: CommandLine, disk: Path) -> None:
    message = cli.fail(*ENDLESS, f"outputs={disk}")
    assert "No space left on device. Make room, or give another place with outputs=FOLDER" in message
    mount("-o", "remount,size=2m", str(disk))
    assert_goes_on(cli, disk)
    mount("-o", "remount,ro", str(disk))
    assert "Read-only file system. Make room" in cli.fail(*ENDLESS, f"outputs={disk}")


@pytest.mark.skipif(not hasattr(resource, "prlimit"), reason="there is no prlimit here")
def test_a_disk_that_fills_while_a_checkpoint_is_written(cli: CommandLine) -> None:
    process = cli.start(*ENDLESS)
    wait_for(lambda: any(cli.folder.glob("outputs/single/*/checkpoints/last.pt")), process)
    resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (50_000, 50_000))  # less than a checkpoint takes
    message = the_message(ended(process, 1))
    assert "File too large. Make room, or give another place with outputs=FOLDER" in message
    assert_goes_on(cli, cli.folder / "outputs")


def assert_goes_on(cli: CommandLine, outputs: Path) -> None:
    """The trial is whole up to its last checkpoint, and the same command goes on from there."""
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


def test_a_trial_that_another_version_began(root: Path, tmp_path: Path) -> None:
    """Its signals lack a column: it is not gone on with, nothing of it is lost, and fresh=true trains it anew."""
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
