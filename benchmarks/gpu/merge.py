"""The exact top-k over 49.46 million products on a GPU, against what reading them must take.

    python -m benchmarks.gpu.merge [--smoke]

R = 32, B = 20,000, k = 100, batches of 1 and 64, scores like a trained model's and flat ones.
Writes results/gpu-merge.json; about three minutes. Answers are compared with the CPU engine's.
"""

from __future__ import annotations

from benchmarks.gpu.device import choose_device, measure_limits, needed, parser, write_result


def main() -> None:
    options = parser(__doc__, "merge").parse_args()
    device = choose_device(options.device, options.smoke)
    with needed("-e '.[gpu,train]'"):
        from benchmarks.gpu.merging import SMOKE, Size, measure  # noqa: PLC0415
    limits = measure_limits(device, smoke=options.smoke)
    size = SMOKE if options.smoke else Size()
    write_result(options.out, device, limits, measure(size, device, limits))


if __name__ == "__main__":
    main()
