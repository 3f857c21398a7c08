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
    "word_language_model": (
        "| epoch   1 |   200/ 400 batches | lr 20.0000 | ms/batch 11.99 | loss  6.50 | ppl  665.14\n"
        "| epoch   1 |   400/ 400 batches | lr 20.0000 | ms/batch 12.00 | loss  5.50 | ppl  244.69\n"
        "| end of epoch   1 | time: 36.96s | valid loss  7.50 | valid ppl  1808.04\n"
        "| epoch   2 |   200/ 400 batches | lr 20.0000 | ms/batch 11.99 | loss  4.50 | ppl  90.02\n",
        [200, 400, 600],
        [6.5, 5.5, 4.5],
        {"loss": [7.5]},
    ),
    "sections": (
        "EPOCH 0\n_____TRAINING DATA_____\nBATCH 2 | Avg. Loss 6.5\nBATCH 4 | Avg. Loss 5.5\n"
        "_____TESTING DATA_____\nBATCH 1 | Avg. Loss 9.5\nBATCH 2 | Avg. Loss 7.5\n"
        "EPOCH 1\n_____TRAINING DATA_____\nBATCH 2 | Avg. Loss 4.5\n",
        [2, 4, 6],
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
        [6.5, 5.5],
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
        [10, 20, 110],
        [6.5, 5.5, 4.5],
        {},
    ),
    "progress bars without epochs": (
        " 50%|##  | 50/100 [00:02, loss=6.5]\r100%|####| 100/100 [00:04, loss=6]\n 50%|##  | 50/100 [00:02, loss=5]\n",
        [50, 100, 150],
        [6.5, 6, 5],
        {},
    ),
    "fairseq, as JSON": (
        '2023-01-01 10:00:00 | INFO | train_inner | {"epoch": 1, "update": 0.05, "loss": "6.5", "nll_loss": "6", '
        '"num_updates": "100", "lr": "1e-05", "gnorm": "2.5"}\n'
        '2023-01-01 10:00:00 | INFO | valid | {"epoch": 1, "valid_loss": "7.5", "valid_raw_wer": "92", '
        '"valid_wer": "90.5", "valid_num_updates": "100", "valid_best_wer": "80"}\n',
        [100],
        [6.5],
        {"loss": [7.5], "per": [0.905]},
    ),
    "wav2letter, several held-out sets": (
        "epoch: 1 | nupdates: 1000 | loss: 6.5 | train-TER: 95.5 | dev-clean-loss: 7.5 | dev-clean-TER: 90.5 | "
        "dev-other-loss: 9.5 | dev-other-TER: 97.5\n",
        [1000],
        [6.5],
        {"loss": [7.5], "per": [0.905]},
    ),
    "megatron, with a validation": (
        " iteration       10/  500000 | lm loss: 6.5 | loss scale: 4.0E+09 | number of nan iterations:   0 |\n"
        " validation loss at iteration 10 | lm loss value: 7.500000E+00 | lm loss PPL: 4.0E+02 |\n",
        [10],
        [6.5],
        {"loss": [7.5]},
    ),
    "llm.c": (
        "step    1/18865 | loss 6.500000 (+nanz)| norm 15.3214 (+nanz)| lr 8.57e-07 | 3084.98 ms | 169961 tok/s\n"
        "step    2/18865 | loss 5.5 (+nanz)| norm 14.5 (+nanz)| lr 1.71e-06 | 3000 ms\nval loss 7.5\n",
        [1, 2],
        [6.5, 5.5],
        {"loss": [7.5]},
    ),
    "modded-nanogpt": (
        "step:0/5100 val_loss:9.5 train_time:0ms step_avg:nanms\nstep:1/5100 train_loss:6.5 train_time:10ms\n"
        "step:2/5100 train_loss:5.5 train_time:20ms step_avg:10.0ms\nstep:2/5100 val_loss:7.5 train_time:30ms\n",
        [1, 2],
        [6.5, 5.5],
        {"loss": [9.5, 7.5]},
    ),
    "torchtitan, in colors": (
        "\x1b[32m[titan] 2024-10-01 10:00:00,123 - root - INFO - \x1b[36mstep:  1  \x1b[32mloss: 6.5000  \x1b[39m"
        "grad_norm: 1.5  \x1b[33mmemory: 20.12GiB(25.00%)  \x1b[34mtps: 3,000\x1b[0m\n",
        [1],
        [6.5],
        {},
    ),
    "keras": (
        "Epoch 1/50\n  1/100 [......] - ETA: 10s - loss: 9.5"
        + 30 * "\b"
        + " 50/100 [==>...] - ETA: 5s - loss: 8.5"
        + 30 * "\b"
        + "100/100 [======] - 12s 110ms/step - loss: 6.5 - val_loss: 7.5\n"
        "Epoch 2/50\n\x1b[1m100/100\x1b[0m \x1b[32m━━━━━━━━\x1b[0m\x1b[37m\x1b[0m \x1b[1m12s\x1b[0m 110ms/step - "
        "loss: 5.5 - val_loss: 6.5\n",
        [100, 200],
        [6.5, 5.5],
        {"loss": [7.5, 6.5]},
    ),
    "pytorch's examples": (
        "Train Epoch: 1 [0/60000 (0%)]\tLoss: 6.500000\nTrain Epoch: 1 [6400/60000 (11%)]\tLoss: 5.5\n"
        "\nTest set: Average loss: 7.5, Average CER: 0.8 Average WER: 0.905\n\n"
        "Train Epoch: 2 [0/60000 (0%)]\tLoss: 4.5\n",
        [0, 6400, 60000],
        [6.5, 5.5, 4.5],
        {"loss": [7.5], "per": [0.905]},
    ),
    "pytorch's tutorial": (
        "Epoch 1\n-------------\nloss: 6.5  [   64/60000]\nloss: 5.5  [ 6464/60000]\n"
        "Test Error: \n Accuracy: 44.7%, Avg loss: 7.5 \n\nEpoch 2\n-------------\nloss: 4.5  [   64/60000]\n",
        [64, 6464, 60064],
        [6.5, 5.5, 4.5],
        {"loss": [7.5], "per": [0.553]},
    ),
    "pytorch's imagenet": (
        "Epoch: [0][  10/5005]\tTime  0.500 ( 0.600)\tLoss 6.5000e+00 (7.1000e+00)\tAcc@1   0.00 (  0.10)\n"
        "Epoch: [1][   0/5005]\tTime  0.500 ( 0.600)\tLoss 5.5000e+00 (7.1000e+00)\tAcc@1   0.00 (  0.10)\n",
        [10, 5005],
        [6.5, 5.5],
        {},
    ),
    "openmmlab": (
        "2023/01/01 10:00:00 - mmengine - INFO - Epoch(train)  [1][  50/100]  lr: 1.0000e-04  time: 0.5  loss: 6.5\n"
        "2023/01/01 10:00:00 - mmengine - INFO - Epoch(train)  [1][ 100/100]  lr: 1.0000e-04  time: 0.5  loss: 5.5\n"
        "2023/01/01 10:00:00 - mmengine - INFO - Epoch(val)  [1][20/20]    wer: 0.905  data_time: 0.1\n",
        [50, 100],
        [6.5, 5.5],
        {"per": [0.905]},
    ),
    "crnn.pytorch": (
        "[0/25][500/1000] Loss: 6.5\n[1/25][0/1000] Loss: 5.5\nTest loss: 7.5, accuray: 0.000000\n",
        [500, 1000],
        [6.5, 5.5],
        {"loss": [7.5], "per": [1.0]},
    ),
    "wenet": (
        "2023-01-01 10:00:00,123 DEBUG TRAIN Batch 0/100 loss 6.5 loss_att 9 loss_ctc 8 lr 0.00000020 rank 0\n"
        "2023-01-01 10:00:00,123 DEBUG CV Batch 0/0 loss 7.5 loss_att 3 loss_ctc 4 history loss 1.5 rank 0\n"
        "2023-01-01 10:00:00,123 DEBUG TRAIN Batch 1/0 loss 5.5 loss_att 9 loss_ctc 8 lr 0.00000020 rank 0\n",
        [100, 101],
        [6.5, 5.5],
        {"loss": [7.5]},
    ),
    "wenet since 2024": (
        "2024-01-01 10:00:00,123 DEBUG TRAIN | steps/sec 2.150| Batch 0/100 loss 8.5 loss_att 9 lr 1.0e-03 rank 0\n"
        "2024-01-01 10:00:00,123 DEBUG TRAIN | steps/sec 2.150| Batch 0/200 loss 6.5 loss_att 9 lr 1.0e-03 rank 0\n"
        "2024-01-01 10:00:00,123 INFO Epoch 0 Step 250 CV info lr 1.0e-03 cv_loss 7.5 rank 0 acc 0.5\n"
        "2024-01-01 10:00:00,123 DEBUG TRAIN | steps/sec 2.150| Batch 1/100 loss 5.5 loss_att 9 lr 1.0e-03 rank 0\n"
        "2024-01-01 10:00:00,123 DEBUG TRAIN | steps/sec 2.150| Batch 1/200 loss 4.5 loss_att 9 lr 1.0e-03 rank 0\n"
        "2024-01-01 10:00:00,123 INFO Epoch 1 Step 500 CV info lr 1.0e-03 cv_loss 3.5 rank 0 acc 0.5\n"
        "2024-01-01 10:00:00,123 DEBUG TRAIN | steps/sec 2.150| Batch 2/100 loss 3.5 loss_att 9 lr 1.0e-03 rank 0\n",
        [100, 200, 300, 400, 500],
        [8.5, 6.5, 5.5, 4.5, 3.5],
        {"loss": [7.5, 3.5], "per": [0.5, 0.5]},
    ),
    "deepspeech": (
        "Epoch 0 |   Training | Elapsed Time: 0:00:10 | Steps: 10 | Loss: 6.5\n"
        "Epoch 0 | Validation | Elapsed Time: 0:00:01 | Steps: 5 | Loss: 7.5 | Dataset: dev.csv\n"
        "Epoch 1 |   Training | Elapsed Time: 0:00:10 | Steps: 10 | Loss: 5.5\n",
        [10, 20],
        [6.5, 5.5],
        {"loss": [7.5]},
    ),
    "lightning's bars, which show the last values": (
        "Epoch 0:   0%|   | 0/100 [00:00<?, ?it/s]\r"
        "Epoch 0:  50%|#  | 50/100 [00:01<00:09, train_loss=6.5, val_loss=7.5]\r"
        "Epoch 0: 100%|###| 100/100 [00:02<00:00, train_loss=6.5, val_loss=7.5]\r"
        "Epoch 0: 100%|###| 100/100 [00:02<00:00, train_loss=5.5, val_loss=7.5]\r"
        "Epoch 0: 100%|###| 100/100 [00:02<00:00, train_loss=5.5, val_loss=7.5]\r"
        "Epoch 1:   0%|   | 0/100 [00:00<?, ?it/s, train_loss=5.5, val_loss=7.5]\r"
        "\x1b[35mEpoch 1/9\x1b[0m ━━━━╺━━━━━ 50/100 0:00:01 • 0:00:09 9.9it/s train_loss: 4.5 val_loss: 6.5\n",
        [50, 100, 150],
        [6.5, 5.5, 4.5],
        {"loss": [7.5, 6.5]},
    ),
    "tensorflow's estimators": (
        "INFO:tensorflow:loss = 6.5, step = 0\nINFO:tensorflow:global_step/sec: 10.1\n"
        "INFO:tensorflow:loss = 5.5, step = 100 (12.3 sec)\n"
        "INFO:tensorflow:Saving dict for global step 100: global_step = 100, loss = 7.5, wer = 0.905\n",
        [0, 100],
        [6.5, 5.5],
        {"loss": [7.5], "per": [0.905]},
    ),
    "mxnet": (
        "Epoch[0] Batch [50]\tSpeed: 100 samples/sec\tCTCLoss=6.5\nEpoch[0] Batch [100]\tCTCLoss=5.5\n"
        "Epoch[0] Train-CTCLoss=6\nEpoch[0] Validation-CTCLoss=7.5\n",
        [50, 100],
        [6.5, 5.5],
        {"loss": [7.5]},
    ),
    "dicts of dicts": (
        "epoch 1 {'train': {'loss': 6.5, 'per': 0.5}, 'val': {'loss': 7.5, 'per': 0.905}}\n"
        "epoch 2 {'train': {'loss': 5.5, 'per': 0.4}, 'val': {'loss': 6.5, 'per': 0.8}}\n",
        [1, 2],
        [6.5, 5.5],
        {"loss": [7.5, 6.5], "per": [0.905, 0.8]},
    ),
    "a dict per validation": (
        "step 10 loss 6.5\nepoch 0: {'wer': 0.905}\nstep 20 loss 5.5\nepoch 1: {'wer': 0.8}\n",
        [10, 20],
        [6.5, 5.5],
        {"per": [0.905, 0.8]},
    ),
    "steps in headings": (
        "Step 100/1000\n  loss: 6.5\n  grad_norm: 1.5\nStep 200/1000\n  loss: 5.5\n  grad_norm: 1.25\n",
        [100, 200],
        [6.5, 5.5],
        {},
    ),
    "epochs that are named when they end": (
        "[batch 100] loss 6.5\n[batch 200] loss 5.5\nEpoch 1 finished, val loss: 7.5\n[batch 100] loss 4.5\n",
        [100, 200, 300],
        [6.5, 5.5, 4.5],
        {"loss": [7.5]},
    ),
    "the official trainer's, in another form": (
        "2025-11-06 01:34:20,425: Train batch 0 | loss: 6.5 | grad norm: 41.50 | time: 0.10\n"
        "2025-11-06 01:34:20,425: Val batch 0: PER (avg): 0.905 | CTC Loss (avg): 7.5 | time: 3.0\n"
        "2025-11-06 01:34:20,425: Train batch 200 | loss: 5.5 | grad norm: 28.32 | lr: 0.005\n",
        [0, 200],
        [6.5, 5.5],
        {"loss": [7.5], "per": [0.905]},
    ),
    "parts in brackets": (
        "Epoch 1: loss (train): 6.5, loss (val): 7.5, WER (%): 90.5\n"
        "Epoch 2: loss (train): 5.5, loss (val): 6.5, WER (%): 1.5\n",
        [1, 2],
        [6.5, 5.5],
        {"loss": [7.5, 6.5], "per": [0.905, 0.015]},
    ),
    "batches without a name": (
        "10:00:00 | INFO | Epoch 1 | 100/600 | loss 6.5 | lr 1e-3\n2024/01/02 | INFO | Epoch 2 | 100/600 | loss 5.5\n",
        [100, 700],
        [6.5, 5.5],
        {},
    ),
    "a tutorial on CTC": (
        "Epoch 1/200, train_cost = 6.5, train_ler = 1.167, val_cost = 7.5, val_ler = 0.905, time = 1.138\n"
        "Epoch 2/200, train_cost = 5.5, train_ler = 1.167, val_cost = 6.5, val_ler = 0.9, time = 1.138\n",
        [1, 2],
        [6.5, 5.5],
        {"loss": [7.5, 6.5], "per": [0.905, 0.9]},
    ),
    "items of a list": (
        "- epoch: 1\n  train_loss: 6.5\n  val_loss: 7.5\n- epoch: 2\n  train_loss: 5.5\n  val_loss: 6.5\n",
        [1, 2],
        [6.5, 5.5],
        {"loss": [7.5, 6.5]},
    ),
    "epochs in headings": (
        "Epoch 1/9\nTrain Loss: 6.5\nVal Loss: 7.5 | CER: 0.905\n"
        "Epoch 2/9\nTrain Loss: 5.5\nVal Loss: 6.5 | CER: 0.8\n",
        [1, 2],
        [6.5, 5.5],
        {"loss": [7.5, 6.5], "per": [0.905, 0.8]},
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


def test_an_epoch_that_is_trained_again_is_a_resume(tmp_path: Path) -> None:
    lines = [(epoch, batch) for epochs in ((1, 2, 3), (3, 4)) for epoch in epochs for batch in (0, 50)]
    recording = read(
        tmp_path, "".join(f"Epoch {epoch}, batch {batch}, loss {9 - n / 2}\n" for n, (epoch, batch) in enumerate(lines))
    )
    assert recording.signals.steps.tolist() == [0, 50, 51, 101, 102, 152, 153, 203]
    assert recording.signals["loss"].tolist() == [9, 8.5, 8, 7.5, 6, 5.5, 5, 4.5]
    assert "resumed from step 102 after step 152" in recording.notes[0]


def test_thousands_and_percent_signs(tmp_path: Path) -> None:
    recording = read(
        tmp_path,
        "Step 1,000 | loss 1,234.5 | WER: 4.5%\nStep 12,000 | loss inf | WER: 3.5 %\nstep nan loss 9\n",
    )
    assert recording.signals.steps.tolist() == [1000, 12000]
    assert recording.signals["loss"].tolist() == pytest.approx([1234.5, float("inf")])
    assert recording.validation["per"].tolist() == pytest.approx([0.045, 0.035])
    assert recording.notes == ("WER is in percent: its values were divided by 100.",)


def test_the_best_and_the_loss_of_something_else_count_less(tmp_path: Path) -> None:
    recording = read(
        tmp_path,
        "step 1 | KL Loss: 9 | CTC Loss: 2 | val loss: 4 | best val loss: 1 | Best WER: 0.1 | WER: 0.9\n"
        "step 2 | KL Loss: 9 | CTC Loss: 3 | val loss: 5 | best val loss: 1 | Best WER: 0.1 | WER: 0.8\n",
    )
    assert recording.signals["loss"].tolist() == [2, 3]
    assert recording.validation["loss"].tolist() == [4, 5]
    assert recording.validation["per"].tolist() == pytest.approx([0.9, 0.8])


def test_tensors(tmp_path: Path) -> None:
    recording = read(tmp_path, "step 1 loss: tensor(2.5, device='cuda:0')\nstep 2 loss: np.float64(1.5)\n")
    assert recording.signals["loss"].tolist() == [2.5, 1.5]


def test_words_that_do_not_name_the_part_of_the_data(tmp_path: Path) -> None:
    recording = read(
        tmp_path,
        "[dev-box-3] step 1 | val time: 3.5 | loss 2 | saved to exp/test.pt\n"
        "[dev-box-3] step 2 | val time 3s | loss 3\n",
    )
    assert recording.signals["loss"].tolist() == [2, 3]
    assert not len(recording.validation.steps)


def test_a_validation_that_counts_all_steps_belongs_to_the_last_batch(tmp_path: Path) -> None:
    lines = "Epoch 1 batch 100 loss 5\nEpoch 1 batch 200 loss 4\nEpoch 2 batch 100 loss 3\nEpoch 2 batch 200 loss 2\n"
    recording = read(tmp_path, lines + "Epoch 2 step 450 valid loss 6\nEpoch 3 batch 100 loss 1\n")
    assert recording.signals.steps.tolist() == [100, 200, 300, 400, 500]
    assert recording.validation.steps.tolist() == [400]


@pytest.mark.parametrize(
    "source",
    [
        "2024-01-01 10:00:00.123 | INFO     | train:main:120 - ",
        "[train][INFO] - ",
        "[2024-01-01 10:00:00,123][INFO][train] - ",
        "2024-01-01 10:00:00,123 - train - INFO - ",
        "INFO:train:",
    ],
)
def test_a_script_or_logger_called_train_does_not_make_an_error_rate_one_of_training(
    tmp_path: Path, source: str
) -> None:
    recording = read(tmp_path, f"{source}step=0 loss=6.0 wer=1.0\n{source}step=100 loss=5.0 wer=0.9\n")
    assert recording.signals["loss"].tolist() == [6, 5]
    assert recording.validation["per"].tolist() == pytest.approx([1, 0.9])


def test_loggers_may_name_the_part_of_the_data(tmp_path: Path) -> None:
    lines = "[valid][INFO] - step=0 loss=7.0 wer=1.0\n[train][INFO] - step=1 loss=5.0 wer=0.5\n"
    recording = read(tmp_path, lines + "[valid][INFO] - step=1 loss=6.0 wer=0.9\n")
    assert recording.signals["loss"].tolist() == [5]
    assert recording.validation["per"].tolist() == pytest.approx([1, 0.9])


def test_the_loss_scale_of_fp16_is_read(tmp_path: Path) -> None:
    icefall = "Epoch 1, batch {}, loss[loss={}, over 3.], batch size: 20, lr: 3.00e-03, grad_scale: {}\n"
    fairseq = "INFO | train_inner | epoch 001: {} / 2000 loss={}, lr=1e-05, gnorm=2.5, loss_scale={}\n"
    overflow = "INFO: gradient overflow detected, setting loss scale to: 64.0\n"
    for line in (icefall, fairseq):
        recording = read(tmp_path, overflow + line.format(50, 6.5, "32.0") + overflow + line.format(100, 5.5, "0.5"))
        assert recording.signals.steps.tolist() == [50, 100]
        assert recording.signals["loss_scale"].tolist() == [32, 0.5]


def test_grad_beside_a_loss_is_the_gradient_norm(tmp_path: Path) -> None:
    for line in ("[{}] loss={} grad={} lr=0.001\n", "step {} | loss {} | grad {}\n"):
        recording = read(tmp_path, line.format(50, 6.5, 2.5) + line.format(100, 5.5, 1.5))
        assert recording.signals["grad_norm"].tolist() == [2.5, 1.5]
