"""torch.compile, where it works."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import torch

# Calls until nothing is new any more: with CUDA's graphs the second one sees what memory is needed, the third records.
PROOFS = 3

logger = logging.getLogger(__name__)


class Compiled:
    """A function by way of torch.compile, or as it is where that cannot be done here."""

    def __init__(
        self,
        function: Callable[..., Any],
        *,
        graphs: bool = False,
        prove: Callable[[Any], object] = lambda result: None,
        note: Callable[[str], object] = logger.info,
    ) -> None:
        """With ``graphs`` all its kernels are started as one, which CUDA can: what it returns, and gradients by way of
        it, last until it is called again. ``prove`` does with the first results whatever else is to be compiled.
        ``note`` is told when it goes on without."""
        self._function = function
        self._graphs = graphs
        self._call: Callable[..., Any] = torch.compile(function, mode="reduce-overhead" if graphs else None)
        self._prove = prove
        self._note = note
        self._proven = False

    def __call__(self, *arguments: Any) -> Any:
        if not self._proven:
            try:
                for _ in range(PROOFS):
                    self._prove(self._called(arguments))
            except torch.OutOfMemoryError:
                raise
            except Exception as error:  # whatever a compiler may raise; the plain function tells what is really wrong
                self._note(f"torch.compile does not work here ({type(error).__name__}); going on without it")
                self._call, self._graphs = self._function, False
            self._proven = True
        return self._called(arguments)

    def _called(self, arguments: Any) -> Any:
        if self._graphs:
            torch.compiler.cudagraph_mark_step_begin()  # type: ignore[no-untyped-call]
        return self._call(*arguments)
