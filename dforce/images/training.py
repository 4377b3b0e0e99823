"""Training on images of named classes: a model of them, and a classifier that judges its samples."""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from dforce.config import resolve
from dforce.data.images import ImageBatches, Images, load_images
from dforce.data.words import LONGEST, WORDS, WordBatches, word_images
from dforce.images.classifier import FOLDER, classifier_steps, load_classifier, save_classifier
from dforce.images.judge import SHARES, accuracy, judge, readings
from dforce.images.model import ImageModel, draw, layout_of, load_model
from dforce.images.pictures import side_by_side
from dforce.nets.image import ImageMLP, ImageNet
from dforce.report.rows import Row
from dforce.report.terminal import terminal_table
from dforce.runs.folder import RunFolder, Ticker
from dforce.runs.training_run import DenoiserTraining, Prepared
from dforce.train.fit import stop_requested

MANY = 1024      # numbers of an image from which an MLP is a poor choice
SHOWN = 8        # images of a class in the picture
STEPS = 20       # of sampling


@dataclass(frozen=True, kw_only=True)
class ImageTraining(DenoiserTraining):
    """A training of `dforce train image`. The keys are explained in configs/verbs/train/image.yaml."""

    size: Any
    drop: float
    classifier: int
    samples: int

    def prepare(self) -> Prepared:
        """Data, model and training loop, or ValueError. data: (training images, held-out images)."""
        if self.data == "words":
            return self._prepare_words()
        images, held_out = (load_images(self.data, split=split, size=self.size) for split in ("train", "test"))
        layout = {**layout_of(images.shape, images.classes, self.data), "digest": _digest(images)}
        if resolve(self.model["net"]["_target_"], trust=self.trust) is ImageMLP and images.x[0].numel() >= MANY:
            print(f"note: an image has {images.x[0].numel()} numbers, many for an MLP: net=image_unet learns them "
                  "better")
        batches = ImageBatches(images, batch=min(self.batch, len(images.x)), seed=self.seed, drop=self.drop)
        known = ImageBatches(held_out, batch=min(self.batch, len(held_out.x)), seed=self.seed)
        return self.begin(layout, batches, what="the images of", data=(images, held_out), validate=known,
                          differing=lambda old: None if old.layout.get("digest") == layout["digest"] else "")

    def _prepare_words(self) -> Prepared:
        """As `prepare`; the training images are drawn as they are wanted."""
        if self.size is not None:
            raise ValueError(f"pictures of words have a size; size={self.size} is for folders")
        network = resolve(self.model["net"]["_target_"], trust=self.trust)
        if isinstance(network, type) and issubclass(network, ImageNet):
            raise ValueError("this network is told classes, words are told in letters: give net=lettering")
        held_out = word_images("test", seed=self.seed)
        layout = {**layout_of(held_out.shape, WORDS, "words"), "static": {"text": LONGEST}}
        batches = WordBatches(batch=self.batch, seed=self.seed, drop=self.drop)
        known = WordBatches(batch=min(self.batch, len(held_out.x)), seed=self.seed, images=held_out)
        return self.begin(layout, batches, what="the images of", data=(None, held_out), validate=known,
                          differing=lambda old: None if old.layout.get("static") == layout["static"] else "")

    def train_judge(self, prepared: Prepared, folder: RunFolder) -> None:
        """The classifier of the run folder, trained if there is none yet: it is quick, and wanted while training."""
        images, held_out = prepared.data
        place = folder.path / FOLDER
        if images is None or not self.classifier or (place / "classifier.json").is_file():
            return
        steps = self.classifier
        with Ticker(steps, "classifier") as ticker, stop_requested() as stop:
            for classifier in classifier_steps(images, seed=self.seed, steps=steps):  # noqa: B007  # the last is ready
                ticker.advance()
                if stop():
                    raise KeyboardInterrupt("stopped before the first step of the model")
        if not folder.writes:  # all processes train it, one keeps it
            return
        right = float(accuracy(classifier, held_out.x, held_out.label).float().mean())
        save_classifier(place, classifier, about={"data": str(self.data), "steps": steps, "seed": self.seed,
                                                  "test_accuracy": round(right, 4)})
        print(f"classifier: {right:.1%} of {len(held_out.x)} held-out images")

    def finish(self, prepared: Prepared, folder: RunFolder, newest: Path) -> None:
        """results.json, episodes.jsonl and media/samples.png: samples beside as many held-out images."""
        if not self.samples:
            return
        model, (_, held_out) = load_model(newest, trust=self.trust), prepared.data
        count = min(self.samples, len(held_out.x))
        some = torch.arange(count) * len(held_out.x) // count  # spread over all: folders are in the order of classes
        real = held_out._replace(x=held_out.x[some], label=held_out.label[some])
        x = draw(model, real.label, seed=self.seed, steps=STEPS)
        self._report(folder, model, real, x)
        side_by_side({"held-out images": real.x, "samples": x}, real.label, model.classes, per_class=SHOWN).savefig(
            folder.media / "samples.png")
        folder.captions({"samples.png": "Held-out images, and samples of the same classes."})

    def _report(self, folder: RunFolder, model: ImageModel, real: Images, x: torch.Tensor) -> None:
        task, rows = str(self.data), list[Row]()
        classifier = load_classifier(folder.path / FOLDER) if self.classifier and not model.letters else None
        sets = [judge(name, images, real.label, classifier=classifier, more=readings(model, images, real.label))
                for name, images in (("data", real.x), ("samples", x))]
        for judged, variant in zip(sets, ({}, {"steps": STEPS}), strict=True):
            rows += judged.rows(task=task, variant=variant)
            if classifier is not None and len(real.x) >= 4:  # half of them is what the others are compared with
                part = judged.some(slice(1, None, 2))
                rows.append(part.frechet_row(real.x[::2], classifier, task=task, variant=variant))
        seen = {row["method"]: f"{row['value']:.0%}" for row in rows if row["metric"] in SHARES}
        verdict = "Tesseract reads {} rightly" if model.letters else "the classifier sees {} as their class"
        folder.results(rows, summary=f"Of {len(x)} samples {verdict.format(seen['samples'])}, of as many held-out "
                       f"images {seen['data']}." if seen else "")
        (folder.path / "episodes.jsonl").unlink(missing_ok=True)  # of the run before it was resumed
        folder.episodes(line for judged in sets for line in judged.lines(task=task, names=real.classes))
        print(terminal_table(rows))


def _digest(images: Images) -> str:
    """Of all pixels and labels: a run goes on with the images that it began with."""
    digest = hashlib.sha256(images.x.numpy().tobytes())
    digest.update(images.label.numpy().tobytes())
    return digest.hexdigest()[:16]
