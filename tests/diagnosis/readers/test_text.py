"""Text logs of other trainers. The lines are made up in their shapes."""

from pathlib import Path

import pytest

from stability.diagnosis.readers import read_runs
from tests.support.logs import read

LOGS = {
    "neural_seq_decoder": (
        "batch 0, ctc loss: 6.5, cer: 0.97, time/batch: 0.1\nbatch 100, ctc loss: 5.5, cer: 0.8, time/batch:  0.2\n",
        [0, 100],
        [6.5, 5.5],
        {"per": [0.97, 0.8]},
    ),
    "icefall": (
        "2023-01-01 10:00:00,100 INFO [train.py:900] Epoch 1, batch 0, loss[loss=6.5, simple_loss=1, over 3.], "
        "tot_loss[loss=9, over 9 frames.], batch size: 20, lr: 3.00e-03\n"
        "2023-01-01 10:00:10,100 INFO [train.py:900] Epoch 1, batch 50, loss[loss=5.5, over 3.], "
        "tot_loss[loss=9, over 9 frames.], batch size: 20, lr: 3.00e-03\n"
        "2023-01-01 10:00:10,100 INFO [train.py:930] Epoch 1, validation: loss=7.5, simple_loss=1, over 9 frames.\n"
        "2023-01-01 10:01:00,100 INFO [train.py:900] Epoch 2, batch 0, loss[loss=4.5, over 3.], "
        "tot_loss[loss=9, over 9 frames.], batch size: 20, lr: 3.00e-03\n",
        [0, 50, 51],
        [6.5, 5.5, 4.5],
        {"loss": [7.5]},
    ),
    "espnet": (
        "[host] 2023-01-01 10:00:00,100 (trainer:700) INFO: 1epoch:train:1-100batch: iter_time=0.1, loss_ctc=9, "
        "loss=6.5, optim0_lr0=1e-05, train_time=0.3\n"
        "[host] 2023-01-01 10:00:00,100 (trainer:700) INFO: 1epoch:train:101-200batch: iter_time=0.1, loss=5.5\n"
        "[host] 2023-01-01 10:00:00,100 (trainer:300) INFO: 1epoch results: [train] iter_time=0.1, loss=6, "
        "[valid] loss_ctc=8, cer_ctc=0.9, loss=7.5, time=3\n",
        [100, 200],
        [6.5, 6.0],
        {"loss": [7.5], "per": [0.9]},
    ),
    "speechbrain": (
        "Epoch: 1, lr: 1.00e+00 - train loss: 6.5 - valid loss: 7.5, valid PER: 90.5\n"
        "Epoch: 2, lr: 1.00e+00 - train loss: 5.5 - valid loss: 6.5, valid PER: 70.5\n",
        [1, 2],
        [6.5, 5.5],
        {"loss": [7.5, 6.5], "per": [0.905, 0.705]},
    ),
    "fairseq": (
        "2023-01-01 10:00:00 | INFO | train_inner | epoch 001:    100 / 2000 loss=6.5, nll_loss=6, ppl=9, wps=99, "
        "num_updates=100, lr=1e-05, gnorm=2.5, clip=0\n"
        "2023-01-01 10:00:00 | INFO | train_inner | epoch 001:    200 / 2000 loss=5.5, nll_loss=6, ppl=9, "
        "num_updates=200, lr=1e-05, gnorm=1.5, clip=0\n"
        "2023-01-01 10:00:00 | INFO | valid | epoch 001 | valid on 'valid' subset | loss 7.5 | ppl 9 | wer 90.5 | "
        "num_updates 200 | best_loss 7\n",
        [100, 200],
        [6.5, 5.5],
        {"loss": [7.5], "per": [0.905]},
    ),
    "wav2letter": (
        "epoch:        1 | nupdates:         1000 | lr: 0.400000 | runtime: 00:10:00 | loss:   6.5 | train-TER: 95.5 | "
        "dev-loss:   7.5 | dev-TER: 90.5 | avg-isz: 1200\n"
        "epoch:        2 | nupdates:         2000 | lr: 0.400000 | runtime: 00:10:00 | loss:   5.5 | train-TER: 95.5 | "
        "dev-loss:   6.5 | dev-TER: 80.5 | avg-isz: 1200\n",
        [1000, 2000],
        [6.5, 5.5],
        {"loss": [7.5, 6.5], "per": [0.905, 0.805]},
    ),
    "megatron": (
        " iteration       10/  500000 | consumed samples:  320 | elapsed time per iteration (ms): 1234.5 | "
        "learning rate: 1.5E-07 | global batch size:    32 | lm loss: 6.5 | loss scale: 4.0E+09 | grad norm: 2.5 |\n"
        " iteration       20/  500000 | consumed samples:  640 | elapsed time per iteration (ms): 1234.5 | "
        "learning rate: 1.5E-07 | global batch size:    32 | lm loss: 5.5 | loss scale: 4.0E+09 | grad norm: 1.5 |\n",
        [10, 20],
        [6.5, 5.5],
        {},
    ),
    "nanogpt": (
        "step 0: train loss 6.5, val loss 7.5\niter 10: loss 6.0000, time 400.12ms, mfu 1.00%\n"
        "iter 20: loss nan, time 400.12ms, mfu 1.00%\n",
        [10, 20],
        None,
        {"loss": [7.5]},
    ),
    "progress bar": (
        "Epoch 0:  10%|#   | 10/100 [00:01<00:09, loss=6.5, v_num=1]\rEpoch 0:  20%|##  | 20/100 [00:02, loss=5.5]\n"
        "Epoch 1:  10%|#   | 10/100 [00:01<00:09, loss=4.5, v_num=1]\n",
        [10, 20, 30],
        [6.5, 5.5, 4.5],
        {},
    ),
}


@pytest.mark.parametrize("trainer", LOGS)
def test_the_log_of_another_trainer(tmp_path: Path, trainer: str) -> None:
    text, steps, loss, validation = LOGS[trainer]
    recording = read(tmp_path, "A line of another kind, 3 of them\n" + text)
    assert recording.signals.steps.tolist() == steps
    if loss is not None:
        assert recording.signals["loss"].tolist() == loss
    assert set(recording.validation.names) == set(validation)
    for name, values in validation.items():
        assert recording.validation[name].tolist() == pytest.approx(values)


def test_epochs_that_begin_again_are_another_run(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_text("".join(f"Epoch {epoch} - train loss: {loss}\n" for epoch, loss in [(1, 3), (2, 2), (1, 9), (2, 8)]))
    first, second = read_runs(log)
    assert first.signals["loss"].tolist() == [3, 2]
    assert second.signals["loss"].tolist() == [9, 8]


def test_the_loss_of_something_else_is_not_read(tmp_path: Path) -> None:
    recording = read(tmp_path, "step 1 kl loss 9 loss 2\nstep 2 loss scale 9 loss 3\n")
    assert recording.signals["loss"].tolist() == [2, 3]


def test_the_place_that_logged_is_no_reading(tmp_path: Path) -> None:
    recording = read(
        tmp_path, "[NeMo I 10:00 wer:318] x\nstep 1 loss 2\nglobal step 2: 'val_wer' reached 0.95 (best 0.9)\n"
    )
    assert recording.validation["per"].tolist() == pytest.approx([0.95])
    assert recording.signals["loss"].tolist() == [2]
