"""Adapters of pipelines: a plain pipeline loads what is written, files are read back, and those of peft serve."""

from __future__ import annotations

import pytest
import torch
from diffusers import DiffusionPipeline
from peft import LoraConfig, get_peft_model_state_dict
from safetensors.torch import load_file, save_file

from dforce.align.algorithms.common import moving_copy, reference_of
from dforce.align.lora import adapter_state, add_lowrank, merge, without_adapters
from dforce.align.lora_diffusers import LORA_FILE, load_lora, save_lora
from dforce.guidance.wrapper import module_inside
from dforce.images.pipeline import load_pipeline
from dforce.images.tuned_pipeline import ATTENTION

LIKE_DIFFUSERS = ["to_q", "to_k", "to_v", "to_out.0"]


def plain(folder):
    without = {"text_encoder_3": None, "tokenizer_3": None} if "sd3" in str(folder) else {}
    pipe = DiffusionPipeline.from_pretrained(folder, local_files_only=True, **without)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def images(pipe):
    return pipe(["a cat"], num_inference_steps=2, guidance_scale=3.0, output_type="np", height=16, width=16,
                generator=torch.Generator().manual_seed(0)).images


def moved(network, alpha=4.0):
    """Adapters of rank 2 that are not idle."""
    generator = torch.Generator().manual_seed(1)
    add_lowrank(network, rank=2, alpha=alpha, targets=lambda name, _: name.endswith(ATTENTION), generator=generator)
    for name, weight in network.named_parameters():
        if name.endswith("lowrank.b"):
            weight.data.normal_(generator=generator)
    return network


@pytest.mark.parametrize("kind", ["sd_folder", pytest.param("sd3_folder", marks=pytest.mark.slow)])
def test_a_plain_pipeline_draws_the_same_images(kind, request, tmp_path) -> None:
    folder = request.getfixturevalue(kind)
    ours, theirs = plain(folder), plain(folder)
    before = images(ours)
    network = moved(module_inside(load_pipeline(ours).denoiser))  # hangs on the pipeline's own network
    save_lora(tmp_path, network)
    theirs.load_lora_weights(tmp_path, weight_name=LORA_FILE, local_files_only=True)
    assert abs(images(ours) - images(theirs)).max() == 0.0 < abs(images(ours) - before).max()
    merge(network)
    theirs.fuse_lora()
    assert abs(images(ours) - images(theirs)).max() == 0.0
    again = module_inside(load_pipeline(folder).denoiser)
    names = load_lora(tmp_path / LORA_FILE, again)
    assert {name.rpartition(".lowrank")[0] for name in adapter_state(again)} == set(names)
    for name, value in adapter_state(network).items():
        torch.testing.assert_close(adapter_state(again)[name], value * (2.0 if name.endswith(".b") else 1.0),
                                   rtol=0, atol=0)


@pytest.mark.slow
def test_files_of_peft_and_of_others(sd_folder, sd3_folder, tmp_path) -> None:
    pipe = plain(sd_folder)
    torch.manual_seed(3)
    pipe.unet.add_adapter(LoraConfig(r=2, lora_alpha=3, init_lora_weights=False, target_modules=LIKE_DIFFUSERS))
    policy = load_pipeline(pipe).sampler(2, guidance=3.0).denoiser
    network = module_inside(policy)
    learning = {name for name, weight in network.named_parameters() if weight.requires_grad}
    assert learning and all("lora_" in name for name in learning)
    with pytest.raises(ValueError, match="adapters of peft already"):
        add_lowrank(network)
    theirs, reference = images(pipe), reference_of(policy)
    assert isinstance(reference, without_adapters)
    shared = {id(weight) for weight in network.parameters() if not weight.requires_grad}
    assert {id(weight) for weight in module_inside(moving_copy(policy)).parameters()} >= shared
    x, level = torch.randn(1, 1, 4, 8, 8), torch.full((1, 1), 500)
    pipeline = load_pipeline(sd_folder)
    cond, base = pipeline.encode(["a dog"]), pipeline.sampler(2, guidance=3.0).denoiser
    one, other, tuned = (each(x, level, each.init_state(1, cond))[0] for each in (reference, base, policy))
    assert torch.equal(one, other) and not torch.equal(tuned, other)
    assert learning == {name for name, weight in network.named_parameters() if weight.requires_grad}
    save_lora(tmp_path / "ours", network)
    pipe.save_lora_weights(tmp_path / "peft", unet_lora_layers=get_peft_model_state_dict(pipe.unet),
                           unet_lora_adapter_metadata=pipe.unet.peft_config["default"].to_dict())
    for name in ("ours", "peft"):
        fresh = plain(sd_folder)
        load_lora(tmp_path / name, module_inside(load_pipeline(fresh).denoiser))
        torch.testing.assert_close(torch.tensor(images(fresh)), torch.tensor(theirs), rtol=0, atol=1e-5)
    tensors = load_file(tmp_path / "ours" / LORA_FILE)
    key = next(iter(tensors))
    wrong = {"not read: adapters of": {"lora_unet_down.weight": tensors[key]},
             "text_encoder.*not read": {"text_encoder.layer.lora_A.weight": tensors[key].clone(), **tensors},
             "belongs to another model": {key.replace("to_", "from_"): tensors[key]}}
    for match, held in wrong.items():
        save_file(held, tmp_path / "wrong.safetensors")
        with pytest.raises(ValueError, match=match):
            load_lora(tmp_path / "wrong.safetensors", module_inside(load_pipeline(sd_folder).denoiser))
    with pytest.raises(ValueError, match="adapts a unet, and this pipeline has a transformer"):
        load_lora(tmp_path / "ours", module_inside(load_pipeline(sd3_folder).denoiser))
    (tmp_path / "cut.safetensors").write_bytes((tmp_path / "ours" / LORA_FILE).read_bytes()[:-9])
    with pytest.raises(ValueError, match="cannot be read as safetensors"):
        load_lora(tmp_path / "cut.safetensors", network)
    with pytest.raises(FileNotFoundError, match="there is no"):
        load_lora(tmp_path / "nothing", network)
