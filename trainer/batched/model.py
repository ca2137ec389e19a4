"""The stacked parameters of several classifiers."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from trainer.loss import Loss
from trainer.model import Classifier

__all__ = ["ClassifierGroup"]


class ClassifierGroup:
    """G classifiers (:class:`trainer.model.Classifier`) with stacked parameters.

    A feature's embeddings of all members lie side by side, so that one gather reads them all.

    Args:
        size: G.
        num_features: F.
        hidden: H.
        num_buckets: B.
        loss: ``one-vs-all`` or ``softmax``, see :mod:`trainer.loss`.
        hidden_dropout: share of hidden units dropped in training.
        device: where the parameters lie.

    Attributes:
        embedding: float32, shape (F, G, H).
        hidden_bias: float32, shape (G, H).
        output: float32, shape (G, B, H).
        output_bias: float32, shape (G, B).
    """

    def __init__(
        self,
        size: int,
        num_features: int,
        hidden: int,
        num_buckets: int,
        *,
        loss: Loss,
        hidden_dropout: float,
        device: torch.device,
    ) -> None:
        self.loss = loss
        self.hidden_dropout = hidden_dropout
        self.embedding = torch.zeros(num_features, size, hidden, device=device)
        self.hidden_bias = torch.zeros(size, hidden, device=device)
        self.output = torch.zeros(size, num_buckets, hidden, device=device)
        self.output_bias = torch.zeros(size, num_buckets, device=device)

    def __len__(self) -> int:
        return len(self.output)

    @property
    def device(self) -> torch.device:
        """Where the parameters lie."""
        return self.embedding.device

    def fill(self, members: Iterable[Classifier]) -> None:
        """Take over the weights of G classifiers, one after the other."""
        for number, classifier in enumerate(members):
            self.member(number).load_state_dict(classifier.state_dict())

    def member(self, number: int) -> Classifier:
        """Member ``number`` as a classifier whose parameters share this group's memory."""
        with torch.device("meta"):  # nothing is drawn or held
            member = Classifier(
                len(self.embedding),
                self.output.shape[2],
                self.output.shape[1],
                loss=self.loss,
                hidden_dropout=self.hidden_dropout,
            )
        parts: dict[str, Tensor] = {
            "embedding": self.embedding[:, number],
            "hidden_bias": self.hidden_bias[number],
            "output": self.output[number],
            "output_bias": self.output_bias[number],
        }
        for name, value in parts.items():
            setattr(member, name, torch.nn.Parameter(value, requires_grad=False))
        return member

    def copy_of(self, number: int) -> Classifier:
        """A copy of member ``number`` on the CPU."""
        shared = self.member(number)
        for name, value in list(shared.named_parameters()):
            setattr(shared, name, torch.nn.Parameter(value.cpu().clone(), requires_grad=False))
        return shared
