"""Times and memory of ResNets with each normalization."""

import statistics
import time
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial

import torch
from torch import nn
from torch.nn import functional as F

from benchmarks.shared.memory import fits, largest_batch
from mmpsbn.analysis import ratios, saved_bytes, time_alternately

from .networks import CLASSES, NORMS, PUBLISHED, build

PRECISIONS = {'float32': None, 'bfloat16 autocast': torch.bfloat16}
COMPARED = [norm for norm in NORMS if norm != PUBLISHED]
MOST_ROUNDS = 30
MIB = 2**20


def inputs(batch: int, size: int, device: str):
    generator = torch.Generator(device).manual_seed(0)
    images = torch.randn(batch, 3, size, size, device=device, generator=generator)
    return (
        images.contiguous(memory_format=torch.channels_last),
        torch.randint(CLASSES, (batch,), device=device, generator=generator),
    )


def autocast(device: str, cast: torch.dtype | None):
    return torch.autocast(device, cast) if cast else nullcontext()


def loss_of(net: nn.Module, images, labels, cast=None):
    with autocast(images.device.type, cast):
        return F.cross_entropy(net(images), labels)


def training_step(net: nn.Module, images, labels, cast=None) -> Callable[[], None]:
    net.train()
    optimizer = torch.optim.SGD(
        net.parameters(), lr=1e-4, momentum=0.9, weight_decay=1e-4
    )

    def step() -> None:
        loss_of(net, images, labels, cast).backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def inference(net: nn.Module, images, labels, cast=None) -> Callable[[], None]:
    net.eval()

    def predict() -> None:
        with torch.inference_mode(), autocast(images.device.type, cast):
            net(images)

    return predict


ACTIONS = {'training step': training_step, 'inference': inference}


def times(action: str, precision: str, batch: int, seconds: float, args) -> list[str]:
    """Return the cells of a row: rounds, BN's milliseconds, the others relative to BN.

    The networks take turns. The number of rounds is what fits into ``seconds``.
    """
    data = inputs(batch, args.size, args.device)
    actions = {
        norm: ACTIONS[action](
            build(norm, args.network).to(
                args.device, memory_format=torch.channels_last
            ),
            *data,
            PRECISIONS[precision],
        )
        for norm in COMPARED
    }
    for run in actions.values():  # cuDNN selects its algorithms.
        run()
    begin = time.monotonic()
    found = time_alternately(actions, 1)
    per_round = (time.monotonic() - begin) / 2
    rounds = int(min(MOST_ROUNDS, seconds / per_round - 2))
    if rounds > 1:
        found = time_alternately(actions, rounds)
    of_bn = ratios(found)
    return [
        str(len(found['BN'])),
        f'{1e3 * statistics.median(found["BN"]):.1f}',
        *(f'{of_bn[norm]:.3f}' for norm in COMPARED[1:]),
    ]


def memory(norm: str, args) -> list[float]:
    """Return the stored and the peak MiB of a training step, and the largest batch.

    A CPU has the first number only.
    """
    device = args.device
    net = build(norm, args.network).to(device, memory_format=torch.channels_last)
    batch = max(args.batches)
    data = inputs(batch, args.size, device)
    stored = saved_bytes(partial(loss_of, net, *data), net.parameters()) / MIB
    if device != 'cuda':
        return [stored]
    step = training_step(net, *data)
    step()
    torch.cuda.reset_peak_memory_stats()
    step()
    peak = torch.cuda.max_memory_allocated() / MIB
    del data, step

    def step_with(batch: int) -> None:
        training_step(net, *inputs(batch, args.size, device))()

    batch = largest_batch(lambda batch: fits(net, lambda: step_with(batch)))
    return [stored, peak, batch]
