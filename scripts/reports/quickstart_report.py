"""What the quickstart measures, with and without guidance, and the table that it prints."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lambda24.common.data.dataset import ImageDataset
from lambda24.common.images import from_pil, from_uint8, to_uint8
from lambda24.common.metrics.extractors import EfficientNetLite0Features
from lambda24.common.metrics.reference import spread
from lambda24.sampling import Pipeline, SamplingConfig
from lambda24.sampling.evaluation.classifier import Classifier, label_accuracy, train_classifier
from lambda24.sampling.evaluation.measure import MetricsConfig, evaluate_images
from lambda24.sampling.evaluation.memorization import memorization
from lambda24.tokenizer import ImageTokenizer
from lambda24.tokenizer.evaluation import evaluate_tokenizer
from lambda24.tokenizer.meter import TokenizerEvaluationConfig

NUM_SAMPLES, MAX_PER_CLASS = 500, 50
MAX_REFERENCE = 5_000
FIRST_SEED = 1_000
"""Seeds of the measured images; the grids that training draws use small seeds."""
MIN_CLASSIFIER_ACCURACY = 0.9
"""On held-out real images; a worse classifier says nothing about samples."""
EXTRACTOR = EfficientNetLite0Features()


@dataclass(frozen=True)
class RealImages:
    """What samples are measured against.

    Args:
        train: `(M, 3, H, W)` uint8, as the next two.
        held_out: `(N, 3, H, W)`.
        reconstructions: of the held-out images, `(N, 3, H, W)`.
        classifier: of training images; None if it is too poor.
        accuracy: of that classifier, good or poor, on held-out images; None with one class, or
            fewer than two images a class.
    """

    train: Tensor
    held_out: Tensor
    reconstructions: Tensor
    classifier: Classifier | None
    accuracy: float | None

    @classmethod
    @torch.no_grad()
    def of(
        cls, image_tokenizer: ImageTokenizer, train: ImageDataset, held_out: ImageDataset
    ) -> RealImages:
        """At most `MAX_REFERENCE` of either, of every class: folders are sorted."""
        chosen = spread(len(train), min(len(train), MAX_REFERENCE))
        checked = spread(len(held_out), min(len(held_out), MAX_REFERENCE))
        real, unseen = train.images_uint8(chosen), held_out.images_uint8(checked)
        decoded = [
            to_uint8(image_tokenizer.decode(image_tokenizer.encode(from_uint8(part))))
            for part in unseen.split(100)
        ]
        classifier, accuracy = None, None
        if 1 < len(train.labels[chosen].unique()) <= len(chosen) // 2:
            classifier = train_classifier(real, train.labels[chosen])
            accuracy = label_accuracy(classifier, unseen, held_out.labels[checked])
            if accuracy < MIN_CLASSIFIER_ACCURACY:
                classifier = None
        return cls(real, unseen, torch.cat(decoded), classifier, accuracy)

    def measure(self, pipeline: Pipeline, sampling: SamplingConfig) -> dict[str, Any]:
        """Metrics of samples; `label_accuracy` is None without classifier.

        Of each class as many, of more than `NUM_SAMPLES` classes one of so many of them.
        """
        num_classes = pipeline.generator.num_classes
        classes = spread(num_classes, min(num_classes, NUM_SAMPLES))
        per_class = min(MAX_PER_CLASS, NUM_SAMPLES // len(classes))
        labels = torch.tensor(classes).repeat_interleave(per_class)
        seeds = range(FIRST_SEED, FIRST_SEED + len(labels))
        images = pipeline(labels.tolist(), seeds, batch_size=100, progress=True, config=sampling)
        generated = from_pil(images)
        subset = min(100, len(generated), len(self.train))
        config = MetricsConfig(extractor=EXTRACTOR, kid_subsets=20, kid_subset_size=subset)
        quality = evaluate_images(generated, self.train, config)
        copies = memorization(generated, self.held_out, self.reconstructions, self.train)
        accuracy = None
        if self.classifier is not None:
            accuracy = label_accuracy(self.classifier, generated, labels)
        names = ("gfid", "inception_score", "precision", "recall", "density", "coverage")
        clipped = ("clipped_density", "clipped_coverage")
        return {
            **{name: getattr(quality, name) for name in names + clipped},
            "label_accuracy": accuracy,
            "memorization": {**asdict(copies), "ratio": copies.ratio},
            "protocol": quality.protocol,
        }


def measure(pipeline: Pipeline, train: ImageDataset, held_out: ImageDataset) -> dict[str, Any]:
    """Reconstruction and generation metrics, the latter with the pipeline's guidance and without.

    The features are EfficientNet-Lite0's.
    """
    reconstruction = evaluate_tokenizer(
        pipeline.image_tokenizer, held_out, TokenizerEvaluationConfig(extractor=EXTRACTOR)
    )
    real = RealImages.of(pipeline.image_tokenizer, train, held_out)
    guided = real.measure(pipeline, pipeline.sampling)
    plain = real.measure(pipeline, replace(pipeline.sampling, guidance_scale=1.0))
    protocol = {"reconstruction": reconstruction.protocol, "generation": guided.pop("protocol")}
    plain.pop("protocol")  # the same
    return {
        "psnr": reconstruction.psnr,
        "rfid": reconstruction.rfid,
        "bits_per_image": reconstruction.bits_per_image,
        "classifier_accuracy": real.accuracy,
        **guided,
        "without_guidance": plain,
        "protocol": protocol,
    }


def table(metrics: dict[str, Any]) -> str:
    """What the quickstart found, a line each."""
    plain, nearest = metrics["without_guidance"], metrics["memorization"]
    pairs = {
        "generation FID (gFID)": ("gfid", ".2f"),
        "Inception Score": ("inception_score", ".2f"),
        "precision": ("precision", ".3f"),
        "recall": ("recall", ".3f"),
        "clipped density": ("clipped_density", ".3f"),
        "clipped coverage": ("clipped_coverage", ".3f"),
        "samples recognised as their label": ("label_accuracy", ".1%"),
    }
    rows = {
        "reconstruction PSNR (held out)": f"{metrics['psnr']:.2f} dB",
        "reconstruction FID (rFID)": f"{metrics['rfid']:.2f}",
        "bits per image": f"{metrics['bits_per_image']:.0f}",
        "nats per token": (
            f"{metrics['train_nll']:.2f} training, {metrics['held_out_nll']:.2f} held out, "
            f"{metrics['uniform_nll']:.2f} uniform (weights of step {metrics['step']})"
        ),
        "grey levels to the nearest training image": (
            f"{nearest['samples']:.1f} samples, {nearest['held_out']:.1f} held out, "
            f"{nearest['reconstructions']:.1f} held out and reconstructed"
        ),
        **{
            f"{name}, guided / not": f"{_shown(metrics[key], form)} / {_shown(plain[key], form)}"
            for name, (key, form) in pairs.items()
        },
        "the same classifier on held-out real images": _shown(
            metrics["classifier_accuracy"], ".1%"
        ),
        "total time": f"{metrics['seconds']:.0f} s",
    }
    width = max(map(len, rows))
    lines = [f"{name:<{width}}  {value}" for name, value in rows.items()]
    if metrics["label_accuracy"] is None:
        least = f"{MIN_CLASSIFIER_ACCURACY:.0%}"
        lines.append(f"Samples are not classified: that takes {least} on held-out real images.")
    return "\n".join(lines)


def report(metrics: dict[str, Any], out: Path, labels: tuple[str, ...]) -> None:
    """Prints the table and where everything is."""
    print(f"\n{table(metrics)}")
    print("FID, IS, precision and recall use EfficientNet-Lite0 features: not comparable with")
    print("published Inception numbers. Everything is in:")
    for name in ("samples.png", "reconstructions.png", "metrics.json", "model"):
        print(f"  {out / name}")
    shown = ",".join(labels[:2])
    print(f"More: lambda24 sample {out / 'model'} --labels {shown} --seeds 0:8 --out more.png")


def _shown(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)
