"""The hidden layers of the folded LIIF decoder for scattered queries, with their gradients: what training on a CPU
spends its time in, beside the encoder.

Written out, since autograd's own way stores and passes over every intermediate anew, and is slow at the elementwise
steps in bfloat16. Here

* a query's four rows stand behind one another, so that blending them is a bag of an embedding, forwards;
* nothing is kept but what the layers answered, since a ReLU's answer tells which of its inputs counted;
* layers are 1x1 convolutions, which add the bias, and sum up its gradient, in passing;
* what can be done in place is.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

# The operation that torch.compile takes for a layer with a ReLU; only there where torch was built with oneDNN.
_LINEAR_POINTWISE = getattr(torch.ops.mkldnn, "_linear_pointwise", None)
# In what it is worth taking: bfloat16 where the processor computes in it; float32 where torch's own products are MKL's,
# which on processors of other makers than its own do without AVX-512, and take twice the time (AMD Zen 5).
_POINTWISE_TYPES = set()
if getattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: False)():
    _POINTWISE_TYPES.add(torch.bfloat16)
if torch.backends.mkl.is_available():  # type: ignore[no-untyped-call]
    _POINTWISE_TYPES.add(torch.float32)


def hidden_states(
    codes: Tensor,
    index: Tensor,
    relative: Tensor,
    share: Tensor,
    of_relative: Tensor,
    layers: list[tuple[Tensor, Tensor]],
) -> Tensor:
    """The last hidden layer's states, blended over the codes that answer a query. Differentiable once.

    Args:
        codes: (N, H), what the first layer knows of each code.
        index: (Q, K) int64, the codes that answer each query.
        relative: (Q, K, 2), where the query lies, seen from each of them.
        share: (Q, K), the weight of each of them; no gradients go there.
        of_relative: (H, 2), the first layer's columns for ``relative``.
        layers: weight (out, in) and bias (out,) of the layers between the first and the last.

    Returns:
        (Q, H_last) in the type of ``codes``, in which everything is computed.
    """
    flat = [parameter for layer in layers for parameter in layer]
    states: Tensor = _HiddenStates.apply(codes, index, relative, share, of_relative, *flat)  # type: ignore[no-untyped-call]
    return states


def relu_(x: Tensor) -> Tensor:
    """In place. A negative bfloat16 is a negative int16 with the same bits, and integers are clamped seven times
    faster."""
    if x.dtype == torch.bfloat16 and x.device.type == "cpu":
        x.view(torch.int16).clamp_min_(0)
        return x
    return x.relu_()


def linear_relu(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """``relu(x @ weight + bias)`` of matrices, in one operation of oneDNN where it is better: it does the ReLU in
    passing, a twentieth of the whole in bfloat16."""
    if x.device.type == "cpu" and x.dtype in _POINTWISE_TYPES and _LINEAR_POINTWISE is not None:
        answer: Tensor = _LINEAR_POINTWISE(x, weight.T, bias, "relu", [], "")
        return answer
    return relu_(torch.addmm(bias, x, weight))


class _HiddenStates(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, codes: Tensor, index: Tensor, relative: Tensor, share: Tensor, of_relative: Tensor, *flat: Tensor
    ) -> Tensor:
        dtype = codes.dtype
        queries, corners = index.shape
        weights = [weight.to(dtype)[:, :, None, None] for weight in flat[::2]]
        relative = relative.reshape(-1, 2).to(dtype)
        share = share.to(dtype)
        x = relu_(codes.index_select(0, index.flatten()).addmm_(relative, of_relative.to(dtype).T))
        answers = [x]
        for weight, bias in zip(weights, flat[1::2], strict=True):
            x = relu_(_as_rows(F.conv2d(_as_image(x), weight, bias.to(dtype))))
            answers.append(x)
        ctx.save_for_backward(index, relative, share, of_relative, *weights, *answers)
        ctx.count = len(codes)
        if corners == 1:
            return x.clone()  # what is saved must not be what the caller may change
        numbers = torch.arange(queries * corners, dtype=torch.int32, device=x.device).view(queries, corners)
        return F.embedding_bag(numbers, x, mode="sum", per_sample_weights=share)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        index, relative, share, of_relative, *rest = ctx.saved_tensors
        layers = len(rest) // 2
        weights, answers = rest[:layers], rest[layers:]
        g = (gradient[:, None] * share[..., None]).flatten(0, 1) if index.shape[1] > 1 else gradient.clone()
        of_layers: list[Tensor] = []
        for number in range(layers, -1, -1):
            torch.ops.aten.threshold_backward.grad_input(g, answers[number], 0, grad_input=g)
            if number == 0:
                break
            images = _as_image(g), _as_image(answers[number - 1])
            sizes = [len(g[0])], [1, 1], [0, 0], [1, 1], False, [0, 0], 1  # bias, stride, padding, dilation, ...
            of_input, of_weight, of_bias = torch.ops.aten.convolution_backward(
                *images, weights[number - 1], *sizes, [True, True, True]
            )
            of_layers[:0] = [of_weight[:, :, 0, 0], of_bias]
            g = _as_rows(of_input)
        of_codes = torch.ops.aten.embedding_dense_backward(g, index.flatten(), ctx.count, -1, False)
        of_places = (g.T @ relative).to(of_relative.dtype)
        return of_codes, None, None, None, of_places, *(part.to(of_relative.dtype) for part in of_layers)


def _as_image(rows: Tensor) -> Tensor:
    """(R, C) as an image of one column, (1, C, R, 1), channels last: the same memory."""
    return rows[None, :, None].permute(0, 3, 1, 2)


def _as_rows(image: Tensor) -> Tensor:
    return image.permute(0, 2, 3, 1).reshape(image.shape[2], image.shape[1])
