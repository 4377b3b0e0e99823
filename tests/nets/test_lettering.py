"""The network of words: two colours and a mask, letters placed along the width, and what it refuses."""

import pytest
import torch

from dforce.nets.lettering import ACROSS, SPAN, LetteringNet, _along, _shapes_along

SIZES = {"width": 8, "coarse": 8, "letters": 4}


@pytest.fixture(scope="module")
def net():
    torch.manual_seed(0)
    net = LetteringNet((3, 8, 24), static={"text": 5}, **SIZES)
    for parameter in net.parameters():  # the ends of its branches begin at 0, where nothing could be told apart
        torch.nn.init.normal_(parameter, std=0.3)
    return net.eval().requires_grad_(False)


def seen(net, x, codes):
    return net(x, torch.zeros(len(x), 1), net.init_state(len(x), {"static": {"text": codes}}))[0]


def codes_and_images(count=4):
    generator = torch.Generator().manual_seed(1)
    codes = torch.randint(1, 27, (count, 5), generator=generator)
    codes[0, 3:], codes[1, 4:] = 0, 0
    return codes, torch.randn(count, 1, 3, 8, 24, generator=generator)


def test_an_image_is_two_colours_and_what_lies_between(net):
    codes, x = codes_and_images()
    out = seen(net, x, codes)
    assert out.shape == x.shape
    flat = out[:, 0].flatten(2).double()
    singular = torch.linalg.svdvals(flat - flat[..., :1])
    assert bool((singular[:, 1] < 1e-5 * singular[:, 0]).all())


def test_rows_are_apart_and_every_letter_counts(net):
    codes, x = codes_and_images()
    out = seen(net, x, codes)
    torch.testing.assert_close(seen(net, x[2:], codes[2:]), out[2:])
    for place in range(5):
        other = codes.clone()
        other[2:, place] = other[2:, place] % 26 + 1
        assert bool((seen(net, x, other)[2:] - out[2:]).flatten(1).abs().amax(1).gt(1e-4).all())
    without = net(x, torch.zeros(4, 1), net.init_state(4))[0]
    torch.testing.assert_close(seen(net, x, torch.full_like(codes, 27)), without, rtol=0, atol=0)


def test_letters_lie_evenly_along_a_centred_word():
    codes = torch.tensor([[1, 2, 3, 0, 0], [1, 2, 3, 4, 5], [27] * 5])
    share = _along(torch.eye(5).expand(3, 5, 5), codes, 240)[:, :, 0]  # of each letter in each column
    column = (torch.arange(240) + 0.5) / 240
    for row, length in ((0, 3), (1, 5)):
        centers = column[share[row, :length].argmax(1)]
        torch.testing.assert_close(centers, 0.5 + (torch.arange(length) - (length - 1) / 2) * SPAN / length,
                                   rtol=0, atol=3e-3)
        inside = (column > centers[0] + 0.01) & (column < centers[-1] - 0.01)
        torch.testing.assert_close(share[row].sum(0)[inside], torch.ones(int(inside.sum())))
        assert not share[row, length:].any()
    assert not share[2].any()


def test_shapes_are_laid_side_by_side():
    codes = torch.tensor([[1, 2, 3, 0, 0]])
    shapes = torch.arange(5.0)[None, :, None, None, None].expand(1, 5, 1, 2, ACROSS)
    line = _shapes_along(shapes, codes, 240)[0, 0, 1]
    column = (torch.arange(240) + 0.5) / 240
    number = (column - 0.5) / SPAN * 3 + 1            # of the letter, whose place is number - .5 to number + .5
    inner = ((number - number.round()).abs() < 0.4) & (number.round() >= 0) & (number.round() < 3)
    torch.testing.assert_close(line[inner], number[inner].round())
    ramp = torch.arange(float(ACROSS)).expand(1, 5, 1, 2, ACROSS)
    middle = (number - 1).abs() < 0.4                  # within a letter a shape is read from left to right
    torch.testing.assert_close(_shapes_along(ramp, codes, 240)[0, 0, 0][middle],
                               (number[middle] - 0.5) * ACROSS - 0.5, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize(("shape", "static"), [((1, 8, 24), {"text": 5}), ((3, 8, 22), {"text": 5}),
                                               ((3, 8, 24), {"class": 5}), ((3, 8, 24), {})])
def test_what_it_is_not_built_for(shape, static):
    with pytest.raises(ValueError, match="this network draws words"):
        LetteringNet(shape, static=static, **SIZES)


def test_texts_that_are_none(net):
    for text, message in ((torch.ones(2, 4, dtype=torch.long), r"integers \[2, 5\]"), (torch.ones(2, 5), "integers"),
                          (torch.full((2, 5), 28), r"lie in 0\.\.27")):
        with pytest.raises(ValueError, match=message):
            net.init_state(2, {"static": {"text": text}})
    with pytest.raises(ValueError, match="got also"):
        net.init_state(2, {"static": {"class": torch.zeros(2)}})
    with pytest.raises(ValueError, match="one token, an image"):
        net(torch.zeros(2, 2, 3, 8, 24), torch.zeros(2, 2), net.init_state(2))
