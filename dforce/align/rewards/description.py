"""A model of vision and language says what it sees, and BERTScore's recall of the prompt in its words is the reward."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from dforce.align.rewards.clip_rewards import source_of
from dforce.align.rewards.layouts import pretrained, transformers_of
from dforce.align.rewards.preprocess import Texts, pictures_of
from dforce.align.rewards.protocol import Reward, Subject

Describe = Callable[[list[Any], list[str]], list[str]]  # pictures, a question about each -> answers
QUESTION = "Answer concisely: what is going on in this image?"  # of DDPO's LLaVA reward (Black et al. 2023)
ANSWER = "The image contains {}"


class Description:
    """Mean over questions of BERTScore's recall of an answer that fits the prompt in what the model answers.

    Not differentiable. questions: in each, {} is the prompt. answer: the reference, {} is the prompt. The last answers
    are kept in `answers`, [question][sample].
    """

    def __init__(self, describe: Describe, score: "BertScore", *, questions: Sequence[str], answer: str, texts: Texts):
        self.describe, self.score, self.questions, self.answer, self.texts = describe, score, questions, answer, texts
        self.answers: list[list[str]] = []

    def __call__(self, samples: Tensor, prompts: Sequence[Any], metadata: Sequence[Any] = ()) -> Tensor:
        """[B] on the CPU. samples: [B, 1, C, H, W]."""
        texts, pictures = self.texts(prompts, len(samples)), pictures_of(samples)
        references = [self.answer.replace("{}", text) for text in texts]
        self.answers = [self.describe(pictures, [question.replace("{}", text) for text in texts])
                        for question in self.questions]
        return torch.stack([self.score.recall(said, references) for said in self.answers]).mean(0)


class BertScore:
    """BERTScore (Zhang et al. 2020) by the hidden states of one layer of an encoder; no idf weights, not rescaled."""

    def __init__(self, model: Any, tokenizer: Any, layer: int, *, rows: int = 16):
        self.model, self.tokenizer, self.layer, self.rows = model, tokenizer, layer, rows
        if not 1 <= layer <= model.config.num_hidden_layers:
            raise ValueError(f"layer must lie in 1..{model.config.num_hidden_layers}, got {layer}")

    def recall(self, candidates: Sequence[str], references: Sequence[str]) -> Tensor:
        """[N] mean over the tokens of a reference, without the special ones, of the nearest token's cosine.

        All tokens of the candidate may be nearest, the special ones too, as in the package bert_score; a candidate
        without words has 0.
        """
        values = []
        for start in range(0, len(candidates), self.rows):
            said, said_mask, said_words = self._embed([*candidates[start:start + self.rows]])
            wanted, _, words = self._embed([*references[start:start + self.rows]])
            cosine = torch.einsum("bij,bkj->bik", wanted, said).masked_fill(~said_mask[:, None], -torch.inf)
            recall = (cosine.amax(2) * words).sum(1) / words.sum(1).clamp(min=1)
            values.append(recall * said_words.any(1))
        return torch.cat(values).cpu()

    @torch.no_grad()
    def _embed(self, texts: list[str]) -> tuple[Tensor, Tensor, Tensor]:
        """Unit vectors [N, L, D]; which tokens [N, L] are no padding, and which of those are no special ones."""
        tokens = self.tokenizer([text.strip() for text in texts], padding=True, truncation=True, return_tensors="pt",
                                return_special_tokens_mask=True)
        device = next(self.model.parameters()).device
        mask = tokens["attention_mask"].to(device)
        hidden = self.model(input_ids=tokens["input_ids"].to(device), attention_mask=mask,
                            output_hidden_states=True).hidden_states[self.layer]
        words = mask.bool() & ~tokens["special_tokens_mask"].to(device).bool()
        return torch.nn.functional.normalize(hidden.float(), dim=-1), mask.bool(), words


def describer(source: str, device: Any, *, hub: bool, longest: int) -> Describe:
    """The pipeline "image-text-to-text" of transformers over a model and its processor, greedy; chats where it can."""
    with transformers_of(source) as transformers:
        model = pretrained(transformers.AutoModelForImageTextToText, source, hub=hub).to(device)
        processor = transformers.AutoProcessor.from_pretrained(source, local_files_only=not hub,
                                                               trust_remote_code=False)
        pipeline = transformers.pipeline("image-text-to-text", model=model, processor=processor, device=device)
    how = {"max_new_tokens": longest, "return_full_text": False, "generate_kwargs": {"do_sample": False}}

    def chat(image: Image.Image, question: str) -> list[dict[str, Any]]:
        return [{"role": "user", "content": [{"type": "image", "image": image}, {"type": "text", "text": question}]}]

    def describe(pictures: list[Any], questions: list[str]) -> list[str]:
        images, said = [Image.fromarray(picture) for picture in pictures], []
        for image, question in zip(images, questions, strict=True):
            if getattr(processor, "chat_template", None):
                answer = pipeline(text=chat(image, question), **how)
            else:
                answer = pipeline(images=image, text=question, **how)
            said.append(str(answer[0]["generated_text"]).strip())
        return said
    return describe


def description(subject: Subject, *, folder: str | None = None, hub: str | None = None, scorer: str, layer: int,
                questions: list[str] | None = None, answer: str = ANSWER, template: str = "{}", longest: int = 64,
                rows: int = 16) -> Reward:
    """`Description` by the model in `folder` (or `hub`) and BERTScore of the encoder in the folder `scorer`.

    layer: of the encoder; the package bert_score names the best of each (DDPO: microsoft/deberta-xlarge-mnli, 40).
    longest: tokens of an answer.
    """
    source = source_of(folder, hub)
    with transformers_of(scorer) as transformers:
        encoder = pretrained(transformers.AutoModel, scorer, hub=False).to(subject.device)
        tokenizer = transformers.AutoTokenizer.from_pretrained(scorer, local_files_only=True, trust_remote_code=False)
        score = BertScore(encoder, tokenizer, layer, rows=rows)
    return Description(describer(source, subject.device, hub=hub is not None, longest=longest), score,
                       questions=questions or [QUESTION], answer=answer, texts=Texts(subject.classes, template))
