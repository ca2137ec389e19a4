"""An error's text is metadata: it is cut where a peer would refuse the whole answer for it."""

from urllib.parse import quote

import grpc
import grpc.aio
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mach.errors import InvalidInput
from mach.serving import ErrorInterceptor
from mach.serving.interceptors import _cut
from mach.v1 import shard_pb2, shard_pb2_grpc

#: What travels as it is; gRPC writes all else as %XX.
PRINTABLE = "".join(map(chr, range(0x20, 0x7F)))


class Complaining(shard_pb2_grpc.ShardServiceServicer):
    async def Predict(self, request, context):
        raise InvalidInput("texts", request.texts.texts[0])


@pytest.mark.parametrize("text", ["short", "x" * 20_000, "é" * 1500, "名" * 4000, "😀%\n" * 4000])
async def test_a_long_message_does_not_become_another_error(text):
    server = grpc.aio.server(interceptors=[ErrorInterceptor()])
    shard_pb2_grpc.add_ShardServiceServicer_to_server(Complaining(), server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    request = shard_pb2.PredictRequest(texts=shard_pb2.TextBatch(texts=[text]))
    try:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            stub = shard_pb2_grpc.ShardServiceStub(channel)
            for _ in range(10):  # between a soft and a hard limit gRPC refuses some of them
                with pytest.raises(grpc.aio.AioRpcError) as caught:
                    await stub.Predict(request, timeout=5)
                assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
                said = caught.value.details()
                assert said.startswith("texts: ")
                assert said.removesuffix("…") == f"texts: {text}"[: len(said.removesuffix("…"))]
                assert said.endswith("…") == (text != "short")
    finally:
        await server.stop(0)


@given(st.text(max_size=1500))
def test_what_fits_stays_and_what_is_cut_says_so(text):
    cut = _cut(text)
    assert len(quote(cut, safe=PRINTABLE.replace("%", ""))) <= 1000
    if len(quote(text, safe=PRINTABLE.replace("%", ""))) <= 1000:
        assert cut == text
    else:
        assert cut[-1] == "…"
        assert text.startswith(cut[:-1])
        assert len(quote(cut, safe=PRINTABLE.replace("%", ""))) > 1000 - 12
