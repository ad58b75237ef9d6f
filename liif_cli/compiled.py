"""torch.compile, where it works."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

# Calls until nothing is new any more: with CUDA's graphs the first sees what memory is needed, the second records.
GRAPH_PROOFS = 3


class Compiled:
    """A function by way of torch.compile, or as it is where that cannot be done here."""

    def __init__(
        self,
        function: Callable[..., Any],
        note: Callable[[str], object],
        *,
        graphs: bool = False,
        prove: Callable[[Any], object] = lambda result: None,
    ) -> None:
        """With ``graphs`` all its kernels are started as one, which CUDA can: what it returns, and gradients by way of
        it, last until it is called again. ``prove`` does with the first results whatever else is to be compiled.
        ``note`` is told when it goes on without."""
        self._function = function
        self.graphs = graphs
        self._call: Callable[..., Any] = torch.compile(function, mode="reduce-overhead" if graphs else None)
        self._prove = prove
        self._note = note
        self._proven = False

    def __call__(self, *arguments: Any) -> Any:
        while not self._proven:
            try:
                for _ in range(GRAPH_PROOFS if self.graphs else 1):
                    self._prove(self._called(arguments))
                self._proven = True
            except torch.OutOfMemoryError:
                raise
            except Exception as error:  # whatever a compiler may raise; the plain function tells what is really wrong
                if self.graphs:
                    self.graphs, self._call = False, torch.compile(self._function, mode=None)
                else:
                    self._note(f"torch.compile does not work here ({type(error).__name__}); going on without it")
                    self._call, self._proven = self._function, True
        return self._called(arguments)

    @property
    def is_plain(self) -> bool:
        """Whether it goes on without."""
        return self._call is self._function

    def _called(self, arguments: Any) -> Any:
        if self.graphs:
            torch.compiler.cudagraph_mark_step_begin()  # type: ignore[no-untyped-call]
        return self._call(*arguments)
