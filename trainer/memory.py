"""Too little memory, whoever was refused it, as one sentence; no import here needs PyTorch."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from mach.errors import ConfigError

__all__ = ["clear_shortage"]

#: Of PyTorch's RuntimeErrors: its allocators on a CPU and on CUDA, and the C++ library.
_REFUSALS = ("can't allocate memory", "not enough memory", "out of memory", "std::bad_alloc")


@contextmanager
def clear_shortage() -> Iterator[None]:
    """Name what helps where memory runs out; usable as a decorator.

    Raises:
        ConfigError: in place of a MemoryError, or of a RuntimeError that means one.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not isinstance(error, MemoryError) and not any(t in str(error) for t in _REFUSALS):
            raise
        raise ConfigError(
            "there is not enough memory: lower hidden, batch_size, group or workers; the same "
            "command continues with what is not finished"
        ) from error
