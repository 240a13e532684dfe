"""Networks kept during training: which steps, where, and found again among what else lies there."""

import diffusers
import pytest
import torch
from diffusers.training_utils import EMAModel
from manifold_apps.report_model import open_flow_model
from manifold_apps.training.checkpoints import find_checkpoints, keep_checkpoint, kept_step
from tiny_pipelines import tiny_ddim, tiny_unet

from manifold.errors import InputError


def test_kept_are_the_untrained_network_and_every_doubling_from_25():
    assert [step for step in range(1700) if kept_step(step)] == [0, 25, 50, 100, 200, 400, 800, 1600]


def test_a_kept_network_opens_as_it_was(tmp_path):
    network = tiny_unet()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    keep_checkpoint(network, tmp_path, 50)
    assert all(value.dtype == torch.float32 for value in network.parameters())  # the training goes on in float32
    place = find_checkpoints(tmp_path, "unet")[50]
    opened = diffusers.UNet2DModel.from_pretrained(place, low_cpu_mem_usage=False).float().state_dict()
    for name, value in before.items():
        torch.testing.assert_close(opened[name], value, rtol=2**-11, atol=2**-24)


def test_networks_are_found_by_step_the_average_before_the_last(tmp_path):
    for name in ("checkpoint-500/unet", "checkpoint-500/unet_ema", "checkpoint-90/unet", "checkpoint-7/transformer"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "config.json").write_text("{}")
    (tmp_path / "checkpoint-100" / "unet").mkdir(parents=True)  # cut off before its config was written
    (tmp_path / "checkpoint-last" / "unet").mkdir(parents=True)
    (tmp_path / "checkpoint-last" / "unet" / "config.json").write_text("{}")
    found = find_checkpoints(tmp_path, "unet")
    assert list(found.items()) == [
        (90, tmp_path / "checkpoint-90" / "unet"),
        (500, tmp_path / "checkpoint-500" / "unet_ema"),
    ]
    assert list(find_checkpoints(tmp_path, "transformer")) == [7]


def test_an_average_that_diffusers_kept_opens_as_the_network_it_is(tmp_path):
    network = tiny_unet(3)
    average = EMAModel(network.parameters(), decay=0.5, model_cls=diffusers.UNet2DModel, model_config=network.config)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter += 1
    average.step(network.parameters())
    average.save_pretrained(tmp_path / "checkpoint-30" / "unet_ema")
    model = open_flow_model(tiny_ddim())
    opened = model.kept(find_checkpoints(tmp_path, model.network_name)[30])
    for kept, wanted in zip(opened.parameters(), average.shadow_params, strict=True):
        torch.testing.assert_close(kept, wanted, rtol=0, atol=0)


@pytest.mark.parametrize("made", [False, True])
def test_a_folder_without_networks_says_what_it_should_hold(made, tmp_path):
    folder = tmp_path / "kept"
    if made:
        folder.mkdir()
    with pytest.raises(InputError, match="checkpoint-STEP/unet"):
        find_checkpoints(folder, "unet")
