"""Pruned detectors as files, compared with the trained ones."""

import io
import json
import os.path as osp
import statistics
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from mmengine.config import Config
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from mmpsbn.analysis import time_alternately
from mmpsbn.checkpoints.reading import Checkpoint
from mmpsbn.detectors.agreement import Agreement
from mmpsbn.detectors.build import load_model
from mmpsbn.detectors.outputs import BatchRunner
from mmpsbn.export.exportable import Exportable
from mmpsbn.export.onnx_file import (
    check_onnx,
    check_runs,
    checked_program,
    folded_stock,
    input_shape,
    prepare_image,
    remove_padding,
)
from mmpsbn.files import output_files
from mmpsbn.prune.constant_inputs import InputWatch
from mmpsbn.prune.removal import Removal, readers, remove_constants
from mmpsbn.stack import check_packages

FILES = ('pruned.onnx', 'pruned.pt2', 'pruned.json')
# Images that onnxruntime is compared on; PyTorch is on all.
ONNX_IMAGES = 4
ROUNDS = 9


class InferenceCost(NamedTuple):
    """The cost of a model whose norm layers are folded into convolutions."""

    parameters: int
    flops: int
    """For one image. A multiplication and its addition count as 2."""
    milliseconds: float
    """For one image with post-processing, in PyTorch (median)."""


class Pruned(NamedTuple):
    """What was removed, and how the pruned model compares."""

    removal: Removal
    before: InferenceCost | None
    """None if nothing was removed, like ``after`` and ``agreement``."""
    after: InferenceCost | None
    agreement: Agreement | None
    """On the images that decided what is removed."""
    elsewhere: Agreement | None
    """On other images; None without any."""


def prune(
    cfg: Config,
    checkpoint: Checkpoint,
    images: Sequence[str],
    others: Sequence[str],
    out: str,
    *,
    shape: tuple[int, int] | None = None,
) -> Pruned:
    """Write a detector without the channels that are constant on images.

    If there is none, nothing is written, and earlier files are removed.

    Args:
        cfg (Config): The config of the trained model.
        checkpoint (Checkpoint): The trained model.
        images (list[str]): Files of the images that decide.
        others (list[str]): Files of images to compare on as well.
        out (str): The folder to write :data:`FILES` to.
        shape (tuple[int, int], optional): Height and width of the input, in
            pixels. Defaults to those of the config's test images.

    Raises:
        InputError: If the checkpoint does not fit, if the detector cannot be
            exported or followed, if the files cannot be written, or if they
            compute something else on the images; nothing is written then.
    """
    check_packages('pruning', 'prune', 'torch_pruning')
    check_onnx()
    shape = shape or input_shape(cfg)
    model = load_model(cfg, checkpoint)
    before = Exportable(folded_stock(cfg, model))
    after = Exportable(folded_stock(cfg, model))
    check_runs(model, after, prepare_image(cfg, images[0], model, shape))
    watch = InputWatch(model, readers(after.model))
    for file in images:
        data = prepare_image(cfg, file, model, shape)
        with watch:
            BatchRunner(data).detections(model)
    example = data['inputs']
    removed = remove_constants(after.model, watch.values, example)
    if not removed.removed:
        # Those of another model would be taken for this one's.
        for file in FILES:
            Path(out, file).unlink(missing_ok=True)
        return Pruned(removed, None, None, None, None)
    agreement = _compare(cfg, model, after.model, images, shape)
    agreement.require('the pruned model')
    program, _ = checked_program(
        cfg, checkpoint, model, after, images[:ONNX_IMAGES], shape
    )
    exported = _exported(after, example)
    pruned = Pruned(
        removed,
        *_costs(before, after, example),
        agreement,
        _compare(cfg, model, after.model, others, shape) if others else None,
    )
    with output_files(*(osp.join(out, file) for file in FILES)) as files:
        program.save(files[0])
        with open(files[1], 'wb') as file:
            file.write(exported)
        with open(files[2], 'w') as file:
            json.dump(_content(pruned, checkpoint, shape), file, indent=1)
    return pruned


def _compare(
    cfg: Config,
    model: nn.Module,
    pruned: nn.Module,
    files: Sequence[str],
    shape: tuple[int, int],
) -> Agreement:
    """Compare a pruned model with the trained one on images."""

    def compare(run):
        expected = run(model)  # The trained model gives the proposals.
        return Agreement.with_model(
            run(pruned), expected, run.detections(pruned), model, run
        )

    return Agreement.total(
        compare(BatchRunner(prepare_image(cfg, file, model, shape))) for file in files
    )


def _exported(model: Exportable, example: Tensor) -> bytes:
    """An ExportedProgram as a file, which was read and run.

    Raises:
        InputError: If it computes something else.
    """
    with torch.no_grad():
        program = torch.export.export(model, (example,))
        buffer = io.BytesIO()
        torch.export.save(program, buffer)
        buffer.seek(0)
        found = torch.export.load(buffer).module()(example)
        expected = model(example)
    detections = [[remove_padding(own[0][0], own[1][0])] for own in (found, expected)]
    agreement = Agreement.measure(found[2:], expected[2:], *detections)
    agreement.require('the ExportedProgram', 'the pruned model')
    return buffer.getvalue()


@torch.no_grad()
def _costs(
    before: Exportable, after: Exportable, example: Tensor
) -> list[InferenceCost]:
    seconds = time_alternately(
        {model: partial(model, example) for model in (before, after)}, ROUNDS
    )
    costs = []
    for model, own in seconds.items():
        with FlopCounterMode(display=False) as counter:
            model(example)
        costs.append(
            InferenceCost(
                sum(p.numel() for p in model.parameters()),
                counter.get_total_flops(),
                statistics.median(own) * 1e3,
            )
        )
    return costs


def _content(pruned: Pruned, checkpoint: Checkpoint, shape: tuple[int, int]) -> dict:
    return dict(
        checkpoint=osp.basename(checkpoint.path),
        shape=shape,
        **{
            key: value._asdict() if value else None
            for key, value in pruned._asdict().items()
        },
    )
