"""What a repair has found, on the terminal. All is made of `repair.json`."""

import math
import re
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from stability.core.files import REPAIR, short_path
from stability.core.text import counted, load_json
from stability.diagnosis.display import shown
from stability.diagnosis.outcomes import style_of
from stability.reporting.recorded import TRAIN

_OF_STUDY = ("study=", "outputs=", "hydra", "sweep.")  # overrides of the repair itself, and not of the training
_ABSENT = r"trainer\.\w+=null"  # what a folder says of its command and what is so anyway

Found = Mapping[str, Any]


def print_repair(study: Path) -> str:
    """Print the answer of a repair, and what was tried.

    Args:
        study: The folder, which holds `repair.json`.

    Returns:
        The answer, in a few sentences.
    """
    found = load_json((study / REPAIR).read_bytes())
    answer = " ".join(sentences(found))
    console = Console(highlight=False, soft_wrap=True)
    console.print(shown(answer))
    tried = Table("tried", "outcome", "cost", box=None, header_style="dim", padding=(0, 2, 0, 1))
    for one in found["tried"]:
        tried.add_row(shown(one["change"] or "FAILED"), _outcomes(one["trials"]), _steps(one["trials"]))
    console.print(tried)
    if found["answer"]:
        console.print(f"[dim]{'train':<10}[/] {shown(_command(found['answer']['overrides']))}")
    console.print(f"[dim]{'results':<10}[/] {shown(short_path(study / REPAIR))}")
    return answer


def sentences(found: Found) -> list[str]:
    """Return the answer in sentences.

    Args:
        found: The content of `repair.json`.
    """
    cost = f"{counted(found['cost']['trials'], 'trial')} and {counted(found['cost']['steps'], 'step')}"
    if found["problem"]:
        return [found["problem"], f"This took {cost}."]
    verdict = found["verdict"]
    if not verdict:
        return [f"It was stopped after {cost}, before FAILED had failed twice.", _GO_ON]
    wrong = f"FAILED: {', '.join(filter(None, (verdict['outcome'], verdict['cause'])))}."
    if found["answer"]:
        return [wrong, *_mended(found), f"This took {cost}{_whole(found)}."]
    if not found["finished"]:
        return [wrong, f"It was stopped after {cost}, and no change is confirmed yet.", _GO_ON]
    changes = [one for one in found["tried"] if one["change"]]
    if not changes:
        return [wrong, "No setting that it has mends this.", verdict["advice"]]
    roles = sorted({role for one in changes for role in one["roles"]})
    return [
        wrong,
        f"None of {counted(len(changes), 'change')} mends it, so it is not for the lack of one of these alone: "
        f"{', '.join(roles)}. Look at the data, the model and the program.",
        f"This took {cost}.",
    ]


_GO_ON = "The same command with a larger budget goes on from there."


def _mended(found: Found) -> list[str]:
    """The change that mends it, and what it costs."""
    answer, best = found["answer"], found["next_best"]
    count, rate = len(answer["trials"]), _rate(answer["trials"])
    error_rate = "" if math.isnan(rate) else f", with a mean error rate of {rate:.3g}"
    told = [
        f"{answer['change']} mends it: it is healthy in {count} of {count} seeds, "
        f"{count - 1} of which were not used to choose it{error_rate}. ({_capital(answer['reason'])}.)"
    ]
    ours, theirs = (_rate(one["trials"][:1]) if one else math.nan for one in (answer, best))  # on the same seed
    if not math.isnan(ours + theirs):
        told.append(
            f"The best other change that was healthy, {best['change']}, had {theirs:.3g} on seed "
            f"{found['first_seed']}, where this one had {ours:.3g}."
        )
    return told


def _rate(trials: Sequence[Found]) -> float:
    rates = [float(one["error_rate"]) for one in trials]
    return sum(rates) / len(rates)


def _whole(found: Found) -> str:
    """The steps in whole trainings."""
    return f", as many steps as {found['cost']['steps'] / found['cost']['whole']:.1f} whole trainings"


def _outcomes(trials: Sequence[Found]) -> str:
    return " ".join(f"[{style_of(one['outcome'])}]{one['outcome']}[/]" for one in trials)


def _steps(trials: Sequence[Found]) -> str:
    return counted(sum(one["steps"] for one in trials), "step")


def _command(overrides: Sequence[str]) -> str:
    """The command that trains with the change. What `stability.train` quotes itself is written as it is typed."""
    own = [w for w in overrides if not w.lstrip("+~").startswith(_OF_STUDY) and not re.fullmatch(_ABSENT, w)]
    return shlex.join([*TRAIN, *(re.sub(r"^(trainer\.\w+=)'([^'\\]*)'$", r"\1\2", word) for word in own)])


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]
