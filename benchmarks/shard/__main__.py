"""``python -m benchmarks.shard BUNDLE``: CPU and latency of one shard, per message and per query.

Starts one shard server of repetition 0 for each way of running inference (on the event loop, on
a worker thread), and sends it messages of 1, 8 and 32 queries over unary calls and over a stream,
in alternating rounds. Beside them: the same batches in ONNX Runtime alone, in this process, and
a batch with one long row, run together and run apart.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import numpy as np

from mach.bundle import Bundle
from mach.features import SparseBatch
from mach.inference import LoadedBundle, RunCost
from mach.v1 import shard_pb2, shard_pb2_grpc
from mach.wire import sparse_to_proto

_TICKS = os.sysconf("SC_CLK_TCK")
_MODES = {
    "event loop": ["--inline-microseconds", "1000000"],
    "thread": ["--inline-microseconds", "0"],
}
_LOADS = [(1, 1), (1, 8), (8, 1), (8, 8), (32, 1), (32, 4)]  # queries a message, in flight


def cpu_seconds(pid: int) -> float:
    """CPU time a process has used."""
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / _TICKS


@contextmanager
def shard(bundle: Path, flags: list[str]) -> Any:
    """(address, pid) of a shard on a free port."""
    with tempfile.TemporaryDirectory() as directory:
        ready = Path(directory) / "ready.json"
        command = [
            sys.executable, "-m", "shard_server", "--bundle", str(bundle), "--repetition", "0",
            "--listen", "127.0.0.1:0", "--ready-file", str(ready), "--log-level", "error", *flags,
        ]  # fmt: skip
        process = subprocess.Popen(command)
        try:
            while not ready.exists():
                if process.poll() is not None:
                    sys.exit("the shard did not start")
                time.sleep(0.05)
            yield json.loads(ready.read_text())["listen"], process.pid
        finally:
            process.terminate()
            process.wait()


def batches(num_features: int, rows: int, nonzeros: int, count: int = 16) -> list[SparseBatch]:
    """Random queries."""
    rng = np.random.default_rng(0)
    return [
        SparseBatch.from_rows(
            (
                rng.integers(0, num_features, nonzeros).astype(np.int32),
                rng.random(nonzeros, np.float32),
            )
            for _ in range(rows)
        )
        for _ in range(count)
    ]


async def unary(stub: Any, requests: list[Any], in_flight: int, messages: int) -> list[float]:
    """Closed loop of unary calls; seconds of each."""
    times: list[float] = []
    left = iter(range(messages))

    async def caller() -> None:
        for number in left:
            start = time.perf_counter()
            await stub.Predict(requests[number % len(requests)], timeout=30)
            times.append(time.perf_counter() - start)

    await asyncio.gather(*(caller() for _ in range(in_flight)))
    return times


async def stream(stub: Any, requests: list[Any], in_flight: int, messages: int) -> list[float]:
    """The same on one stream."""
    call = stub.PredictStream()
    started: dict[int, float] = {}
    times: list[float] = []

    async def send(number: int) -> None:
        started[number] = time.perf_counter()
        await call.write(
            shard_pb2.PredictStreamRequest(id=number, request=requests[number % len(requests)])
        )

    for number in range(in_flight):
        await send(number)
    for number in range(in_flight, messages + in_flight):
        answer = await call.read()
        if answer.code:
            sys.exit(answer.message)
        times.append(time.perf_counter() - started.pop(answer.id))
        if number < messages:
            await send(number)
    await call.done_writing()
    return times


async def measure(address: str, pid: int, requests: dict[int, list[Any]], messages: int) -> Any:
    """{(transport, queries, in flight): (p50 s, server CPU s a message)}."""
    results = {}
    async with grpc.aio.insecure_channel(address) as channel:
        stub = shard_pb2_grpc.ShardServiceStub(channel)
        while True:
            try:
                await stub.DescribeShard(shard_pb2.DescribeShardRequest(), wait_for_ready=True)
                break
            except grpc.aio.AioRpcError:
                await asyncio.sleep(0.05)
        for name, drive in (("unary", unary), ("stream", stream)):
            for queries, in_flight in _LOADS:
                await drive(stub, requests[queries], in_flight, 50)
                before = cpu_seconds(pid)
                times = await drive(stub, requests[queries], in_flight, messages)
                cpu = (cpu_seconds(pid) - before) / messages
                results[name, queries, in_flight] = (statistics.median(times), cpu)
    return results


def median_seconds(call: Any, repeat: int = 200) -> float:
    """Of one call."""
    times = []
    for _ in range(repeat):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--messages", type=int, default=1000)
    parser.add_argument("--nonzeros", type=int, default=12, help="features of a query")
    arguments = parser.parse_args()

    loaded = LoadedBundle.load(Bundle.open(arguments.bundle), [0])
    queries = {rows for rows, _ in _LOADS}
    made = {rows: batches(loaded.num_features, rows, arguments.nonzeros) for rows in queries}
    requests = {
        rows: [shard_pb2.PredictRequest(features=sparse_to_proto(batch)) for batch in some]
        for rows, some in made.items()
    }
    alone = {
        rows: median_seconds(lambda some=some: loaded.run(some[0], [0]))
        for rows, some in made.items()
    }

    rounds: dict[str, list[Any]] = {mode: [] for mode in _MODES}
    for _ in range(arguments.rounds):
        for mode, flags in _MODES.items():
            with shard(arguments.bundle, flags) as (address, pid):
                rounds[mode].append(
                    asyncio.run(measure(address, pid, requests, arguments.messages))
                )
    print(f"{'inference on':12} {'over':7} {'queries':>7} {'in flight':>9} {'p50 ms':>8} "
          f"{'CPU µs/message':>15} {'CPU µs/query':>13} {'ONNX Runtime µs':>16}")  # fmt: skip
    for mode, results in rounds.items():
        for key in results[0]:
            name, rows, in_flight = key
            p50 = statistics.median(result[key][0] for result in results)
            cpu = statistics.median(result[key][1] for result in results)
            print(f"{mode:12} {name:7} {rows:7} {in_flight:9} {p50 * 1e3:8.2f} {cpu * 1e6:15.0f} "
                  f"{cpu / rows * 1e6:13.0f} {alone[rows] * 1e6:16.0f}")  # fmt: skip

    rng = np.random.default_rng(0)
    lengths = [arguments.nonzeros] * 63 + [1000]
    mixed = SparseBatch.from_rows(
        (rng.integers(0, loaded.num_features, n).astype(np.int32), rng.random(n, np.float32))
        for n in lengths
    )
    short = mixed.rows(0, 63)
    apart = median_seconds(lambda: loaded.run(mixed, [0]), 30)
    without = median_seconds(lambda: loaded.run(short, [0]), 30)
    loaded.cost = RunCost(1e9, 0, 0)  # nothing is worth running apart
    loaded._max_entries = 1 << 40
    together = median_seconds(lambda: loaded.run(mixed, [0]), 30)
    print(f"\n63 queries of {arguments.nonzeros} features {without * 1e3:.2f} ms; with one of 1000 "
          f"{apart * 1e3:.2f} ms run apart, {together * 1e3:.2f} ms padded together")  # fmt: skip


if __name__ == "__main__":
    main()
