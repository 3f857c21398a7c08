"""Run a program that uses our Monitor, let the peers watch it too, and print their alarms as JSON at the end.

    python -m experiments.detection.watch_program PROGRAM [PEER]

The program is not changed: it gets a Monitor that hands each step to the peers too, and never asks it to stop. A peer's
hooks can break a program: with PEER, only that one watches. The program's own output goes to stderr.
"""

import contextlib
import json
import runpy
import sys
from typing import Any

import torch
from torch import Tensor, nn

import stability
from experiments.detection.peers import Peer, installed_peers

_STEPS = 400  # the number of steps that a peer is told; the programs have 240 to 400
_only: str | None = None  # the name of the only peer that watches
_watched: list["_Watched"] = []


class _Watched(stability.Monitor):
    """Our Monitor, which the peers watch with."""

    def __init__(self, model: nn.Module, optimizer: torch.optim.Optimizer, *rest: Any, **options: Any) -> None:
        super().__init__(model, optimizer, *rest, **options)
        scaler = rest[0] if rest else options.get("scaler")
        kinds = [kind for kind in installed_peers() if _only in (None, kind.name)]
        self._peers: list[Peer] = [kind(model, optimizer, _STEPS, scaler) for kind in kinds]
        self._peer_step, self._peer_loss = 0, torch.tensor(0.0)
        optimizer.register_step_post_hook(lambda *_: self._tell_of_update())
        _watched.append(self)

    def step(self, loss: Tensor | float, logits: Tensor | None = None, *rest: Any, **given: Any) -> None:  # type: ignore[override]
        """Hand a step to the peers and to our Monitor."""
        self._peer_loss = torch.as_tensor(loss, dtype=torch.float32).detach()
        inputs, labels = given.get("inputs"), given.get("labels")
        nothing = torch.zeros(1, 1)
        for peer in self._peers:
            peer.before_update(
                self._peer_step,
                self._peer_loss,
                nothing.unsqueeze(0) if logits is None else logits.detach(),
                nothing if inputs is None else inputs,
                nothing.long() if labels is None else labels,
            )
        super().step(loss, logits, *rest, **given)
        self._peer_step += 1

    def validated(self, per: float = float("nan"), loss: float = float("nan"), **given: Any) -> None:
        """Hand a validation to the peers and to our Monitor."""
        for peer in self._peers:
            peer.validated(self._peer_step - 1, per, loss)
        super().validated(per, loss, **given)

    def _tell_of_update(self) -> None:
        for peer in self._peers:
            peer.after_update(self._peer_step - 1, self._peer_loss)

    def alarms(self) -> dict[str, list[str]]:
        """Let the peers report, and return the kinds of their alarms."""
        for peer in self._peers:
            peer.finish()
        return {peer.name: [alarm.kind for alarm in peer.alarms] for peer in self._peers}


def main() -> None:
    """Run the program and print."""
    global _only
    program, _only = sys.argv[1], (sys.argv[2] if len(sys.argv) > 2 else None)
    stability.Monitor = _Watched  # type: ignore[assignment, misc]
    sys.argv = [program]
    with contextlib.redirect_stdout(sys.stderr):
        runpy.run_path(program, run_name="__main__")
    every = [monitor.alarms() for monitor in _watched]  # a program that starts again has several
    names = {name for alarms in every for name in alarms}
    print(json.dumps({name: sorted({kind for alarms in every for kind in alarms.get(name, [])}) for name in names}))


if __name__ == "__main__":
    main()
