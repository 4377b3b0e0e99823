"""Tiny networks of random weights in the layouts of published rewards, and the files of their tokenizers."""

import json

import torch
from torch import nn
from torch.nn import functional as F

BERT_WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "red", "cat", "dog", "the", "image", "contains",
              "what", "is", "it", "##s", "[DEC]", "[ENC]"]


def clip_tokenizer(folder):
    """vocab.json and merges.txt of CLIP's byte pairs: bytes, and the few words that their merges make."""
    from transformers.convert_slow_tokenizer import bytes_to_unicode
    letters = list(bytes_to_unicode().values())
    merges = ["r e", "re d</w>", "c a", "ca t</w>", "d o", "do g</w>"]
    words = [*letters, *(letter + "</w>" for letter in letters), *(merge.replace(" ", "") for merge in merges),
             "<|startoftext|>", "<|endoftext|>"]
    (folder / "vocab.json").write_text(json.dumps({word: i for i, word in enumerate(words)}))
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges]))
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "CLIPTokenizer",
                                                              "model_max_length": 77}))
    return len(words)


def bert_tokenizer(folder):
    (folder / "vocab.txt").write_text("\n".join(BERT_WORDS))
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "BertTokenizer"}))
    return len(BERT_WORDS)


def clip_model(words, width=32, projected=16):
    from transformers import CLIPConfig, CLIPModel
    torch.manual_seed(0)
    tower = {"hidden_size": width, "intermediate_size": 40, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = CLIPConfig(text_config={**tower, "vocab_size": words, "bos_token_id": words - 2, "eos_token_id": words - 1,
                                     "pad_token_id": words - 1},
                        vision_config={**tower, "image_size": 28, "patch_size": 14}, projection_dim=projected)
    return randomised(CLIPModel(config))


def randomised(model, std=0.3):
    """Weights large enough that an image or a word changes what comes out."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.ndim and not name.endswith("logit_scale"):
                weight.add_(std * torch.randn(weight.shape, generator=generator))
    return model.eval()


class Block(nn.Module):
    """A residual block of open_clip: attention, then a network with GELU, each behind its normalisation."""

    def __init__(self, width, heads):
        super().__init__()
        self.ln_1, self.ln_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attn = nn.MultiheadAttention(width, heads, batch_first=True)
        self.mlp = nn.Sequential()
        self.mlp.c_fc, self.mlp.gelu, self.mlp.c_proj = nn.Linear(width, 48), nn.GELU(), nn.Linear(48, width)

    def forward(self, x, mask=None):
        y = self.ln_1(x)
        x = x + self.attn(y, y, y, need_weights=False, attn_mask=mask)[0]
        return x + self.mlp.c_proj(self.mlp.gelu(self.mlp.c_fc(self.ln_2(x))))


class Tower(nn.Module):
    def __init__(self, width, heads, depth=2):
        super().__init__()
        self.resblocks = nn.ModuleList(Block(width, heads) for _ in range(depth))

    def forward(self, x, mask=None):
        for block in self.resblocks:
            x = block(x, mask)
        return x


class Visual(nn.Module):
    def __init__(self, width, projected, side, patch, heads):
        super().__init__()
        self.class_embedding = nn.Parameter(torch.zeros(width))
        self.positional_embedding = nn.Parameter(torch.zeros((side // patch) ** 2 + 1, width))
        self.conv1 = nn.Conv2d(3, width, patch, patch, bias=False)
        self.ln_pre, self.ln_post = nn.LayerNorm(width), nn.LayerNorm(width)
        self.transformer = Tower(width, heads)
        self.proj = nn.Parameter(torch.zeros(width, projected))

    def forward(self, x):
        x = self.conv1(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.class_embedding.expand(len(x), 1, -1), x], 1) + self.positional_embedding
        return self.ln_post(self.transformer(self.ln_pre(x))[:, 0]) @ self.proj


class OpenClip(nn.Module):
    """open_clip's CLIP written down anew, with its names of weights."""

    def __init__(self, words, width=32, projected=16, side=28, patch=14, heads=16):
        super().__init__()
        self.visual = Visual(width, projected, side, patch, heads)
        self.token_embedding = nn.Embedding(words, width)
        self.positional_embedding = nn.Parameter(torch.zeros(77, width))
        self.transformer, self.ln_final = Tower(width, heads), nn.LayerNorm(width)
        self.text_projection = nn.Parameter(torch.zeros(width, projected))
        self.logit_scale = nn.Parameter(torch.tensor(2.0))

    def forward(self, image, tokens):
        mask = torch.full((77, 77), -torch.inf).triu(1)
        x = self.ln_final(self.transformer(self.token_embedding(tokens) + self.positional_embedding, mask))
        text = x[torch.arange(len(x)), tokens.argmax(-1)] @ self.text_projection
        return F.normalize(self.visual(image), dim=-1), F.normalize(text, dim=-1)


class TimmBlock(nn.Module):
    def __init__(self, width, heads):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width, eps=1e-6), nn.LayerNorm(width, eps=1e-6)
        self.attn, self.mlp, self.heads = nn.Module(), nn.Module(), heads
        self.attn.qkv, self.attn.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp.fc1, self.mlp.fc2 = nn.Linear(width, 48), nn.Linear(48, width)

    def forward(self, x):
        q, k, v = self.attn.qkv(self.norm1(x)).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        x = x + self.attn.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        return x + self.mlp.fc2(F.gelu(self.mlp.fc1(self.norm2(x))))


class Timm(nn.Module):
    """timm's vision transformer, as BLIP has it, written down anew with its names of weights."""

    def __init__(self, width=32, side=28, patch=14, heads=16, depth=2):
        super().__init__()
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.pos_embed = nn.Parameter(torch.zeros(1, (side // patch) ** 2 + 1, width))
        self.patch_embed = nn.Module()
        self.patch_embed.proj = nn.Conv2d(3, width, patch, patch)
        self.blocks = nn.ModuleList(TimmBlock(width, heads) for _ in range(depth))
        self.norm = nn.LayerNorm(width, eps=1e-6)

    def forward(self, x):
        x = self.patch_embed.proj(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.cls_token.expand(len(x), 1, -1), x], 1) + self.pos_embed
        for block in self.blocks:
            x = block(x)
        return self.norm(x)
