"""Networks of one image: the protocol, the class and its null, what they refuse, and that they learn."""

from __future__ import annotations

import pytest
import torch

from dforce.core.denoiser import Denoiser, Precond
from dforce.core.loss import corrupt, forcing_loss, min_snr
from dforce.core.noise import Noise
from dforce.core.sample import generate, sample
from dforce.core.schedule import linear
from dforce.data.images import ImageBatches, Images
from dforce.guidance.wrapper import classifier_free
from dforce.nets.image import ImageMLP, ImageUNet
from dforce.train.fit import fit
from dforce.train.objectives import ForcingObjective

NETS = {
    "mlp": lambda **options: ImageMLP((1, 8, 8), static={"class": 3}, width=16, depth=2, hidden=8, **options),
    "unet": lambda **options: ImageUNet((3, 8, 12), static={"class": 3}, width=8, multipliers=(1, 2), **options),
}


def build(kind, seed=0):
    """A network with no weight at 0, where it would hide what it does."""
    torch.manual_seed(seed)
    net = NETS[kind]()
    for parameter in net.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return net.double()


def inputs(net, batch=4):
    g = torch.Generator().manual_seed(1)
    x = torch.randn(batch, 1, *net.event_shape, generator=g).double()
    return x, 3 * torch.randn(batch, 1, generator=g).double(), {"static": {"class": torch.tensor([0, 2, 1, 3])}}


@pytest.mark.parametrize("kind", NETS)
def test_rows_are_alone_and_the_state_is_a_value(kind):
    net = build(kind)
    x, label, cond = inputs(net)
    state = net.init_state(4, cond)
    out, after = net(x, label, state, cond)
    assert out.shape == x.shape and torch.equal(after["class"], cond["static"]["class"])
    for row in range(4):
        one, _ = net(x[row:row + 1], label[row:row + 1], {"class": state["class"][row:row + 1]})
        torch.testing.assert_close(one[0], out[row], rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("kind", NETS)
def test_level_class_pixels_and_every_weight_matter(kind):
    net = build(kind)
    x, label, cond = inputs(net)
    x.requires_grad_()
    label.requires_grad_()
    out, _ = net(x, label, net.init_state(4, cond))
    gradients = torch.autograd.grad(out.square().sum(), [x, label, *net.parameters()])
    assert all(gradient.abs().sum() > 0 for gradient in gradients)
    other, _ = net(x, label, net.init_state(4, {"static": {"class": torch.tensor([1, 2, 1, 3])}}))
    assert not torch.allclose(other[0], out[0]) and torch.equal(other[1:], out[1:])


@pytest.mark.parametrize("kind", NETS)
def test_a_fresh_network_is_silent_and_still_learns(kind):
    """Residual branches begin at 0, so the first answer is 0 whatever comes in; the gradient is not."""
    net = NETS[kind]()
    x, label, cond = (value.float() if isinstance(value, torch.Tensor) else value for value in inputs(net))
    out, _ = net(x, label, net.init_state(4, cond))
    assert not out.any()
    (out - 1).square().sum().backward()
    assert any(bool(p.grad.any()) for p in net.last.parameters())


def test_no_class_means_the_null_class():
    net = build("mlp")
    x, label, _ = inputs(net)
    null, _ = net(x, label, net.init_state(4, {"static": {"class": torch.full((4,), 3)}}))
    assert torch.equal(net(x, label, net.init_state(4))[0], null)
    assert torch.equal(net(x, label, net.init_state(4, {}))[0], null)


def test_classifier_free_guidance_at_scale_1_and_0():
    schedule = linear(20)
    denoiser = Precond(build("mlp"), schedule)
    x, _, cond = inputs(denoiser.net)
    level = torch.tensor([[20], [7], [3], [1]])
    null = {"static": {"class": torch.tensor([3])}}
    with_class, _ = denoiser(x, level, denoiser.init_state(4, cond), cond)
    without, _ = denoiser(x, level, denoiser.init_state(4), None)
    for scale, wanted in ((1.0, with_class), (0.0, without), (3.0, without + 3 * (with_class - without))):
        guided = classifier_free(denoiser, scale, null)
        torch.testing.assert_close(guided(x, level, guided.init_state(4, cond), cond)[0], wanted)


@pytest.mark.parametrize("kind", NETS)
def test_it_is_a_denoiser_and_generate_is_sample(kind):
    schedule = linear(20)
    denoiser = Precond(build(kind), schedule)
    assert isinstance(denoiser, Denoiser) and not denoiser.causal
    x, _, cond = inputs(denoiser.net)
    matrix = schedule.grid(5)[:, None]
    *_, last = sample(denoiser, schedule, matrix, x, cond=cond, eta=1.0, noise=Noise(3))
    assert torch.equal(generate(denoiser, schedule, matrix, x, cond=cond, eta=1.0, noise=Noise(3)), last.x)


def test_a_network_without_classes():
    net = ImageMLP((1, 4, 4), width=8, depth=1, hidden=8)
    assert net(torch.ones(2, 1, 1, 4, 4), torch.zeros(2, 1), net.init_state(2))[0].shape == (2, 1, 1, 4, 4)
    with pytest.raises(ValueError, match=r"of none, got also \['class'\]"):
        net.init_state(2, {"static": {"class": torch.zeros(2).long()}})


@pytest.mark.parametrize("cond, message", [
    ({"class": torch.tensor([0, 1, 4])}, r"0\.\.2, or be 3, the null class; got 0\.\.4"),
    ({"class": torch.tensor([0, -1, 1])}, r"got -1\.\.1"),
    ({"class": torch.tensor([0.0, 1.0, 2.0])}, r"must be integers \[3\].*got torch.float32 \[3\]"),
    ({"class": torch.tensor([0, 1])}, r"must be integers \[3\].*got torch.int64 \[2\]"),
    ({"class": torch.zeros(3, 1).long()}, r"\[3, 1\]"),
    ({"text": torch.zeros(3)}, r"of \['class'\], got also \['text'\]"),
])
def test_wrong_classes(cond, message):
    with pytest.raises(ValueError, match=message):
        NETS["mlp"]().init_state(3, {"static": cond})


def test_wrong_shapes_and_sizes():
    net = NETS["mlp"]()
    for shape in ((2, 2, 1, 8, 8), (2, 1, 3, 8, 8), (2, 1, 64)):
        with pytest.raises(ValueError, match=r"takes one token, an image \[B, 1, 1, 8, 8\]"):
            net(torch.zeros(shape), torch.zeros(2, 1), net.init_state(2))
    with pytest.raises(ValueError, match="cannot be halved 2 times"):
        ImageUNet((1, 8, 10))
    with pytest.raises(ValueError, match="positive multiple of 8"):
        ImageUNet((1, 8, 8), width=12)
    with pytest.raises(ValueError, match=r"an image is \(C, H, W\)"):
        ImageMLP((64,))
    with pytest.raises(ValueError, match="told a 'class' and nothing else"):
        ImageMLP((1, 8, 8), static={"start": 4})


def gaussian_denoiser(x, schedule):
    """The best denoiser of independent pixels with the means and variances of x: E[x0 | noisy] in closed form."""
    mean, var = x.mean(0), x.var(0)

    class Gaussian:
        def init_state(self, batch, cond=None):
            return None

        def __call__(self, noisy, level, state, cond=None):
            alpha, sigma = (table.to(noisy.dtype) for table in schedule(level, noisy))
            return mean + alpha * var / (alpha**2 * var + sigma**2) * (noisy - alpha * mean), state

    return Gaussian()


@pytest.mark.slow
def test_training_beats_independent_pixels_on_the_objective():
    """Stripes of two classes: pixels depend on one another and on the class, which a Gaussian a pixel cannot know."""
    g = torch.Generator().manual_seed(0)
    phase = torch.rand(640, 1, generator=g) * 6.28
    label = torch.randint(2, (640,), generator=g)
    wave = torch.sin(phase + torch.arange(6) * (1.0 + label[:, None]))
    x = wave[:, None, None, None, :].expand(-1, 1, 1, 6, 6).contiguous()
    schedule = linear(100)

    batches = ImageBatches(Images(x[:512], label[:512], ("slow", "fast")), batch=64, drop=0.1)
    torch.manual_seed(0)
    net = ImageMLP((1, 6, 6), static={"class": 2}, width=64, depth=2, hidden=64)
    objective = ForcingObjective(Precond(net, schedule), schedule)
    *_, log = fit(objective, batches, lr=3e-3, steps=250, warmup=20, ema=0.98, precision="fp32", device="cpu")
    with log.training.averaged(), torch.no_grad():
        def error(denoiser, classes):
            generator, cond = torch.Generator().manual_seed(9), {"static": {"class": classes}}
            return float(forcing_loss(denoiser, schedule, x[512:], cond=cond, generator=generator)[0])

        mine, swapped = error(objective.denoiser, label[512:]), error(objective.denoiser, 1 - label[512:])
        pixels = error(gaussian_denoiser(x[:512], schedule), label[512:])
    assert mine < 0.25 * pixels, (mine, pixels)
    assert swapped > 1.3 * mine, (swapped, mine)  # the class is made use of


def test_the_baseline_is_the_best_of_its_kind():
    """The closed form against a numerical optimum, so that the margin above is not over a straw man."""
    schedule = linear(100)
    g = torch.Generator().manual_seed(2)
    x = 0.5 + 0.8 * torch.randn(20_000, 1, 1, 1, 1, generator=g)
    level = torch.full((len(x), 1), 60)
    noisy = corrupt(schedule, x, level, g)
    a = torch.stack([noisy.flatten(), torch.ones(len(x))], 1)
    best = torch.linalg.lstsq(a, x.flatten()[:, None]).solution
    fitted = (a @ best).flatten()
    closed, _ = gaussian_denoiser(x, schedule)(noisy, level, None)
    assert (closed.flatten() - fitted).abs().max() < 0.03
    assert min_snr(5.0)(torch.tensor(0.0)) == 1
