"""The Monitor: watches a plain PyTorch training loop and gives a verdict on it, as on a trial."""

import copy
import math
from collections import Counter, deque
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from stability.core.errors import StabilityError
from stability.core.text import first_of, plain
from stability.data.phonemes import BLANK
from stability.diagnosis.ctc_inputs import BELOW_ZERO, is_learned
from stability.diagnosis.detectors import findings
from stability.diagnosis.finding import Finding
from stability.diagnosis.history import History
from stability.diagnosis.judge import is_check_due, judge, stopping_verdict
from stability.diagnosis.metric import is_in_percent
from stability.diagnosis.readers.recording import Recording
from stability.diagnosis.signals import EXPENSIVE_EVERY, MOST_UTTERANCES
from stability.diagnosis.table import Table
from stability.diagnosis.verdict import FATAL, FAULTS, Fault, Verdict
from stability.engine.measure import frame_information, input_max, output_signals, output_signals_on_host
from stability.watch.given import Given, Numbers, read_given
from stability.watch.optimizer import Unoptimized, epsilon_signals, frozen, no_gradient
from stability.watch.recording import write_recording
from stability.watch.state import (
    finding_of,
    finding_state,
    lost_state,
    optimizer_state,
    table_of,
    table_state,
    verdict_of,
    verdict_state,
)
from stability.watch.tensors import is_finite, norms_by_part, norms_of, to_host, whole_norm
from stability.watch.trial_folder import TrialFolder, find_folder

_FETCH_EVERY = 10  # steps: one transfer from the GPU for many signals is faster
_RECENT = 200  # steps whose batches a flight recording names
_NOTED = 1000  # steps with a fault whose utterances are kept
_NAMED = 8  # utterances that evidence names
_COUNTED = {  # utterances that do no harm as long as they are few
    "infeasible_targets": "utterances that CTC cannot align",
    "empty_targets": "utterances without labels",
}

_Row = dict[str, Tensor | float]
_Evidence = dict[str, float | str]


@dataclass
class _BadStep:
    """A step whose batch should not be trained on.

    Attributes:
        step: Its number.
        row: Its signals.
        utterances: Those to blame, or all of its batch.
        verdict: What `step` returned, if the training was to stop.
        applied: Whether it was trained on: an update followed, or it was finite and nobody was told.
    """

    step: int
    row: _Row
    utterances: list[str]
    verdict: Verdict | None
    applied: bool


class Monitor:
    """Watches a plain PyTorch training loop.

    Call `step` between `backward()` and `optimizer.step()`. Before gradients are clipped it sees where they are not
    finite; the clip spreads that over all of them.

        monitor = Monitor(model, optimizer)
        ...
            loss.backward()
            if monitor.step(loss, logits):
                break
            optimizer.step()
        ...
        print(monitor.verdict())

    The Monitor changes no gradient and draws no random number. It judges only what it is given. It checks the inputs of
    the CTC loss at every step. The detectors run at the first step, then every 10 steps, and every 80 steps in a long
    training. They run at once if a loss or gradient is not finite or the inputs of the loss are wrong.

    A training may go on without a bad batch: call `continue` instead of `break`, before `optimizer.step()`. The batch
    counts as skipped when a good step follows, and is evidence in the verdict, not the outcome.

    With a `folder`, each finding leaves a flight recording there, which replaces the last one: `flight.json` has the
    verdict, all findings so far and the names of the last 200 batches; `flight.csv` has the signals; `flight.pt` has
    the state_dicts of the model and the optimizer before the update. `python -m stability.diagnose FOLDER` shows it.
    If it cannot be written, the training goes on, and the verdict's evidence says why.

    With a `trial_folder`, and in a Hydra job, the Monitor leaves there what a trial of this project leaves:
    `signals.csv` and `validation.csv`, which grow with the training, and with each call of `verdict` also
    `verdict.json` and `run.png`. `python -m stability.report` compares such folders. If several Monitors watch in the
    same folder, the files are those of the one that began last. Of processes that train together, the first leaves
    them.

    Args:
        model: The model that is trained.
        optimizer: Its optimizer. If there are several, the one that steps last: the measured update is what all of
            them have changed by then.
        scaler: The GradScaler of a training in fp16. Unscale the gradients before you call `step`.
        blank: The index of CTC's blank among the classes of the logits.
        stop_on: The kinds of findings that end the training: any of `non_finite`, `bad_data`, `not_training`,
            `exploded`, `degraded`, `blank_collapse` and `mode_collapse`.
        folder: Where flight recordings are written. Without it there are none.
        metric: The name of the error rate that `validated` is given.
        trial_folder: Where the files of the trial are left. By default in the folder of the Hydra job, if there is one.

    Raises:
        StabilityError: `stop_on` contains another word.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer | None = None,
        scaler: torch.amp.GradScaler | None = None,
        *,
        blank: int = BLANK,
        stop_on: Collection[Fault] = FATAL,
        folder: Path | str | None = None,
        metric: str = "PER",
        trial_folder: Path | str | None = None,
    ) -> None:
        if unknown := {*stop_on} - {*get_args(Fault)}:
            raise StabilityError(
                f"stop_on={stop_on}: {', '.join(sorted(unknown))} is not a kind of finding. "
                f"Choose from {', '.join(get_args(Fault))}."
            )
        self._model, self._optimizer, self._scaler, self._blank = model, optimizer, scaler, blank
        self._metric = metric
        self._pending: list[_Row] = []
        self._rows = History()
        self._fetched = 0  # steps whose signals are in the history: all but the pending ones
        self._validations: list[tuple[int, float, float]] = []
        self._stop_on = stop_on
        self._findings: list[Finding] = []
        self._failure: Verdict | None = None
        self._bad_steps: list[_BadStep] = []  # since the last good step
        self._seen: Counter[str] = Counter()  # utterances whose targets were checked, those with a fault, skipped steps
        # Of the newest such steps: their numbers, for faults also the signals, and the utterances.
        self._skipped: deque[tuple[int, list[str]]] = deque(maxlen=_NOTED)
        self._faulty: deque[tuple[int, str, list[str]]] = deque(maxlen=_NOTED)
        self._folder = None if folder is None else Path(folder)
        self._trial_folder = None if trial_folder is None else Path(trial_folder)
        self._trial: TrialFolder | None = None  # until the first step
        self._has_begun = False
        self._before_restart: dict[str, Any] | None = None  # of the optimizer, until the first step
        self._restarts: list[tuple[int, list[str]]] = []  # steps, and what did not come back
        self._recording: _Evidence = {}  # evidence that says where the flight recording is, or why there is none
        self._batches: deque[tuple[int, tuple[int | str, ...]]] = deque(maxlen=_RECENT)
        self._names: set[str] = set()  # of utterances, as many as are counted
        self._parameters = [*model.named_parameters()]  # looked up anew every 10th step: it takes a while
        self._outputs: dict[str, Any] = {}  # of the modules in this step, in the order in which they ran
        self._trained: list[nn.Parameter] = []  # the parameters that are not frozen,
        self._weights_before: list[Tensor] = []  # and a copy of them until the update whose size is measured
        self._batch_norm = float(any(isinstance(module, _BatchNorm) for module in model.modules()))
        self._unoptimized = None if optimizer is None else Unoptimized(optimizer)
        self._updated = False  # since the last step
        for name, module in model.named_modules():
            if not any(module.children()):
                module.register_forward_hook(self._output_keeper(name))
        if optimizer is not None:
            optimizer.register_step_post_hook(self._after_update)

    def step(
        self,
        loss: Tensor | float,
        logits: Numbers | None = None,
        lengths: Numbers | None = None,
        *,
        inputs: Tensor | None = None,
        labels: Numbers | None = None,
        label_counts: Numbers | None = None,
        batch: Sequence[Any] = (),
    ) -> Verdict | None:
        """Measure the signals of one training step, after `backward()` and before the update.

        Tensors, arrays and lists are taken alike.

        Args:
            loss: The loss of the step.
            logits: `[batch, frames, classes]`, the output of a CTC decoder.
            lengths: `[batch]`, the number of frames of each utterance in the logits. By default all frames.
            inputs: The inputs of the model, of any shape. Measured every 10th step, and when something is not finite.
            labels: The labels, checked at every step: `[batch, labels]`, padded; or of all utterances one after the
                other, as PyTorch's CTC loss takes them; or a list of the labels of each utterance.
            label_counts: `[batch]`, the number of labels of each utterance. A list of labels does not need them.
            batch: The names or numbers of the utterances, for evidence and for a flight recording.

        Returns:
            The verdict if this batch must not be trained on, because its loss or gradient is not finite or what it
            gives to the CTC loss is wrong; or if the training must stop for a finding of another kind in `stop_on`,
            now and at every later call. Else None.

        Raises:
            StabilityError: The arguments do not fit together, the loss is not one number, or the logits have no class
                `blank`.
        """
        given = read_given(logits, lengths, labels, label_counts, batch, blank=self._blank)
        total = torch.as_tensor(loss).detach()
        if total.numel() != 1:
            raise StabilityError(
                f"The loss has the shape {tuple(total.shape)}. Give the number that backward() was called on."
            )
        return self._take_step(total.reshape(()), given, inputs)

    def validated(self, per: float = math.nan, loss: float = math.nan) -> None:
        """Add the result of a validation: an error rate, a loss, or both.

        Args:
            per: The phoneme, word or character error rate, as a fraction or in percent, if there is one. Percent is
                recognised from all validations together, and the evidence of the verdict says so.
            loss: The validation loss, if there is one.

        Raises:
            StabilityError: They are not numbers.
        """
        try:
            self._validations.append((self._next_step - 1, float(per), float(loss)))
        except (TypeError, ValueError):
            raise StabilityError(
                f"validated takes an error rate and a loss, and was given {per!r} and {loss!r}. Give numbers, and "
                "math.nan for the one that was not measured."
            ) from None

    def verdict(self) -> Verdict:
        """Return the verdict on the training so far.

        If the training stopped at a bad batch, it is the verdict that `step` returned. A training that went on without
        it is judged as a whole.

        Raises:
            ValueError: There was no step yet.
        """
        if not self._next_step:
            raise ValueError("There is no verdict before the first step: call step(loss) after backward().")
        verdict = self._verdict()
        if self._trial is not None and not self._trial.waits_for_job:
            self._trial.finish(self._recorded(), verdict)
        return verdict

    def _verdict(self) -> Verdict:
        if self._failure is not None:
            return self._failure
        if self._bad_steps and (refusal := self._bad_steps[0].verdict) is not None:
            return refusal
        verdict = judge(self._table(), self.validation(), metric=self._metric)
        unit: _Evidence = {"error rates were given in": "percent"} if self._in_percent else {}
        evidence = verdict.evidence | unit | self._own_evidence() | self._recording
        return replace(verdict, evidence=evidence, advice=self._with_restarts(verdict.advice))

    def state_dict(self) -> dict[str, Any]:
        """Return all that the Monitor knows, to be saved with a checkpoint of the training, as JSON or by torch.save.

        Returns:
            Numbers, texts, lists and dictionaries of them. It has some hundred numbers for each of up to 4,096 steps.
        """
        signals = self._table()
        self._note_names()
        return {
            "step": self._next_step,
            "signals": table_state(signals),
            "validations": [[step, plain(per), plain(loss)] for step, per, loss in self._validations],
            "findings": [finding_state(finding) for finding in self._findings],
            "failure": verdict_state(self._failure),
            "bad steps": [
                [bad.step, bad.utterances, verdict_state(bad.verdict), bad.applied] for bad in self._bad_steps
            ],
            "skipped": [[step, utterances] for step, utterances in self._skipped],
            "seen": dict(self._seen),
            "names": sorted(self._names),
            "faulty": [[step, check, names] for step, check, names in self._faulty],
            "restarts": [[step, lost] for step, lost in self._restarts],
            "optimizer": optimizer_state(self._optimizer, signals),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where another Monitor was, before the first step of this one.

        The next step shows whether the optimizer's state and its learning rate came back, too. If they did not, the
        verdict says so.

        Args:
            state: What `state_dict` returned.

        Raises:
            ValueError: This Monitor has already watched a step.
        """
        if self._next_step:
            raise ValueError("load_state_dict comes before the first step: make a new Monitor and load into that.")
        bad_steps = state["bad steps"]
        signals, first_bad = table_of(state["signals"]), min((step for step, *_ in bad_steps), default=state["step"])
        self._rows.append(signals.take(signals.steps < first_bad))
        self._pending = _rows_of(signals.take(signals.steps >= first_bad))
        self._fetched = state["step"] - len(self._pending)
        self._validations = [(step, float(per), float(loss)) for step, per, loss in state["validations"]]
        self._findings = [finding_of(finding) for finding in state["findings"]]
        self._failure = verdict_of(state["failure"])
        self._bad_steps = [
            _BadStep(step, self._pending[step - self._fetched], names, verdict_of(verdict), applied)
            for step, names, verdict, applied in bad_steps
        ]
        self._skipped.extend((step, utterances) for step, utterances in state["skipped"])
        self._seen = Counter(state["seen"])
        self._names = {*state.get("names", ())}  # an older Monitor kept none
        self._faulty.extend((step, check, names) for step, check, names in state["faulty"])
        self._restarts = [(step, lost) for step, lost in state["restarts"]]
        self._before_restart = state["optimizer"]

    @property
    def findings(self) -> list[Finding]:
        """The findings so far: the first one of each kind, as it was when it was made."""
        return [*self._findings]

    def signals(self) -> Table:
        """Return the signals so far: of all steps, or in a long training of the newest and a sample of the others."""
        return self._table()

    def validation(self) -> Table:
        """Return all validations so far, with error rates as fractions. Of several at a step the last one counts."""
        last: dict[int, list[float]] = {}
        for step, *measured in self._validations:
            before = last.get(max(step, 0), measured)
            last[max(step, 0)] = [old if math.isnan(new) else new for old, new in zip(before, measured, strict=True)]
        steps = np.array([*last], np.int64)
        values = np.array([*last.values()], np.float32).reshape(-1, 2)
        if self._in_percent:
            values[:, 0] /= 100
        return Table(("per", "loss"), steps, values, ~np.isnan(values))

    @property
    def _in_percent(self) -> bool:
        if not self._validations:
            return False
        waiting = [float(row["loss"]) for row in self._pending]
        past = self._rows.table()["loss"].tolist() if len(self._rows) else []
        return is_in_percent([per for _, per, _ in self._validations], past + waiting)

    @property
    def _next_step(self) -> int:
        return self._fetched + len(self._pending)

    def _take_step(self, loss: Tensor, given: Given, inputs: Tensor | None = None) -> Verdict | None:
        """Measure and judge a step. See `step`."""
        step = self._next_step
        self._note_restart(step)
        self._measure_unoptimized()
        self._weights_before = []  # if the last update was never made
        if not self._has_begun:
            self._begin_trial()
        due = is_check_due(step)
        if due or len(self._pending) >= _FETCH_EVERY:
            self._fetch()
            if self._trial is not None and self._fetched:
                self._trial.update(self._recorded)
        self._batches.append((step, given.names))
        with torch.no_grad():
            row = self._measure(loss, given)
            self._pending.append(row)
            counts = self._wait_for(row, given)
            value, norm, scale = (float(row.get(name, 1)) for name in ("loss", "grad_norm", "loss_scale"))
            finite = math.isfinite(value) and math.isfinite(norm)
            if inputs is not None and (step % EXPENSIVE_EVERY == 0 or not finite):
                row["input_max"] = input_max(inputs.detach().float().unsqueeze(0))[0]
        overflow = math.isfinite(value) and not math.isfinite(norm) and scale > 1
        negative = value < BELOW_ZERO and given.logits is not None and not is_learned(self.validation(), step)
        bad = not (finite or overflow) or negative or given.is_wrong(counts)
        verdict = self._judge_step(step, urgent=bad or overflow, overflow=overflow) if bad or overflow or due else None
        self._outputs.clear()
        if bad or (verdict is not None and self._failure is None):
            utterances = [name for check, count in counts.items() if count > 0 for name in given.names_of(check)]
            utterances = utterances or [str(name) for name in given.names]
            untold = finite and verdict is None
            self._bad_steps.append(_BadStep(step, row, utterances, verdict, applied=untold))
        elif finite:
            self._go_on()
        return self._failure or verdict

    def _begin_trial(self) -> None:
        self._has_begun = True
        folder = find_folder(self._trial_folder)
        if folder is not None:
            self._trial = TrialFolder(folder, self._leave_results)

    def _recorded(self) -> Recording:
        return Recording("", self.signals(), self.validation(), metric=self._metric)

    def _leave_results(self) -> None:
        """Write the results of the trial so far."""
        if self._trial is not None:
            self._trial.finish(self._recorded(), self._verdict())

    def _note_restart(self, step: int) -> None:
        """Note at the first step after a restart what of the optimizer did not come back."""
        before, self._before_restart = self._before_restart, None
        if before is not None and self._optimizer is not None and (lost := lost_state(self._optimizer, before)):
            self._restarts.append((step, lost))

    def _measure(self, loss: Tensor, given: Given) -> _Row:
        expensive = self._next_step % EXPENSIVE_EVERY == 0
        if expensive:
            self._parameters = [*self._model.named_parameters()]
        signals: _Row = {"loss": loss.float()}
        if given.logits is not None and given.frames is not None:
            signals |= _measure_outputs(given.logits, given.frames, self._blank, expensive=expensive)
        if expensive:
            self._note_names()
            signals["batch_norm"] = self._batch_norm
            if self._names:
                signals["different_utterances"] = float(min(len(self._names), MOST_UTTERANCES))
        if given.label_counts is not None and expensive:
            signals["labels"] = given.label_counts.float().mean()
        if given.utterances is not None:
            signals["utterances"] = float(given.utterances)
        if given.swapped is not None:
            signals["axes_swapped"] = float(given.swapped)
        if self._scaler is not None:
            signals["loss_scale"] = float(self._scaler.get_scale())
        if self._optimizer is not None:
            if (rate := self._optimizer.param_groups[0]["lr"]) is not None:  # Adafactor may choose it itself
                signals["lr"] = float(rate)
            if expensive:
                signals |= self._measure_optimizer(self._optimizer)
        return signals

    def _note_names(self) -> None:
        """Note the names in the batches of the last 10 steps. At every step it would take too long."""
        if len(self._names) < MOST_UTTERANCES:
            first = self._next_step - EXPENSIVE_EVERY
            self._names.update(str(name) for step, names in self._batches if step >= first for name in names)

    def _measure_optimizer(self, optimizer: torch.optim.Optimizer) -> _Row:
        signals: _Row = {"no_gradient": no_gradient(optimizer), **epsilon_signals(optimizer)}
        parameters = [p for _, p in self._parameters]
        self._trained = [p for p in parameters if p.requires_grad]
        self._weights_before = [p.detach().clone() for p in self._trained]
        assert self._unoptimized is not None
        if (share := self._unoptimized.before_update(self._trained)) is not None:
            signals["unoptimized"] = share
        signals["weight_norm"] = whole_norm([p.detach() for p in parameters])
        signals["frozen"] = frozen(parameters)
        return signals

    def _measure_unoptimized(self) -> None:
        """Measure, if updates have been made since the last step, whether they changed all parameters."""
        if self._updated and self._unoptimized is not None:
            share = self._unoptimized.after_update(self._trained)
            if share is not None and self._pending:
                self._pending[-1]["unoptimized"] = share
        self._updated = False

    def _wait_for(self, row: _Row, given: Given) -> dict[str, float]:
        """Bring to the host what must be known before the update. On a GPU it waits for nothing else.

        Returns:
            The numbers of utterances with a fault.
        """
        names, norms = self._norms()
        loss, *numbers = to_host([torch.as_tensor(row["loss"]), norms, *given.counts()])
        counts = dict(zip(given.faulty, numbers[len(names) :], strict=True))
        row |= {"loss": loss} | norms_by_part(names, numbers) | counts
        for check, count in counts.items():
            if count > 0:
                self._seen[check] += int(count)
                self._faulty.append((self._next_step - 1, check, given.names_of(check)))
        if "infeasible_targets" in counts:
            self._seen["utterances"] += given.utterances or 0
        return counts

    def _judge_step(self, step: int, *, urgent: bool, overflow: bool) -> Verdict | None:
        """Run the detectors, and keep and record each finding of a kind that is new.

        Args:
            step: The number of the step.
            urgent: Whether the step itself is to be judged. Otherwise those before it are.
            overflow: Whether it is an overflow in fp16, which may be no fault.

        Returns:
            The verdict if the batch must not be trained on, or if the training must stop.
        """
        known = {finding.kind for finding in self._findings}
        if urgent and known.intersection(FATAL) and not {*FATAL}.intersection(self._stop_on):
            return None
        signals = self._without_bad_steps() if urgent or not self._fetched else self._rows.table()
        validation = self.validation()
        found = findings(signals, validation)
        new = [f for n, f in enumerate(found) if f.kind not in known | {earlier.kind for earlier in found[:n]}]
        self._findings += new
        own_kinds = ("non_finite",) if overflow else FATAL
        deciding = [f for f in found if f.kind in self._stop_on and (f in new or (urgent and f.kind in own_kinds))]
        deciding.sort(key=lambda finding: finding.detected_step != step)
        verdict = stopping_verdict(signals, validation, self._stop_on, deciding, metric=self._metric)
        if verdict is not None:
            places = self._non_finite_places() if urgent else {}
            evidence = self._utterances_of(deciding[0]) | verdict.evidence | self._own_evidence() | places
            verdict = replace(verdict, evidence=evidence, advice=self._with_restarts(verdict.advice))
        if new and self._folder is not None:
            first = stopping_verdict(signals, validation, FAULTS, new, metric=self._metric)
            self._record(self._folder, signals, verdict or first)
        if verdict is not None:
            verdict = replace(verdict, evidence=verdict.evidence | self._recording)
            if verdict.outcome not in FATAL:
                self._failure = verdict
        return verdict

    def _go_on(self) -> None:
        """Note that a good step follows the bad ones: they were skipped, unless their updates were made."""
        for bad in self._bad_steps:
            bad.row["skipped"] = float(not bad.applied)
            if not bad.applied:
                self._seen["skipped"] += 1
                self._skipped.append((bad.step, bad.utterances))
        self._bad_steps.clear()

    def _with_restarts(self, advice: str) -> str:
        """Return advice, unless it is empty, with what did not come back at the training's restarts."""
        if not advice:
            return ""
        lost = [f"After the restart at step {step}, {' and '.join(what)}." for step, what in self._restarts]
        mend = ["Save and load the state_dict of the optimizer and of the schedule."] if lost else []
        return " ".join([advice, *lost, *mend])

    def _utterances_of(self, finding: Finding) -> _Evidence:
        """Name the utterances that a finding has counted, or else all in the batch."""
        steps = range(finding.onset_step, finding.detected_step + 1)
        names = [n for step, check, own in self._faulty if check == finding.signal and step in steps for n in own]
        if names:
            return {"utterances": first_of([*dict.fromkeys(names)], _NAMED)}
        if finding.signal == "axes_swapped":
            return {}
        batch = [str(name) for step, own in self._batches if step == finding.onset_step for name in own]
        return {"utterances of the batch": first_of(batch, _NAMED)} if batch else {}

    def _own_evidence(self) -> _Evidence:
        """What the Monitor knows about utterances, besides the signals."""
        evidence: _Evidence = {}
        for check, what in _COUNTED.items():
            names = dict.fromkeys(name for _, kind, own in self._faulty if kind == check for name in own)
            if names:
                which = first_of([*names], _NAMED)
                evidence[what] = f"{self._seen[check]} of {self._seen['utterances']} ({which})"
        if self._trial is not None and self._trial.problem:
            evidence["trial folder"] = f"{self._trial.folder} cannot be written ({self._trial.problem})"
        for step, lost in self._restarts:
            evidence[f"after the restart at step {step}"] = "; ".join(lost)
        if self._skipped:
            batches = [f"step {step}: {first_of(own, 4)}" if own else f"step {step}" for step, own in self._skipped]
            evidence["batches skipped"] = f"{self._seen['skipped']} ({first_of(batches, 4, '; ')})"
        return evidence

    def _norms(self) -> tuple[list[str], Tensor]:
        """Return the parameters that have a gradient, and the norms of their gradients."""
        named = dict(self._gradients())
        return [*named], norms_of([*named.values()])

    def _gradients(self) -> Iterator[tuple[str, Tensor]]:
        """Yield each gradient, with the name of its parameter. A sparse one is given by its stored numbers."""
        for name, p in self._parameters:
            if (gradient := p.grad) is not None:
                yield name, gradient.coalesce().values() if gradient.is_sparse else gradient

    def _after_update(self, *_: Any) -> None:
        self._updated = True
        if self._bad_steps and self._bad_steps[-1].step == self._next_step - 1:
            self._bad_steps[-1].applied = True
        if not self._weights_before:
            return
        with torch.no_grad():
            pairs = zip(self._trained, self._weights_before, strict=True)
            row = self._pending[-1]
            update = whole_norm([after - before for after, before in pairs])
            row["update_ratio"] = update / whole_norm(self._weights_before)
            # Since `step` the gradients may have been clipped or unscaled.
            if gradients := [gradient for _, gradient in self._gradients()]:
                row["applied_norm"] = whole_norm(gradients)
        self._weights_before = []

    def _output_keeper(self, name: str) -> Callable[..., None]:
        def keep(module: nn.Module, inputs: Any, output: Any) -> None:
            self._outputs[name] = output

        return keep

    def _fetch(self) -> None:
        """Move the pending signals to the history. Those of bad steps wait until the training goes on or ends."""
        waiting = [bad.step - self._fetched for bad in self._bad_steps if bad.step >= self._fetched]
        count = waiting[0] if waiting and len(self._pending) <= _RECENT else len(self._pending)
        self._rows.append(self._pending_rows(count))
        del self._pending[:count]
        self._fetched += count

    def _pending_rows(self, count: int) -> Table:
        """Return the first pending signals, from a GPU in one transfer."""
        rows = self._pending[:count]
        tensors = {(n, name): v for n, row in enumerate(rows) for name, v in row.items() if isinstance(v, Tensor)}
        fetched = dict(zip(tensors, to_host([*tensors.values()]), strict=True))
        on_host = [{name: fetched.get((n, name), value) for name, value in row.items()} for n, row in enumerate(rows)]
        return _as_table(on_host, self._fetched)

    def _table(self) -> Table:
        """Return the history with the pending signals."""
        if not self._pending:
            return self._rows.table()
        history = copy.deepcopy(self._rows)
        history.append(self._pending_rows(len(self._pending)))
        return history.table()

    def _without_bad_steps(self) -> Table:
        """Return all signals, but of the steps since the last good one only those that were applied, and this one."""
        table = self._table()
        not_applied = [bad.step for bad in self._bad_steps if not bad.applied]
        return table.take(~np.isin(table.steps, not_applied)) if not_applied else table

    def _record(self, folder: Path, signals: Table, verdict: Verdict | None) -> None:
        """Write the flight recording. A failure to write must not end the training."""
        state = {"model_state_dict": self._model.state_dict()}
        if self._optimizer is not None:
            state["optimizer_state_dict"] = self._optimizer.state_dict()
        try:
            write_recording(
                folder,
                verdict=verdict,
                findings=self._findings,
                batches={step: [*names] for step, names in self._batches},
                signals=signals,
                validation=self.validation(),
                state=state,
            )
            self._recording = {"flight recording": f"python -m stability.diagnose {folder}"}
        except OSError as error:
            self._recording = {"flight recording": f"{folder} cannot be written ({error.strerror or error})"}

    def _non_finite_places(self) -> dict[str, float | str]:
        """Find where the model is not finite now: the first module of the forward pass, the weights, the gradients."""
        modules = [name for name, output in self._outputs.items() if not is_finite(output)]
        weights = [name for name, p in self._model.named_parameters() if not p.isfinite().all()]
        gradients = [name for name, gradient in self._gradients() if not gradient.isfinite().all()]
        found = {
            "first module with an output that is not finite": modules[:1],
            "weights not finite": weights,
            "gradients not finite": gradients,
        }
        return {what: first_of(names, 4) for what, names in found.items() if names}


def _measure_outputs(logits: Tensor, frames: Tensor, blank: int, *, expensive: bool) -> _Row:
    """Measure the outputs of a CTC decoder, `[batch, frames, classes]`."""
    signals: _Row = {}
    if logits.is_cpu:
        real = np.arange(logits.shape[1]) < frames.numpy()[:, None]
        signals |= output_signals_on_host(logits, real, blank)
    else:
        own = output_signals(*_as_trial(logits, frames), blank)
        signals |= {name: value[0] for name, value in own.items()}
    if expensive:
        signals["frame_information"] = frame_information(*_as_trial(logits, frames), blank)[0]
    return signals


def _as_trial(logits: Tensor, frames: Tensor) -> tuple[Tensor, Tensor]:
    """Return the outputs as those of a stack of one trial: (1, T, B, C) and (1, B)."""
    return logits.float().transpose(0, 1).unsqueeze(0), frames.unsqueeze(0)


def _rows_of(table: Table) -> list[_Row]:
    """Return the rows of a table, each with the signals that it measured."""
    return [
        {name: value for name, value, is_measured in zip(table.names, *row, strict=True) if is_measured}
        for row in zip(table.values.tolist(), table.measured.tolist(), strict=True)
    ]


def _as_table(rows: list[dict[str, Any]], first_step: int) -> Table:
    names = tuple(dict.fromkeys(name for row in rows for name in row))
    values = np.array([[row.get(name, np.nan) for name in names] for row in rows], np.float32)
    measured = np.array([[name in row for name in names] for row in rows], bool)
    shape = (len(rows), len(names))
    return Table(names, np.arange(first_step, first_step + len(rows)), values.reshape(shape), measured.reshape(shape))
