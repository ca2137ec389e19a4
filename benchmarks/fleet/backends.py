"""Ways to ask a model server for one repetition's bucket log-probabilities of one query."""

from __future__ import annotations

from typing import Any, Protocol

import grpc
import grpc.aio
import numpy as np
from numpy.typing import NDArray

from mach.features import SparseBatch
from mach.v1 import shard_pb2, shard_pb2_grpc
from mach.wire import EncodedRows, decode_rows, sparse_to_proto

__all__ = ["Backend", "MachBackend", "MlServerBackend", "MosecBackend"]

Row = NDArray[np.float32]

#: Compiled by grpcio-tools when a backend is made; found in the directory of the repository.
PROTO = "benchmarks/fleet/peer_servers/open_inference.proto"
_SECONDS = 10.0


class Backend(Protocol):
    """One repetition behind one address."""

    async def predict(self, row: SparseBatch) -> Row:
        """Log-probabilities of one query: float32, shape (B,)."""

    async def close(self) -> None:
        """Close the connection."""


class MachBackend:
    """Our own shard, by a unary call."""

    def __init__(self, address: str, num_buckets: int) -> None:
        self._channel = grpc.aio.insecure_channel(address)
        self._stub = shard_pb2_grpc.ShardServiceStub(self._channel)
        self._num_buckets = num_buckets

    async def predict(self, row: SparseBatch) -> Row:
        request = shard_pb2.PredictRequest(
            features=sparse_to_proto(row), encoding=shard_pb2.ENCODING_UINT8
        )
        response = await self._stub.Predict(request, timeout=_SECONDS)
        (part,) = response.repetitions
        rows = EncodedRows(part.data, part.minimum, part.step)
        return decode_rows(rows, response.encoding, 1, self._num_buckets)[0]

    async def close(self) -> None:
        await self._channel.close()


class MlServerBackend:
    """MLServer, by a unary call of the Open Inference Protocol.

    A query travels as one BYTES tensor: lists of numbers would cost it far more.
    """

    def __init__(self, address: str, num_buckets: int) -> None:
        messages, services = grpc.protos_and_services(PROTO)
        self._request: Any = messages.ModelInferRequest
        self._channel = grpc.aio.insecure_channel(address)
        self._stub = services.GRPCInferenceServiceStub(self._channel)

    async def predict(self, row: SparseBatch) -> Row:
        request = self._request(model_name="repetition")
        tensor = request.inputs.add(name="row", datatype="BYTES", shape=[1])
        tensor.contents.bytes_contents.append(_bytes_of(row))
        response = await self._stub.ModelInfer(request, timeout=_SECONDS)
        return np.frombuffer(response.outputs[0].contents.bytes_contents[0], np.float32)

    async def close(self) -> None:
        await self._channel.close()


class MosecBackend:
    """mosec, by an HTTP request with raw tensors."""

    def __init__(self, address: str, num_buckets: int) -> None:
        self._url = f"http://{address}/inference"
        self._session: Any = None

    async def predict(self, row: SparseBatch) -> Row:
        if self._session is None:  # it belongs to the running event loop
            import aiohttp  # noqa: PLC0415 - no other backend needs it

            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=0), timeout=aiohttp.ClientTimeout(_SECONDS)
            )
        async with self._session.post(self._url, data=_bytes_of(row)) as response:
            response.raise_for_status()
            return np.frombuffer(await response.read(), np.float32)

    async def close(self) -> None:
        if self._session is not None:
            await self._session.close()


def _bytes_of(row: SparseBatch) -> bytes:
    return row.indices.tobytes() + row.values.tobytes()
