"""``mach search``: ask a running fleet, or a bundle in this process."""

from __future__ import annotations

import json
import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from mach.cli.connection import (
    TlsCaOption,
    TlsCertificateOption,
    TlsKeyOption,
    TlsOption,
    TlsServerNameOption,
    TokenFileOption,
    make_tls,
    read_token,
)
from mach.cli.console import err, out
from mach.cli.numbers import finite

if TYPE_CHECKING:
    from rich.table import Table

    from aggregator.requests import SearchOptions
    from mach.tls import Tls

__all__ = ["Found", "found_table", "register", "search_bundle", "search_fleet"]

_DEFAULT_ADDRESS = "127.0.0.1:50050"


@dataclass(frozen=True)
class Found:
    """An answer from either place."""

    products: Sequence[Mapping[str, Any]]
    answered: int
    total: int
    missing: Mapping[int, str]
    bundle_version: str

    def to_json(self) -> dict[str, Any]:
        """What ``--json`` prints."""
        return {
            "products": list(self.products),
            "coverage": {
                "answered": self.answered,
                "total": self.total,
                "missing": {str(repetition): why for repetition, why in self.missing.items()},
            },
            "bundle_version": self.bundle_version,
        }


def _product(
    product_id: str,
    score: float,
    attributes: Mapping[str, Any],
    parts: Sequence[tuple[int, int, float]],
) -> dict[str, Any]:
    product: dict[str, Any] = {"product_id": product_id, "score": score}
    if attributes:
        product["attributes"] = dict(attributes)
    if parts:
        product["explanation"] = [
            {"repetition": repetition, "bucket": bucket, "log_probability": log_probability}
            for repetition, bucket, log_probability in parts
        ]
    return product


def search_fleet(
    address: str,
    text: str,
    options: SearchOptions,
    timeout: float,
    *,
    tls: Tls | None = None,
    token: str | None = None,
) -> Found:
    """Ask the aggregator at ``address``."""
    from mach.client import MachClient
    from mach.errors import ConfigError, Unavailable

    try:
        with MachClient(address, timeout=timeout, tls=tls, token=token) as client:
            result = client.search(
                text,
                options.k,
                attributes=options.include_attributes,
                explain=options.explain,
                filter=options.filter,
                allowed=options.allowed_product_ids,
                blocked=options.blocked_product_ids,
            )
    except Unavailable as error:
        if _listens(address):
            raise
        raise ConfigError(f"--address: no fleet answers at {address}") from error
    products = [
        _product(
            product.product_id,
            product.score,
            product.attributes,
            [(p.repetition, p.bucket, p.log_probability) for p in product.explanation],
        )
        for product in result.products
    ]
    coverage = result.coverage
    return Found(
        products, coverage.answered, coverage.total, coverage.missing, result.bundle_version
    )


def _listens(address: str) -> bool:
    if address.startswith("unix:"):
        return Path(address.removeprefix("unix:")).exists()
    host, _, port = address.removeprefix("dns:///").rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=1).close()
    except (OSError, ValueError):
        return False
    return True


def search_bundle(bundle: Path, text: str, options: SearchOptions) -> Found:
    """Answer from the bundle in this process, with the code of the servers."""
    from aggregator.local import LocalSearcher
    from aggregator.replies import plain
    from mach.bundle import Bundle

    answer = LocalSearcher(Bundle.open(bundle)).search([text], options)
    result = answer.results[0]
    nothing: list[Any] = [()] * len(result.product_ids)
    products = [
        _product(*parts)
        for parts in zip(
            result.product_ids,
            result.scores,
            [plain(attributes) for attributes in result.attributes or nothing],
            result.explanations or nothing,
            strict=True,
        )
    ]
    coverage = result.coverage
    missing = {repetition: why.name.lower() for repetition, why in coverage.missing.items()}
    return Found(products, coverage.answered, coverage.total, missing, answer.bundle_version)


def found_table(found: Found) -> Table:
    """Products with their scores and titles."""
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False)
    table.add_column("score", justify="right")
    table.add_column("product")
    table.add_column("title")
    for product in found.products:
        attributes = dict(product.get("attributes", {}))
        title = str(attributes.pop("title", ""))
        rest = ", ".join(f"{name}={value}" for name, value in attributes.items())
        texts = (product["product_id"], title, rest)
        table.add_row(f"{product['score']:.3f}", *map(Text, texts))
        for part in product.get("explanation", ()):
            table.add_row(
                f"{part['log_probability']:.3f}",
                f"  repetition {part['repetition']}",
                f"bucket {part['bucket']}",
            )
    return table


def register(app: typer.Typer) -> None:
    """Add the command."""

    @app.command()
    def search(
        query: str = typer.Argument(help="What to search for."),
        address: str = typer.Option(None, help=f"HOST:PORT of a fleet. [{_DEFAULT_ADDRESS}]"),
        bundle: Path = typer.Option(None, help="Search this bundle in process, with no servers."),
        k: int = typer.Option(10, "-k", help="How many products."),
        filter: str = typer.Option("", help='Such as: category = "drills" AND price < 50'),
        allow: list[str] = typer.Option([], help="Only this product id; repeatable."),
        block: list[str] = typer.Option([], help="Never this product id; repeatable."),
        attributes: bool = typer.Option(True, help="Show the catalog's attributes."),
        explain: bool = typer.Option(False, help="Show every repetition's part of a score."),
        timeout: float = typer.Option(
            2.0, min=0.001, callback=finite, help="Seconds to wait for a fleet."
        ),
        as_json: bool = typer.Option(False, "--json", help="Print an object."),
        tls: TlsOption = False,
        tls_ca: TlsCaOption = None,
        tls_certificate: TlsCertificateOption = None,
        tls_key: TlsKeyOption = None,
        tls_server_name: TlsServerNameOption = "",
        token_file: TokenFileOption = None,
    ) -> None:
        """Print the products found for a query, best first.

        A score is the logarithm of the merged probability: 0 is certain.
        """
        from aggregator.requests import SearchOptions
        from mach.errors import InvalidInput

        if address is not None and bundle is not None:
            raise InvalidInput("--bundle", "give either --bundle or --address")
        options = SearchOptions(
            k=k,
            include_attributes=attributes,
            explain=explain,
            filter=filter,
            allowed_product_ids=tuple(allow),
            blocked_product_ids=tuple(block),
        )
        if bundle is not None:
            found = search_bundle(bundle, query, options)
        else:
            found = search_fleet(
                address or _DEFAULT_ADDRESS,
                query,
                options,
                timeout,
                tls=make_tls(tls, tls_ca, tls_certificate, tls_key, tls_server_name),
                token=read_token(token_file),
            )
        if as_json:
            out.print_json(json.dumps(found.to_json(), ensure_ascii=False))
            return
        if found.products:
            out.print(found_table(found))
        else:
            err.print("nothing found: the model knows no word of the query, or the filter is empty")
        if found.answered < found.total:
            missing = ", ".join(f"{number} {why}" for number, why in sorted(found.missing.items()))
            answered = f"{found.answered} of {found.total} repetitions answered"
            err.print(f"[yellow]only {answered}; missing: {missing}[/]")
