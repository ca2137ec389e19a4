"""The command line of training, made from the fields of :class:`TrainSettings`.

``mach train`` and ``python -m trainer`` are the same command; every option can also be set by
an environment variable ``MACH_TRAIN_…``. No import here needs PyTorch.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from mach.cli.numbers import finite
from mach.errors import InvalidInput
from trainer.memory import clear_shortage
from trainer.settings import TrainSettings

__all__ = ["make_command"]

_PREFIX = "MACH_TRAIN_"
_FEATURES = (
    "word_ngrams", "char_ngrams_min", "char_ngrams_max", "affix_lengths", "transliterate",
    "hash_bits", "min_count", "max_features", "min_subword_count", "max_subwords",
)  # fmt: skip
_DATA = (
    "catalog_titles", "title_weight", "weight_power", "validation_fraction", "validation_max",
    "max_skipped", "max_unknown",
)  # fmt: skip
#: Tuples, written with commas: what their items are, and an example.
_LISTS: dict[str, tuple[type[int] | type[float], str]] = {
    "merge_exponents": (float, "0,0.5,1"),
    "affix_lengths": (int, "5,7"),
}
_RUN = (
    "seed", "device", "engine", "group", "precision", "executor", "threads", "workers",
    "checkpoint_seconds",
)  # fmt: skip


def _panel(name: str) -> str:
    if name in _FEATURES:
        return "Features"
    if name in _DATA:
        return "Data"
    return "Run" if name in _RUN else "Model"


def _parameter(name: str, field: FieldInfo) -> inspect.Parameter:
    default = field.default
    annotation: Any = field.annotation
    if name in _LISTS:
        default, annotation = ",".join(f"{t:g}" for t in default), str
    elif annotation not in (int, float, bool, str):
        plain = {type(None)}
        kinds = [kind for kind in getattr(annotation, "__args__", ()) if kind not in plain]
        annotation = kinds[0] if len(kinds) == 1 and kinds[0] in (int, float) else str
        annotation = annotation | None if default is None else annotation
    assert default is not PydanticUndefined, name
    choices = _choices(field)
    option = typer.Option(
        f"--{name.replace('_', '-')}"
        + (f"/--no-{name.replace('_', '-')}" if annotation is bool else ""),
        envvar=_PREFIX + name.upper(),
        help=f"{field.description}{choices}",
        rich_help_panel=_panel(name),
        show_default=default is not None,
    )
    return inspect.Parameter(
        name,
        inspect.Parameter.KEYWORD_ONLY,
        default=default,
        annotation=Annotated[annotation, option],
    )


def _choices(field: FieldInfo) -> str:
    values = getattr(field.annotation, "__args__", ())
    texts = [value for value in values if isinstance(value, str)]
    return f" One of {', '.join(texts)}." if texts else ""


_INTERACTIONS = Annotated[
    list[Path],
    typer.Argument(help="Files of interactions: Parquet, CSV, TSV or JSON Lines."),
]
_OUT = Annotated[
    Path, typer.Option(envvar=_PREFIX + "OUT", help="Where the bundle goes; must not exist.")
]
_CATALOG = Annotated[
    Path | None,
    typer.Option(
        envvar=_PREFIX + "CATALOG",
        help="File of products; without it, the products of the interactions.",
    ),
]
_REPETITION = Annotated[
    int | None,
    typer.Option(
        envvar=[_PREFIX + "REPETITION", "JOB_COMPLETION_INDEX"],
        help="Train only this repetition, into the work directory.",
    ),
]
_PREPARE = Annotated[bool, typer.Option("--prepare", help="Only read and featurize the data.")]
_COLLECT = Annotated[
    bool, typer.Option("--collect", help="Only assemble the bundle from finished repetitions.")
]
_WAIT = Annotated[
    float,
    typer.Option(
        envvar=_PREFIX + "WAIT",
        min=0,
        callback=finite,
        help="With --repetition or --collect: seconds to wait for what other machines do first, "
        "the prepared data or the repetitions.",
    ),
]
_QUIET = Annotated[bool, typer.Option("--quiet", "-q", help="Print errors only.")]


def make_command(*, parts: bool) -> Callable[..., None]:
    """The function behind the command, with a signature that typer can read.

    Args:
        parts: whether single parts of a run can be asked for, as a container does.
    """

    def command(
        interactions: list[Path],
        out: Path,
        catalog: Path | None,
        quiet: bool,
        repetition: int | None = None,
        prepare: bool = False,
        collect: bool = False,
        wait: float = 0.0,
        **options: Any,
    ) -> None:
        """Train a bundle from interactions.

        Interactions have a column query and product_id or product_ids (a list), and perhaps
        weight. A run that was interrupted continues when the same command is given again.
        """
        job_settings = _settings(options)
        from trainer.progress import Reporter  # noqa: PLC0415
        from trainer.run import Job, collect_bundle, prepare_data, train, train_one  # noqa: PLC0415

        job = Job(interactions, catalog, Path(out), job_settings)
        reporter = Reporter(quiet=quiet)
        if prepare + collect + (repetition is not None) > 1:
            raise InvalidInput("--prepare", "goes alone, as do --repetition and --collect")
        with clear_shortage():
            if prepare:
                prepare_data(job, reporter)
            elif collect:
                collect_bundle(job, reporter, wait=wait)
            elif repetition is not None:
                train_one(job, repetition, reporter, wait=wait)
            else:
                train(job, reporter)

    kind = inspect.Parameter.KEYWORD_ONLY
    fixed = [
        inspect.Parameter("interactions", kind, annotation=_INTERACTIONS),
        inspect.Parameter("out", kind, annotation=_OUT),
        inspect.Parameter("catalog", kind, annotation=_CATALOG, default=None),
        inspect.Parameter("quiet", kind, annotation=_QUIET, default=False),
    ]
    if parts:
        fixed += [
            inspect.Parameter("repetition", kind, annotation=_REPETITION, default=None),
            inspect.Parameter("prepare", kind, annotation=_PREPARE, default=False),
            inspect.Parameter("collect", kind, annotation=_COLLECT, default=False),
            inspect.Parameter("wait", kind, annotation=_WAIT, default=0.0),
        ]
    fields = [_parameter(name, field) for name, field in TrainSettings.model_fields.items()]
    signature = inspect.Signature([*fixed, *fields])
    command.__signature__ = signature  # type: ignore[attr-defined]
    command.__annotations__ = {p.name: p.annotation for p in signature.parameters.values()}
    return command


def _settings(options: dict[str, Any]) -> TrainSettings:
    for name, (kind, example) in _LISTS.items():
        text = options[name]
        try:
            options[name] = tuple(kind(part) for part in text.split(",") if part.strip())
        except ValueError:
            raise InvalidInput(name, f"{text!r} is no list such as {example}") from None
    return TrainSettings.create(**options)
