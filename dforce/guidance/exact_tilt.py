"""Monte Carlo guidance with the settings that give the law of the tilt, in one call."""

from dforce.core.denoiser import Denoiser
from dforce.core.noise import NoiseSource
from dforce.core.schedule import Schedule
from dforce.guidance.energy import Energy
from dforce.guidance.monte_carlo import GoalEnergy, monte_carlo


def exact_tilt(denoiser: Denoiser, schedule: Schedule, energy: Energy | GoalEnergy, draws: int = 16, *,
               lookahead: int = 10, noise: NoiseSource | None = None, chunk: int | None = None) -> monte_carlo:
    """Guides towards p(x0) exp(energy(x0)), up to the error of `draws` futures: `monte_carlo` as the law needs it.

    Every draw is a sample of all clean tokens given the noisy ones (branch "posterior"), token after token where the
    denoiser is causal (futures "sequential"), in `lookahead` passes. A `GoalEnergy`, which must be
    log N(goal; features(x0), std^2), is matched by mean and full covariance of its features; other energies, in nats,
    are combined by log-mean-exp, which needs more draws the further they pull (64 or more). Sample at second order, in
    20 steps or more (two goals close together are missed by .06 in 20 steps and by .30 in 12), and if the denoiser is
    causal with a delay of a quarter of the steps or more.

    The defaults of `monte_carlo` are a planner's heuristic: cheaper, for scales that are tuned. On an AR(1) process
    (rho .8, 24 tokens, exact causal denoiser) with a goal at -1.5 (std .2) for the last token they miss the mean of the
    posterior by 3.40 standard deviations of the process, these settings by .05.

    draws, lookahead: >= 2. noise, chunk: as in `monte_carlo`. Raises ValueError as `monte_carlo` does, and for one
    draw.
    """
    if draws < 2:
        raise ValueError(f"draws must be >= 2 (one says nothing of what is uncertain), got {draws}")
    return monte_carlo(denoiser, schedule, energy, draws, lookahead=lookahead, branch="posterior",
                       futures="sequential" if denoiser.causal else "joint",
                       reduce="gaussian" if isinstance(energy, GoalEnergy) else "logmeanexp", noise=noise, chunk=chunk)
