"""Compiles the kernel of the merge for an H100, without one, and prints its PTX.

python -m tests.mach.merge.compile_kernel HITS
"""

import sys

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from mach.merge import _triton_scan as scan

pointers = ["rows", "words", "ids", "least", "counts", "out"]
numbers = ["num_classes", "num_rows", "num_buckets", "stride", "count", "width"]
signature = {
    "columns": "*i16",
    **dict.fromkeys(pointers, "*i32"),
    **dict.fromkeys(numbers, "i32"),
}
constants = {
    "BLOCK": scan._BLOCK,
    "WORDS": 8,
    "UNROLL": scan._UNROLL,
    "LISTED": True,
    "NARROW": True,
    "HITS": sys.argv[1] == "1",
}
signature |= dict.fromkeys(constants, "constexpr")
places = {(list(signature).index(name),): value for name, value in constants.items()}
source = ASTSource(fn=scan._scan, signature=signature, constexprs=places)
kernel = triton.compile(
    source, target=GPUTarget("cuda", 90, 32), options={"num_warps": scan._WARPS}
)
print(kernel.asm["ptx"])
