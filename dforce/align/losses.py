"""Alignment losses: pure functions of tensors. No network, no optimiser, no configuration.

Shapes: B runs, S recorded steps, T tokens. `log_prob`, `old`, `dims`, `kl` are [B, S, T], in nats summed over the
dimensions of a token, `dims` counting those that move; cells with dims = 0 (held tokens, deterministic steps) are left
out of every mean. Log-ratios and KL are divided by dims: a mean ratio of 1.01 is a density ratio of 1e70 in 16,384
dimensions. `clip_nats` stays in nats for the whole density, so that one number suits a maze action and an image alike.

reduce: "token", every token of a step is an action with a ratio of its own (credit per token); "sequence", all tokens
of a step are one action. advantage: [B]; or [B, T] or [B, S, T] ("token"), [B, S] ("sequence").
"""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

Reduce = Literal["token", "sequence"]


def ddpo_sf(log_prob: Tensor, advantage: Tensor, dims: Tensor, *, reduce: Reduce = "token") -> Tensor:
    """The score function estimator, DDPO-SF (Black et al. 2023, section 4.3; REINFORCE)::

        L = -E[ A sum_t log p_theta(x_{t-1} | x_t, c) ]

    (a mean in place of the sum, nats per dimension), for one update after every recording: `ddpo_is` at ratio 1.
    """
    _check(log_prob=log_prob, dims=dims)
    nats, size = _cells(log_prob, dims, reduce)
    return -_mean(_align(advantage, nats, reduce) * nats / size.clamp(min=1), size > 0)


def ddpo_is(log_prob: Tensor, old: Tensor, advantage: Tensor, dims: Tensor, *, clip_nats: float = 1.0,
            reduce: Reduce = "token") -> Tensor:
    """Importance sampling with PPO's clip, DDPO-IS (Black et al. 2023, section 4.3; Schulman et al. 2017, eq. 7)::

        L = -E[ min(r A, clip(r, e^-c, e^c) A) ]     r = exp((log p_theta - log p_old) / dims)     c = clip_nats / dims

    also the loss of Flow-GRPO and DanceGRPO, with group advantages. The published log-probs are means over dimensions
    and the clip 1e-4: at 4 x 64 x 64 latents that is clip_nats = 1.64. 0.6 to 1.6 is a good range.
    """
    _check(log_prob=log_prob, old=old, dims=dims)
    _positive(clip_nats=clip_nats)
    nats, size = _cells(log_prob - old, dims, reduce)
    advantage = _align(advantage, nats, reduce)
    ratio, bound = (nats / size.clamp(min=1)).exp(), clip_nats / size.clamp(min=1)
    clipped = torch.minimum(torch.maximum(ratio, (-bound).exp()), bound.exp())
    return -_mean(torch.minimum(ratio * advantage, clipped * advantage), size > 0)


def clip_fraction(log_prob: Tensor, old: Tensor, dims: Tensor, *, clip_nats: float = 1.0,
                  reduce: Reduce = "token") -> Tensor:
    """The share of moving cells whose ratio is out of the clip of `ddpo_is`: 0 on-policy, a watch on the step size."""
    _check(log_prob=log_prob, old=old, dims=dims)
    nats, size = _cells((log_prob - old).detach(), dims, reduce)
    return _mean((nats.abs() > clip_nats).to(nats.dtype), size > 0)


def kl_penalty(kl: Tensor, dims: Tensor, *, reduce: Reduce = "token") -> Tensor:
    """The mean of the per-step KL in nats per dimension: what DPOK adds, on the scale of the policy losses here."""
    _check(kl=kl, dims=dims)
    nats, size = _cells(kl, dims, reduce)
    return _mean(nats / size.clamp(min=1), size > 0)


def dpok(log_prob: Tensor, advantage: Tensor, kl: Tensor, dims: Tensor, *, kl_weight: float, old: Tensor | None = None,
         clip_nats: float = 1.0, reduce: Reduce = "token") -> Tensor:
    """Policy gradient with KL control, DPOK (Fan et al. 2023; why a KL per step: Lemma 4.2)::

        L = E sum_t [ -A log p_theta(x_{t-1} | x_t, c) ] + w E sum_t KL(p_theta(. | x_t, c) || p_ref(. | x_t, c))

    kl: from `dforce.align.kl`, with gradient. Given `old`, the first term is `ddpo_is`. Both are nats per dimension.
    """
    _positive(kl_weight=kl_weight, least=0.0)
    reward = ddpo_sf(log_prob, advantage, dims, reduce=reduce) if old is None else ddpo_is(
        log_prob, old, advantage, dims, clip_nats=clip_nats, reduce=reduce)
    return reward + kl_weight * kl_penalty(kl, dims, reduce=reduce)


def diffusion_dpo(win: Tensor, lose: Tensor, win_reference: Tensor, lose_reference: Tensor, *, beta: float = 5000.0,
                  weight: Tensor | None = None) -> Tensor:
    """Diffusion-DPO (Wallace et al. 2023), of denoising errors [B]::

        L = -E log sigmoid( -beta / 2 [ (e_w - e_w_ref) - (e_l - e_l_ref) ] )      e = mean |eps - eps_hat(x_t, t)|^2

    every error being a model's own against the true noise, winner and loser at one level under one noise (see
    `dforce.align.denoising_error`). Not, as one finds it printed, the difference |eps_ref - eps_theta|^2, and no square
    around the loser's bracket: those are not zero where the model is the reference, and push both apart. With sums in
    place of means over D dimensions divide beta by D. log 2 at the start. weight [B]: of each pair, 0 for a tie.
    """
    _check(1, win=win, lose=lose, win_reference=win_reference, lose_reference=lose_reference)
    _positive(beta=beta)
    loss = -F.logsigmoid(-0.5 * beta * ((win - win_reference) - (lose - lose_reference)))
    return loss.mean() if weight is None else (weight.detach().to(loss.dtype) * loss).mean()


def d3po(win: Tensor, lose: Tensor, win_reference: Tensor, lose_reference: Tensor, dims: Tensor, *, beta: float = 0.1,
         clip_nats: float | None = None, reduce: Reduce = "token", weight: Tensor | None = None) -> Tensor:
    """Step-wise DPO on recorded runs, D3PO (Yang et al. 2023); with pairs of its own samples, online DPO::

        L = -E_t log sigmoid( beta (l_w - l_l) )     l = clip( (log p_theta - log p_ref) / dims, +- clip_nats / dims )

    All [B, S, T]: log-probs of the winner's and the loser's steps under the model and the reference; dims: of cells
    that move in both (the lesser of the two). beta multiplies nats per dimension, as published, where the clip is .1
    a dimension. log 2 at the start; beyond the clip no gradient. weight [B]: of each pair, 0 for a tie.
    """
    _check(win=win, lose=lose, win_reference=win_reference, lose_reference=lose_reference, dims=dims)
    _positive(beta=beta)
    logs = []
    for log_prob, reference in ((win, win_reference), (lose, lose_reference)):
        nats, size = _cells(log_prob - reference, dims, reduce)
        if clip_nats is not None:
            _positive(clip_nats=clip_nats)
            nats = nats.clamp(-clip_nats, clip_nats)
        logs.append(nats / size.clamp(min=1))
    loss = -F.logsigmoid(beta * (logs[0] - logs[1]))
    return _mean(loss if weight is None else _align(weight, loss, reduce) * loss, size > 0)


def weighted_regression(error: Tensor, weight: Tensor) -> Tensor:
    """Reward-weighted regression, L = E[ w(R) e ] (Peters & Schaal 2007; Black et al. 2023, section 4.2).

    error: denoising errors [B]; weight: [B] of `exponential_weight`, `filtered_weight`, or 1 (supervised); no gradient.
    """
    _check(1, error=error, weight=weight)
    return (weight.detach() * error).mean()


def exponential_weight(reward: Tensor, beta: float) -> Tensor:
    """w_RWR = exp(beta R) / its mean over the batch. reward: [B]; a constant one gives 1 everywhere."""
    _check(1, reward=reward)
    _positive(beta=beta, least=0.0)
    return len(reward) * torch.softmax(beta * reward, 0)


def filtered_weight(reward: Tensor, keep: float = 0.1) -> Tensor:
    """w_sparse = 1[R >= C] / its mean: the best `keep` of the batch, ties included (all of them, if all are equal)."""
    _check(1, reward=reward)
    if not 0 < keep <= 1:
        raise ValueError(f"the share of samples to keep must lie in (0, 1], got {keep}")
    count = max(1, round(keep * len(reward)))
    chosen = (reward >= reward.topk(count).values[-1]).to(reward.dtype)
    return chosen / chosen.mean()


def diffusion_nft(prediction: Tensor, old: Tensor, target: Tensor, reward: Tensor, *, beta: float = 1.0,
                  weight: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
    """DiffusionNFT (Zheng et al. 2025): a forward-process loss that learns from bad samples too::

        v+ = (1 - b) v_old + b v     v- = (1 + b) v_old - b v     L = E[ r |v+ - v*|^2 + (1 - r) |v- - v*|^2 ]

    prediction, old, target: [B, T, *E], of the model, of the one that sampled, and true; here x0_hat, x0_hat_old and
    x0, which differ from velocities by a factor that `weight` [B, T] puts back. reward: [B] in [0, 1], the probability
    of being good (`optimality`). mask: [B, T, *E]. At its minimum v - v_old = E[(2 r - 1)(v* - v_old)] / b.
    """
    _check(1, reward=reward)
    _positive(beta=beta)
    if not prediction.shape == old.shape == target.shape or len(reward) != len(target):
        raise ValueError(f"prediction, old and target must be [B, T, *E] alike and reward [B], got "
                         f"{[*prediction.shape]}, {[*old.shape]}, {[*target.shape]}, {[*reward.shape]}")
    if ((reward < 0) | (reward > 1)).any():
        raise ValueError(f"reward here is a probability in [0, 1], got {float(reward.min()):.3g}.."
                         f"{float(reward.max()):.3g}; pass optimality(advantage)")
    old, away = old.detach(), beta * (prediction - old.detach())
    good = reward.view(-1, *(1,) * (target.ndim - 1)).to(target.dtype)
    error = good * (old + away - target).square() + (1 - good) * (old - away - target).square()
    valid = torch.ones_like(error) if mask is None else mask.expand_as(error).to(error.dtype)
    token = (error * valid).flatten(2).sum(2) / valid.flatten(2).sum(2).clamp(min=1)
    return _mean(token if weight is None else weight * token, valid.flatten(2).any(2))


def optimality(advantage: Tensor, limit: float = 1.0) -> Tensor:
    """r = 1/2 + 1/2 clip(A / limit, -1, 1): advantages [B] as probabilities of being good, for `diffusion_nft`."""
    _positive(limit=limit)
    return 0.5 + 0.5 * (advantage / limit).clamp(-1, 1)


def _cells(nats: Tensor, dims: Tensor, reduce: Reduce) -> tuple[Tensor, Tensor]:
    """Nats and dimensions of every action: [B, S, T], or summed over tokens [B, S]."""
    match reduce:
        case "token":
            return nats, dims.to(nats.dtype)
        case "sequence":
            return nats.sum(2), dims.sum(2).to(nats.dtype)
        case _:
            raise ValueError(f"reduce must be 'token' or 'sequence', got {reduce!r}")


def _align(advantage: Tensor, cells: Tensor, reduce: Reduce) -> Tensor:
    """advantage, detached, shaped to broadcast against the actions [B, S, T] or [B, S]."""
    wanted = {1: cells.shape[:1], cells.ndim: cells.shape}
    if reduce == "token":
        wanted[2] = cells.shape[::2]
    if advantage.shape != wanted.get(advantage.ndim):
        shapes = "[B], [B, T] or [B, S, T]" if reduce == "token" else "[B] or [B, S]"
        raise ValueError(f"with reduce={reduce!r} advantages are {shapes} for actions {[*cells.shape]}, "
                         f"got {[*advantage.shape]}")
    shape = (len(cells), 1, -1) if reduce == "token" and advantage.ndim == 2 else (
        *advantage.shape, *(1,) * (cells.ndim - advantage.ndim))
    return advantage.detach().to(cells.dtype).view(shape)


def _mean(values: Tensor, where: Tensor) -> Tensor:
    return values.where(where, 0.0).sum() / where.sum().clamp(min=1)


def _check(rank: int = 3, **tensors: Tensor) -> None:
    """ValueError unless all have this rank and one shape."""
    shapes = {name: [*tensor.shape] for name, tensor in tensors.items()}
    if any(tensor.ndim != rank for tensor in tensors.values()) or len({str(shape) for shape in shapes.values()}) > 1:
        wanted = "[B, S, T]" if rank == 3 else "[B]"
        raise ValueError(f"{', '.join(tensors)} must all be {wanted}, got "
                         + ", ".join(f"{name} {shape}" for name, shape in shapes.items()))


def _positive(least: float | None = None, **values: float) -> None:
    for name, value in values.items():
        if not (value > 0 if least is None else value >= least):
            raise ValueError(f"{name} must be {'positive' if least is None else f'>= {least:g}'}, got {value}")
