"""From a trained repetition to its checked ONNX file."""

from __future__ import annotations

from typing import Any

import torch
from numpy.typing import NDArray

from mach.features import SparseBatch
from trainer.examples import ExamplesReader
from trainer.export import Weights, build_model, write_model
from trainer.model import Classifier
from trainer.parity import check_parity, open_session, stored_weights
from trainer.plan import Plan
from trainer.prepare import PreparedData
from trainer.workspace import Workspace, atomic_path

__all__ = ["export_repetition", "weights_of"]

_PARITY_QUERIES = 256


def weights_of(model: Classifier) -> dict[str, NDArray[Any]]:
    """The model's arrays; on a CPU they share its memory."""
    return {name: v.detach().cpu().numpy() for name, v in model.state_dict().items()}


def export_repetition(
    plan: Plan, data: PreparedData, repetition: int, model: Classifier
) -> dict[str, Any]:
    """Write the repetition's ONNX file and check it against ``model``, which is spoilt.

    Args:
        plan: says where and in which form.
        data: gives the queries to check with.
        repetition: r.
        model: trained, on a CPU.

    Returns:
        What the check found, for the manifest.

    Raises:
        ConfigError: if the disk is full.
        MachError: if the exported model does not agree with the trained one.
    """
    quantization = plan.settings.quantization
    hash = plan.hash(data.num_classes, repetition + 1)
    weights = Weights(**{name: array.copy() for name, array in weights_of(model).items()})
    stored = stored_weights(weights, quantization)
    batch = _sample(data.held_out, data.train)
    trained = model.log_probabilities(batch)
    model.load_state_dict({name: torch.from_numpy(array) for name, array in vars(stored).items()})
    kept = model.log_probabilities(batch)
    path = Workspace.model_path(plan.models, repetition)
    with atomic_path(path) as draft:
        loss = plan.settings.loss
        write_model(build_model(weights, hash, repetition, quantization, loss), draft)
        parity = check_parity(open_session(str(draft)), batch, trained, kept, quantization)
    return {
        "queries": parity.queries,
        "max_difference": parity.max_difference,
        "mean_divergence": parity.mean_divergence,
    }


def _sample(held_out: ExamplesReader, train: ExamplesReader) -> SparseBatch:
    source = held_out if len(held_out) else train
    return source.read(0, min(len(source), _PARITY_QUERIES)).features
