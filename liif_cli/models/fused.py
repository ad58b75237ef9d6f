"""Painting on a GPU in one kernel: gather, hidden layers, last layer and blend, without a hidden state in main memory.

In single operations a hidden state of the paper's decoder, four corners of 256 halves each, travels to memory and back
for every layer, which takes longer than the matrix products. Here a program keeps those of a few pixels (32 of this
decoder) on the chip from the codes to the colours. The last layer comes before the blend, which is the same since both
are linear. It is in float32 and no product of matrices: there are but three colours, fewer than a tensor core takes.

``liif._GPUPainter`` is the same in plain operations: what this is tried against, and what is used where it is better.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from liif_cli.coords import Corners

# Units of a hidden layer. Of products of narrower matrices CUDA's compilers (ptxas 12.8) have computed wrong addresses
# for Hopper's tensor cores, which end a program: "illegal memory access", on an H200.
WIDTHS = (64, 128, 256)
# Units of a hidden layer in one piece. Wider layers go in two, since a program's registers hold no more.
PIECE = 128


class Corner(NamedTuple):
    """One axis of what is painted, for each of its K corners: (K, n)."""

    code: Tensor  # int32
    relative: Tensor  # float32
    weight: Tensor  # float32

    @classmethod
    def of(cls, corners: Corners, pixels: slice = slice(None)) -> Corner:
        """Those of some of the pixels on an axis, laid out for the kernel."""
        code, relative, weight = (part[:, pixels].contiguous() for part in corners)
        return cls(code.int(), relative.float(), weight.float())


class Layers(NamedTuple):
    """A decoder whose hidden layers are all of one width H: their matrices in half precision, the rest in float32."""

    relative: Tensor  # (2, H) float32: what the first layer makes of the place in a code's pixel
    hidden: Tensor  # (n, H, H), in x out
    bias: Tensor  # (n, H) float32
    last: Tensor  # (3, H) float32
    last_bias: Tensor  # (3,) float32


def layers(relative: Tensor, hidden: list[tuple[Tensor, Tensor]], last: tuple[Tensor, Tensor]) -> Layers | None:
    """A decoder's layers as the kernel reads them; None for one it does not do: in float32, of widths that differ or
    are none of ``WIDTHS``.

    ``relative`` is (2, H), the weights (in, out), the last layer (H, 3) in float32.
    """
    dtype, width = relative.dtype, relative.shape[1]
    if dtype not in (torch.float16, torch.bfloat16) or width not in WIDTHS:
        return None
    if any(weight.shape != (width, width) for weight, _ in hidden):
        return None
    weight, bias = last
    empty = relative.new_empty(0, width)
    return Layers(
        relative.float().contiguous(),
        torch.stack([weight for weight, _ in hidden]).contiguous() if hidden else empty,
        torch.stack([bias.float() for _, bias in hidden]).contiguous() if hidden else empty.float(),
        weight.T.contiguous(),
        bias,
    )


class Shape(NamedTuple):
    """What a program of the kernel paints, in pixels, and with how many warps."""

    down: int
    across: int
    warps: int


def shape(hidden: int, corners: int, capability: tuple[int, int]) -> Shape:
    """The fastest that was tried on an H200; on others, which were not, one whose registers do not spill where there is
    one. By a GPU's compute capability.

    Four warps share a piece where the matrix instructions are those of Hopper and the large Blackwell; elsewhere these
    would spill (and two pieces spill all the same). There a program of one piece does best with twice the pixels,
    though a few of its registers spill: 16.8 megapixels of a decoder of 2 x 128 take 11.5 ms, 15.6 without. Other
    shapes and numbers of warps take the paper's decoder 1.2 to 2 times as long.
    """
    pieces = max(1, hidden // PIECE)
    wide = capability[0] in (9, 10)
    pixels = 16 if wide or pieces == 2 else 8
    return Shape(pixels // corners**2, 8, (4 if wide else 8) * pieces)


def paint(codes: Tensor, rows: Corner, columns: Corner, decoder: Layers) -> Tensor:
    """Codes (h, w, H), contiguous, to colours (rows, columns, 3) in float32."""
    height, width = rows.code.shape[1], columns.code.shape[1]
    out = torch.empty(height, width, 3, dtype=torch.float32, device=codes.device)
    hidden = codes.shape[-1]
    pieces = max(1, hidden // PIECE)
    corners = len(rows.code)
    capability = torch.cuda.get_device_capability(codes.device) if codes.is_cuda else (9, 0)
    down, across, warps = shape(hidden, corners, capability)
    _paint[(triton.cdiv(height, down) * triton.cdiv(width, across),)](
        codes,
        *rows,
        *columns,
        *decoder,
        out,
        height,
        width,
        codes.shape[1],
        WIDTH=hidden // pieces,
        PIECES=pieces,
        LAYERS=len(decoder.hidden),
        CORNERS=corners,
        DOWN=down,
        ACROSS=across,
        num_warps=warps,
    )
    return out


@triton.jit
def _relu(values):
    # What is no number stays that, so that overflows are noticed.
    return tl.maximum(values, 0.0, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def _product(state, matrix, total, WIDTH: tl.constexpr, HIDDEN: tl.constexpr):
    """A piece of a hidden state times a piece of a layer's matrix, added to a total."""
    unit = tl.arange(0, WIDTH)
    return tl.dot(state, tl.load(matrix + unit[:, None] * HIDDEN + unit[None, :]), total)


@triton.jit
def _first_state(code, down, right, of_relative, HIDDEN: tl.constexpr):
    """A piece of the first hidden state: the code and what the place in its pixel adds to it."""
    state = code.to(tl.float32)
    state += down[:, None] * tl.load(of_relative)[None, :] + right[:, None] * tl.load(of_relative + HIDDEN)[None, :]
    return _relu(state).to(code.dtype)


@triton.jit(do_not_specialize=["height", "width", "codes_width"])  # or every size of band would be compiled anew
def _paint(
    codes,
    row_code,
    row_relative,
    row_weight,
    column_code,
    column_relative,
    column_weight,
    of_relative,
    hidden_weight,
    hidden_bias,
    last_weight,
    last_bias,
    out,
    height,
    width,
    codes_width,
    WIDTH: tl.constexpr,
    PIECES: tl.constexpr,
    LAYERS: tl.constexpr,
    CORNERS: tl.constexpr,  # on an axis
    DOWN: tl.constexpr,
    ACROSS: tl.constexpr,
):
    HIDDEN: tl.constexpr = WIDTH * PIECES
    PIXELS: tl.constexpr = DOWN * ACROSS
    BOTH: tl.constexpr = CORNERS * CORNERS
    tiles_across = tl.cdiv(width, ACROSS)
    top = tl.program_id(0) // tiles_across * DOWN
    left = tl.program_id(0) % tiles_across * ACROSS

    # Corners of a pixel lie beside each other: number = pixel * BOTH + corner. Pixels outside repeat the last one.
    number = tl.arange(0, PIXELS * BOTH)
    pixel, corner = number // BOTH, number % BOTH
    row = corner // CORNERS * height + tl.minimum(top + pixel // ACROSS, height - 1)
    column = corner % CORNERS * width + tl.minimum(left + pixel % ACROSS, width - 1)
    place = tl.load(row_code + row).to(tl.int64) * codes_width + tl.load(column_code + column)
    down, right = tl.load(row_relative + row), tl.load(column_relative + column)

    unit = tl.arange(0, WIDTH)
    code = codes + place[:, None] * HIDDEN + unit[None, :]
    dtype = codes.dtype.element_ty
    state = _first_state(tl.load(code), down, right, of_relative + unit, HIDDEN)
    if PIECES == 2:
        second = _first_state(tl.load(code + WIDTH), down, right, of_relative + WIDTH + unit, HIDDEN)
    for layer in tl.range(LAYERS, num_stages=1):
        matrix = hidden_weight + layer * HIDDEN * HIDDEN
        bias = hidden_bias + layer * HIDDEN + unit
        nothing = tl.zeros((PIXELS * BOTH, WIDTH), tl.float32)
        total = _product(state, matrix, nothing, WIDTH, HIDDEN)
        if PIECES == 2:
            total = _product(second, matrix + WIDTH * HIDDEN, total, WIDTH, HIDDEN)
            other = _product(state, matrix + WIDTH, nothing, WIDTH, HIDDEN)
            other = _product(second, matrix + WIDTH * HIDDEN + WIDTH, other, WIDTH, HIDDEN)
            second = _relu(other + tl.load(bias + WIDTH)[None, :]).to(dtype)
        state = _relu(total + tl.load(bias)[None, :]).to(dtype)

    weight = tl.load(row_weight + row) * tl.load(column_weight + column)
    pixel = tl.arange(0, PIXELS)
    y, x = top + pixel // ACROSS, left + pixel % ACROSS
    colours = out + (y.to(tl.int64) * width + x) * 3
    for channel in tl.static_range(3):
        of_channel = last_weight + channel * HIDDEN + unit
        value = tl.sum(state * tl.load(of_channel)[None, :], axis=1)
        if PIECES == 2:
            value += tl.sum(second * tl.load(of_channel + WIDTH)[None, :], axis=1)
        value = tl.sum(tl.reshape(value * weight, (PIXELS, BOTH)), axis=1) + tl.load(last_bias + channel)
        tl.store(colours + channel, value, mask=(y < height) & (x < width))
