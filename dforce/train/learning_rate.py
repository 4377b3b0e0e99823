"""The learning rate over a training."""

import math


def learning_rate(step: int, *, lr: float, steps: int, warmup: int = 0, decay: str = "cosine",
                  floor: float = 0.0) -> float:
    """Rises linearly to `lr` over `warmup` steps, then falls along a half cosine to floor * lr, or is constant."""
    rising = min(1.0, (step + 1) / max(warmup, 1))
    if decay == "constant" or step < warmup:
        return lr * rising
    done = (step - warmup) / max(steps - warmup, 1)
    return lr * (floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * done)))
