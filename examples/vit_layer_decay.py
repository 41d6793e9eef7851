"""A ViT with layer-wise decay, in plain PyTorch, on generated images. `python examples/vit_layer_decay.py`

Runs offline in under a minute on two cores (`pip install 'lr-dist[models]'`). A small ViT first learns one task (which
way stripes run), as pre-training; then a new head and all layers learn another (how wide the stripes are) under timm's
recipe: AdamW, weight decay, cosine schedule, and a rate that shrinks by a factor a layer. It prints how far each depth
has moved, relative to its weights. A model of timm works in the same way.
"""

from __future__ import annotations

import argparse
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset
from transformers import ViTConfig, ViTForImageClassification

from lr_dist import assign_layers, param_groups

SIZE = 32


def images(count: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Noisy stripes: pixels [count, 3, 32, 32], direction [count] (0 to 3), width [count] (0 to 2)."""
    generator = torch.Generator().manual_seed(seed)
    direction = torch.randint(0, 4, (count,), generator=generator)
    width = torch.randint(0, 3, (count,), generator=generator)
    phase = 6.28 * torch.rand(count, 1, 1, generator=generator)
    angle = (direction * 0.7854).view(-1, 1, 1)
    y, x = torch.meshgrid(torch.arange(SIZE), torch.arange(SIZE), indexing="ij")
    frequency = 0.5 * 1.6 ** width.view(-1, 1, 1)
    stripes = torch.sin(frequency * (x * torch.cos(angle) + y * torch.sin(angle)) + phase)
    pixels = stripes.unsqueeze(1).expand(-1, 3, -1, -1)
    return pixels + 0.3 * torch.randn(pixels.shape, generator=generator), direction, width


def learn(model: nn.Module, groups: Any, pixels: Tensor, labels: Tensor, epochs: int) -> None:
    """Learn the labels with AdamW under a cosine schedule; each group keeps its share of the rate."""
    optimizer = torch.optim.AdamW(groups)
    loader = DataLoader(
        TensorDataset(pixels, labels), batch_size=32, shuffle=True, generator=torch.Generator().manual_seed(0)
    )
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=epochs * len(loader))
    model.train()
    for _ in range(epochs):
        for batch, targets in loader:
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(pixel_values=batch).logits, targets).backward()
            optimizer.step()
            schedule.step()


@torch.no_grad()
def accuracy(model: nn.Module, pixels: Tensor, labels: Tensor) -> float:
    model.eval()
    return (model(pixel_values=pixels).logits.argmax(-1) == labels).float().mean().item()


def main(arguments: list[str] | None = None) -> dict[str, float]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rates", default="decay:lr=2e-3,factor=0.75", help="a preset, a YAML file or a text")
    parser.add_argument("--examples", type=int, default=960)
    parser.add_argument("--epochs", type=int, default=4)
    options = parser.parse_args(arguments)
    torch.manual_seed(0)
    config = ViTConfig(
        image_size=SIZE,
        patch_size=4,
        hidden_size=64,
        num_hidden_layers=6,
        num_attention_heads=4,
        intermediate_size=128,
        num_labels=4,
    )
    model = ViTForImageClassification(config)
    pixels, direction, width = images(options.examples, seed=1)
    new_pixels, new_direction, new_width = images(300, seed=2)

    learn(model, [{"params": model.parameters(), "lr": 1e-3}], pixels, direction, options.epochs)
    print(f"pre-trained on the direction: accuracy {accuracy(model, new_pixels, new_direction):.3f}")

    model.classifier = nn.Linear(config.hidden_size, 3)
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    learn(model, param_groups(model, options.rates, weight_decay=0.05), pixels, width, options.epochs)
    print(f"fine-tuned to the width:      accuracy {accuracy(model, new_pixels, new_width):.3f}")

    after = dict(model.named_parameters())
    moved = {}
    for group, names in assign_layers(model).groups.items():
        change = sum((after[name].detach() - before[name]).square().sum() for name in names)
        size = sum(before[name].square().sum() for name in names)
        moved[group] = float(torch.as_tensor(change / size).sqrt())
    print("moved, relative to the weights: " + ", ".join(f"{group} {value:.3f}" for group, value in moved.items()))
    return moved


if __name__ == "__main__":
    main()
