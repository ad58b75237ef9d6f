"""LIIF, folded (Chen, Liu, Wang, "Learning Continuous Image Representation with Local Implicit Image Function", CVPR
2021).

The paper asks, for each query and each of the four latent codes around it, an MLP of ``[unfold(features), relative,
cell]`` and blends the answers. Nothing in that needs a 576-channel map:

* The first layer is linear, ``W [unfold(features), relative, cell] + b``. Its feature part is a 3x3 convolution, its
  cell part a constant of the image, so ``z = conv3x3(features) + Wc cell + b`` is computed once a code and a query's
  first hidden layer is ``relu(z[code] + Wr relative)``.
* The last layer is linear too and the weights of the ensemble add up to one, so the four codes' hidden states are
  blended *before* it.
* On a regular grid ``Wr relative`` is a part of the row plus a part of the column: two small tables.
"""

from __future__ import annotations

import logging
import math
from bisect import bisect_right
from collections.abc import Callable, Sequence
from copy import copy
from operator import itemgetter
from typing import Any, ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from liif_cli.coords import Axis, Corners, corners, to_low_res
from liif_cli.errors import DeviceError
from liif_cli.models.base import Field, Model, Operations, Window, memory_format, whole_window
from liif_cli.models.decoding import hidden_states, linear_relu, relu_
from liif_cli.models.encoders.layers import Encoder
from liif_cli.models.mlp import MLP
from liif_cli.out_of_memory import is_out_of_memory

# Queries painted at once. On a CPU by what a layer's hidden states take, somewhat more than a core's own cache: with a
# third of it the calls cost a tenth more, with twice as much the states travel. A GPU wants enough of them to fill it:
# values of one state, of which it holds four (engine.GPU_PAINTER_VALUES).
CPU_BLOCK_BYTES = 3 * 2**19
GPU_BLOCK_VALUES = 2**26
# Pixels of the patch on which a fused kernel is tried, and how far rounding may take it from single operations.
PATCH_PIXELS, PATCH_TOLERANCE = 2**16, 0.05
EVERYTHING = slice(None)

logger = logging.getLogger(__name__)


class LIIF(Model):
    """The paper's network and its ablations.

    ``local_ensemble`` blends the four nearest codes, ``feat_unfold`` lets each see its 3x3 neighbourhood,
    ``cell_decode`` tells the decoder the size of the painted pixel; ``hidden`` are the widths of the decoder's hidden
    layers.
    """

    def __init__(
        self,
        spec: dict[str, Any],
        encoder: Encoder,
        hidden: Sequence[int],
        *,
        local_ensemble: bool = True,
        feat_unfold: bool = True,
        cell_decode: bool = True,
    ) -> None:
        super().__init__(spec, encoder)
        self.local_ensemble = local_ensemble
        self.feat_unfold = feat_unfold
        self.cell_decode = cell_decode
        self.code_dim = encoder.out_dim * (9 if feat_unfold else 1)
        self.imnet = MLP(self.code_dim + 2 + (2 if cell_decode else 0), 3, hidden)

    @property
    def fold_px(self) -> int:
        return 1 if self.feat_unfold else 0

    @property
    def code_values(self) -> int:
        return self.imnet.linears[0].out_features

    @property
    def operations(self) -> Operations:
        first, *inner, last = self.imnet.linears
        encoder = sum(parameter.numel() for parameter in self.encoder.parameters())
        corners = 4 if self.local_ensemble else 1
        return Operations(
            encoder + first.out_features * self.code_dim,
            corners * sum(layer.weight.numel() for layer in inner) + last.weight.numel(),
        )

    def fold(self, features: Tensor, cell: Tensor, window: Window | None = None) -> Field:
        first, *rest = self.imnet.linears
        of_code, of_relative, of_cell = torch.split(
            first.weight, [self.code_dim, 2, 2 if self.cell_decode else 0], dim=1
        )
        size = 3 if self.feat_unfold else 1
        kernel = of_code.reshape(first.out_features, self.encoder.out_dim, size, size)  # the order of torch's unfold
        bias: Tensor = first.bias
        each_its_own: Tensor | None = None
        if self.cell_decode:
            cell_part = F.linear(cell.to(of_cell).reshape(-1, 2), of_cell)
            if len(cell_part) == 1:  # one cell for all: it goes where the bias goes
                bias = bias + cell_part[0]
            else:
                each_its_own = cell_part[..., None, None]
        kernel = kernel.contiguous(memory_format=memory_format(kernel.device))
        z = F.conv2d(features.to(kernel.dtype), kernel, bias, padding=size // 2)
        if each_its_own is not None:
            z = z + each_its_own
        return LIIFField(
            codes=z.permute(0, 2, 3, 1),
            of_relative=of_relative,
            layers=rest,
            model=self,
            window=window or whole_window(features),
        )


class LIIFField(Field):
    """Codes (B, h, w, hidden): the decoder's first layer, all but what depends on where in the code's pixel a query
    falls."""

    def __init__(
        self, codes: Tensor, of_relative: Tensor, layers: Sequence[nn.Linear], model: LIIF, window: Window
    ) -> None:
        self.codes = codes
        self.of_relative = of_relative  # (hidden, 2)
        self.layers = layers
        self.model = model
        self.window = window

    def _corners(self, y: Tensor, x: Tensor) -> tuple[Corners, Corners]:
        """Corners on both axes, indices counted from the window's own edge."""
        top, left, (height, width) = self.window
        rows = corners(y, height, ensemble=self.model.local_ensemble)
        columns = corners(x, width, ensemble=self.model.local_ensemble)
        return rows._replace(code=rows.code - top), columns._replace(code=columns.code - left)

    def query(self, coords: Tensor) -> Tensor:
        batch, height, width = self.codes.shape[:3]
        full_height, full_width = self.window.image_size
        rows, columns = self._corners(to_low_res(coords[..., 0], full_height), to_low_res(coords[..., 1], full_width))
        sample = torch.arange(batch, device=coords.device).view(batch, 1)
        # Pairs of a row's and a column's corner, (B, Q, K): four with the ensemble, one without.
        index = _flat(((sample * height + rows.code) * width)[:, None] + columns.code[None])
        pairs = (len(rows.code), *columns.code.shape)
        down, right = rows.relative[:, None].expand(pairs), columns.relative[None].expand(pairs)
        relative = torch.stack([_flat(down), _flat(right)], dim=-1)  # (B, Q, K, 2)
        share = _flat(rows.weight[:, None] * columns.weight[None]).to(self.codes.dtype)
        *inner, last = self.layers
        blended = self._hidden_states(index, relative, share, inner)
        # The last layer in float32, as it is painted: eight bits of colour do not survive bfloat16's eight bits. The
        # shares, rounded, may not add up to one, which would show as a change of brightness.
        with torch.autocast(blended.device.type, enabled=False):
            values = F.linear(blended.float(), last.weight.float()) / share.float().sum(dim=-1, keepdim=True)
            return self.model.denormalise(values + last.bias.float())

    def _hidden_states(self, index: Tensor, relative: Tensor, share: Tensor, inner: Sequence[nn.Linear]) -> Tensor:
        codes = self.codes.reshape(-1, self.codes.shape[-1])
        if codes.device.type == "cpu":
            places = (index.flatten(0, 1), relative.flatten(0, 1), share.flatten(0, 1))
            states = hidden_states(codes, *places, self.of_relative, [(layer.weight, layer.bias) for layer in inner])
            return states.view(*index.shape[:2], -1)
        # In float32, in which a GPU adds up the codes' gradients in half the time that it takes in half precision.
        x, (down, right) = codes.float(), self.of_relative.float().T
        x = x.index_select(0, index.flatten()).view(*index.shape, -1)
        x = torch.relu(x + relative[..., :1] * down + relative[..., 1:] * right).to(self.of_relative.dtype)
        for layer in inner:
            x = torch.relu(layer(x))
        return (x * share[..., None].to(x.dtype)).sum(dim=2)

    @torch.no_grad()
    def paint(self, rows: Axis, columns: Axis) -> Tensor:
        painter = _CPUPainter if self.codes.device.type == "cpu" else _GPUPainter
        return painter(self, rows, columns).paint()


def _flat(pairs: Tensor) -> Tensor:
    """Pairs of corners, (K, K, B, Q) to (B, Q, K * K)."""
    return pairs.permute(2, 3, 0, 1).flatten(2)


class _Decoder(NamedTuple):
    """The decoder's layers behind the fold, as plain matrices; the last one in float32 and undoing the
    normalisation."""

    hidden: list[tuple[Tensor, Tensor]]  # (in, out), (out,)
    last: tuple[Tensor, Tensor]


def _decoder(field: LIIFField) -> _Decoder:
    *inner, last = field.layers
    deviation, mean = field.model.deviation.float(), field.model.mean.float()
    return _Decoder(
        [(layer.weight.T, layer.bias) for layer in inner],
        (last.weight.float().T * deviation, last.bias.float() * deviation + mean),
    )


class _CPUPainter:
    """Paints in blocks of rows whose hidden states stay in cache.

    Gather and addition of the first layer are one pass: an embedding bag that sums two rows of a table, of which one
    is a code with the row's part of ``Wr relative`` and the other the column's part. The codes of a block's rows change
    places in the table, so that what is summed is the same for every block. The blend is a bag as well, of the corners'
    hidden states with their weights.
    """

    def __init__(self, field: LIIFField, rows: Axis, columns: Axis) -> None:
        self.decoder = _decoder(field)
        dtype = field.codes.dtype
        vertical, horizontal = field._corners(rows.position, columns.position)
        corners_down, self.rows = vertical.code.shape
        corners_across, self.columns = horizontal.code.shape
        self.corners = corners_down * corners_across
        hidden = field.codes.shape[-1]

        # Only the codes these columns touch, so that neighbouring tiles do not share cache lines they do not need.
        left, right = int(horizontal.code.min()), int(horizontal.code.max()) + 1
        self.codes = field.codes[0, :, left:right]
        width = right - left
        self.row_part = (vertical.relative.T.float()[..., None] * field.of_relative[:, 0].float()).to(dtype)
        column_part = (horizontal.relative.float()[..., None] * field.of_relative[:, 1].float()).to(dtype)
        # Runs of rows that lie between the same codes: (first row, first and last code).
        codes = vertical.code[[0, -1]].T.tolist()
        self.runs = [(row, *pair) for row, pair in enumerate(codes) if row == 0 or pair != codes[row - 1]]

        # The block: about as many queries as its cache holds, whole rows or a part of one. All are of one size; the
        # last one overlaps the one before it.
        widest = max(hidden, *(len(bias) for _, bias in self.decoder.hidden), 1)
        queries = max(self.corners, CPU_BLOCK_BYTES // (widest * dtype.itemsize))
        self.tops, self.down = _blocks(self.rows, queries // (self.corners * self.columns))
        self.lefts, self.across = _blocks(self.columns, queries // self.corners)
        lines = self.down * corners_down * width
        self.table = torch.cat([column_part.new_empty(lines, hidden), column_part.flatten(0, 1)])
        self.lines = self.table[:lines].view(self.down, corners_down, width, hidden)
        # Of each query the two rows of the table, (rows, columns, K, K, 2), for each part of the columns; its place in
        # the block; where sums begin.
        cpu = torch.device("cpu")
        terms = torch.empty(self.down, self.columns, corners_down, corners_across, 2, dtype=torch.int32, device=cpu)
        line = torch.arange(self.down * corners_down, device=cpu).view(self.down, 1, corners_down, 1) * width
        terms[..., 0] = line + (horizontal.code - left).T[:, None]
        terms[..., 1] = lines + torch.arange(horizontal.code.numel(), device=cpu).view(-1, self.columns).T[:, None]
        self.terms = [terms[:, left : left + self.across].flatten() for left in self.lefts]
        places = torch.arange(2 * self.down * self.across * self.corners, dtype=torch.int32, device=cpu)
        self.pairs, self.places = places[::2].clone(), places[: len(places) // 2]
        self.blends = self.places[:: self.corners].clone()

        # Shares of the corners, (rows, columns, K * K). Rounded, they no longer add up to one (a third and two thirds
        # are 0.2 % too much), which would show as a change of brightness; what they do add up to is divided out.
        # As products of matrices, of which one has zeros where a row's other corner is: many times faster than
        # broadcasting over axes of two.
        floats: dict[str, Any] = {"dtype": torch.float32, "device": cpu}
        apart = torch.einsum("ij,kc->icjk", torch.eye(corners_down, **floats), horizontal.weight.float())
        share = vertical.weight.T.float() @ apart.reshape(corners_down, -1)
        self.share = share.to(dtype).view(self.rows, self.columns, self.corners)
        total = self.share.float().flatten(0, 1) @ torch.ones(self.corners, 1, **floats)
        self.total = total.view(self.rows, self.columns, 1)
        # The last layer with a fourth, idle colour, the other way round: small products of this shape are the fastest.
        weight, self.last_bias = self.decoder.last
        self.last_weight = F.pad(weight.T, (0, 0, 0, 1))
        self.states = torch.empty(self.down * self.across, len(weight), **floats)
        self.values = torch.empty(4, self.down * self.across, **floats)
        self.colours = self.values[:3].T.view(self.down, self.across, 3)

    def paint(self) -> Tensor:
        out = torch.empty(self.rows, self.columns, 3, dtype=torch.float32, device="cpu")
        for top in self.tops:
            rows = slice(top, top + self.down)
            self._set_lines(rows)
            for left, terms in zip(self.lefts, self.terms, strict=True):
                self._block(rows, slice(left, left + self.across), terms, out)
        return out

    def _set_lines(self, rows: slice) -> None:
        """Bring the codes of a block's rows, with the rows' part of ``Wr relative``, into the table."""
        number = bisect_right(self.runs, rows.start, key=itemgetter(0)) - 1
        row = rows.start
        while row < rows.stop:
            _, first, last = self.runs[number]
            number += 1
            stop = min(rows.stop, self.runs[number][0]) if number < len(self.runs) else rows.stop
            here = self.lines[row - rows.start : stop - rows.start]
            torch.add(self.codes[first : last + 1], self.row_part[row:stop, :, None], out=here)
            row = stop

    def _block(self, rows: slice, columns: slice, terms: Tensor, out: Tensor) -> None:
        # In few steps: threads wait for each other between them, since only one at a time is in Python.
        x = relu_(_bag(self.table, terms, self.pairs))
        for weight, bias in self.decoder.hidden:
            x = linear_relu(x, weight, bias)
        if self.corners > 1:
            x = _bag(x, self.places, self.blends, self.share[rows, columns].flatten())
        torch.mm(self.last_weight, self.states.copy_(x).T, out=self.values)
        torch.addcdiv(self.last_bias, self.colours, self.total[rows, columns], out=out[rows, columns])


def _blocks(length: int, most: int) -> tuple[list[int], int]:
    """Where blocks of one size begin that cover a length, and that size: ``most``, or a little less for their number.
    The last one may begin within the one before it."""
    count = -(-length // max(1, most))
    size = -(-length // count)
    return [min(number * size, length - size) for number in range(count)], size


def _bag(table: Tensor, places: Tensor, offsets: Tensor, share: Tensor | None = None) -> Tensor:
    """Sums of rows of a table, those from one offset to the next, weighed where there are shares: embedding_bag."""
    return torch.embedding_bag(table, places, offsets, False, 0, False, share)[0]


class _GPUPainter:
    """The same arithmetic in few large operations, a block of rows at a time; or, in half precision on CUDA, in one
    kernel of Triton's, once it has painted a patch as these operations do, and faster."""

    better: ClassVar[dict[tuple[Any, ...], bool]] = {}  # whether it did, by device and decoder

    def __init__(self, field: LIIFField, rows: Axis, columns: Axis) -> None:
        self.decoder = _decoder(field)
        device, dtype = field.codes.device, field.codes.dtype
        vertical, horizontal = field._corners(rows.position, columns.position)
        self.codes = field.codes[0]
        self.vertical = Corners(*(part.to(device) for part in _single(vertical)))
        self.horizontal = Corners(*(part.to(device) for part in _single(horizontal)))
        self.row_part = (self.vertical.relative[..., None] * field.of_relative[:, 0].float()).to(dtype)
        self.column_part = (self.horizontal.relative[..., None] * field.of_relative[:, 1].float()).to(dtype)
        self.of_relative = field.of_relative.T

    def paint(self) -> Tensor:
        if self.codes.device.type == "cuda" and self.codes.dtype != torch.float32:
            with torch.cuda.device(self.codes.device):
                painted = self._paint_fused()
            if painted is not None:
                return painted
        return self._paint_blocks()

    def _paint_fused(self) -> Tensor | None:
        shapes = tuple(weight.shape for weight, _ in self.decoder.hidden)
        kind = (self.codes.device, self.codes.dtype, self.codes.shape[-1], shapes, len(self.vertical.code))
        height, width = self.vertical.code.shape[1], self.horizontal.code.shape[1]
        if not self.better.get(kind, height * width >= PATCH_PIXELS):
            return None
        if self.codes.is_cuda and torch.cuda.get_device_capability(self.codes.device) < (8, 0):
            return None  # its matrix instructions are none that Triton knows: compiling takes minutes, for nothing
        try:
            from liif_cli.models import fused

            decoder = fused.layers(self.of_relative, *self.decoder)
            if decoder is None:
                return None
            codes = self.codes.contiguous()

            def paint(rows: slice = EVERYTHING, columns: slice = EVERYTHING) -> Tensor:
                down, across = fused.Corner.of(self.vertical, rows), fused.Corner.of(self.horizontal, columns)
                return fused.paint(codes, down, across, decoder)

            if kind not in self.better:
                rows = min(height, math.isqrt(PATCH_PIXELS))
                columns = min(width, PATCH_PIXELS // rows)
                fast, painted = _timed(lambda: paint(slice(rows), slice(columns)))
                plain, expected = _timed(self._cut(rows, columns)._paint_blocks)
                if not bool(expected.isfinite().all()):
                    return None  # says nothing of the kernel: the picture leaves the range of half precision
                apart = (painted - expected).abs()
                same = bool((apart.max() < PATCH_TOLERANCE) & (apart.mean() < PATCH_TOLERANCE / 16))
                self.better[kind] = same and fast < plain
                logger.info("one kernel: %.3f ms, single operations: %.3f ms, same: %s", fast, plain, same)
            return paint() if self.better[kind] else None
        except Exception as error:  # no Triton, no compiler for it to use, a device it does not know
            if is_out_of_memory(error):
                raise
            try:
                self.codes.sum().item()
            except RuntimeError:  # after a fault nothing works there any more
                first_line = str(error).partition("\n")[0]
                raise DeviceError(
                    f"{self.codes.device} has failed ({first_line}) in a kernel that --precision float32 does without;"
                    " use that, and please report it"
                ) from error
            logger.info("painting in single operations: %s", error)
            self.better[kind] = False
            return None

    def _cut(self, rows: int, columns: int) -> _GPUPainter:
        """A painter of the first so many rows and columns."""
        cut = copy(self)
        cut.vertical = Corners(*(part[:, :rows] for part in self.vertical))
        cut.horizontal = Corners(*(part[:, :columns] for part in self.horizontal))
        cut.row_part, cut.column_part = self.row_part[:, :rows], self.column_part[:, :columns]
        cut.codes = self.codes[: int(cut.vertical.code.max()) + 1, : int(cut.horizontal.code.max()) + 1]
        return cut

    def _paint_blocks(self) -> Tensor:
        rows, columns = self.vertical.code.shape[1], self.horizontal.code.shape[1]
        out = torch.empty(rows, columns, 3, dtype=torch.float32, device=self.codes.device)
        widest = max(self.codes.shape[-1], *(len(bias) for _, bias in self.decoder.hidden), 1)
        height = max(1, GPU_BLOCK_VALUES // (columns * widest))
        for top in range(0, rows, height):
            out[top : top + height] = self._block(slice(top, top + height))
        return out

    def _block(self, rows: slice) -> Tensor:
        blended: Tensor | None = None
        total: Tensor | None = None
        for vertical in range(self.vertical.code.shape[0]):
            # The row part goes to the codes before they are spread over the columns: fewer of them.
            line = self.codes[self.vertical.code[vertical, rows]] + self.row_part[vertical, rows, None]
            for horizontal in range(self.horizontal.code.shape[0]):
                x = line[:, self.horizontal.code[horizontal]]
                x = x.add_(self.column_part[horizontal]).relu_().flatten(0, 1)
                for weight, bias in self.decoder.hidden:
                    x = torch.addmm(bias, x, weight).relu_()
                share = self.vertical.weight[vertical, rows, None] * self.horizontal.weight[horizontal]
                share = share.flatten()[:, None].to(x.dtype)
                x = x.mul_(share)
                blended = x if blended is None else blended.add_(x)
                total = share.float() if total is None else total.add_(share)
        assert blended is not None
        assert total is not None
        weight, bias = self.decoder.last
        # As in _CPUPainter: rounded shares do not add up to one.
        values = (blended.float() @ weight).div_(total).add_(bias)
        return values.view(len(line), -1, 3)


def _timed(paint: Callable[[], Tensor]) -> tuple[float, Tensor]:
    """Milliseconds that a GPU takes to paint, the least of a few times, and what it paints."""
    painted = paint()
    times = []
    for _ in range(5):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
        begin.record()
        paint()
        end.record()
        end.synchronize()
        times.append(begin.elapsed_time(end))
    return min(times), painted


def _single(parts: Corners) -> Corners:
    return Corners(parts.code, parts.relative.float(), parts.weight.float())
