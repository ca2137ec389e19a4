"""A backend that searches a fleet: GET /search?q=cordless+drill&k=5 answers with JSON.

    python examples/storefront/backend.py --fleet 127.0.0.1:50050 --listen 127.0.0.1:8080

It shows what a caller of the fleet decides: how long a page may wait, what it tells its own
callers when the fleet is overloaded or down, and when an answer is too thin to be cached.
"""

from __future__ import annotations

import argparse
import json
import signal
import threading
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit

from mach.client import MachClient
from mach.errors import DeadlineExceeded, MachError, Overloaded, UserError

#: Below this coverage the page is shown, but nobody keeps it.
CACHEABLE_COVERAGE = 0.75


def status_of(error: MachError) -> HTTPStatus:
    """What the visitor's browser is told."""
    if isinstance(error, UserError):
        return HTTPStatus.BAD_REQUEST
    if isinstance(error, Overloaded):
        return HTTPStatus.TOO_MANY_REQUESTS
    if isinstance(error, DeadlineExceeded):
        return HTTPStatus.GATEWAY_TIMEOUT
    return HTTPStatus.SERVICE_UNAVAILABLE


class Handler(BaseHTTPRequestHandler):
    """One HTTP request; ``fleet`` is set by :func:`make_server` and shared by all threads."""

    fleet: MachClient

    def do_GET(self) -> None:
        url = urlsplit(self.path)
        if url.path != "/search":
            self.answer(HTTPStatus.NOT_FOUND, {"error": "try /search?q=…"})
            return
        wanted = parse_qs(url.query)
        try:
            result = self.fleet.search(
                wanted.get("q", [""])[0],
                k=int(wanted.get("k", ["10"])[0]),
                filter=wanted.get("filter", [""])[0],
                attributes=True,
            )
        except ValueError:
            self.answer(HTTPStatus.BAD_REQUEST, {"error": "k must be a whole number"})
        except MachError as error:
            self.answer(status_of(error), {"error": str(error)})
        else:
            products = [
                {**product.attributes, "id": product.product_id, "score": product.score}
                for product in result.products
            ]
            share = result.coverage.answered / result.coverage.total
            self.answer(HTTPStatus.OK, {"products": products}, share >= CACHEABLE_COVERAGE)

    def answer(self, status: HTTPStatus, body: object, cacheable: bool = False) -> None:
        data = json.dumps(body, ensure_ascii=False).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json; charset=utf-8")
        self.send_header("Content-Length", str(len(data)))
        self.send_header("Cache-Control", "max-age=60" if cacheable else "no-store")
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing: what visitors search for is theirs."""


def make_server(fleet: MachClient, host: str, port: int) -> ThreadingHTTPServer:
    """A server that searches ``fleet``; port 0 takes a free one."""
    handler = type("BoundHandler", (Handler,), {"fleet": fleet})
    return ThreadingHTTPServer((host, port), handler)


def main() -> None:
    parser = argparse.ArgumentParser(description="A storefront's search backend.")
    parser.add_argument("--fleet", default="127.0.0.1:50050", help="HOST:PORT of the aggregator")
    parser.add_argument("--listen", default="127.0.0.1:8080", help="HOST:PORT to serve HTTP on")
    parser.add_argument("--timeout", type=float, default=0.2, help="seconds a search may take")
    arguments = parser.parse_args()
    host, _, port = arguments.listen.rpartition(":")
    with (
        MachClient(arguments.fleet, timeout=arguments.timeout) as fleet,
        make_server(fleet, host, int(port)) as server,
    ):
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda *_: threading.Thread(target=server.shutdown).start())
        print(f"http://{arguments.listen}/search?q=…", flush=True)
        server.serve_forever()


if __name__ == "__main__":
    main()
