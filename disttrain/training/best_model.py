"""The best evaluation of a run so far, and the weights that it had."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from torch import Tensor, nn

from disttrain.analysis.best_evaluation import is_better
from disttrain.records.record_types import EvalRecord


class BestModel:
    """The evaluation with the lowest loss, of equal ones the first, as HF Trainer has it by default.

    Args:
        model: The model itself, not DDP's wrapper.
        keep: Whether to keep a copy of its weights in CPU memory.
        state: The state of an earlier attempt, from `state`; empty at the beginning.

    Attributes:
        record: The evaluation; None before the first one with a finite loss.
    """

    def __init__(self, model: nn.Module, state: Mapping[str, Any], *, keep: bool) -> None:
        self._model = model
        self._weights: dict[str, Tensor] = dict(state.get("weights", {}))
        self.keeps_weights = keep
        self.record: EvalRecord | None = None
        if "record" in state:
            self.record = EvalRecord(**state["record"])

    def note(self, record: EvalRecord) -> None:
        """Notes an evaluation of the model as it is now."""
        if not is_better(record, self.record):
            return
        self.record = record
        if self.keeps_weights:
            # New tensors: a checkpoint with the ones before may still be written.
            self._weights = {
                name: value.detach().to("cpu", copy=True) for name, value in self._model.state_dict().items()
            }

    def state(self) -> dict[str, Any]:
        """The state for a checkpoint: the record and the weights, which do not change any more."""
        if self.record is None:
            return {}
        return {"record": dataclasses.asdict(self.record), "weights": MappingProxyType(self._weights)}

    def restore(self) -> None:
        """Gives the model the weights of the best evaluation, if there was one."""
        if self._weights:
            self._model.load_state_dict(self._weights)

    def notice(self, last_step: int) -> str | None:
        """Which model `restore` has chosen; None for that of the last step."""
        if self.record is None:
            return "no evaluation had a finite loss: the saved model is that of the last step"
        if self.record.step == last_step:
            return None
        step, loss = self.record.step, self.record.loss
        return f"the saved model is that of step {step}: its evaluation loss of {loss:.4g} is the lowest"
