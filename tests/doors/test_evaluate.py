"""The door `python -m stability.evaluate`: checkpoints of both kinds on real files, beside a decoder in float64."""

import csv
import json
import pickle
import resource
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import editdistance
import h5py
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from omegaconf import OmegaConf
from torch import nn

from stability.config.names import own_settings
from stability.data.phonemes import PHONEMES
from stability.data.t15_writer import write_session
from stability.engine.decoder import init_parameters
from stability.engine.stack import new_stack
from stability.evaluate import main
from stability.trials.checkpoint import Best, save
from stability.trials.evaluation import evaluate_trained
from stability.trials.trained import open_trained
from tests.support.checkpoints import Compiled
from tests.support.configs import tiny
from tests.support.decoding import collapsed
from tests.support.pages import DOCS, code_with
from tests.support.reference import ReferenceDecoder, reference, smoothed
from tests.support.sessions import opened, utterances
from tests.support.stacks import CPU

DAYS = ["day.1", "day.2", "day.3"]
HEARD = [name.strip() for name in PHONEMES[1:]]


class Known(NamedTuple):
    """A decoder with weights that say something, the same on each day but for the day layers."""

    data: Path
    trial: Path
    model: ReferenceDecoder  # in float64


@pytest.fixture(scope="module")
def known(tmp_path_factory: pytest.TempPathFactory) -> Known:
    """Three days, the first without validation, the last with a test split; and a trial of them as ours leave it."""
    root = tmp_path_factory.mktemp("evaluate")
    data, trial = root / "data", root / "outputs/single/trial"
    for seed, day in enumerate(DAYS):
        write_session(data / day, "train", utterances(2, seed=seed))
        if seed:
            ragged = (next(utterances(1, bins=40 + 7 * n, seed=10 * seed + n)) for n in range(5))
            write_session(data / day, "val", ragged)
    write_session(data / "day.3", "test", islice(utterances(3, seed=9), 3))
    config = tiny("data=t15", f"data.path={data}", f"outputs={root / 'outputs'}", "batch.size=3", "batch.days=3")
    parameters = init_parameters(config.model, 4, 3, seed=3)
    generator = torch.Generator().manual_seed(0)
    for name, p in parameters.items():
        p += torch.randn(p.shape, generator=generator) * (0.5 if name.startswith(("day", "out.w")) else 0.1)
    parameters["out.bias"][0] -= 1
    save(trial / "checkpoints/best.pt", new_stack([config], [parameters], CPU), 0, Best())
    (trial / "config.yaml").write_text(OmegaConf.to_yaml(OmegaConf.create(own_settings(config))))
    (trial / "data.json").write_text(json.dumps(opened(data).summary))
    return Known(data, trial, reference(parameters, 2, torch.float64))


def public(known: Known, folder: Path, arguments: Mapping[str, Any] | None = None, **weights: Any) -> Path:
    """A checkpoint as the official trainer leaves it; with `args.yaml`, if there are arguments."""
    folder.mkdir(parents=True)
    compiled = Compiled(known.model).float().state_dict()
    known.model.double()
    state = compiled | {f"_orig_mod.{name}": value for name, value in weights.items()}
    torch.save({"model_state_dict": state, "val_PER": np.float64(0.5)}, folder / "best_checkpoint")
    if arguments is not None:
        (folder / "args.yaml").write_text(OmegaConf.to_yaml(OmegaConf.create(dict(arguments))))
    return folder / "best_checkpoint"


def arguments_of(sessions: list[str]) -> dict[str, Any]:
    """What the official trainer says about its training, as far as it is used."""
    return {
        "model": {"n_units": 32, "patch_size": 14, "patch_stride": 4},
        "dataset": {"sessions": sessions, "data_transforms": {"smooth_kernel_std": 2}},
    }


def results(folder: Path) -> tuple[list[dict[str, str]], list[list[str]], dict[str, Any]]:
    """The sessions, the confusions and the summary of an evaluation."""
    sessions, confusion, summary = (
        (folder / name).read_text() for name in ("sessions.csv", "confusion.csv", "evaluation.json")
    )
    return [*csv.DictReader(sessions.splitlines())], [*csv.reader(confusion.splitlines())], json.loads(summary)


def expected(known: Known, session: str, split: str) -> Iterator[tuple[str, NDArray[np.float64], list[int], list[int]]]:
    """Name, logits, decoded labels and labels of each utterance, by float64 and the file itself."""
    with h5py.File(known.data / session / f"data_{split}.hdf5") as file:
        for name, group in file.items():
            x = torch.from_numpy(group["input_features"][:])[None]
            with torch.no_grad():
                logits = known.model(smoothed(x), [DAYS.index(session)])[0].numpy()
            labels = [] if split == "test" else group["seq_class_ids"][: group.attrs["seq_len"]].tolist()
            yield name, logits, collapsed(tuple(logits.argmax(-1).tolist())), labels


def test_error_rates_and_confusions_are_those_of_an_independent_count(
    known: Known, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(known.trial)]) == 0
    printed = capsys.readouterr().out
    sessions, confusion, summary = results(known.trial / "evaluation/val")
    assert [row["session"] for row in sessions] == ["day.2", "day.3"]
    all_edits, spoken, heard = 0, [0] * 41, [0] * 41
    for row in sessions:
        edits = labels = 0
        for _, _, decoded, target in expected(known, row["session"], "val"):
            edits += editdistance.eval(decoded, target)
            labels += len(target)
            for counts, classes in ((spoken, target), (heard, decoded)):
                for c in classes:
                    counts[c] += 1
        assert float(row["per"]) == edits / labels
        assert sum(int(row[kind]) for kind in ("substitutions", "deletions", "insertions")) == edits
        assert (row["utterances"], row["labels"]) == ("5", str(labels))
        assert f"{edits / labels:.4f}" in printed
        all_edits += edits
    assert 0.5 < summary["per"] == all_edits / sum(spoken)
    assert (summary["split"], summary["labels"], summary["utterances"]) == ("val", sum(spoken), 10)
    assert confusion[0] == ["spoken", *HEARD, "deleted"]
    assert [row[0] for row in confusion[1:]] == [*HEARD, "inserted"]
    table = np.array([row[1:] for row in confusion[1:]], int)
    assert table[:-1].sum(1).tolist() == spoken[1:]
    assert table[:, :-1].sum(0).tolist() == heard[1:]
    assert table.sum() - np.trace(table) == all_edits
    assert (known.trial / "evaluation/val/confusion.png").read_bytes().startswith(b"\x89PNG")


def test_a_public_checkpoint_gives_the_same_whatever_the_order_of_its_sessions(
    known: Known, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With `args.yaml` the day layers are matched by name, and without it by the order of all sessions."""
    monkeypatch.chdir(tmp_path)
    turned = {
        f"{kind}.{new}": getattr(known.model, kind)[old].detach().float()
        for kind in ("day_weights", "day_biases")
        for new, old in enumerate([2, 0, 1])
    }
    public(known, Path("named/checkpoint"), arguments_of(["day.3", "day.1", "day.2"]), **turned)
    public(known, Path("sorted"))
    public(known, Path("given"), **turned)
    public(known, Path("double"), **{name: p.float().double() for name, p in known.model.state_dict().items()})

    def found(place: str | Path, *words: str) -> dict[str, Any]:
        evaluation = evaluate_trained(open_trained(Path(place), words), "val")
        assert evaluation.confusions is not None
        return dict(zip(evaluation.sessions, evaluation.confusions.tolist(), strict=True))

    data = f"data.path={known.data}"
    ours = found(known.trial)
    assert found("named", data, "batch_size=2") == found("sorted", data) == found("double", data) == ours
    assert found("given", data, "data.sessions=[day.3,day.1,day.2]") == ours
    assert found("given", data) != ours
    assert found("named", data, "data.sessions=[day.3]") == {"day.3": ours["day.3"]}
    assert main(["named", data]) == 0
    summary = results(Path("evaluation/val"))[2]
    assert summary["labels"] == sum(np.array(own)[1:].sum() for own in ours.values())


def test_logits_are_those_of_float64_without_labels_in_both_formats(
    known: Known, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("new/test.hdf5", "new/test.npz"):
        assert main([str(known.trial), "--split", "test", "--logits", name, "device=cpu"]) == 0
    assert "3 utterances without labels, so there is no error rate" in capsys.readouterr().out
    assert sorted(path.name for path in Path("new").iterdir()) == ["test.hdf5", "test.npz"]
    assert not (known.trial / "evaluation/test").exists()
    with h5py.File("new/test.hdf5") as file, np.load("new/test.npz") as arrays:
        assert [*file] == ["LOGIT_TO_PHONEME", "day.3"]
        assert [*file["day.3"]] == ["trial_0000", "trial_0001", "trial_0002"]
        order = file["LOGIT_TO_PHONEME"][:].astype(str).tolist()
        assert order == [*PHONEMES]
        assert len(arrays.files) == 1 + 3 * 5
        for number, (name, logits, decoded, _) in enumerate(expected(known, "day.3", "test")):
            group = file["day.3"][name]
            np.testing.assert_allclose(group["logits"], logits, atol=1e-4)
            assert group["pred_seq"][:].astype(str).tolist() == [order[c] for c in decoded]
            assert [*group] == ["logits", "pred_seq"]
            assert dict(group.attrs) == {"session": "day.3", "block_num": 3, "trial_num": number + 10}
            for inner, value in [*group.items(), *group.attrs.items()]:
                np.testing.assert_array_equal(arrays[f"day.3/{name}/{inner}"], np.asarray(value))


def test_with_labels_the_file_has_them_too_and_the_docs_read_it(
    known: Known, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("logits.hdf5").write_text("an earlier file")
    assert main([str(known.trial), "--logits", "logits.hdf5", "--overwrite", "--out", "."]) == 0
    with h5py.File("logits.hdf5") as file:
        for name, _, _, labels in expected(known, "day.2", "val"):
            group = file["day.2"][name]
            assert group["seq_class_ids"][:].tolist() == labels
            assert group.attrs["seq_len"] == len(labels)
            assert group.attrs["sentence_label"] == "sentence 0"
    found: dict[str, Any] = {}
    exec(code_with(DOCS / "how-to/evaluate.md", "h5py"), found)
    (*_, (_, last, _, _)) = expected(known, "day.3", "val")
    np.testing.assert_allclose(found["logits"], last[:, [0, 40, *range(1, 40)]], atol=1e-4)


BAD = [
    ("absent.pt", "There is no checkpoint at absent.pt."),
    ("empty", "There is no checkpoint in empty: none of checkpoints/best.pt, checkpoint/best_checkpoint and"),
    ("code.pt", "code.pt cannot be read as a checkpoint (it is damaged, or holds more than tensors and numbers, which"),
    (
        "nothing.pt",
        "nothing.pt cannot be read as a checkpoint (it is empty, or no file of PyTorch). Give another file.",
    ),
    ("text.pt", "text.pt cannot be read as a checkpoint (it is empty, or no file of PyTorch). Give another file."),
    ("numbered.pt", "numbered.pt is not a checkpoint of a decoder: it has no model_state_dict of tensors."),
    (
        "broken data.path=DATA",
        "has weights that are not finite, in h0: give an earlier checkpoint.",
    ),
    ("number data.path=DATA", "args.yaml: dataset.sessions is 5, and has to be a list. Bring the right file back."),
    ("conv.pt", "conv.pt is a checkpoint of another kind of model: it has no usable 'day_biases.0'. Give one of"),
    ("plain/best_checkpoint data.path=DATA/..", "/.. contains no session folder. Give a folder with one folder"),
    ("plain", "data.path must be given, as in data.path=VALUE."),
    (
        "plain data.path=wide",
        "best_checkpoint has 3 day layers and nothing says of which sessions, and wide has 1.",
    ),
    ("named data.path=wide", "best_checkpoint reads 4 features in a bin, but the recordings in wide have 6. Give"),
    (
        "named data.path=new",
        "no day layer for day.8 in new. The sessions that it knows are day.1, day.2 and day.3.",
    ),
    (
        "four data.path=DATA",
        "has 3 day layers, but the args.yaml of its training names 4 sessions. Bring the right",
    ),
    ("TRIAL model.units=16", "checkpoint of another model: gru.bias_hh_l0 is (96,) and should be (48,)"),
    ("TRIAL data.sessions=[day.9]", "has no session day.9. Its sessions are day.1, day.2 and day.3."),
    ("TRIAL data.sessions=[day.1] --split test --logits o.npz", "has no test utterances in the"),
    ("TRIAL --split test", "have no labels, so there is no error rate. Add --logits OUT.hdf5 to write"),
    ("TRIAL --logits o.csv", "--logits o.csv: the name has to end in .hdf5, .h5, .npz."),
    (
        "TRIAL --logits old.hdf5",
        "--logits old.hdf5 exists. Give another name, or replace it with --overwrite.",
    ),
    ("TRIAL --logits old.hdf5/o.hdf5", "Cannot write old.hdf5/o.hdf5: "),
    ("TRIAL --logits old.hdf5/o.npz", "Cannot write old.hdf5/o.npz: "),
    ("TRIAL --out old.hdf5/o", "Cannot write in old.hdf5/o: Not a directory. Make room, or give another"),
    ("TRIAL batch_size=2,3", "batch.size=2,3 has several values. Give one."),
    ("TRIAL experiment=test1", "Cannot read experiment=test1. After the checkpoint write NAME=VALUE"),
    ("TRIAL nonsense", "Cannot read nonsense. After the checkpoint write NAME=VALUE"),
    ("TRIAL model.unitz=3", "unitz"),
]


@pytest.fixture(scope="module")
def bad(known: Known, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of checkpoints and data with which something is wrong."""
    root = tmp_path_factory.mktemp("bad")
    (root / "empty").mkdir()
    (root / "code.pt").write_bytes(pickle.dumps(print))
    torch.save({"model_state_dict": nn.Conv1d(2, 2, 2).state_dict()}, root / "conv.pt")
    (root / "nothing.pt").touch()
    (root / "text.pt").write_text("hello\n")
    torch.save({"model_state_dict": {0: torch.zeros(2)}}, root / "numbered.pt")
    public(known, root / "broken", h0=known.model.h0.detach().float() * torch.nan)
    public(known, root / "number", {"dataset": {"sessions": 5}})
    public(known, root / "plain")
    public(known, root / "named", arguments_of(DAYS))
    public(known, root / "four", arguments_of([*DAYS, "day.4"]))
    write_session(root / "wide/day.1", "val", utterances(1, features=6))
    write_session(root / "new/day.8", "val", utterances(1))
    (root / "old.hdf5").write_text("an earlier file")
    return root


@pytest.mark.parametrize(("words", "message"), BAD)
def test_what_is_wrong_is_said_in_one_message(
    known: Known,
    bad: Path,
    words: str,
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(bad)
    given = words.replace("TRIAL", str(known.trial)).replace("DATA", str(known.data))
    assert main(given.split()) == 1
    printed = capsys.readouterr().err
    assert printed.startswith("error: ")
    assert printed.count("error:") == 1
    assert message in printed
    assert (bad / "old.hdf5").read_text() == "an earlier file"
    assert not [*bad.glob("o.*")]


@contextmanager
def full_disk() -> Iterator[None]:
    """No file can become longer than 6,000 bytes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (6_000, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("name", ["o.hdf5", "o.npz"])
def test_on_a_full_disk_the_earlier_file_stays(
    known: Known, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path(name).write_text("an earlier file")
    with full_disk():
        assert main([str(known.trial), "--split", "test", "--logits", name, "--overwrite"]) == 1
    assert capsys.readouterr().err == (
        f"error: Cannot write {name}: File too large. Make room, or give another place with --logits.\n"
    )
    assert [path.read_text() for path in tmp_path.iterdir()] == ["an earlier file"]
