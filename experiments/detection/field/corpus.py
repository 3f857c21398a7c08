"""Train the field corpus: every recipe of `recipes` once, in a plain PyTorch loop that our Monitor watches.

    python -m experiments.detection.field.corpus build [--half field_test]   # ten minutes or more; can be resumed
    python -m experiments.detection.field.corpus pack                      # into field_HALF.npz beside this file

A training that may be slow continues, unwatched, to twice its budget. `labels` says what is true of
each training, from its recipe and its end. No decision here depends on the output of a detector.
"""

import argparse
import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch
from rich.progress import track

from experiments.detection.corpus import packed_columns, save_trace
from experiments.detection.field.fifth_trainer import FifthTrainer
from experiments.detection.field.fourth_trainer import FourthTrainer
from experiments.detection.field.labels import BORNE_IN_SEVENTH, BORNE_IN_SIXTH, LEARNED
from experiments.detection.field.recipe import FieldRecipe, Half
from experiments.detection.field.recipes import field_recipes
from experiments.detection.field.seventh_trainer import SeventhTrainer
from experiments.detection.field.sixth_trainer import SixthTrainer
from experiments.detection.field.third_trainer import ThirdTrainer
from experiments.detection.field.trainer import Trainer, pretrained
from stability import Monitor

FOLDER = Path("outputs/field")
_TRAINERS: dict[Half, type[Trainer]] = {
    "field_third_test": ThirdTrainer,
    "field_fourth_test": FourthTrainer,
    "field_fifth_test": FifthTrainer,
    "field_sixth_test": SixthTrainer,
    "field_seventh_test": SeventhTrainer,
}
_VALIDATE_EVERY = 100
_MAYBE_SLOW = (
    *(None, "rate_blip", "rate_start", "small_step", "clip_before_unscale", "shuffled_labels", "sorted_inputs"),
    *("silent_batches", "augmented", "rate_falls", "frames_mixed", "dead_input"),
    *("bad_batch_skipped", "curriculum", "buckets", "masked", "corpus_extended", "unfrozen_later", "rolled_back"),
    *("lower_layers_frozen", "range_test_stopped", "decay_scheduled", "wrong_transcripts", "frames_per_batch"),
    *("outliers", "few_infeasible", "silences", "large_start", "head_replaced", "validation_loss_infinite"),
    *("momentum_too_high", "features_reshaped", "warmup_again", "softmax_twice"),
    *("encoder_not_in_optimizer", "encoder_cut_off"),
    *("focal", "running_mean", "layers_skipped", "speed_changed", "gradient_noise", "one_day_per_batch"),
    *("halved_on_plateau", "zero_head", "blank_first", "scale_starts_too_high", "few_validated", "noisier_validation"),
    *("whole_lines", "unused_decoder", "fixed_front", "padding_heard", "state_reset", "array_moved"),
    *("right_to_left", "one_row_off", "features_near_zero", "rate_ends", "loss_divided"),
    *("logged_sum", "logged_rounded", "batch_grows", "rate_raised", "cosine_rises_again", "hot_start", "lookahead"),
    *("transcripts_cleaned", "mixed_pairs", "noise_rises", "longer_validation", "penalty_begins", "small_start"),
    *("weight_normalised", "batches_echoed", "shrunk_and_perturbed", "resumed_from_older", "slow_statistics"),
    "cast_to_integer",
    *("two_rates", "averaged_at_the_end", "small_last_batch", "rate_at_the_edge", "autocast", "trainer_skips"),
    *("padding_changes", "smaller_batch", "best_restored", "gradual_unfreezing", "biases_tuned", "inner_loss"),
    *("dropout_begins", "logged_smoothly", "one_batch", "sorted_first", "stays_in_evaluation", "references_grouped"),
    *("bad_shard", "table_changes", "encoder_lost", "batch_first_forgotten", "accumulated_sum", "most_pairs_wrong"),
    *("rate_from_checkpoint", "reduced_in_wrong_mode", "warmup_outlasts", "base_frozen"),
    *BORNE_IN_SIXTH,
    "few_electrodes",
    *BORNE_IN_SEVENTH,
    *("reduced_per_batch", "vocabulary_of_each_worker", "averaged_over_time", "unfrozen_outside_optimizer"),
)
_EXPLODED = 2.0  # an explosion is seen from the first loss on that is this many times the start


def packed(half: Half) -> Path:
    """Return the file of a half."""
    return Path(__file__).parent / f"{half}.npz"


def build(r: FieldRecipe) -> None:
    """Train one recipe and write its trace into FOLDER, under its name."""
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    trainer = pretrained(_TRAINERS.get(r.half, Trainer)(r))
    initial = {"step": -1, **trainer.validate()}
    monitor = Monitor(trainer.model, trainer.optimizer, trainer.scaler)
    ends: list[dict[str, float]] = []
    failed_at: int | None = None
    cut_since: int | None = None
    while trainer.step < r.steps:
        trainer.train_step(monitor)
        last = trainer.losses[-1]
        if failed_at is None and not np.isfinite(last):
            failed_at = trainer.step - 1
        if (r.fault or "").endswith("_cut") and trainer.since >= 0:
            exploded = not last < _EXPLODED * trainer.losses[0]
            cut_since = trainer.step if exploded and cut_since is None else cut_since
            if cut_since is not None and trainer.step - cut_since >= r.span:
                break
        over = failed_at is not None and trainer.step > failed_at + r.stop_after
        if trainer.step % _VALIDATE_EVERY == 0 or trainer.step == r.steps:
            ends.append({"step": trainer.step - 1, **trainer.validate()})
            given = ends[-1]["per"] * (100 if r.percent else 1)
            monitor.validated(given, ends[-1]["loss"])
        if over:
            break
    signals = monitor.signals()
    losses = np.array(trainer.losses)
    later: list[dict[str, float]] = []
    if failed_at is None and r.fault in _MAYBE_SLOW and ends[-1]["true_per"] > LEARNED:
        while trainer.step < 2 * r.steps and (not later or later[-1]["true_per"] > LEARNED):
            for _ in range(max(100, r.steps // 4)):
                trainer.train_step()
            later.append({"step": trainer.step - 1, **trainer.validate()})
            if not np.isfinite(trainer.losses[-1]):
                break
    finite = losses[np.isfinite(losses)]
    start = float(np.median(finite[:5])) if len(finite) else np.nan
    grown = np.flatnonzero((losses > _EXPLODED * abs(start)) & (np.arange(len(losses)) >= r.onset))
    facts = {
        "recipe": asdict(r),
        "steps": len(losses),
        "failed_at": failed_at,
        "skipped": trainer.skipped,
        "initial": initial,
        "ends": ends,
        "later": later,
        "start_loss": start,
        "grown_at": int(grown[0]) if len(grown) else None,
        "cut": cut_since is not None,
        "end_loss": float(np.median(finite[-20:])) if len(finite) else np.nan,
        "largest_loss": float(finite.max()) if len(finite) else np.nan,
        "least_loss": float(finite.min()) if len(finite) else np.nan,
    }
    save_trace(FOLDER / f"{r.name}.npz", facts, signals)


def _is_built(r: FieldRecipe) -> bool:
    """Whether there is a trace of the recipe as it is now."""
    path = FOLDER / f"{r.name}.npz"
    if not path.exists():
        return False
    with np.load(path) as one:
        return bool(FieldRecipe(**json.loads(str(one["facts"]))["recipe"]) == r)


def pack(half: Half) -> None:
    """Pack the traces of a half into one small file."""
    arrays: dict[str, Any] = {}
    there = [r for r in field_recipes() if r.half == half and _is_built(r)]
    for r in there:
        with np.load(FOLDER / f"{r.name}.npz") as one:
            facts = json.loads(str(one["facts"])) | {"recipe": asdict(r)}
            ends = [[end["step"], end["per"], end["loss"]] for end in facts["ends"]]
            arrays |= packed_columns(r.name, json.dumps(facts), one, np.reshape(ends, (-1, 3)))
    np.savez_compressed(packed(half), **arrays)
    print(f"{half}: {len(there)} trainings, {packed(half).stat().st_size / 1e6:.1f} MB")


def _build_all(half: Half, only: str) -> None:
    FOLDER.mkdir(parents=True, exist_ok=True)
    missing = [r for r in field_recipes() if r.half == half and only in r.name and not _is_built(r)]
    for r in track(missing, "trainings"):
        try:
            build(r)
        except Exception as error:
            print(f"{r.name}: {type(error).__name__}: {error}", file=sys.stderr)


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=["build", "pack"])
    parser.add_argument("--half", choices=get_args(Half), default="field_design")
    parser.add_argument("--only", default="", help="only recipes whose name contains this text")
    options = parser.parse_args()
    if options.command == "build":
        _build_all(options.half, options.only)
    else:
        pack(options.half)


if __name__ == "__main__":
    main()
