"""Learning a teacher's answers in place of the pictures' own pixels, or together with them (distillation; Hinton and
others, 2015, arXiv:1503.02531).

Of the detail that a reduced picture has lost much cannot be told from what is left, and it is noise in the gradients of
a network that learns the pictures. A teacher's answers are free of it. They are the mean of what the teacher answers to
the eight views of a sample, turned over and transposed, which is better than any one answer (the "geometric
self-ensemble" of EDSR). So a model has much to learn from itself as well.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from liif_cli.data import Batch, Sampler
from liif_cli.engine import ALL_VIEWS, View

# Batches that are answered before any comes again: the more, the longer until a step meets what it has seen.
POOL = 48


def seen(low_res: Tensor, coords: Tensor, cell: Tensor, view: View) -> tuple[Tensor, Tensor, Tensor]:
    """A sample's input (B, 3, h, w), queries (B, Q, 2) and cell (B, 2) in one of the eight views. The queries ask for
    the same pixels in the same order. Strides are the same in all views, as compiled networks want them."""
    if view.transposed:
        low_res, coords, cell = low_res.transpose(2, 3), coords.flip(-1), cell.flip(-1)
    if view.rows_reversed:
        low_res, coords = low_res.flip(2), torch.cat([-coords[..., :1], coords[..., 1:]], dim=-1)
    if view.columns_reversed:
        low_res, coords = low_res.flip(3), torch.cat([coords[..., :1], -coords[..., 1:]], dim=-1)
    return low_res.contiguous(), coords, cell


class Taught:
    """A sampler's batches with the teacher's answers for truth, or for a share of it.

    A batch is answered once and used in each of its views, with ``POOL - 1`` other batches before it comes again. What
    a step gets depends on its number alone, as with the sampler.
    """

    def __init__(
        self,
        sampler: Sampler,
        teacher: Callable[[Tensor, Tensor, Tensor], Tensor],
        dtype: torch.dtype | None = None,
        *,
        parts: int = 1,
        share: float = 1.0,
    ) -> None:
        """``teacher`` answers queries on the device that batches are asked for: input (B, 3, h, w), coordinates (B, Q,
        2) and cell (B, 2) to (B, Q, 3). It computes in ``dtype`` (None: float32), a batch in so many ``parts``, one
        after the other. The truth is so large a ``share`` of its answers, the rest the pictures' own pixels; of
        synthetic samples, all of it is."""
        self.sampler = sampler
        self.teacher = teacher
        self.dtype = dtype
        self.parts = parts
        self.share = share

    def batches(self, step: int, numbers: Sequence[int], device: torch.device) -> Iterator[Batch]:
        """Batches from ``step`` on, without end, as :meth:`Sampler.batches`."""
        answered: dict[int, Batch] = {}
        while True:
            turn, place = divmod(step, POOL * len(ALL_VIEWS))
            repeat, place = divmod(place, POOL)
            number = turn * POOL + place
            if number not in answered:
                answered = {known: batch for known, batch in answered.items() if known // POOL == turn}
                answered[number] = self._answered(self.sampler.batch(number, numbers, device))
            batch = answered[number]
            view = ALL_VIEWS[(repeat + place) % len(ALL_VIEWS)]
            yield Batch(*seen(*batch[:3], view=view), batch.high_res, batch.synthetic)
            step += 1

    @torch.no_grad()
    def _answered(self, batch: Batch) -> Batch:
        device = batch.low_res.device
        total = torch.zeros_like(batch.high_res)
        parts = zip(*(tensor.chunk(self.parts) for tensor in batch._replace(high_res=total)), strict=True)
        for part, view in itertools.product(map(Batch._make, parts), ALL_VIEWS):
            with torch.autocast(device.type, self.dtype, enabled=self.dtype is not None):
                answers = self.teacher(*seen(*part[:3], view=view))
            part.high_res.add_(answers.float())
        # A synthetic sample's truth is known better than any teacher knows it.
        share = self.share * ~batch.synthetic[:, None, None]
        return batch._replace(high_res=torch.lerp(batch.high_res, total / len(ALL_VIEWS), share.to(total)))
