"""One rule for every random draw in training: a generator is a pure function of a few integers."""

from __future__ import annotations

import numpy as np
import torch


def derive_seed(*keys: int) -> int:
    """Mix non-negative integers such as (seed, epoch, step) into one 63-bit seed; neighbours give unrelated streams."""
    return int(np.random.SeedSequence(keys).generate_state(1, np.uint64)[0] >> 1)


def generator(*keys: int) -> torch.Generator:
    """A CPU generator seeded with `derive_seed(*keys)`: the same draws on every device and in every process."""
    return torch.Generator().manual_seed(derive_seed(*keys))
