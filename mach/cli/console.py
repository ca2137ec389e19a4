"""Where commands print: results on standard output, everything else on standard error.

What users wrote, such as ids, titles, paths and messages that quote them, is printed as it is:
as a ``Text``, or with ``markup=False``. Rich would read ``[red]`` in it as a colour.
"""

from rich.console import Console

__all__ = ["err", "out"]

out = Console(soft_wrap=True, emoji=False)
err = Console(stderr=True, emoji=False)
