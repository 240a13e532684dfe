"""Can a stranger tell what was painted? A classifier that knows real images only, asked about those of the model that ships.

    python benchmarks/recognised.py [--images cifar10-train.parquet] [--model FOLDER] [--epochs 6] [--pictures 1000]

Printed is the share of pictures whose class the classifier names, with a 95 % interval. Above the painted ones: real images
that it has not seen, as they are and through the autoencoder, which is the best that a painter of latents can do without
guidance; guidance exaggerates what tells the classes apart, so its pictures may be named more often than real ones. Below
them the null: draws from the Gaussian of each class, decoded; their mean and covariance are right, and nothing else.

`--keep FILE` leaves the classifier there; run again to have another model judged by the same.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from manifold_apps.seeded_runs import SeededRuns
from manifold_apps.training.images import TrainingImages, load_training_images
from manifold_apps.training.precision import mixed_precision
from manifold_apps.training.run import IMAGE_SIZE, STEPS
from report import show, write
from torch import Tensor, nn

from index.encoders import open_encoder
from index.recall import wilson
from manifold import GaussianManifold
from manifold.demo_model import CLASS_NAMES, MODEL_FOLDER, load_demo_model
from manifold.files import load_tensors, save_tensors

LEFT_OUT = 2_000
BATCH = 250
FIRST_SEED = 3_000_000
GUIDANCE = (1.0, 2.0, 3.0)
DRAWN_FROM = 10_000
"""Images behind the Gaussians of the null."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=Path, default=Path("../shared/data/cifar10-train.parquet"))
    parser.add_argument("--model", type=Path, default=MODEL_FOLDER, help="folder that manifold train-demo made")
    parser.add_argument("--epochs", type=int, default=6, help="passes of the classifier over the images")
    parser.add_argument("--pictures", type=int, default=1_000, help="of each kind that is painted or drawn")
    parser.add_argument("--keep", type=Path, metavar="FILE", help="safetensors file of the classifier")
    options = parser.parse_args()
    images = load_training_images(options.images, IMAGE_SIZE)
    seen = torch.arange(len(images.labels) - LEFT_OUT)
    unseen = torch.arange(len(images.labels) - LEFT_OUT, len(images.labels))
    classifier = build_classifier(images.classes)
    if options.keep is not None and options.keep.is_file():
        classifier.load_state_dict(load_tensors(options.keep)[0])
    else:
        train(classifier, images, seen, options.epochs)
        if options.keep is not None:
            save_tensors(options.keep, classifier.state_dict(), {})
    classifier.eval()
    pipeline = load_demo_model(options.model)
    autoencoder = open_encoder(str(options.model / "vae"), IMAGE_SIZE)
    names = CLASS_NAMES if images.classes == len(CLASS_NAMES) else tuple(map(str, range(images.classes)))

    real, real_labels = images.pixels[unseen], images.labels[unseen]
    encoded = in_batches(autoencoder.encode, real)
    kinds = {
        "real, unseen": (real, real_labels),
        "real, through the autoencoder": (in_batches(autoencoder.decode, encoded), real_labels),
    }
    seeds = range(FIRST_SEED, FIRST_SEED + options.pictures)
    asked = torch.tensor(seeds) % images.classes
    for guidance in GUIDANCE:
        runs = SeededRuns(pipeline, encoded[0].numel(), guidance_scale=guidance, batch_size=BATCH)
        painted = runs.paint("dpm", STEPS, seeds).view(-1, *encoded.shape[1:])
        kinds[f"painted, guidance {guidance:g}"] = (in_batches(autoencoder.decode, painted), asked)
    known = in_batches(autoencoder.encode, images.pixels[:DRAWN_FROM])
    null = in_batches(autoencoder.decode, drawn(known, images.labels[:DRAWN_FROM], asked))
    kinds["null: Gaussian of the class"] = (null, asked)

    table = []
    for kind, (pictures, labels) in kinds.items():
        right = named(classifier, pictures) == labels
        by_class = [100 * float(right[labels == label].float().mean()) for label in range(images.classes)]
        share = float(right.float().mean())
        table.append([kind, len(labels), *(100 * one for one in (share, *wilson(share, len(right)))), *by_class])
    columns = ["pictures", "n", "recognised %", "low", "high", *names]
    show(
        f"class named by a classifier of {len(seen):,} real images, chance {100 / images.classes:.0f} %", columns, table
    )
    write("recognised", [dict(zip(columns, row, strict=True)) for row in table])


def train(network: nn.Module, images: TrainingImages, rows: Tensor, epochs: int) -> None:
    """So many passes over the rows, mirrored and shifted at random."""
    steps = epochs * (len(rows) // BATCH)
    optimizer = torch.optim.AdamW(network.parameters(), lr=2e-3, weight_decay=0.05)
    rate = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=2e-3, total_steps=steps, pct_start=0.2)
    generator = torch.Generator().manual_seed(0)
    loss_of = nn.CrossEntropyLoss(label_smoothing=0.1)
    began, losses = time.monotonic(), []
    for epoch in range(epochs):
        for batch in shuffled(rows, generator):
            mirrored = torch.rand(len(batch), generator=generator) < 0.5
            pixels = shifted(images.chosen(batch + mirrored * len(images.labels)), generator)
            with mixed_precision(torch.device("cpu")):
                scores = network(pixels)
            loss = loss_of(scores.float(), images.labels[batch])
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            rate.step()
            losses.append(float(loss.detach()))
        recent = np.mean(losses[-(len(rows) // BATCH) :])
        print(
            f"classifier: pass {epoch + 1} of {epochs}, loss {recent:.3f}, {time.monotonic() - began:.0f} s", flush=True
        )


def build_classifier(classes: int) -> nn.Module:
    """A small residual network for 32 x 32 pixels."""
    torch.manual_seed(0)
    return nn.Sequential(
        convolution(3, 32),
        convolution(32, 64),
        nn.MaxPool2d(2),
        Residual(64),
        convolution(64, 128),
        nn.MaxPool2d(2),
        convolution(128, 256),
        nn.MaxPool2d(2),
        Residual(256),
        nn.AdaptiveMaxPool2d(1),
        nn.Flatten(),
        nn.Linear(256, classes),
    )


def convolution(inputs: int, outputs: int) -> nn.Module:
    return nn.Sequential(nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU())


class Residual(nn.Module):
    """Two convolutions, added to what came in."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.change = nn.Sequential(convolution(width, width), convolution(width, width))

    def forward(self, x: Tensor) -> Tensor:
        """Of the same shape."""
        return x + self.change(x)


def shuffled(rows: Tensor, generator: torch.Generator) -> Iterator[Tensor]:
    order = rows[torch.randperm(len(rows), generator=generator)]
    for start in range(0, len(order) - BATCH + 1, BATCH):
        yield order[start : start + BATCH]


def shifted(pixels: Tensor, generator: torch.Generator, most: int = 4) -> Tensor:
    """The whole batch moved by up to so many pixels either way, its edges reflected."""
    down, right = torch.randint(2 * most + 1, (2,), generator=generator).tolist()
    padded = nn.functional.pad(pixels, (most,) * 4, mode="reflect")
    return padded[:, :, down : down + IMAGE_SIZE, right : right + IMAGE_SIZE]


@torch.no_grad()
def named(classifier: nn.Module, pictures: Tensor) -> Tensor:
    """The class named for each uint8 picture; every one is shown as it is and mirrored."""
    with mixed_precision(torch.device("cpu")):
        shown = (some.float() / 127.5 - 1 for some in pictures.split(BATCH))
        return torch.cat([(classifier(one) + classifier(one.flip(-1))).argmax(1) for one in shown])


def in_batches(work: Callable[[Tensor], Tensor], rows: Tensor) -> Tensor:
    return torch.cat([work(some) for some in rows.split(BATCH)])


def drawn(latents: Tensor, known: Tensor, labels: Tensor) -> Tensor:
    """Draws from the Gaussian of each label's class, fitted to latents whose labels are known."""
    generator = torch.Generator().manual_seed(0)
    made = torch.empty(len(labels), *latents.shape[1:])
    for label in range(int(known.max()) + 1):
        own = labels == label
        made[own] = GaussianManifold.fit(latents[known == label]).sample(int(own.sum()), generator)
    return made


if __name__ == "__main__":
    main()
