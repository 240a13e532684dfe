"""Curves of log SNR against alpha and sigma written out, both ways; tables are also held against diffusers' schedulers."""

import math

import pytest
import torch

from manifold.errors import InputError
from manifold.snr_curves import FlowCurve, LogSigmaCurve, TableCurve, TanCurve


@pytest.mark.parametrize(
    ("curve", "noise", "places"),
    [
        (FlowCurve(1000.0), lambda t: (t / 1000) / (1 - t / 1000), [1e-3, 17.0, 500.0, 999.0]),
        (LogSigmaCurve(), lambda t: math.exp(4 * t), [-1.5, 0.0, 0.3, 1.1]),
        (TanCurve(), lambda t: math.tan(math.pi * t / 2), [1e-4, 0.3, 0.5, 0.999]),
    ],
    ids=["flow", "log sigma", "tan"],
)
def test_log_snr_is_that_of_sigma_over_alpha_and_leads_back(curve, noise, places):
    t = torch.tensor(places, dtype=torch.float64)
    expected = torch.tensor([-2 * math.log(noise(place)) for place in places], dtype=torch.float64)
    torch.testing.assert_close(curve.log_snr(t), expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(curve.timestep(expected), t, rtol=1e-9, atol=1e-12)


def test_ends_are_no_noise_and_nothing_but_noise():
    t = torch.tensor([0.0, 1000.0], dtype=torch.float64)
    assert FlowCurve().log_snr(t).tolist() == [math.inf, -math.inf]
    assert torch.equal(FlowCurve().timestep(FlowCurve().log_snr(t)), t)


def test_a_level_that_went_through_float32_is_that_of_the_tables_end():
    """Both ends read back from alpha and sigma in float32; a level that is truly beyond is refused."""
    squared = torch.linspace(0.9991, 0.0047, 1000, dtype=torch.float64)
    curve = TableCurve(squared)
    alpha, sigma = squared[[0, -1]].sqrt().float(), (1 - squared[[0, -1]]).sqrt().float()
    log_snr = 2 * (alpha.double().log() - sigma.double().log())
    for shift in (-1e-6, 0.0, 1e-6):
        torch.testing.assert_close(
            curve.timestep(log_snr + shift), torch.tensor([0.0, 999.0]).double(), rtol=0, atol=1e-2
        )
    for beyond in (log_snr[0] + 1e-3, log_snr[1] - 1e-3):
        with pytest.raises(InputError, match="log SNR must lie between"):
            curve.timestep(beyond)
