"""Asking a fleet for products, from threads or from asyncio.

>>> from mach.client import MachClient
>>> with MachClient("127.0.0.1:50050") as client:  # doctest: +SKIP
...     for product in client.search("cordless drill", k=3).products:
...         print(product.product_id, product.score)

Errors are those of :mod:`mach.errors`: ``InvalidInput`` names the argument at fault,
``Overloaded`` says in ``retry_after_ms`` when to come back, ``Unavailable`` and
``DeadlineExceeded`` pass. ``tls=Tls(ca="ca.pem")`` encrypts and ``token=`` says who calls. This
package loads neither a model nor a compiler.
"""

from mach.client.asyncio_client import AsyncMachClient
from mach.client.results import (
    Coverage,
    FleetDescription,
    Product,
    RepetitionScore,
    SearchResult,
    ShardState,
    Timings,
)
from mach.client.sync_client import MachClient
from mach.tls import Tls

__all__ = [
    "AsyncMachClient",
    "Coverage",
    "FleetDescription",
    "MachClient",
    "Product",
    "RepetitionScore",
    "SearchResult",
    "ShardState",
    "Timings",
    "Tls",
]
