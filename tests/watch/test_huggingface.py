"""The callback in real trainings by Hugging Face's Trainer, compared with a Monitor in plain loops."""

import itertools
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import IterableDataset

from stability import Monitor
from stability.core.errors import StabilityError
from tests.support.pages import DOCS, code_with
from tests.support.toy_ctc import assert_same_signals

transformers = pytest.importorskip("transformers")
pytest.importorskip("accelerate")

from stability.watch.huggingface import StabilityCallback  # noqa: E402

BATCH = 4
Example = dict[str, Tensor]


class Speech(IterableDataset[Example]):
    """Made-up recordings, some of them padded; an iterable is not shuffled."""

    def __iter__(self) -> Iterator[Example]:
        for number in itertools.count():
            generator = torch.Generator().manual_seed(number)
            mask = (torch.arange(320) < 320 - 64 * (number % 3)).long()
            labels = torch.randint(0, 5, (3,), generator=generator)
            yield {
                "input_values": torch.randn(320, generator=generator) * mask,
                "attention_mask": mask,
                "labels": labels,
            }


def decoder(**settings: Any) -> Any:
    """A Wav2Vec2 of one layer. Blank is its last class."""
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    sizes |= {"intermediate_size": 16, "conv_dim": (8, 8), "conv_kernel": (8, 4), "conv_stride": (8, 2)}
    sizes |= {"num_conv_pos_embeddings": 4, "num_conv_pos_embedding_groups": 2, "vocab_size": 6, "pad_token_id": 5}
    still = {"feat_extract_norm": "layer", "mask_time_prob": 0.0, "layerdrop": 0.0, "final_dropout": 0.0}
    still |= dict.fromkeys(("hidden_dropout", "attention_dropout", "feat_proj_dropout", "activation_dropout"), 0.0)
    return transformers.Wav2Vec2ForCTC(transformers.Wav2Vec2Config(**sizes, **still, **settings))


def train(
    model: Any,
    callback: StabilityCallback,
    folder: Path,
    steps: int,
    train_dataset: Speech | None = None,
    compute_loss_func: Any = None,
    **settings: Any,
) -> Any:
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    constant = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda _: 1.0)
    usual = {"per_device_train_batch_size": BATCH, "use_cpu": True, "report_to": "none", "disable_tqdm": True}
    usual |= {"save_strategy": "no", "eval_strategy": "steps", "eval_steps": steps, "max_steps": steps}
    arguments = transformers.TrainingArguments(output_dir=folder, **usual | settings)
    trainer = transformers.Trainer(
        model,
        arguments,
        train_dataset=train_dataset or Speech(),
        eval_dataset=[*itertools.islice(Speech(), 2)],
        compute_loss_func=compute_loss_func,
        compute_metrics=lambda _: {"wer": 0.25},
        optimizers=(optimizer, constant),
        callbacks=[callback],
    )
    trainer.train()
    return trainer


def plain_loop(model: Any, steps: int, accumulate: int = 1, *, summed: bool = False) -> Monitor:
    """Train the same in a plain loop. The Monitor measures the gradients before they are clipped."""
    examples = iter(Speech())
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    monitor = Monitor(model, optimizer, blank=5, metric="WER")
    for _ in range(steps):
        optimizer.zero_grad()
        total = torch.zeros(())
        for _ in range(accumulate):
            batch = [next(examples) for _ in range(BATCH)]
            inputs = {name: torch.stack([example[name] for example in batch]) for name in batch[0]}
            output = model(**inputs)
            loss = output.loss if summed else output.loss / accumulate
            loss.backward()
            total += loss.detach()
        lengths = (inputs["attention_mask"].sum(-1) // 8 - 4) // 2 + 1  # two convolutions
        given: dict[str, Any] = {"labels": inputs["labels"], "label_counts": [3] * BATCH}
        assert monitor.step(total, output.logits, lengths, **given) is None
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    return monitor


@pytest.mark.parametrize("accumulate", [1, 2])
def test_it_measures_as_in_a_plain_loop(accumulate: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    callback = StabilityCallback()
    trainer = train(decoder(), callback, tmp_path, 20, gradient_accumulation_steps=accumulate)
    wanted = plain_loop(decoder(), 20, accumulate, summed=trainer.model_accepts_loss_kwargs)
    assert callback.monitor.signals()["grad_norm"].max() > 2  # before the Trainer clips it to 1
    assert_same_signals(callback.monitor, wanted, but="utterances")  # the plain loop gives only those of the last batch
    assert callback.monitor.signals()["utterances"].tolist() == [BATCH * accumulate] * 20
    wanted.validated(0.25, trainer.state.log_history[-3]["eval_loss"])
    assert callback.verdict() == wanted.verdict()
    assert callback.verdict().outcome == "stable"
    assert "\nstable" in capsys.readouterr().out
    logged = trainer.state.log_history[-1]
    assert (logged["step"], logged["stability/outcome"]) == (20, "stable")
    assert logged["stability/validation WER"] == 0.25


def spoil(model: Any, step: int, callback: StabilityCallback) -> dict[str, Tensor]:
    """Make the head's gradient infinite at that step. Return the weights before it, which are filled in then."""
    before: dict[str, Tensor] = {}

    def hook(gradient: Tensor) -> Tensor:
        if len(callback.monitor.signals().steps) != step:
            return gradient
        before.update({name: p.clone() for name, p in model.state_dict().items()})
        return gradient * torch.inf

    model.lm_head.weight.register_hook(hook)
    return before


@pytest.mark.parametrize("clip", [1.0, 0.0])
def test_a_gradient_that_is_not_finite_stops_it_before_the_update(
    clip: float, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model, callback = decoder(), StabilityCallback()
    before = spoil(model, 5, callback)
    trainer = train(model, callback, tmp_path, 20, max_grad_norm=clip, weight_decay=0.1)
    assert trainer.state.global_step == 6
    for name, p in model.state_dict().items():
        assert torch.equal(p, before[name]), name
    verdict = callback.verdict()
    assert (verdict.outcome, verdict.onset_step) == ("non_finite", 5)
    assert verdict.evidence["gradient not finite in"] == "lm_head"  # though the clip spreads it over all parts
    assert trainer.state.log_history[-1]["stability/onset step"] == 5
    assert f"non_finite: {verdict.cause}, since step 5" in capsys.readouterr().out


def test_a_loss_that_is_not_finite_stops_it(tmp_path: Path) -> None:
    class Unalignable(Speech):
        def __iter__(self) -> Iterator[Example]:
            for example in super().__iter__():
                yield {**example, "labels": torch.zeros(12, dtype=torch.long)}  # they need 23 frames, and have 19

    callback = StabilityCallback()
    trainer = train(decoder(), callback, tmp_path, 5, train_dataset=Unalignable())
    assert trainer.state.global_step == 1
    assert callback.verdict().cause == "infeasible_target"


class Labelled(Speech):
    """Every third utterance has these labels."""

    def __init__(self, labels: list[int]) -> None:
        self.labels = torch.tensor(labels)

    def __iter__(self) -> Iterator[Example]:
        for number, example in enumerate(super().__iter__()):
            padded = torch.nn.functional.pad(example["labels"], (0, len(self.labels) - 3), value=-100)
            yield {**example, "labels": self.labels if number % 3 == 1 else padded}


@pytest.mark.parametrize(
    ("labels", "cause"),
    [
        ([1, 2, 3, 5], "blank_in_labels"),  # padded with the pad token, which is blank, and not with -100
        ([1] * 12, "infeasible_target"),
    ],
)
def test_labels_are_checked_at_the_first_step(labels: list[int], cause: str, tmp_path: Path) -> None:
    callback, model = StabilityCallback(), decoder(ctc_zero_infinity=False)
    trainer = train(model, callback, tmp_path, 5, train_dataset=Labelled(labels))
    assert trainer.state.global_step == 1
    assert (callback.verdict().cause, callback.verdict().onset_step) == (cause, 0)
    assert callback.verdict().evidence["utterances"] == "number 2 of the batch"


def test_padding_is_no_label_wherever_it_is(tmp_path: Path) -> None:
    callback = StabilityCallback()
    train(decoder(), callback, tmp_path, 5, train_dataset=Labelled([-100, 1, -100, 2, 3]))
    signals = callback.monitor.signals()
    assert signals["labels"][0] == 3
    for name in ("infeasible_targets", "labels_out_of_range", "blanks_in_labels", "lengths_too_long"):
        assert not signals[name].any(), name


def test_a_second_training_gets_a_new_monitor(tmp_path: Path) -> None:
    callback, model = StabilityCallback(), decoder()
    train(model, callback, tmp_path, 3)
    first = callback.monitor
    train(model, callback, tmp_path, 2)
    assert (len(first.signals().steps), len(callback.monitor.signals().steps)) == (3, 2)
    assert not model._forward_hooks


class Tiny(nn.Module):
    """A model of another kind. It returns a tuple, or with `ctc` a dictionary."""

    def __init__(self, *, ctc: bool) -> None:
        super().__init__()
        self.head = nn.Linear(8, 6)
        self.ctc = ctc

    def forward(self, input_values: Tensor, labels: Tensor | None = None) -> Any:
        logits = self.head(input_values.view(-1, 40, 8))
        loss = logits.square().mean()
        return {"loss": loss, "logits": logits} if self.ctc else (loss, logits)


def test_other_kinds_of_models_are_watched(tmp_path: Path) -> None:
    plain = StabilityCallback()
    trainer = train(Tiny(ctc=False), plain, tmp_path, 1, gradient_accumulation_steps=2, logging_steps=1)
    assert not trainer.model_accepts_loss_kwargs  # then a step's loss is the mean over its batches, not their sum
    assert plain.monitor.signals()["loss"][0] == pytest.approx(trainer.state.log_history[0]["loss"], rel=1e-3)
    assert "blank_fraction" not in plain.monitor.signals().names
    named = StabilityCallback(blank=5)
    train(Tiny(ctc=True), named, tmp_path, 2)
    assert "blank_fraction" in named.monitor.signals().names


def test_a_loss_that_the_model_does_not_compute_is_refused(tmp_path: Path) -> None:
    def loss(outputs: Any, labels: Tensor, num_items_in_batch: Any) -> Tensor:
        value: Tensor = outputs.logits.square().mean()
        return value

    with pytest.raises(StabilityError, match="output has no loss"):
        train(decoder(), StabilityCallback(), tmp_path, 2, compute_loss_func=loss)


def test_the_metric_may_be_named(tmp_path: Path) -> None:
    callback = StabilityCallback("eval_loss")
    train(decoder(), callback, tmp_path, 2)
    evidence = callback.verdict().evidence
    assert evidence["error rates were given in"] == "percent", "as no fraction is as large as the loss"
    assert float(evidence["validation PER"]) > 0.01
    with pytest.raises(StabilityError, match=r"no metric 'cer'.*: .*eval_wer"):
        train(decoder(), StabilityCallback("cer"), tmp_path, 2)
    with pytest.raises(ValueError, match="before the training has begun"):
        StabilityCallback().verdict()


def test_as_the_readme_shows(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    usual = {"max_steps": 3, "eval_strategy": "steps", "eval_steps": 3, "save_strategy": "no", "use_cpu": True}
    names: dict[str, Any] = {
        "model": decoder(),
        "args": transformers.TrainingArguments(output_dir=tmp_path, report_to="none", disable_tqdm=True, **usual),
        "train_set": Speech(),
        "val_set": [*itertools.islice(Speech(), 2)],
        "word_error_rate": lambda _: {"wer": 0.25},
    }
    exec(code_with(DOCS / "how-to/own-loop.md", "stability.huggingface"), names)
    assert "\nstable" in capsys.readouterr().out
    verdict = names["callback"].verdict()
    assert (verdict.outcome, verdict.evidence["validation WER"]) == ("stable", 0.25)


def test_a_step_that_fp16_skips_is_not_counted(tmp_path: Path) -> None:
    """In a plain loop, with the optimizer of the Trainer, which does not train in fp16 without a GPU."""
    from accelerate.optimizer import AcceleratedOptimizer

    from stability.watch.huggingface import _UnclippedMonitor

    wanted = plain_loop(decoder(), 4)
    model, examples = decoder(), iter(Speech())
    train(Tiny(ctc=True), StabilityCallback(), tmp_path, 1)  # sets up the state that the optimizer reads
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    optimizer = AcceleratedOptimizer(torch.optim.AdamW(model.parameters(), lr=0.01), scaler=scaler)
    monitor = _UnclippedMonitor(model, optimizer, blank=5, error_rate=None)
    overflows = iter([torch.inf, 1.0, torch.inf, 1.0, 1.0, 1.0])
    model.lm_head.weight.register_hook(lambda g: g * next(overflows))
    for skipped in (True, False, True, False, False, False):
        if not optimizer.step_was_skipped:
            batch = [next(examples) for _ in range(BATCH)]
            inputs = {name: torch.stack([example[name] for example in batch]) for name in batch[0]}
        optimizer.zero_grad()
        loss = model(**inputs).loss
        scaler.scale(loss).backward()
        scaler.unscale_(optimizer.optimizer)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        monitor.add_batch(loss)
        assert not monitor.must_skip_update()
        optimizer.step()
        assert optimizer.step_was_skipped == skipped
    assert monitor.signals()["grad_norm"] == pytest.approx(wanted.signals()["grad_norm"], rel=1e-3)


def test_missing_packages_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "stability.watch.huggingface")
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ImportError, match="pip install transformers accelerate"):
        import stability.watch.huggingface  # noqa: F401
