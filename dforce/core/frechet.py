"""The Frechet distance of Gaussians fitted to features."""

import torch
from torch import Tensor


def frechet(a: Tensor, b: Tensor) -> float:
    """Squared Frechet distance of the Gaussians fitted to two sets of features, a [N, F] and b [M, F] (Dowson 1982).

    |mean_a - mean_b|^2 + tr(A + B - 2 (A B)^(1/2)), A, B the sample covariances: FID (Heusel et al. 2017), FVD. Between
    two samples of one law it is above 0 and falls with N and M: hold it against a distance of as many real ones.
    """
    if a.ndim != 2 or b.ndim != 2 or a.shape[1] != b.shape[1] or min(len(a), len(b)) < 2:
        raise ValueError(f"frechet compares features [N, F] and [M, F] with N, M >= 2, got {[*a.shape]}, {[*b.shape]}")
    if not (a.isfinite().all() and b.isfinite().all()):
        raise ValueError("features must be finite; did the samples diverge?")
    a, b = a.double(), b.double()
    cov_a, cov_b = (torch.atleast_2d(each.T.cov()) for each in (a, b))
    values, vectors = torch.linalg.eigh(cov_a)
    root = vectors * values.clamp(min=0).sqrt() @ vectors.T
    # tr (A B)^(1/2) = tr (A^(1/2) B A^(1/2))^(1/2): a symmetric matrix, whose eigenvalues are real
    cross = torch.linalg.eigvalsh(root @ cov_b @ root).clamp(min=0).sqrt().sum()
    distance = (a.mean(0) - b.mean(0)).square().sum() + cov_a.trace() + cov_b.trace() - 2 * cross
    return max(0.0, float(distance))
