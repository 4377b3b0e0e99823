"""Low-rank adapters: nothing changes until they learn, and only they do; merged, saved, copied and taken off."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from dforce import fit
from dforce.align import (
    AlignObjective,
    OnPolicy,
    Query,
    Sampler,
    adapter_state,
    add_lowrank,
    check_on_policy,
    disabled,
    fold,
    kl,
    load_adapters,
    merge,
    policy_gradient,
    record,
    replay,
    save_adapters,
    standardised,
    unmerge,
    without_adapters,
)
from dforce.core.denoiser import Precond
from dforce.core.matrix import full_sequence
from dforce.core.noise import Noise
from dforce.core.schedule import cosine
from dforce.guidance.wrapper import classifier_free
from dforce.train.atomic_folder import CheckpointError
from tests.align_bed import Gaussian, Vectors, networks


class Pictures(nn.Module):
    """Convolutions that an adapter must follow, and a grouped one, a GRU and attention, that have none."""

    def __init__(self):
        super().__init__()
        self.convs = nn.ModuleList([nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(6, 4, 2, stride=2),
                                    nn.Conv2d(4, 4, 3, padding=2, dilation=2, padding_mode="circular")])
        self.grouped, self.out = nn.Conv2d(4, 4, 1, groups=2), nn.Linear(4, 5)
        self.core = nn.GRU(5, 5, batch_first=True)
        self.attention = nn.MultiheadAttention(5, 1, batch_first=True)

    def forward(self, x):
        for conv in self.convs:
            x = conv(x).tanh()
        h = self.out(self.grouped(x).flatten(2).transpose(1, 2))
        h = self.core(h)[0]
        return self.attention(h, h, h)[0]


def pictures():
    torch.manual_seed(0)
    return Pictures(), torch.randn(2, 3, 8, 8)


def stir(model, seed=1):
    """Adapters that do something."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, value in adapter_state(model).items():
            if name.endswith(".b"):
                value.copy_(0.5 * torch.randn(value.shape, generator=generator))


def test_nothing_changes_until_b_moves_and_then_only_adapters_learn() -> None:
    model, x = pictures()
    model.requires_grad_(False)                                              # a frozen GRU rounds differently already
    before, names = model(x), set(model.state_dict())
    chosen = add_lowrank(model, rank=2)
    assert chosen == ["convs.0", "convs.1", "convs.2", "out"]                # not the grouped one, GRU, attention
    assert torch.equal(model(x), before)
    learning = {name for name, value in model.named_parameters() if value.requires_grad}
    assert learning == set(adapter_state(model)) == set(model.state_dict()) - names
    model(x).sum().backward()
    assert all((value.grad is not None) == (name in learning) for name, value in model.named_parameters())
    stir(model)
    assert not torch.allclose(model(x), before, atol=1e-3)
    with disabled(model):
        assert torch.equal(model(x), before)
    assert not torch.allclose(model(x), before, atol=1e-3)


def test_every_adapter_is_the_change_of_weight_that_it_says() -> None:
    model, x = pictures()
    add_lowrank(model, rank=2, alpha=3.0)
    stir(model)
    changed = copy.deepcopy(model)
    for module in changed.modules():
        if hasattr(module, "lowrank"):
            a, b = module.lowrank.a, module.lowrank.b
            by_hand = 1.5 * torch.einsum("or,r...->o...", b.flatten(1), a)
            module.weight.data += by_hand
            module.lowrank.b.data.zero_()
    torch.testing.assert_close(model(x), changed(x), rtol=1e-5, atol=1e-6)
    assert not torch.allclose(model(x), pictures()[0](x), atol=1e-3)         # and the copy had adapters of its own


def test_merged_and_unmerged_exactly() -> None:
    model, x = pictures()
    add_lowrank(model, rank=3)
    stir(model)
    weights, wanted = copy.deepcopy(model.state_dict()), model(x)
    merge(model)
    merge(model)                                                             # once is enough
    torch.testing.assert_close(model(x), wanted, rtol=1e-5, atol=1e-6)
    assert not torch.equal(model.out.weight, weights["out.weight"])
    with pytest.raises(ValueError, match="unmerge"), disabled(model):
        pass
    unmerge(model)
    assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())
    assert torch.equal(model(x), wanted)
    fold(model)
    assert set(model.state_dict()) == set(pictures()[0].state_dict())
    assert all(parameter.requires_grad for parameter in model.parameters())
    torch.testing.assert_close(model(x), wanted, rtol=1e-5, atol=1e-6)
    add_lowrank(model)                                                       # and again
    torch.testing.assert_close(model(x), wanted, rtol=1e-5, atol=1e-6)


def test_adapters_are_saved_alone(tmp_path) -> None:
    model, x = pictures()
    add_lowrank(model, rank=2, alpha=5.0, targets=lambda name, module: isinstance(module, nn.Conv2d))
    stir(model)
    save_adapters(tmp_path / "a", model)
    size = sum(file.stat().st_size for file in (tmp_path / "a").iterdir())
    assert size < 4 * sum(value.numel() for value in adapter_state(model).values()) + 3000
    fresh = pictures()[0]
    assert load_adapters(tmp_path / "a", fresh) == ["convs.0", "convs.1", "convs.2"]
    assert torch.equal(fresh(x), model(x))
    assert {name for name, value in fresh.named_parameters() if value.requires_grad} == set(adapter_state(model))
    stir(fresh, seed=9)
    load_adapters(tmp_path / "a", fresh)                                     # refills those that are there
    assert torch.equal(fresh(x), model(x))


def test_bad_adapters_are_refused(tmp_path) -> None:
    model, x = pictures()
    with pytest.raises(ValueError, match="no adapters to save"):
        save_adapters(tmp_path / "a", model)
    with pytest.raises(ValueError, match="rank must be >= 1, got 0"):
        add_lowrank(model, rank=0)
    with pytest.raises(ValueError, match="no nn.Linear or ungrouped nn.Conv2d"):
        add_lowrank(model, targets=lambda name, module: False)
    add_lowrank(model, targets=lambda name, module: name == "out")
    with pytest.raises(ValueError, match="has adapters already"):
        add_lowrank(model)
    save_adapters(tmp_path / "a", model)
    other, before = nn.Sequential(nn.Linear(4, 5)), set(nn.Sequential(nn.Linear(4, 5)).state_dict())
    with pytest.raises(ValueError, match="another model.*out"):
        load_adapters(tmp_path / "a", other)
    wide = pictures()[0]
    wide.out = nn.Linear(9, 5)
    with pytest.raises(ValueError, match=r"another model.*out.lowrank.a \[4, 4\] instead of \[4, 9\]"):
        load_adapters(tmp_path / "a", wide)
    assert set(other.state_dict()) == before and not adapter_state(wide)
    partly = pictures()[0]
    add_lowrank(partly, targets=lambda name, module: name.startswith("convs"))
    with pytest.raises(ValueError, match="another model"):
        load_adapters(tmp_path / "a", partly)
    file = tmp_path / "a" / "adapters.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    with pytest.raises(CheckpointError, match="damaged"):
        load_adapters(tmp_path / "a", pictures()[0])


@pytest.mark.parametrize("name", ["recurrent", "transformer", "temporal", "image"])
def test_every_network_of_the_library_takes_adapters(name) -> None:
    schedule = cosine(100)
    model = networks(schedule)[name].requires_grad_(False)
    x, matrix = torch.randn(3, 4, 3), full_sequence(schedule.grid(4), 4)
    plain = record(model, schedule, matrix, x, noise=Noise(1))
    add_lowrank(model, rank=2)
    trace = record(model, schedule, matrix, x, noise=Noise(1))
    assert torch.equal(trace.x, plain.x) and torch.equal(trace.log_prob, plain.log_prob)
    with pytest.raises(ValueError, match="another model"):                   # a policy with adapters is another policy
        replay(plain, model, schedule)
    replay(trace, model, schedule).log_prob.sum().backward()
    moved = [value.grad.abs().sum() > 0 for key, value in model.named_parameters() if key.endswith("lowrank.b")]
    assert all(moved) and all(value.grad is None for key, value in model.named_parameters() if "lowrank" not in key)


def test_the_base_is_a_reference_that_costs_no_memory() -> None:
    schedule = cosine(100)
    torch.manual_seed(0)
    inner = Precond(Vectors(3), schedule, "v")
    copied = copy.deepcopy(inner)
    null = {"static": {"class": torch.zeros(1, dtype=torch.long)}}
    policy, reference = classifier_free(inner, 2.0, null), classifier_free(copied, 2.0, null)
    add_lowrank(inner, rank=2)
    stir(inner)
    trace = record(policy, schedule, schedule.grid(4)[:, None], torch.randn(5, 1, 3), noise=Noise(1))
    found, wanted = (kl(trace, policy, base, schedule) for base in (without_adapters(policy), reference))
    torch.testing.assert_close(found, wanted, rtol=1e-6, atol=1e-9)
    assert float(found.detach().max()) > 0.01
    assert check_on_policy(trace, policy, schedule).largest < 1e-3           # and they are on again


def test_adapters_are_trained_by_fit_and_the_base_is_not() -> None:
    schedule = cosine(100)
    torch.manual_seed(0)
    model = Precond(Vectors(3), schedule, "v")
    base = copy.deepcopy(model.state_dict())
    add_lowrank(model, rank=2)
    sampler = Sampler(model, schedule, schedule.grid(4)[:, None], (1, 3))
    source = OnPolicy(sampler, lambda x, p, m: x.mean((1, 2)), lambda n, g: Query([0] * n), samples=64,
                      credit=standardised)
    objective = AlignObjective(model, schedule, policy_gradient(kl_weight=1e-3), reference=without_adapters(model))
    logs = list(fit(objective, source, lr=2e-2, steps=12, warmup=1, ema=None, device="cpu", precision="fp32"))
    assert source.epochs[-1]["reward"] > source.epochs[0]["reward"] + 0.1
    assert logs[0].metrics["kl"] == 0 and logs[-1].metrics["kl"] > 0
    now = model.state_dict()
    assert all(torch.equal(value, now[name]) for name, value in base.items())
    assert set(logs[-1].training.parameters) == {f"denoiser.{name}" for name in adapter_state(model)}


def test_half_precision_bases_have_adapters_that_learn_in_float32() -> None:
    model = nn.Linear(4, 4).bfloat16()
    add_lowrank(model, rank=2)
    x = torch.randn(3, 4).bfloat16()
    assert model.lowrank.a.dtype == torch.float32 and model(x).dtype == torch.bfloat16
    with pytest.raises(ValueError, match="no nn.Linear"):
        add_lowrank(Gaussian(cosine(10)))
