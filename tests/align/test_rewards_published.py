"""Published rewards: from a folder in their layout, the score that the publisher's own formula gives."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torch.nn import functional as F

from dforce.align.rewards.clip_rewards import aesthetic
from dforce.align.rewards.description import BertScore, describer
from dforce.align.rewards.preprocess import Preprocess, Texts, pictures_of, preprocess_of
from dforce.align.rewards.protocol import RewardError, Subject, ask_reward
from dforce.align.rewards.published import PUBLISHED, published_reward
from dforce.train.atomic_folder import CheckpointError
from tests.align.published_folders import (
    OpenClip,
    Timm,
    bert_tokenizer,
    clip_model,
    clip_tokenizer,
    randomised,
)

PROMPTS = ["a red cat", "dog", "a red cat"]


def images(count=3, channels=3, height=28, width=28):
    return torch.rand(count, 1, channels, height, width, generator=torch.Generator().manual_seed(0)) * 2.4 - 1.2


def reward(name, **settings):
    return published_reward(name, Subject((3, 28, 28), ("dog", "a red cat"), settings={name: settings}))


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    """A folder of a tiny CLIP, whole: network, tokenizer, image processor."""
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
    folder = tmp_path_factory.mktemp("clip")
    clip_model(clip_tokenizer(folder)).save_pretrained(folder)
    CLIPImageProcessorPil(size={"shortest_edge": 28}, crop_size={"height": 28, "width": 28}).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    """A folder of a tiny BERT with its tokenizer."""
    from transformers import BertConfig, BertModel
    folder = tmp_path_factory.mktemp("bert")
    torch.manual_seed(0)
    randomised(BertModel(BertConfig(vocab_size=bert_tokenizer(folder), hidden_size=32, num_hidden_layers=3,
                                    num_attention_heads=2, intermediate_size=40))).save_pretrained(folder)
    return folder


def processed(samples, **settings):
    """By the publisher's image processor, from 8-bit files."""
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
    processor = CLIPImageProcessorPil(size={"shortest_edge": 28}, crop_size={"height": 28, "width": 28}, **settings)
    files = [Image.fromarray(picture) for picture in pictures_of(samples)]
    return processor(files, return_tensors="pt")["pixel_values"]


def publishers(clip):
    """Unit features of the images of `images()` and of PROMPTS, by transformers alone."""
    from transformers import CLIPModel, CLIPTokenizerFast
    model = CLIPModel.from_pretrained(clip).eval()
    tokens = CLIPTokenizerFast.from_pretrained(clip)(PROMPTS, padding=True, truncation=True, max_length=77,
                                                     return_tensors="pt")
    with torch.no_grad():
        out = model(**tokens, pixel_values=processed(images()))
    return out.image_embeds, out.text_embeds, model.logit_scale.exp()


# ------------------------------------------------------------------------------------------------------------ images

@pytest.mark.parametrize(("height", "width"), [(28, 28), (8, 8), (64, 40), (33, 90)])
def test_images_are_prepared_as_the_publishers_processor_does(height, width) -> None:
    x = images(2, 3, height, width)
    away = (Preprocess(28)(x) - processed(x)).abs()
    assert float(away.max()) < 1.01 / 255 / 0.26 and float((away > 1e-5).float().mean()) < 0.002  # ties of rounding


def test_images_that_are_padded_keep_all_of_themselves() -> None:
    x = images(1, 3, 56, 28)
    out = Preprocess(28, "pad", (0, 0, 0), (1, 1, 1))(x)[0]
    picture = Image.fromarray(pictures_of(x)[0]).resize((14, 28), Image.Resampling.BICUBIC)
    assert float(out[..., :7].abs().max()) == float(out[..., 21:].abs().max()) == 0
    wanted = torch.from_numpy(np.array(picture)).permute(2, 0, 1) / 255
    assert float((out[..., 7:21] - wanted).abs().max()) < 1.01 / 255


def test_grey_images_are_those_of_three_equal_channels_and_the_gradient_passes_the_rounding() -> None:
    x = images(2, 1).requires_grad_(True)
    out = Preprocess(14)(x)
    assert torch.equal(out, Preprocess(14)(x.expand(-1, -1, 3, -1, -1)))
    out.sum().backward()
    assert x.grad is not None
    inside = x.detach().abs() < 1
    assert bool((x.grad[inside] != 0).all()) and not bool(x.grad[~inside].any())


def test_an_image_processor_that_does_something_else_is_refused(tmp_path) -> None:
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({"size": 336, "crop_size": 28}))
    with pytest.raises(ValueError, match="only bicubic images of the network's 28 pixels"):
        preprocess_of(tmp_path, 28)


def test_prompts_are_text_or_classes() -> None:
    texts = Texts(("cat", "dog"), "a photo of a {}")
    assert texts(["owl", 1, torch.tensor(0)], 3) == [f"a photo of a {name}" for name in ("owl", "dog", "cat")]
    for prompt in (2, -1, 1.0, None, True):
        with pytest.raises(ValueError, match="no text and no number of a class; classes: cat, dog"):
            texts([prompt], 1)
    with pytest.raises(ValueError, match="got 1 prompts for 2 samples"):
        texts(["cat"], 2)


# -------------------------------------------------------------------------------------------------------- CLIP's kind

def test_clip_score_and_pickscore_are_the_publishers(clip) -> None:
    of_image, of_text, scale = publishers(clip)
    cosine = (of_image * of_text).sum(-1)
    assert float(cosine.min()) < -0.01 or float(cosine.std()) > 0.01
    found = reward("clip", folder=str(clip), rows=2)(images(), PROMPTS)
    assert torch.allclose(found, 2.5 * cosine.clamp(min=0), atol=1e-4)
    assert torch.allclose(reward("pickscore", folder=str(clip))(images(), PROMPTS), scale * cosine, atol=1e-4)
    assert torch.equal(reward("clip", folder=str(clip), rows=2)(images(), [1, 0, 1]), found)  # classes by their names


def test_clip_score_has_a_gradient_that_raises_it(clip) -> None:
    pick, x = reward("pickscore", folder=str(clip)), (images() / 2).requires_grad_(True)
    before = pick(x, PROMPTS)
    before.sum().backward()
    step = x.detach() + 0.02 * x.grad.sign()
    assert bool((pick(step, PROMPTS) > before).all())


@pytest.mark.parametrize("layout", ["linear", "mlp"])
def test_the_aesthetic_score_is_the_publishers(layout, clip, tmp_path) -> None:
    generator = torch.Generator().manual_seed(1)
    sizes = (16, 1) if layout == "linear" else (16, 24, 12, 8, 4, 1)
    layers = [nn.Linear(into, out) for into, out in zip(sizes, sizes[1:], strict=False)]
    for layer in layers:
        nn.init.normal_(layer.weight, generator=generator)
    if layout == "linear":
        torch.save(layers[0].state_dict(), tmp_path / "sa_0_4_vit_l_14_linear.pth")
    else:  # Dropout lies at 1, 3 and 5
        numbered = dict(zip((0, 2, 4, 6, 7), layers, strict=True))
        torch.save({f"layers.{i}.{name}": value for i, layer in numbered.items()
                    for name, value in layer.state_dict().items()}, tmp_path / "sac+logos+ava1-l14-linearMSE.pth")
    value = publishers(clip)[0]
    for layer in layers:
        value = layer(value)
    found = reward("aesthetic", folder=str(clip), head=str(next(tmp_path.glob("*.pth"))))(images(), PROMPTS)
    assert torch.allclose(found, value[:, 0], atol=1e-3)


def test_hpsv2_is_the_publishers(tmp_path) -> None:
    from transformers import CLIPTokenizerFast
    torch.manual_seed(0)
    model = randomised(OpenClip(clip_tokenizer(tmp_path)))
    torch.save({"epoch": 1, "state_dict": model.state_dict()}, tmp_path / "HPS_v2.1_compressed.pt")
    tokens = CLIPTokenizerFast.from_pretrained(tmp_path)(PROMPTS)["input_ids"]
    padded = torch.tensor([row + [0] * (77 - len(row)) for row in tokens])  # as open_clip pads
    with torch.no_grad():
        of_image, of_text = model(processed(images()), padded)
    found = reward("hpsv2", folder=str(tmp_path))(images(), PROMPTS)
    assert torch.allclose(found, (of_image * of_text).sum(-1), atol=1e-5)
    assert float(found.std()) > 1e-3


def test_imagereward_is_the_publishers(tmp_path) -> None:
    from transformers import BertTokenizerFast, BlipTextConfig, BlipTextModel
    torch.manual_seed(0)
    med = {"hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 2, "num_attention_heads": 2,
           "max_position_embeddings": 64, "encoder_width": 24, "hidden_act": "gelu", "layer_norm_eps": 1e-12}
    words = bert_tokenizer(tmp_path)
    vision = randomised(Timm())
    text = randomised(BlipTextModel(BlipTextConfig(
        **{key: value for key, value in med.items() if key != "encoder_width"}, encoder_hidden_size=32,
        vocab_size=words, is_decoder=True), add_pooling_layer=False))
    head = nn.Sequential(nn.Linear(24, 20), nn.Dropout(0.2), nn.Linear(20, 12), nn.Dropout(0.2), nn.Linear(12, 8),
                         nn.Dropout(0.1), nn.Linear(8, 4), nn.Linear(4, 1)).eval()
    (tmp_path / "med_config.json").write_text(json.dumps(med))
    torch.save({**{f"blip.visual_encoder.{name}": value for name, value in vision.state_dict().items()},
                **{f"blip.text_encoder.{name}": value for name, value in text.state_dict().items()},
                "blip.text_encoder.embeddings.position_ids": torch.arange(64)[None],
                **{f"mlp.layers.{name}": value for name, value in head.state_dict().items()}},
               tmp_path / "ImageReward.pt")
    tokens = BertTokenizerFast.from_pretrained(tmp_path)(PROMPTS, padding="max_length", truncation=True, max_length=35,
                                                         return_tensors="pt")
    with torch.no_grad():
        seen = vision(processed(images()))
        read = text(tokens.input_ids, attention_mask=tokens.attention_mask, encoder_hidden_states=seen,
                    encoder_attention_mask=torch.ones(seen.shape[:-1], dtype=torch.long)).last_hidden_state[:, 0]
        value = (head(read)[:, 0] - 0.16717362830052426) / 1.0333394966054072
    found = reward("imagereward", folder=str(tmp_path), rows=2)(images(), PROMPTS)
    assert torch.allclose(found, value, atol=1e-4) and float(found.std()) > 1e-3


# ----------------------------------------------------------------------------------------------------- descriptions

def test_bert_score_is_the_packages(encoder) -> None:
    from transformers import BertModel, BertTokenizerFast
    model, tokenizer = BertModel.from_pretrained(encoder).eval(), BertTokenizerFast.from_pretrained(encoder)
    said = ["the cat is red", "a dog", "", "cats"]
    wanted = ["the image contains a red cat", "a dog", "a dog", "a cat is"]
    recalls = []
    for candidate, reference in zip(said, wanted, strict=True):  # bert_score.utils.greedy_cos_idf, no idf
        a, b = (tokenizer(text, return_tensors="pt") for text in (candidate, reference))
        with torch.no_grad():
            one, other = (F.normalize(model(**each, output_hidden_states=True).hidden_states[2][0], dim=-1)
                          for each in (a, b))
        weight = torch.tensor([float(token not in (tokenizer.cls_token_id, tokenizer.sep_token_id))
                               for token in b.input_ids[0].tolist()])
        best = torch.stack([max(token @ each for each in one) for token in other])
        recalls.append(float((best * weight).sum() / weight.sum()) if candidate else 0.0)
    found = BertScore(model, tokenizer, 2, rows=3).recall(said, wanted)
    assert found.tolist() == pytest.approx(recalls, abs=1e-5) and found[1] == pytest.approx(1)


def test_a_description_is_what_the_model_says_of_each_question(encoder, captioner) -> None:
    judge = reward("description", folder=str(captioner), scorer=str(encoder), layer=2, longest=4,
                   questions=["what is it", "is it a {}"])
    found = judge(images(2), ["red cat", "dog"])
    say = describer(str(captioner), "cpu", hub=False, longest=4)
    answers = [say(pictures_of(images(2)), asked) for asked in (["what is it"] * 2, ["is it a red cat", "is it a dog"])]
    assert judge.answers == answers
    references = ["The image contains red cat", "The image contains dog"]
    assert torch.allclose(found, sum(judge.score.recall(said, references) for said in answers) / 2)
    assert bool(found.isfinite().all())


@pytest.fixture(scope="module")
def captioner(tmp_path_factory):
    """A folder of a tiny BLIP that answers questions about images."""
    from transformers import BertTokenizerFast, BlipConfig, BlipForConditionalGeneration, BlipProcessor
    from transformers.models.blip.image_processing_pil_blip import BlipImageProcessorPil
    folder = tmp_path_factory.mktemp("blip")
    words = bert_tokenizer(folder)
    tower = {"hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 1, "num_attention_heads": 2}
    torch.manual_seed(0)
    config = BlipConfig(text_config={**tower, "vocab_size": words, "encoder_hidden_size": 24, "bos_token_id": words - 2,
                                     "sep_token_id": 3, "eos_token_id": 3, "pad_token_id": 0, "is_decoder": True},
                        vision_config={**tower, "image_size": 28, "patch_size": 14})
    randomised(BlipForConditionalGeneration(config)).save_pretrained(folder)
    BlipProcessor(BlipImageProcessorPil(size={"height": 28, "width": 28}),
                  BertTokenizerFast.from_pretrained(folder)).save_pretrained(folder)
    return folder


# ---------------------------------------------------------------------------------------------------------- refusals

def test_what_cannot_be_read_is_one_line(clip, tmp_path) -> None:
    half = tmp_path / "half"
    half.mkdir()
    (half / "config.json").write_text((clip / "config.json").read_text())
    (half / "model.safetensors").write_bytes((clip / "model.safetensors").read_bytes()[:5000])
    for name, settings, match in (
            ("clip", {}, "give folder or hub"), ("clip", {"folder": str(clip), "hub": "a/b"}, "give folder or hub"),
            ("clip", {"folder": str(tmp_path / "none")}, "no such folder"), ("clip", {"folder": str(half)}, "half"),
            ("clip", {"folder": str(clip), "sacle": 1.0}, "did you mean 'scale'"),
            ("clip", {"folder": 3}, "folder of the reward clip must be a word or null, got 3"),
            ("hpsv2", {"folder": str(clip)}, r"one file \*.pt is wanted in it, there are 0"),
            ("hpsv2", {}, "needs folder"), ("hpsv3", {}, "reward=server"), ("hpsv4", {}, "did you mean")):
        with pytest.raises(ValueError, match=match) as error:
            reward(name, **settings)
        assert "\n" not in str(error.value)


def test_a_pickle_that_would_run_a_program_is_refused_and_missing_weights_too(clip, tmp_path) -> None:
    class Evil:
        def __reduce__(self):
            return (tmp_path.joinpath("ran").touch, ())

    torch.save({"weight": Evil()}, tmp_path / "head.pth")
    with pytest.raises(CheckpointError, match="head.pth"):
        aesthetic(Subject((3, 28, 28)), folder=str(clip), head=str(tmp_path / "head.pth"))
    assert not (tmp_path / "ran").exists()
    from safetensors.torch import load_file, save_file
    lost = tmp_path / "lost"
    lost.mkdir()
    (lost / "config.json").write_text((clip / "config.json").read_text())
    save_file({name: value for name, value in load_file(clip / "model.safetensors").items() if "visual" not in name},
              lost / "model.safetensors", {"format": "pt"})
    with pytest.raises(CheckpointError, match="its weights lack 1 tensors, the first visual_projection.weight"):
        reward("clip", folder=str(lost))


def test_prompts_and_images_that_a_reward_cannot_judge_are_told_in_one_line(clip) -> None:
    judge = reward("clip", folder=str(clip))
    with pytest.raises(RewardError, match="the prompt 7 is no text and no number of a class; classes: dog, a red cat"):
        ask_reward(judge, images(), ["dog", 7, "dog"])
    with pytest.raises(RewardError, match=r"images \[B, 1, C, H, W\] with C = 1 or 3, got \[3, 1, 2, 28, 28\]"):
        ask_reward(judge, images(channels=2), PROMPTS)
    assert set(PUBLISHED) >= {"clip", "aesthetic", "pickscore", "hpsv2", "imagereward", "description", "server"}
