"""What says that memory ran out."""

from __future__ import annotations

import torch

# A CPU's words on Linux and on Windows; MPS's and those of pinned memory; those of CUDA's libraries, of which cuBLAS
# calls it "not initialized" as well, and cuDNN that no way of computing a convolution is left.
_WORDS = ("can't allocate memory", "not enough memory", "out of memory", "Invalid buffer size", "bad_alloc",
          "_STATUS_ALLOC_FAILED", "ALLOCATION_FAILED", "CUBLAS_STATUS_NOT_INITIALIZED",
          "unable to find an engine")  # fmt: skip


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out, on whatever device."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or any(part in str(error) for part in _WORDS)
