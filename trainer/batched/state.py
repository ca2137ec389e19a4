"""What the optimizer of a batched model keeps, and its place in checkpoints."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from trainer.batched.model import ClassifierGroup
from trainer.optimizer import BETA1, BETA2, EPSILON

__all__ = ["GroupState"]

_DENSE = ("hidden_bias", "output", "output_bias")


class GroupState:
    """Gradients and moments of G members, on the model's device.

    Each member's parameters are the optimizer's own, so that a member is saved and continued
    by itself, in any group.

    Args:
        model: G members.

    Attributes:
        steps: done so far.
        gradients: of the dense parameters, shaped like them; every step overwrites all.
        mean_square: float32, shape (F, G): of an embedding row's gradient.
    """

    def __init__(self, model: ClassifierGroup) -> None:
        self._model = model
        self.steps = 0
        self.gradients = {name: torch.zeros_like(getattr(model, name)) for name in _DENSE}
        self.mean_square = torch.zeros(model.embedding.shape[:2], device=model.device)
        self._parameters = [
            [self._parameter(name, number) for name in _DENSE] for number in range(len(model))
        ]
        self._adam = torch.optim.Adam(
            [parameter for parts in self._parameters for parameter in parts],
            lr=1.0,
            betas=(BETA1, BETA2),
            eps=EPSILON,
            fused=True,
        )

    def _parameter(self, name: str, number: int) -> torch.nn.Parameter:
        parameter = torch.nn.Parameter(getattr(self._model, name)[number], requires_grad=False)
        parameter.grad = self.gradients[name][number]
        return parameter

    def step(self, rate: float) -> None:
        """Adam on the dense parameters, by the gradients of now."""
        self.steps += 1
        self._adam.param_groups[0]["lr"] = rate
        self._adam.step()

    def save(self, number: int) -> dict[str, NDArray[Any]]:
        """All that the next step of a member depends on."""
        named: dict[str, Tensor] = {
            f"model.{name}": value
            for name, value in self._model.member(number).state_dict().items()
        }
        named["mean_square"] = self.mean_square[:, number]
        for name, parameter in zip(_DENSE, self._parameters[number], strict=True):
            for key, value in self._adam.state[parameter].items():
                named[f"dense.{name}.{key}"] = value
        arrays = {name: value.detach().cpu().numpy() for name, value in named.items()}
        return arrays | {"steps": np.array(self.steps)}

    @torch.no_grad()
    def load(self, number: int, arrays: dict[str, NDArray[Any]]) -> None:
        """Continue a member from what :meth:`save` returned.

        Raises:
            KeyError, RuntimeError: if it is not of such a member.
        """
        tensors = {name: torch.from_numpy(np.array(value)) for name, value in arrays.items()}
        self.steps = int(tensors.pop("steps"))
        member = self._model.member(number)
        member.load_state_dict({n: tensors[f"model.{n}"] for n in member.state_dict()})
        self.mean_square[:, number].copy_(tensors["mean_square"])
        for name, parameter in zip(_DENSE, self._parameters[number], strict=True):
            moments = {k: tensors[f"dense.{name}.{k}"] for k in ("step", "exp_avg", "exp_avg_sq")}
            if moments["exp_avg"].shape != parameter.shape:
                raise RuntimeError("the state is of another model")
            self._adam.state[parameter] = {
                key: value.to(self._model.device) for key, value in moments.items()
            }
