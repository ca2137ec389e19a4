"""A shard over real gRPC that answers as it is told: rightly, late, with nonsense, or not at all.

It runs in threads of the test, so a test changes its behaviour by setting an attribute, while an
aggregator in a process of its own talks to it. Threads, and not asyncio: a process can have only
one event loop with gRPC on it, and that is the test's.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import Any

import grpc
from google.protobuf.message import DecodeError

from mach.errors import MachError, status_of
from mach.inference import LoadedBundle
from mach.v1 import shard_pb2
from mach.wire import encode_rows, sparse_from_proto

Request = shard_pb2.PredictStreamRequest
Answer = shard_pb2.PredictStreamResponse
Description = shard_pb2.DescribeShardResponse


class FakeShard:
    """What one fake does; :meth:`behave` puts it right again.

    Attributes:
        delay: seconds before an answer; None for never.
        spoil: changes an answer before it is sent.
        replace: what is sent instead of an answer: any bytes, any number of times.
        fail: ends the stream with this status instead of answering.
        describe: changes the description before it is sent.
        describe_as: sent instead of the description, whatever bytes.
        asked: requests received.
        cancelled: requests taken back by the caller.
        streams: streams open now.
    """

    def __init__(self, loaded: LoadedBundle) -> None:
        self.asked = 0
        self.cancelled = 0
        self.streams = 0
        self._loaded = loaded
        self._server = grpc.server(
            ThreadPoolExecutor(16, thread_name_prefix="fake shard"),
            options=[("grpc.max_send_message_length", -1), ("grpc.so_reuseport", 0)],
        )
        handlers = {
            "DescribeShard": grpc.unary_unary_rpc_method_handler(
                self._describe,
                shard_pb2.DescribeShardRequest.FromString,
                None,
            ),
            # No serializers: what is sent need not be a message.
            "PredictStream": grpc.stream_stream_rpc_method_handler(
                self._stream, Request.FromString, None
            ),
            "Predict": grpc.unary_unary_rpc_method_handler(
                self._predict, shard_pb2.PredictRequest.FromString, None
            ),
        }
        self._server.add_generic_rpc_handlers(
            (grpc.method_handlers_generic_handler("mach.v1.ShardService", handlers),)
        )
        self.address = f"127.0.0.1:{self._server.add_insecure_port('127.0.0.1:0')}"
        self.behave()

    def behave(self) -> None:
        """Answer rightly and at once from now on."""
        self.delay: float | None = 0.0
        self.spoil: Callable[[Answer], None] | None = None
        self.replace: Callable[[Request, Answer], list[bytes]] | None = None
        self.fail: grpc.StatusCode | None = None
        self.describe: Callable[[Description], None] | None = None
        self.describe_as: bytes | None = None

    def __enter__(self) -> FakeShard:
        self._server.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._server.stop(0).wait(10)

    def _describe(self, request: Any, context: Any) -> bytes:
        loaded = self._loaded
        description = Description(
            bundle_version=loaded.version,
            bundle_versions=[loaded.version],
            repetitions=loaded.repetitions,
            num_buckets=loaded.num_buckets,
            num_features=loaded.num_features,
            provider="cpu",
            max_batch_size=256,
        )
        if self.describe is not None:
            self.describe(description)
        return description.SerializeToString() if self.describe_as is None else self.describe_as

    def _predict(self, request: shard_pb2.PredictRequest, context: Any) -> bytes:
        """The same script for unary calls: the response of the first message that it sends."""
        self.asked += 1
        if self.delay:
            context_ended = threading.Event()
            context.add_callback(context_ended.set)
            context_ended.wait(self.delay)
        (message, *_) = self._messages(Request(id=1, request=request))
        try:
            return Answer.FromString(message).response.SerializeToString()
        except DecodeError:
            return message

    def _stream(self, requests: Iterator[Request], context: Any) -> Iterator[bytes]:
        answers: queue.SimpleQueue[list[bytes] | None] = queue.SimpleQueue()
        failures: list[grpc.StatusCode] = []

        def read() -> None:
            try:
                for request in requests:
                    if request.cancel:
                        self.cancelled += 1
                        continue
                    self.asked += 1
                    if self.fail is not None:
                        failures.append(self.fail)
                        return
                    messages, delay = self._messages(request), self.delay
                    if delay:
                        timer = threading.Timer(delay, answers.put, (messages,))
                        timer.daemon = True
                        timer.start()
                    elif delay is not None:
                        answers.put(messages)
            except grpc.RpcError:
                pass  # the caller has gone
            finally:
                answers.put(None)

        self.streams += 1
        try:
            threading.Thread(target=read, daemon=True).start()
            while (messages := answers.get()) is not None:
                yield from messages
            if failures:
                context.abort(failures[0], "as the test wants it")
        finally:
            self.streams -= 1

    def _messages(self, request: Request) -> list[bytes]:
        answer = self._answer(request)
        if self.spoil is not None:
            self.spoil(answer)
        if self.replace is not None:
            return self.replace(request, answer)
        return [answer.SerializeToString()]

    def _answer(self, request: Request) -> Answer:
        asked, loaded = request.request, self._loaded
        answer = Answer(id=request.id)
        try:
            features = sparse_from_proto(asked.features, loaded.num_features)
            rows = loaded.run(features, loaded.select(asked.repetitions))
        except MachError as error:
            answer.code, answer.message = status_of(error).value[0], str(error)
            return answer
        response = answer.response
        response.bundle_version = loaded.version
        response.num_queries = len(features)
        response.num_buckets = loaded.num_buckets
        response.encoding = asked.encoding
        for repetition, values in rows.items():
            encoded = encode_rows(values, asked.encoding)
            response.repetitions.add(
                repetition=repetition,
                data=encoded.data,
                minimum=encoded.minimum,
                step=encoded.step,
            )
        return answer
