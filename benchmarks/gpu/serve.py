"""A shard's classifiers on a GPU, six ways, against what reading and multiplying must take.

    python -m benchmarks.gpu.serve [--smoke] [--quantization Q] [--loss L]

R = 32 repetitions of 80,000 features x 2,000 hidden units x 20,000 buckets (6.4 billion numbers),
random weights, queries of 32 features, batches of 1 and 64. Timed is a call from padded features on
the host to the answer on the host. Writes results/gpu-serve.json; about six minutes.

Needs torch, onnx and onnxruntime-gpu. What cannot run is left out and says why.
"""

from __future__ import annotations

from benchmarks.gpu.device import choose_device, measure_limits, needed, parser, write_result


def main() -> None:
    options = parser(__doc__, "serve")
    options.add_argument("--quantization", choices=["none", "fp16", "int8", "int4"], default="int4")
    options.add_argument("--loss", choices=["one-vs-all", "softmax"], default="one-vs-all")
    chosen = options.parse_args()
    device = choose_device(chosen.device, chosen.smoke)
    with needed("-e '.[gpu,train]'"):
        from benchmarks.gpu.ways import SMOKE, Size, measure  # noqa: PLC0415
    limits = measure_limits(device, smoke=chosen.smoke)
    size = SMOKE if chosen.smoke else Size()
    result = measure(size, device, chosen.quantization, limits, chosen.loss)
    write_result(chosen.out, device, limits, result)


if __name__ == "__main__":
    main()
