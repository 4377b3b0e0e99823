"""A GRU over few sequences on a CPU, for guidance: the numbers of `nn.GRU`, with a gradient in the inputs alone.

PyTorch's own takes a dozen small operations a token, each a node of the graph. Here a token takes five forward and
four backward, in buffers that are allocated once; the rest is done for all tokens together. On a GPU cuDNN does it.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

LARGEST = 64  # sequences side by side: beyond, the products dominate and PyTorch's own GRU is as fast


def pays(core: nn.GRU, code: Tensor) -> bool:
    """Is a gradient needed in `code` [B, T, width] alone, and are the sequences few and on a CPU?"""
    return (torch.is_grad_enabled() and code.requires_grad and code.device.type == "cpu" and len(code) <= LARGEST
            and not torch.is_autocast_enabled("cpu") and not any(weight.requires_grad for weight in core.parameters()))


def unroll(core: nn.GRU, code: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
    """`core(code, z)`: code [B, T, width], z [layers, B, width] -> latents [B, T, width], and each layer's last."""
    last = []
    for weights, first in zip(core.all_weights, z.unbind(0), strict=True):
        code = _Layer.apply(code, first, *weights)
        last.append(code[:, -1])
    return code, torch.stack(last)


def cudnn(core: nn.GRU, code: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
    """`core(code, z)` on a GPU, with a gradient in evaluation mode: cuDNN's training mode differs by dropout alone."""
    weights: list[Tensor] = [weight for layer in core.all_weights for weight in layer]
    return torch._VF.gru(code, z, weights, True, core.num_layers, 0.0, torch.is_grad_enabled(), False, True)


class _Layer(torch.autograd.Function):
    """One layer: code [B, T, in], latent before it [B, width] -> latents [B, T, width]. No gradient for weights.

    With the gates r, u, n of Cho et al. (2014) as torch.nn.GRU has them, for W, V, b, c its weights and biases::

        h' = (1 - u) n + u h,   n = tanh(a_n + r g_n),   (r, u) = sigmoid(a_ru + g_ru),   a = W x + b,   g = V h + c
    """

    @staticmethod
    def forward(ctx: Any, code: Tensor, first: Tensor, w: Tensor, v: Tensor, b: Tensor, c: Tensor) -> Tensor:
        (batch, time, _), width = code.shape, first.shape[1]
        # Time first in memory: the other way round the product would be made token by token.
        a = linear(code.transpose(0, 1).reshape(time * batch, -1), w, b).view(time, batch, 3 * width)
        a_n = a[..., 2 * width:].clone()
        a[..., :2 * width] += c[:2 * width]
        a[..., 2 * width:] = c[2 * width:]
        latents = torch.cat([first[None], first.new_empty(time, batch, width)])
        ru, r, u, g_n = (part.unbind(0) for part in (a[..., :2 * width], *a.split(width, 2)))
        v, h, n = v.t(), latents.unbind(0), a_n.unbind(0)
        for t, gates in enumerate(a.unbind(0)):
            gates.addmm_(h[t], v)
            ru[t].sigmoid_()
            n[t].addcmul_(r[t], g_n[t]).tanh_()
            torch.lerp(n[t], h[t], u[t], out=h[t + 1])
        ctx.save_for_backward(code, first, latents, a, a_n, w, v.t(), b, c)  # a: r, u, g_n; a_n: n
        return latents[1:].transpose(0, 1)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        code, first, latents, gates, n, *weights = ctx.saved_tensors
        if torch.is_grad_enabled():  # a gradient of the gradient is needed: PyTorch's own GRU has one
            again = torch._VF.gru(code, first[None], weights, True, 1, 0.0, False, False, True)[0]
            gradients = torch.autograd.grad(again, (code, first), gradient, create_graph=True)
        else:
            gradients = _walk_back(latents, gates, n, weights[0], weights[1], gradient)
        return (*gradients, None, None, None, None)


def _walk_back(latents: Tensor, gates: Tensor, n: Tensor, w: Tensor, v: Tensor, gradient: Tensor,
               ) -> tuple[Tensor, Tensor]:
    """Gradients in code and in the latent before it, from the tensors [T (+ 1), B, ...] that `_Layer.forward` saved."""
    time, batch, width = n.shape
    r, u, g_n = gates.split(width, 2)
    by_n = (1 - n * n).mul_(1 - u)                                         # d h' / d a_n
    by = torch.empty(time, batch, 3, width, dtype=n.dtype)                 # d h' / d g
    torch.mul(by_n, r, out=by[:, :, 2])
    torch.mul(by[:, :, 2], g_n, out=by[:, :, 0]).mul_(1 - r)
    torch.sub(latents[:-1], n, out=by[:, :, 1]).mul_(u).mul_(1 - u)
    total = torch.empty(time, batch, 1, width, dtype=n.dtype)              # gradient of each latent
    moved = torch.empty(batch, 3, width, dtype=n.dtype)
    flat, carried = moved.view(batch, 3 * width), torch.zeros_like(latents[0])
    steps = zip(by.unbind(0), u.unbind(0), gradient.unbind(1), total.unbind(0), total[:, :, 0].unbind(0), strict=True)
    for each, kept, direct, wide, here in reversed(list(steps)):
        torch.add(carried, direct, out=here)
        torch.mul(wide, each, out=moved)
        carried = torch.addmm(here * kept, flat, v)
    by[:, :, 2] = by_n                                                     # d h' / d a
    back = by.mul_(total).view(time * batch, 3 * width)
    return (back @ w).view(time, batch, -1).transpose(0, 1), carried
