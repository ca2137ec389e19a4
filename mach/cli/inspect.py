"""``mach inspect``: show what a bundle is."""

from __future__ import annotations

from pathlib import Path

import typer

from mach.cli.console import out

__all__ = ["register"]


def register(app: typer.Typer) -> None:
    """Add the command."""

    @app.command()
    def inspect(
        bundle: Path = typer.Argument(help="The bundle's directory."),
        verify: bool = typer.Option(True, help="Hash every file and compare."),
        as_json: bool = typer.Option(False, "--json", help="Print the manifest as it is."),
    ) -> None:
        """Show what a bundle holds and check that it is intact."""
        from rich.table import Table
        from rich.text import Text

        from mach.bundle import Bundle

        opened = Bundle.open(bundle)
        if verify:
            opened.verify()
        manifest = opened.manifest
        if as_json:
            out.print_json(manifest.to_json())
            return
        total = sum(entry.size for entry in manifest.files.values())
        facts = Table(show_header=False, box=None, pad_edge=False)
        facts.add_column(no_wrap=True)
        facts.add_column(overflow="fold")
        for name, value in (
            ("bundle", str(bundle)),
            ("version", manifest.version),
            ("created", manifest.created),
            ("products (K)", f"{manifest.num_classes:,}"),
            ("buckets (B)", f"{manifest.num_buckets:,}"),
            ("repetitions (R)", str(manifest.num_repetitions)),
            ("features (F)", f"{manifest.num_features:,}"),
            ("assignment", manifest.assignment),
            ("merge rule", str(opened.merge_rule)),
            ("attributes", ", ".join(opened.catalog.attributes) or "none"),
            ("size", f"{total / 1e6:.1f} MB in {len(manifest.files)} files"),
            ("files", "all match the manifest" if verify else "not verified"),
        ):
            facts.add_row(f"[bold]{name}[/]", Text(value))
        for name, value in manifest.training.items():
            if not isinstance(value, dict | list):
                facts.add_row(Text(f"training: {name}"), Text(str(value)))
        out.print(facts)
