"""``mach bundle``: copy bundles to and from stores, and change a fleet to another."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from mach.cli import bundle_switch
from mach.cli.console import err, out

if TYPE_CHECKING:
    from mach.bundle import Manifest
    from mach.store.transfer import Progress

__all__ = ["register"]


class _Role(StrEnum):
    all = "all"
    shard = "shard"
    aggregator = "aggregator"


@contextmanager
def _progress_bar(title: str) -> Iterator[Progress]:
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    state: dict[str, tuple[int, int]] = {}
    with Progress(*columns, console=err, transient=True) as bars:
        task = bars.add_task(title, total=None)

        def progress(name: str, done: int, total: int) -> None:
            state[name] = (done, total)
            sums = [sum(part) for part in zip(*tuple(state.values()), strict=True)]
            bars.update(task, completed=sums[0], total=sums[1])

        yield progress


def _parse_repetitions(value: str | None) -> list[int] | None:
    from mach.errors import InvalidInput

    if value is None:
        return None
    try:
        return [int(part) for part in value.split(",")]
    except ValueError:
        raise InvalidInput("repetition", f"{value!r} is not a list such as 0,1,2") from None


def register(app: typer.Typer) -> None:
    """Add the commands."""
    bundle_app = typer.Typer(
        help="Publish and fetch bundles, change a fleet to another.", no_args_is_help=True
    )
    app.add_typer(bundle_app, name="bundle")
    bundle_switch.register(bundle_app)

    @bundle_app.command()
    def push(
        bundle: Path = typer.Argument(help="The bundle's directory."),
        store: str = typer.Argument(help="Path or URL (s3://, gs://, file://) of the store."),
    ) -> None:
        """Publish a bundle as STORE/VERSION and print where it is.

        The manifest goes last, so a bundle that has one is complete. What is there already is
        read and hashed: what is intact is not sent again, the rest is replaced.
        """
        from mach.bundle import Bundle
        from mach.store import push as push_bundle

        with _progress_bar("push") as progress:
            location = push_bundle(Bundle.open(bundle), store, progress=progress)
        out.print(location, markup=False, highlight=False)

    @bundle_app.command()
    def fetch(
        location: str = typer.Argument(help="Path or URL of the bundle: where its manifest is."),
        cache: Path = typer.Argument(help="Directory that keeps bundles by version."),
        version: str | None = typer.Option(
            None,
            help="The version expected. If the cache has it whole, nothing is asked of LOCATION.",
        ),
        role: _Role = typer.Option(_Role.all, help="Fetch only what such a server reads."),
        repetition: str | None = typer.Option(
            None, help="With --role shard: the repetitions it holds, such as 0,1; all by default."
        ),
        expect_repetitions: int | None = typer.Option(
            None, help="Fail if the bundle has another number of repetitions."
        ),
        link: Path | None = typer.Option(None, help="Make this path a link to the bundle."),
    ) -> None:
        """Copy a bundle to CACHE/VERSION, verified, and print that path.

        Files that are there and intact are not fetched again.
        """
        from mach.bundle import files_for
        from mach.errors import BundleError
        from mach.store import fetch as fetch_bundle
        from mach.store import link as link_bundle

        repetitions = _parse_repetitions(repetition)

        def files(manifest: Manifest) -> list[str]:
            if expect_repetitions not in (None, manifest.num_repetitions):
                raise BundleError(
                    f"{location} has {manifest.num_repetitions} repetitions, "
                    f"not {expect_repetitions}"
                )
            return files_for(manifest, role.value, repetitions)

        with _progress_bar("fetch") as progress:
            path = fetch_bundle(location, cache, version=version, files=files, progress=progress)
        if link is not None:
            link_bundle(path, link)
        out.print(str(path), markup=False, highlight=False)
