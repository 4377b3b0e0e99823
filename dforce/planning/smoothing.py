"""A smoother of plans by linear least squares, without a network and without a map.

A network that plans in tokens of several environment steps knows the steps inside a token well and begins each token
somewhat beside the end of the one before it: plans leap at the seams. The smoother spreads such a leap over the steps
around it. It would make a plan through a wall slower, not sound, so plans are chosen first (`BestOfN`).
"""

import numpy as np


def smoothed(path: np.ndarray, stack: int, reach: float) -> np.ndarray:
    """The places y that minimise sum_t |y_t - x_t|^2 + reach^2 sum_t |y_{t+1} - y_t - d_t|^2 with y_0 = x_0.

    d_t is the path's step x_{t+1} - x_t inside a token, and at a seam between tokens the mean of the steps beside it:
    a path whose seams have that step already is returned as it is. Normal equations: tridiagonal, positive definite.

    path: [N, H + 1, P], where it starts and the planned places x. stack: environment steps in a token; with 1 there is
    no step inside a token to go by, and nothing is changed. reach: environment steps over which a leap is spread; 0
    changes nothing. -> [N, H + 1, P]
    """
    step, horizon, weight = np.diff(path, axis=1), path.shape[1] - 1, reach**2
    if stack < 2 or horizon < 2 or not weight:
        return path
    seam = np.arange(0, horizon, stack)
    before, behind = np.where(seam == 0, 1, seam - 1), np.where(seam == horizon - 1, seam - 1, seam + 1)
    step[:, seam] = (step[:, before] + step[:, behind]) / 2
    wanted = path[:, 1:] + weight * (step - np.pad(step[:, 1:], ((0, 0), (0, 1), (0, 0))))
    wanted[:, 0] += weight * path[:, 0]
    matrix = np.diag(np.full(horizon, 1 + 2 * weight)) - weight * (np.eye(horizon, k=1) + np.eye(horizon, k=-1))
    matrix[-1, -1] -= weight
    places = np.linalg.solve(matrix, wanted.swapaxes(0, 1).reshape(horizon, -1))
    return np.concatenate([path[:, :1], places.reshape(horizon, len(path), -1).swapaxes(0, 1)], axis=1)
