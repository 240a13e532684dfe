"""What every test file shares: the helpers on the path, offline hubs, one seed."""

import os
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

os.environ["HF_HUB_OFFLINE"] = "1"
sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture(autouse=True)
def fixed_seed() -> int:
    """Seed torch's global generator before each test; returns the seed for generators of its own."""
    torch.manual_seed(20230305)
    return 20230305


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(20230305)
