"""All randomness as a function of a seed and a position, so that a run that goes on is the run uninterrupted."""

import random

import numpy as np
import torch


def position_seed(*position: int) -> int:
    """A seed of 64 bits for a position such as (seed, epoch, step)."""
    low, high = np.random.SeedSequence(position).generate_state(2)
    return int(low) | int(high) << 32


def seed_everything(*position: int) -> None:
    """Seed torch, numpy and random for a position such as (seed, epoch, step)."""
    seed = position_seed(*position)
    torch.default_generator.manual_seed(seed)
    # torch.manual_seed would queue a call with a stack trace, at 1 ms each, as long as CUDA is not in use.
    if torch.cuda.is_initialized():
        torch.cuda.manual_seed_all(seed)
    if torch.backends.mps.is_available():
        torch.mps.manual_seed(seed)
    np.random.seed(seed % 2**32)
    random.seed(seed)
