"""What the names in a log mean: our signals under the names that other programs give them."""

import argparse
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from functools import lru_cache
from typing import NamedTuple

TRAINING = ("loss", "grad_norm", "lr", "blank_fraction", "loss_scale")  # what is measured in a training step
VALIDATION = ("per", "val_loss", "accuracy")  # and in a validation

# Names are compared in lower case, with `_` for blanks, dots and hyphens, without what stands before a slash, without
# the part of the data (`val_`, `train_`) and without the kind of mean (`_step`, `_epoch`, `_avg`). If a log has several
# names for one signal, the one that comes first here counts.
_STEP = (
    "global_step", "step", "train_step", "training_step", "iteration", "iter", "steps", "global_steps", "num_updates",
    "nupdates", "updates", "optimizer_step", "trainer_global_step", "itr", "batch", "update", "n_iter", "num_steps",
    "batch_idx", "batch_index", "minibatch",
)  # fmt: skip
_CORES = {
    "loss": (
        "loss", "ctc_loss", "tot_loss", "total_loss", "lm_loss", "reduced_train_loss", "loss_ctc", "main_loss",
        "loss_total", "rnnt_loss", "transducer_loss", "ce_loss", "cross_entropy_loss", "cross_entropy", "nll_loss",
        "xent", "cost", "ctc_cost", "ctc", "nll",
    ),
    "grad_norm": (
        "grad_norm", "gradient_norm", "gradnorm", "total_norm", "grad_norm_total", "gnorm", "global_grad_norm",
        "grad_norm_before_clip", "grad_norm_pre_clip", "unclipped_grad_norm", "grad_l2_norm", "l2_grad_norm",
        "total_grad_norm", "grad_2_0_norm_total",
    ),
    "lr": ("lr", "learning_rate", "lrate", "optim0_lr0", "last_lr", "current_lr", "cur_lr"),
    "blank_fraction": ("blank_fraction", "blank_share", "blank_rate"),
    "loss_scale": ("loss_scale", "grad_scale", "amp_scale"),
    "per": (
        "per", "phoneme_error_rate", "phone_error_rate", "wer", "word_error_rate", "cer", "character_error_rate",
        "char_error_rate", "error_rate", "ter", "token_error_rate", "ler", "letter_error_rate", "uer",
        "unit_error_rate", "label_error_rate", "wer_ctc", "cer_ctc",
    ),
    "accuracy": (
        "norm_edit_dis", "accuracy", "acc", "seq_acc", "seq_accuracy", "word_acc", "word_accuracy", "top1", "top_1",
        "acc1", "top1_acc", "categorical_accuracy", "sparse_categorical_accuracy", "accuray",
    ),
}  # fmt: skip
_RANKS = {core: (signal, rank) for signal, cores in _CORES.items() for rank, core in enumerate(cores)}
_RANKS |= {core: ("step", rank) for rank, core in enumerate(_STEP)}
_OF_DATA_SETS = ("per", "wer", "cer", "ter", "ler", "uer", "loss", "accuracy")  # `eval_librispeech_wer`
_OF_LOSSES = ("att", "attention", "kl", "ce", "mse", "reg", "aux", "adv", "gen", "disc", "kd")  # parts, and no data set
_TRAINED_ON = ("train", "training", "tr", "trn")
_HELD_OUT = (
    "val", "eval", "validation", "valid", "dev", "evaluation", "devel", "heldout", "cv", "validating", "evaluating",
    "test", "testing",
)  # fmt: skip
_BATCHES = 100  # an accuracy that is logged more often, and with nearly every training loss, is of training batches
_MEANS = ("step", "avg", "mean", "average", "epoch", "running", "smoothed", "batch", "iter")
_DATA_SETS = ("clean", "other")  # of LibriSpeech
_OF_ANOTHER = ("best", "min", "max", "lowest", "ema", "ma", "target", "goal", "previous", "prev")  # not the present one
_SETTINGS = ("config", "configs", "args", "hparams", "hyperparameters", "hyper_parameters", "params")
_ONE = {
    "losses": "loss", "lrs": "lr", "pers": "per", "wers": "wer", "cers": "cer", "norms": "norm", "rates": "rate",
    "iters": "iter", "iterations": "iteration", "ep": "epoch", "epochs": "epoch",
}  # fmt: skip
_GLUED = re.compile(r"(train|val|valid|dev|test|eval)(loss|per|wer|cer)")
_OPTIMIZER = re.compile(r"(lr|learning_rate)_(0|pg1|group_?0|(\w*adam\w*|sgd|lion|adafactor)(_pg1)?)")
_FIRST_GROUP = ("0", "pg1", "group0", "group_0")

_BRACKETS = re.compile(r"\([^)]*\)|\[[^]]*\]|%")
_PERCENT = re.compile(r"(?<![^\s_.-])(in )?(percent|percentage|pct)(?![^\s_.-])", re.IGNORECASE)
_SHOWN = 40  # names that are remembered for a message
EXPLAINED = (-1,)  # the rank of a name that the user explains


class Known(NamedTuple):
    """What a name in a log means.

    Attributes:
        signal: Our name for it; also `step` or `epoch`.
        rank: If a log has several names for one signal, the one with the least rank counts.
        part: `train` or `val` if the name says on which part of the data it was measured; else empty.
    """

    signal: str
    rank: tuple[int, ...]
    part: str


class Naming:
    """The names in one log: those that the user explains, and those that were seen."""

    def __init__(self, names: Mapping[str, str]) -> None:
        self.explained = tuple((title.strip().lower(), signal) for signal, title in names.items())
        self.seen: dict[str, None] = {}

    def see(self, titles: Iterable[str]) -> None:
        """Remember some of the names, in case none of them is known."""
        for title in titles:
            if len(self.seen) >= _SHOWN:
                return
            self.seen[title.strip()] = None


_NAMING: ContextVar[Naming] = ContextVar("naming", default=Naming({}))  # noqa: B039 (nothing is added to this one)


@contextmanager
def naming(names: Mapping[str, str]) -> Iterator[Naming]:
    """Read logs in a `with` statement, where `names` says what the log calls a signal of ours."""
    current = Naming(names)
    token = _NAMING.set(current)
    try:
        yield current
    finally:
        _NAMING.reset(token)


def explained_names() -> tuple[tuple[str, str], ...]:
    """Return the names that the user explains, in lower case, with their signals."""
    return _NAMING.get().explained


def see_names(titles: Iterable[str]) -> None:
    """Remember the names of a log in which no name is known, for the message."""
    _NAMING.get().see(titles)


def part_in(name: str) -> str:
    """Return the part of the data that the name of a folder or a column begins or ends with: train, val, or none."""
    words = [word for word in re.split(r"[\s_.-]+", name.lower()) if word]
    if not words:
        return ""
    if {words[0], words[-1]}.intersection(_HELD_OUT):
        return "val"
    return "train" if {words[0], words[-1]}.intersection(_TRAINED_ON) else ""


def known_names() -> dict[str, tuple[str, ...]]:
    """Return the names that are known for each signal, without prefixes and suffixes."""
    return {"step": _STEP, **_CORES}


def find_name(title: str) -> Known | None:
    """Return what a name means; None if it is not known."""
    return _find_name(title, explained_names())


@lru_cache(maxsize=4096)
def _find_name(title: str, explained: tuple[tuple[str, str], ...]) -> Known | None:
    text = title.strip().lower()
    for name, signal in explained:
        if text == name:
            return Known(signal, EXPLAINED, "")
    if any(signal == text for _, signal in explained) and text != "step":
        return None  # the user says that another name has this meaning
    *prefixes, plain = _PERCENT.sub("", _BRACKETS.sub("", _camel_as_snake(title))).lower().strip(" _:").split("/")
    if {*prefixes}.intersection(_SETTINGS + _OF_ANOTHER):
        return None
    if prefixes and _says_only_where(plain):  # `loss/train`, `loss/train_epoch`
        prefixes, plain = prefixes[:-1], f"{plain}_{prefixes[-1]}"
    elif prefixes and plain in _FIRST_GROUP:  # `lr-AdamW/pg1`
        *prefixes, plain = *prefixes[:-1], f"{prefixes[-1]}_{plain}"
    words = _words(plain)
    if prefixes and "_".join(words) not in _RANKS:
        words = _with_prefix(prefixes[-1], words)
    if prefixes and words in (["norm"], ["grad"]):
        return None  # of weights, say
    return _known("_".join(words), words, prefixes)


def _says_only_where(plain: str) -> bool:
    """Whether a name says on which part of the data it was measured, and not what."""
    words = _words(plain)
    return part_in(plain) != "" and {*words} <= {*_TRAINED_ON, *_HELD_OUT, *_MEANS}


def _camel_as_snake(title: str) -> str:
    return re.sub(r"(?<=[a-z])(?=[A-Z])|(?<=[A-Z])(?=Loss)", "_", title)


def _words(text: str) -> list[str]:
    words = [_GLUED.sub(r"\1_\2", word).split("_") for word in re.split(r"[\s_.-]+", text) if word]
    return [_ONE.get(word, word) for parts in words for word in parts]


def _with_prefix(prefix: str, words: list[str]) -> list[str]:
    """The words of `loss/ctc` and `grad/norm` in the usual order, and all others as they are."""
    if prefix in ("loss", "losses") and "_".join([*words, "loss"]) in _RANKS:
        return [*words, "loss"]
    if prefix in ("grad", "grads", "gradient", "gradients") and "_".join(["grad", *words]) in _RANKS:
        return ["grad", *words]
    return words


def _known(core: str, words: list[str], prefixes: Sequence[str]) -> Known | None:
    kinds = [part_in(prefix) for prefix in prefixes]
    validating, training = "val" in kinds, "train" in kinds
    part = max((_HELD_OUT.index(prefix) for prefix in prefixes if prefix in _HELD_OUT), default=0)
    if core in ("per_batch", "per_step", "per_iter"):
        return None
    if core == "epoch":
        return Known("epoch", (0,), "")
    if core in ("norm", "grad"):
        return Known("grad_norm", (len(_CORES["grad_norm"]),), "")
    if _OPTIMIZER.fullmatch(core):
        core = "lr"
    mean = other = 0
    while core not in _RANKS and words:
        word = words[-1] if words[-1] in _MEANS + _TRAINED_ON + _HELD_OUT else words[0]
        if word in _MEANS:
            mean = 1 + _MEANS.index(word)
        elif word in _TRAINED_ON:
            training = True
        elif word in _HELD_OUT:
            validating, part = True, _HELD_OUT.index(word)
        elif word in _DATA_SETS or (validating and words[-1] in _OF_DATA_SETS and word not in _OF_ANOTHER + _OF_LOSSES):
            other = 1
        else:
            return None
        words.remove(word)
        core = "_".join(words)
    if core not in _RANKS:
        return None
    signal, rank = _RANKS[core]
    if signal == "step":
        return Known("step", (rank,), "") if not (validating or mean) else None
    if signal == "loss" and validating:
        signal = "val_loss"
    if (validating and signal in TRAINING) or (training and signal in VALIDATION):
        return None
    # Prefer a rate whose name says that it is of held-out data: Keras logs both `wer` and `val_wer`.
    unsaid = int(signal in VALIDATION and not validating)
    return Known(
        signal, (rank, unsaid, other, mean, int(training), part), "val" if validating else "train" if training else ""
    )


@lru_cache(maxsize=64)
def _find_columns(titles: tuple[str, ...], explained: tuple[tuple[str, str], ...]) -> dict[str, int]:
    found: dict[str, tuple[tuple[int, ...], int]] = {}
    for index, title in enumerate(titles):
        name = _find_name(title, explained)
        if name and (name.signal not in found or name.rank < found[name.signal][0]):
            found[name.signal] = (name.rank, index)
    return {name: index for name, (_, index) in found.items()}


def find_columns(titles: tuple[str, ...]) -> dict[str, int]:
    """Find the step and the signals that are known.

    Returns:
        The index of each in `titles`, under our name for it.
    """
    return _find_columns(titles, explained_names())


def choose_names(counts: Mapping[str, int]) -> dict[str, str]:
    """Choose one of the names that a log has for each signal.

    Args:
        counts: How often each name was measured.

    Returns:
        The chosen name of each signal. A name that was measured far less often than another is not chosen: it may be a
        summary at the end. An accuracy is chosen if it is of held-out data and there is no error rate.
    """
    found = {title: name for title in counts if (name := find_name(title)) is not None}
    signals = {title: name.signal for title, name in found.items()}
    # A CTC loss next to a training loss is that of held-out data.
    if "val_loss" not in signals.values() and any(n.part == "train" and n.signal == "loss" for n in found.values()):
        signals |= {title: "val_loss" for title in found if title.lower().replace(" ", "_") == "ctc_loss"}
    accuracies = [title for title, signal in signals.items() if signal == "accuracy"]
    held_out = {title for title in accuracies if _is_held_out(title, found, signals, counts)}
    if "per" in signals.values():
        held_out.clear()
    signals = {title: signal for title, signal in signals.items() if signal != "accuracy" or title in held_out}
    chosen: dict[str, str] = {}
    for signal in dict.fromkeys(signals.values()):
        titles = [title for title in counts if signals.get(title) == signal]
        most = max(counts[title] for title in titles)
        chosen[signal] = min((t for t in titles if 4 * counts[t] >= most), key=lambda t: found[t].rank)
    return chosen


def _is_held_out(title: str, found: Mapping[str, Known], signals: Mapping[str, str], counts: Mapping[str, int]) -> bool:
    """Whether an accuracy is of held-out data: its name says so, or no name in the log speaks of any part.

    One that is logged as often as the validation loss, and less often than the training loss, is of held-out data, too.
    One that is logged with nearly every training loss, and often, is of training batches.
    """
    name, count = found[title], counts[title]
    if name.part == "val" or name.rank == EXPLAINED:
        return True
    losses, validations = ([counts[t] for t, own in signals.items() if own == s] for s in ("loss", "val_loss"))
    most = max(losses, default=0)
    if count in validations and 2 * count < most:
        return True
    return not (most >= count > max(_BATCHES, 0.9 * most) or any(own.part for own in found.values()))


def name_in_log(text: str) -> tuple[str, str]:
    """Read the value of an option `--map SIGNAL=NAME`: a signal of ours, and what a log calls it.

    Raises:
        argparse.ArgumentTypeError: It has another form.
    """
    signal, separator, name = text.partition("=")
    if not separator or not signal.strip() or not name.strip():
        raise argparse.ArgumentTypeError(f"expected SIGNAL=NAME, such as loss=train_loss_avg, found {text!r}")
    return signal.strip(), name.strip()
