"""The client for threads."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from types import TracebackType
from typing import Any

import grpc

from mach.client.calls import (
    Query,
    channel_options,
    check_timeout,
    make_metadata,
    make_options,
    make_queries,
    make_query,
)
from mach.client.connection import Connection, TokenSource, token_metadata
from mach.client.results import (
    FleetDescription,
    SearchResult,
    read_batch,
    read_description,
    read_response,
)
from mach.client.retries import Attempts, Retries
from mach.client.tracing import traced
from mach.tls import Tls
from mach.v1 import search_pb2

__all__ = ["MachClient"]


class MachClient:
    """A connection to a fleet's aggregator; safe to share between threads.

    It connects when it is first used. Close it, or use it as a context manager.
    """

    def __init__(
        self,
        address: str,
        *,
        timeout: float = 1.0,
        max_attempts: int = 1,
        max_message_bytes: int = 64 << 20,
        tls: Tls | grpc.ChannelCredentials | None = None,
        token: TokenSource | None = None,
    ) -> None:
        """Nothing is sent yet.

        Args:
            address: HOST:PORT of the aggregator, or a gRPC target such as
                ``dns:///aggregator:50050``, whose addresses are used in turn.
            timeout: seconds a call may take, where it does not say.
            max_attempts: how often a call is tried that found the fleet unavailable or
                overloaded, within its timeout: 1 to 5. A refusal's ``retry_after_ms`` is waited
                for, and where that would take too long the refusal is raised at once.
            max_message_bytes: the largest answer accepted; a larger one is ``InvalidInput``.
            tls: certificates (``Tls()`` for a server with a public one), or credentials made
                elsewhere; plain text where not given. Files that change are taken up within
                seconds, on a connection made beside the one in use.
            token: a bearer token, or a function that gives the one to use now.

        Raises:
            InvalidInput: if an argument is out of range.
            ConfigError: if a certificate file cannot be used.
        """
        options = channel_options(max_attempts, max_message_bytes)
        self._metadata = token_metadata(token)
        self._connection = _SyncConnection(address, tls, options)
        self._timeout = check_timeout(timeout)
        self._retries = Retries(max_attempts)

    def search(
        self,
        query: Query,
        k: int = 10,
        *,
        minimum_repetitions: int = 0,
        attributes: bool = False,
        explain: bool = False,
        bundle_version: str = "",
        filter: str = "",
        allowed: Sequence[str] = (),
        blocked: Sequence[str] = (),
        timeout: float | None = None,
        request_id: str = "",
    ) -> SearchResult:
        """The best products for one query.

        Args:
            query: text, or one row of features made with the bundle's featurizer.
            k: how many products.
            minimum_repetitions: repetitions the answer must rest on; 0 for the server's choice.
            attributes: return the catalog's attributes of each product.
            explain: return each product's score in every repetition.
            bundle_version: accept an answer of this version only.
            filter: keep products that meet this, such as ``category = "drills" AND price < 50``.
            allowed: keep only these product ids; none for all.
            blocked: never return these product ids.
            timeout: seconds this call may take; the client's where not given.
            request_id: by which the servers' logs name this call; theirs where not given.

        Raises:
            InvalidInput: an argument is wrong; the message names it.
            VersionNotFound: the bundle version is not served.
            VersionMismatch: the shards hold another bundle version.
            Unavailable: the fleet cannot be reached, or too few repetitions answered.
            Overloaded: the fleet is at its limit; see ``retry_after_ms``.
            DeadlineExceeded: the timeout passed.
            Unauthenticated: the fleet asks for a token, and this is none it knows.
            PermissionDenied: the token is not for searches.
        """
        request = search_pb2.SearchRequest(
            query=make_query(query),
            options=make_options(
                k,
                minimum_repetitions,
                attributes,
                explain,
                bundle_version,
                filter,
                allowed,
                blocked,
            ),
        )
        metadata = [*make_metadata(request_id), *(self._metadata() or ())]
        with traced("Search", metadata):
            response = self._call("Search", request, timeout, tuple(metadata))
        return read_response(response)

    def search_batch(
        self,
        queries: Iterable[Query],
        k: int = 10,
        *,
        minimum_repetitions: int = 0,
        attributes: bool = False,
        explain: bool = False,
        bundle_version: str = "",
        filter: str = "",
        allowed: Sequence[str] = (),
        blocked: Sequence[str] = (),
        timeout: float | None = None,
        request_id: str = "",
    ) -> list[SearchResult]:
        """The best products for each of several queries; all succeed or the call fails.

        Arguments and errors are those of :meth:`search`.
        """
        request = search_pb2.SearchBatchRequest(
            queries=make_queries(queries),
            options=make_options(
                k,
                minimum_repetitions,
                attributes,
                explain,
                bundle_version,
                filter,
                allowed,
                blocked,
            ),
        )
        metadata = [*make_metadata(request_id), *(self._metadata() or ())]
        with traced("SearchBatch", metadata):
            response = self._call("SearchBatch", request, timeout, tuple(metadata))
        return read_batch(response)

    def describe(self, *, timeout: float | None = None) -> FleetDescription:
        """What the fleet serves, and the state of its shards.

        Raises:
            Unavailable: the fleet cannot be reached.
            DeadlineExceeded: the timeout passed.
        """
        request = search_pb2.DescribeFleetRequest()
        response = self._call("DescribeFleet", request, timeout, self._metadata())
        return read_description(response)

    def _call(
        self,
        method: str,
        request: Any,
        timeout: float | None,
        metadata: tuple[tuple[str, str], ...] | None,
    ) -> Any:
        seconds = self._timeout if timeout is None else check_timeout(timeout)
        attempts = Attempts(self._retries, seconds)
        while True:
            try:
                with self._connection.use() as stub:
                    call = getattr(stub, method)
                    answer = call(request, timeout=attempts.seconds, metadata=metadata)
            except grpc.RpcError as error:
                pause = attempts.pause(error)
            else:
                attempts.answered()
                return answer
            time.sleep(pause)

    def close(self) -> None:
        """Close the connection; calls in flight, and later ones, raise ``Unavailable``."""
        self._connection.close()

    def __enter__(self) -> MachClient:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


class _SyncConnection(Connection[grpc.Channel]):
    def _make(self, address: str, credentials: grpc.ChannelCredentials | None) -> grpc.Channel:
        if credentials is None:
            return grpc.insecure_channel(address, self._options)
        return grpc.secure_channel(address, credentials, self._options)

    def _close(self, channel: grpc.Channel) -> None:
        channel.close()

    def _when_connected(self, channel: grpc.Channel, then: Callable[[], None]) -> None:
        def changed(state: grpc.ChannelConnectivity) -> None:
            if state is grpc.ChannelConnectivity.READY:
                channel.unsubscribe(changed)
                then()

        channel.subscribe(changed, try_to_connect=True)

    def close(self) -> None:
        for channel in self._open_channels():
            channel.close()
