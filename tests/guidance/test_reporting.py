"""The shares of the work that sampling tells add up to 1, on every path, and change nothing."""

import pytest
import torch

from dforce.align.fingerprint import fingerprint
from dforce.align.on_policy import Sampler
from dforce.core.matrix import pyramid
from dforce.core.noise import Noise
from dforce.core.sample import generate
from dforce.core.schedule import cosine
from dforce.guidance.reporting import Reporting, reporting, share_of
from tests.gaussian_bed import Causal

SCHEDULE = cosine(50)


@pytest.mark.parametrize("delay", [0, 1, 3])
@pytest.mark.parametrize("path", ["auto", "wavefront", "double_loop"])
@pytest.mark.parametrize("time", [1, 6])
def test_the_shares_of_sampling_add_up_to_one(delay: int, path: str, time: int) -> None:
    denoiser, matrix = Causal(SCHEDULE), pyramid(SCHEDULE.grid(5), time, delay)
    x, shares = torch.randn(3, time, 1, generator=torch.Generator().manual_seed(0)), []
    if path == "double_loop":
        denoiser.recurrent = False  # else `reporting` counts on a wavefront, which "auto" takes
    telling = reporting(denoiser, matrix, len(x), shares.append)
    path = "auto" if time == 1 else path
    assert torch.equal(generate(telling, SCHEDULE, matrix, x, path=path),
                       generate(denoiser, SCHEDULE, matrix, x, path=path))
    assert sum(shares) == pytest.approx(1) and len(shares) >= 5


def test_nobody_who_listens_is_no_wrapper_and_a_share_is_a_share() -> None:
    denoiser = Causal(SCHEDULE)
    assert reporting(denoiser, pyramid(SCHEDULE.grid(5), 2, 1), 3, None) is denoiser
    heard: list[float] = []
    share_of(heard.append, 0.25)(0.5)
    assert heard == [0.125] and share_of(None, 0.5) is None


@pytest.mark.parametrize("rows", [None, 2])
def test_a_sampler_tells_its_work_and_its_trace_is_the_policy_s_own(rows: int | None) -> None:
    denoiser, matrix = Causal(SCHEDULE), SCHEDULE.grid(4)[:, None]
    plain = Sampler(denoiser, SCHEDULE, matrix, (1, 1), rows=rows)
    for name in ("record", "tokens"):
        shares: list[float] = []
        getattr(plain._replace(advance=shares.append), name)(5, None, Noise(1))
        assert sum(shares) == pytest.approx(1) and len(shares) == 4 * (1 if rows is None else 3)
    assert fingerprint(Reporting(denoiser, 5, shares.append), SCHEDULE) == fingerprint(denoiser, SCHEDULE)
