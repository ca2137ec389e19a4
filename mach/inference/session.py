"""One repetition's classifier in an ONNX Runtime session."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence, Set
from typing import Any, Literal, cast

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from mach.bundle import Bundle, Manifest, repetition_file
from mach.errors import BundleError, ConfigError
from mach.features import SparseBatch
from mach.inference.libraries import preload, why_cuda_fails

__all__ = [
    "LOSSES",
    "PROVIDERS",
    "WARM_UP_SIZES",
    "Provider",
    "RepetitionSession",
    "check_loss",
    "check_model",
    "open_session",
    "resolve_provider",
    "warm_up",
]

_FLOAT = np.float32

#: Rows of the runs that warm a model up.
WARM_UP_SIZES = (1, 8)

#: How ONNX writes that a tensor lies in another file: the entry whose key is ``location``. A
#: parser also takes its tag and its length with bytes to spare, which a writer may use to hide it.
_EXTERNAL_DATA = re.compile(rb"(?:\x0a|\x8a\x80*\x00)(?:\x08|\x88\x80*\x00)location")

PROVIDERS: dict[str, str] = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}

Provider = Literal["auto", "cpu", "cuda"]

#: What a model may have been trained by (``mach.loss``).
LOSSES = ("softmax", "one-vs-all")


def check_loss(name: str, properties: Mapping[str, str]) -> str:
    """``mach.loss`` of a model's metadata; ``softmax`` for models from before there were two.

    Raises:
        BundleError: if it is unknown.
    """
    loss = properties.get("mach.loss", "softmax")
    if loss not in LOSSES:
        raise BundleError(f"{name} says mach.loss={loss}, expected one of {', '.join(LOSSES)}")
    return loss


def resolve_provider(provider: Provider) -> Literal["cpu", "cuda"]:
    """What ``auto`` means on this machine; refuses CUDA where ONNX Runtime was built without.

    Raises:
        ConfigError: if CUDA is asked for and this ONNX Runtime has no CUDA provider.
    """
    has_cuda = PROVIDERS["cuda"] in ort.get_available_providers()
    if provider == "auto":
        return "cuda" if has_cuda else "cpu"
    if provider == "cuda" and not has_cuda:
        raise ConfigError(
            "provider: cuda was asked for, but the installed ONNX Runtime has no CUDA provider; "
            "install the extra 'gpu' instead of 'cpu'"
        )
    return provider


def open_session(
    model: bytes,
    name: str,
    provider: Provider,
    threads: int,
    cuda_options: Mapping[str, str] | None = None,
) -> tuple[Any, Literal["cpu", "cuda"]]:
    """Open a session and say where it runs.

    ONNX Runtime counts the host's cores, not the container's, so the number of threads is
    always set here.

    Args:
        model: its bytes.
        name: what to call it in errors.
        provider: where to run it; ``auto`` takes the CPU where CUDA does not start.
        threads: within a run, on a CPU.
        cuda_options: of the CUDA provider.

    Raises:
        BundleError: if the model is corrupt or refers to other files.
        ConfigError: if the provider asked for cannot be had.
    """
    if _EXTERNAL_DATA.search(model):
        raise BundleError(f"{name} refers to files outside the bundle, which is not allowed")
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    # Made for one shape and kept for each: with shapes that vary it gains nothing and grows.
    options.enable_mem_pattern = False
    # A thread that spins while it waits costs its neighbours on a shared machine.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    wanted = resolve_provider(provider)
    failure: Exception | None = None
    if wanted == "cuda":
        preload()
        chosen: list[Any] = [(PROVIDERS["cuda"], dict(cuda_options or {})), PROVIDERS["cpu"]]
        try:
            # By itself it would go on without the GPU.
            session = ort.InferenceSession(model, options, providers=chosen, enable_fallback=0)
        except Exception as error:  # ONNX Runtime raises many types with no common base
            failure = error
        else:
            if PROVIDERS["cuda"] in session.get_providers():
                return _without_bytes(session), "cuda"
    try:
        session = ort.InferenceSession(model, options, providers=[PROVIDERS["cpu"]])
    except Exception as error:
        raise BundleError(f"{name} cannot be loaded by ONNX Runtime: {error}") from error
    if provider == "cuda":
        # The model is fine, as the CPU shows: it is CUDA that is not.
        detail = f": {failure}" if failure is not None else ""
        raise ConfigError(
            f"provider: cuda was asked for, but ONNX Runtime could not start it: "
            f"{why_cuda_fails()}{detail}"
        ) from failure
    return _without_bytes(session), "cpu"


def _without_bytes(session: Any) -> Any:
    """Drop the model's bytes, half the memory of a shard.

    A session keeps them to start over on another provider, which is never wanted here.
    """
    session._model_bytes = None
    return session


def check_model(
    name: str,
    inputs: Set[str],
    outputs: Set[str],
    properties: Mapping[str, str],
    manifest: Manifest,
    repetition: int,
) -> None:
    """Refuse a model that is not a bundle's, by its inputs, outputs and metadata.

    Raises:
        BundleError: saying what is wrong with ``name``.
    """
    if inputs != {"indices", "values"}:
        raise BundleError(f"{name} has inputs {sorted(inputs)}, not indices and values")
    if "log_probabilities" not in outputs:
        raise BundleError(f"{name} has no output log_probabilities")
    expected = {
        "mach.repetition": repetition,
        "mach.num_buckets": manifest.num_buckets,
        "mach.num_features": manifest.num_features,
    }
    for key, value in expected.items():
        if properties.get(key) != str(value):
            raise BundleError(f"{name} says {key}={properties.get(key)}, expected {value}")
    check_loss(name, properties)


class RepetitionSession:
    """A repetition's classifier, loaded and checked.

    Attributes:
        repetition: which repetition.
        num_buckets: B.
        num_features: F.
        provider: the execution provider in use, ``cpu`` or ``cuda``.
    """

    def __init__(
        self,
        bundle: Bundle,
        repetition: int,
        *,
        provider: Provider = "cpu",
        threads: int = 1,
    ) -> None:
        """Load one repetition.

        Raises:
            InvalidInput: if the bundle has no such repetition.
            BundleError: if the model is corrupt or not one of this bundle's.
            ConfigError: if the provider asked for cannot be had.
        """
        self.repetition = repetition
        self.num_buckets = bundle.manifest.num_buckets
        self.num_features = bundle.manifest.num_features
        name = repetition_file(repetition)
        model = bundle.read_model(repetition)
        self._session, self.provider = open_session(model, name, provider, threads)
        check_model(
            name,
            {node.name for node in self._session.get_inputs()},
            {node.name for node in self._session.get_outputs()},
            self._session.get_modelmeta().custom_metadata_map,
            bundle.manifest,
            repetition,
        )

    def run(self, batch: SparseBatch) -> NDArray[np.float32]:
        """Bucket log-probabilities of a batch: float32 of shape (n, B). Safe to call from threads.

        The caller has checked the batch (:meth:`SparseBatch.check`).
        """
        return self.run_padded(*batch.padded())

    def run_padded(
        self, indices: NDArray[np.int32], values: NDArray[np.float32]
    ) -> NDArray[np.float32]:
        """The same from padded rows, see :meth:`SparseBatch.padded`; shared by repetitions."""
        (output,) = self._session.run(["log_probabilities"], {"indices": indices, "values": values})
        return cast("NDArray[np.float32]", output)

    def warm_up(self, batch_sizes: Sequence[int] = WARM_UP_SIZES) -> None:
        """Run on made-up rows so that the first real query finds memory and kernels ready.

        Raises:
            BundleError: if the model does not run or its answers are no log-probabilities.
        """
        for size in batch_sizes:
            name = repetition_file(self.repetition)
            warm_up(name, self.run_padded, size, (size, self.num_buckets))


def warm_up(
    name: str,
    run: Callable[[NDArray[np.int32], NDArray[np.float32]], NDArray[np.float32]],
    size: int,
    shape: tuple[int, ...],
) -> None:
    """Run ``size`` made-up rows.

    Raises:
        BundleError: if ``name`` does not run, or its answers are no log-probabilities of ``shape``.
    """
    try:
        rows = run(np.zeros((size, 16), np.int32), np.zeros((size, 16), _FLOAT))
    except Exception as error:
        raise BundleError(f"{name} does not run: {error}") from error
    if rows.shape != shape or rows.dtype != _FLOAT:
        raise BundleError(
            f"{name} answers {rows.dtype} of shape {rows.shape}, expected float32 of shape {shape}"
        )
    with np.errstate(all="ignore"):
        if not np.allclose(np.exp(rows).sum(axis=-1), 1, atol=1e-2):
            raise BundleError(f"{name} answers what are no log-probabilities")
