"""The callback in real Lightning trainings, compared with a Monitor in plain loops on the same batches."""

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from stability import Monitor
from stability.core.errors import StabilityError
from tests.support.pages import DOCS, code_with
from tests.support.toy_ctc import Toy, assert_same_signals, batch, ctc

pl = pytest.importorskip("lightning.pytorch")

from stability.watch.lightning import StabilityCallback  # noqa: E402

pytestmark = [
    pytest.mark.filterwarnings("ignore::lightning.pytorch.utilities.warnings.PossibleUserWarning"),
    pytest.mark.filterwarnings("ignore:.isinstance.treespec, LeafSpec.. is deprecated:FutureWarning"),
]


class Batches(Dataset[tuple[Tensor, Tensor]]):
    def __init__(self, count: int) -> None:
        self._count = count

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, step: int) -> tuple[Tensor, Tensor]:
        return batch(step)


def loader(count: int) -> DataLoader[tuple[Tensor, Tensor]]:
    return DataLoader(Batches(count), batch_size=None)


class Decoder(pl.LightningModule):  # type: ignore[misc, name-defined]
    """Returns its logits. `spoil` is the batch whose gradient is not finite."""

    def __init__(self, spoil: int | None = None) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.model = Toy()
        self.trained_on = 0
        self.before: dict[str, Tensor] = {}
        self.model.head.weight.register_hook(lambda g: g * (torch.nan if self.trained_on - 1 == spoil else 1))  # type: ignore[no-untyped-call]

    def training_step(self, batch: tuple[Tensor, Tensor]) -> dict[str, Tensor]:
        self.before = {name: p.clone() for name, p in self.state_dict().items()}
        self.trained_on += 1
        logits = self.model(batch[0])
        return {"loss": ctc(logits, batch[1]), "logits": logits.detach()}

    def validation_step(self, batch: tuple[Tensor, Tensor]) -> None:
        self.log_dict({"val_loss": ctc(self.model(batch[0]), batch[1]), "val_per": 0.25}, batch_size=6)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=0.02)


def trainer(folder: Path, callback: StabilityCallback, **settings: Any) -> Any:
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False}
    usual = {"max_epochs": 1, "accelerator": "cpu", "logger": False, "default_root_dir": folder, **quiet}
    return pl.Trainer(**usual | settings, callbacks=[callback])


def plain_loop(steps: int, accumulate: int = 1, lengths: Tensor | None = None) -> Monitor:
    """Train the same in a plain loop. A step has the mean loss of its batches, and the logits of the last one."""
    torch.manual_seed(0)
    model = Toy()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.02)
    monitor = Monitor(model, optimizer)
    for step in range(steps):
        optimizer.zero_grad()
        losses = []
        for micro in range(accumulate):
            x, labels = batch(step * accumulate + micro)
            logits = model(x)
            losses.append(ctc(logits, labels))
            (losses[-1] / accumulate).backward()  # type: ignore[no-untyped-call]
        assert monitor.step(torch.stack(losses).mean(), logits, lengths) is None
        optimizer.step()
    return monitor


@pytest.mark.parametrize("accumulate", [1, 3])
def test_it_measures_as_in_a_plain_loop(accumulate: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    callback = StabilityCallback()
    module = Decoder()
    logger = pl.loggers.CSVLogger(tmp_path)
    settings = {"accumulate_grad_batches": accumulate, "logger": logger, "gradient_clip_val": 1e9}
    trainer(tmp_path, callback, **settings).fit(module, loader(60 * accumulate), loader(1))
    wanted = plain_loop(60, accumulate)
    assert_same_signals(callback.monitor, wanted, but="utterances")  # the plain loop gives only those of the last batch
    assert callback.monitor.signals()["utterances"].tolist() == [6 * accumulate] * 60
    wanted.validated(0.25)
    assert callback.verdict() == wanted.verdict()
    assert callback.verdict().outcome == "stable"
    assert capsys.readouterr().out.startswith("stable")
    logged = (Path(logger.log_dir) / "metrics.csv").read_text().splitlines()
    assert "stability/stable" in logged[0]
    assert "stability/blank fraction" in logged[0]
    assert "training_step" not in vars(module)


def test_a_gradient_that_is_not_finite_stops_it_before_the_update(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    callback, module = StabilityCallback(), Decoder(spoil=7)
    fitted = trainer(tmp_path, callback, min_epochs=3, max_epochs=5)  # the training stops before this minimum
    fitted.fit(module, loader(20))
    assert module.trained_on == 8
    assert fitted.state.finished
    for name, p in module.state_dict().items():
        assert torch.equal(p, module.before[name])
    verdict = callback.verdict()
    assert (verdict.outcome, verdict.onset_step) == ("non_finite", 7)
    assert verdict.evidence["gradient not finite in"] == "head"
    assert f"non_finite: {verdict.cause}, since step 7" in capsys.readouterr().out


def test_a_step_that_fp16_skips_is_no_fault(tmp_path: Path) -> None:
    from lightning.pytorch.plugins import MixedPrecision

    def fit(spoil: int | None, scale: float) -> StabilityCallback:
        scaler = torch.amp.GradScaler("cpu", init_scale=scale)
        callback = StabilityCallback()
        plugin = MixedPrecision("16-mixed", "cpu", scaler)
        trainer(tmp_path, callback, plugins=[plugin]).fit(Decoder(spoil), loader(12))
        return callback

    healthy, skipping = (fit(spoil, 1024.0).monitor.signals()["grad_norm"] for spoil in (None, 5))
    assert (len(healthy), len(skipping)) == (12, 11)
    assert skipping[:5].tolist() == healthy[:5].tolist()
    assert skipping[0] == pytest.approx(plain_loop(1).signals()["grad_norm"][0], rel=0.01)  # unscaled
    assert fit(5, 1.0).verdict().outcome == "non_finite"  # no smaller scale would mend it


def test_it_works_without_logits_and_validation(tmp_path: Path) -> None:
    class Plain(Decoder):
        def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor | None:  # type: ignore[override]
            return None if batch_idx == 2 else super().training_step(batch)["loss"]

    callback = StabilityCallback()
    with pytest.warns(UserWarning, match="returned `None`"):
        trainer(tmp_path, callback).fit(Plain(), loader(5))
    assert len(callback.monitor.signals().steps) == 4  # no step is made for a batch that was skipped
    assert callback.verdict().cause == "no validation"


def test_the_metric_may_be_named(tmp_path: Path) -> None:
    callback = StabilityCallback("val_loss")
    lightning = trainer(tmp_path, callback)
    lightning.fit(Decoder(), loader(2), loader(1))
    loss = float(lightning.callback_metrics["val_loss"])
    assert callback.verdict().evidence["validation PER"] == pytest.approx(loss)
    module = Decoder()
    with pytest.raises(StabilityError, match=r"no metric 'val_cer'.*: val_loss, val_per\."):
        trainer(tmp_path, StabilityCallback("val_cer")).fit(module, loader(2), loader(1))
    assert module.trained_on == 0  # the error is raised before any step


def test_blank_is_another_class(tmp_path: Path) -> None:
    class Shifted(Decoder):
        def training_step(self, batch: tuple[Tensor, Tensor]) -> dict[str, Tensor]:
            output = super().training_step(batch)
            return {**output, "logits": output["logits"].roll(-1, -1), "lengths": torch.full((6,), 12)}

    callback = StabilityCallback(blank=4)
    trainer(tmp_path, callback).fit(Shifted(), loader(20))
    assert_same_signals(callback.monitor, plain_loop(20, lengths=torch.full((6,), 12)))


class Targets(Batches):
    """Batches with their targets. Batch 4 has two utterances that CTC cannot align."""

    def __getitem__(self, step: int) -> Any:
        x, labels = batch(step)
        lengths = torch.full((6,), 12)
        if step == 4:
            lengths[[1, 3]] = 2
        names = [f"{step}-{n}" for n in range(6)]
        return {"x": x, "labels": labels, "label_counts": torch.full((6,), 3), "lengths": lengths, "names": names}


class TargetsDecoder(Decoder):
    """Returns what its loss was given, or only that its batch does not have."""

    def __init__(self, returns: tuple[str, ...]) -> None:
        super().__init__()
        self.returns = returns

    def training_step(self, batch: dict[str, Any]) -> dict[str, Any]:  # type: ignore[override]
        logits = self.model(batch["x"])
        log_probs = logits.log_softmax(-1).transpose(0, 1)
        loss = F.ctc_loss(log_probs, batch["labels"], batch["lengths"], batch["label_counts"])
        return {"loss": loss, "logits": logits.detach(), **{name: batch[name] for name in self.returns}}


@pytest.mark.parametrize("returns", [("lengths", "labels", "label_counts", "names"), ("lengths",)])
@pytest.mark.parametrize("accumulate", [1, 3])
def test_targets_are_checked_in_every_batch(returns: tuple[str, ...], accumulate: int, tmp_path: Path) -> None:
    callback = StabilityCallback()
    data: Any = DataLoader(Targets(12), batch_size=None)
    trainer(tmp_path, callback, accumulate_grad_batches=accumulate).fit(TargetsDecoder(returns), data)
    verdict = callback.verdict()
    assert (verdict.outcome, verdict.cause) == ("bad_data", "infeasible_target")
    assert verdict.onset_step == 4 // accumulate
    assert verdict.evidence["utterances"] == "4-1, 4-3"


def test_a_training_goes_on_from_a_checkpoint(tmp_path: Path) -> None:
    first, second = StabilityCallback(), StabilityCallback()
    fitted = trainer(tmp_path, first)
    fitted.fit(Decoder(), loader(20))
    fitted.save_checkpoint(tmp_path / "last.ckpt")
    resumed = trainer(tmp_path, second, max_epochs=2)
    resumed.fit(Decoder(), loader(20), ckpt_path=tmp_path / "last.ckpt", weights_only=True)
    assert second.monitor.signals().steps.tolist() == [*range(40)]
    assert second.monitor.signals()["loss"][:20].tolist() == first.monitor.signals()["loss"].tolist()
    assert not any(name.startswith("after the restart") for name in second.verdict().evidence)


def test_manual_optimization_is_refused(tmp_path: Path) -> None:
    class Manual(Decoder):
        def __init__(self) -> None:
            super().__init__()
            self.automatic_optimization = False

    with pytest.raises(StabilityError, match="automatic optimization"):
        trainer(tmp_path, StabilityCallback()).fit(Manual(), loader(2))
    with pytest.raises(ValueError, match="before the training has begun"):
        StabilityCallback().verdict()


def test_sharded_gradients_are_refused(tmp_path: Path) -> None:
    from lightning.pytorch.strategies import ModelParallelStrategy

    class Sharded(Decoder):
        def configure_model(self) -> None:
            pass

    strategy = ModelParallelStrategy(data_parallel_size=1, tensor_parallel_size=1)
    with pytest.raises(StabilityError, match="ModelParallelStrategy"):
        trainer(tmp_path, StabilityCallback(), strategy=strategy, devices=1).fit(Sharded(), loader(2))
    torch.distributed.destroy_process_group()


@pytest.mark.filterwarnings("ignore:Starting from v1.9.0, .tensorboardX. has been removed:UserWarning")
def test_as_the_readme_shows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)  # Lightning keeps its log and checkpoint there
    names: dict[str, Any] = {"module": Decoder(), "train_batches": loader(2), "val_batches": loader(1)}
    exec(code_with(DOCS / "how-to/own-loop.md", "stability.lightning"), names)
    assert "stable\n  validation PER" in capsys.readouterr().out
    assert names["callback"].verdict().outcome == "stable"


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "stability.watch.lightning")
    monkeypatch.setitem(sys.modules, "lightning.pytorch", None)
    monkeypatch.setitem(sys.modules, "pytorch_lightning", None)
    with pytest.raises(ImportError, match="pip install lightning"):
        import stability.watch.lightning  # noqa: F401


def test_it_works_with_the_older_package_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    older = pytest.importorskip("pytorch_lightning")
    monkeypatch.delitem(sys.modules, "stability.watch.lightning")
    monkeypatch.setitem(sys.modules, "lightning.pytorch", None)
    from stability.watch.lightning import StabilityCallback

    class Line(older.LightningModule):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.line = torch.nn.Linear(8, 1)

        def training_step(self, batch: tuple[Tensor, Tensor]) -> Tensor:
            loss: Tensor = self.line(batch[0]).square().mean()
            return loss

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.parameters(), lr=0.01)

    callback = StabilityCallback()
    assert isinstance(callback, older.Callback)
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False}
    usual = {"max_epochs": 1, "accelerator": "cpu", "logger": False, "default_root_dir": tmp_path}
    older.Trainer(**usual, **quiet, callbacks=[callback]).fit(Line(), loader(3))
    assert len(callback.monitor.signals().steps) == 3
