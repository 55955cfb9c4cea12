"""What a detector computes before post-processing, to compare two models.

As a program, this file runs a stock model in a process that cannot import
mmpsbn: ``python outputs.py CONFIG CHECKPOINT INPUTS OUTPUTS``.
"""

import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from mmengine.config import Config
from torch import Tensor, nn

# Relative to the largest number of an output, in float32.
NOISE = 1e-6


class BatchRunner:
    """Runs detectors, or backbones alone, on one batch of images.

    RoI heads see the proposals of the first detector, so that the outputs of
    the next can be compared with its own.

    Args:
        data (dict): ``inputs`` and ``data_samples``, as a data preprocessor
            gives them.
        proposals (list, optional): For each image, instead of those of
            the first detector.
    """

    def __init__(self, data: dict, proposals: list | None = None) -> None:
        self.inputs, self.samples = data['inputs'], data['data_samples']
        self.proposals = proposals

    @torch.no_grad()
    def __call__(self, model: nn.Module) -> list[Tensor]:
        if not hasattr(model, 'extract_feat'):
            return list(model(self.inputs))
        if not hasattr(model, 'roi_head'):
            return floating_tensors(model(self.inputs, self.samples, mode='tensor'))
        features = model.extract_feat(self.inputs)
        if self.proposals is None:
            self.proposals = model.rpn_head.predict(
                features, self.samples, rescale=False
            )
        outputs = floating_tensors(
            model.roi_head.forward(features, self.proposals, self.samples)
        )
        # Those of Cascade RPN and Sparse R-CNN only predict.
        if type(model.rpn_head).forward is not nn.Module.forward:
            outputs = floating_tensors(model.rpn_head(features)) + outputs
        if getattr(model, 'semantic_head', None) is not None:
            outputs += floating_tensors(model.semantic_head(features))
        return outputs

    @torch.no_grad()
    def detections(self, model: nn.Module) -> list[dict]:
        """Boxes, scores and labels for each image, after post-processing.

        Results without boxes (of panoptic segmentation, say) are left out.
        """
        results = model.predict(self.inputs, self.samples, rescale=False)
        return [
            {key: result.pred_instances[key] for key in ('bboxes', 'scores', 'labels')}
            for result in results
            if 'bboxes' in result.get('pred_instances', ())
        ]


def floating_tensors(node) -> list[Tensor]:
    """List the floating-point tensors in nested dicts, lists and tuples."""
    if isinstance(node, Tensor):
        return [node] if node.is_floating_point() else []
    if isinstance(node, dict):
        node = node.values()
    elif not isinstance(node, (list, tuple)):
        return []
    return [tensor for part in node for tensor in floating_tensors(part)]


@torch.no_grad()
def distance(outputs: Sequence[Tensor], expected: Sequence[Tensor]) -> float:
    """Compute the mean over outputs of |output - expected| / |expected|, L2 norms.

    Args:
        outputs (list[Tensor]): Tensors of any shape.
        expected (list[Tensor]): Tensors of the same shapes. Those that are
            empty or 0 are left out.
    """
    distances = [
        (one - other).norm() / other.norm()
        for one, other in zip(outputs, expected)
        if other.any()
    ]
    return float(torch.stack(distances).mean())


def largest_difference(outputs: Sequence[Tensor], expected: Sequence[Tensor]) -> float:
    """Compute the largest difference of any output, relative to its largest number.

    Args:
        outputs (list[Tensor]): Tensors of any shape.
        expected (list[Tensor]): Tensors of the same shapes.

    Returns:
        float: NaN if any output has NaN or infinity.
    """
    return float(
        torch.stack(
            [
                (one - other).abs().max() / other.abs().max().clamp(min=1e-12)
                for one, other in zip(outputs, expected)
                if other.numel()
            ]
        ).max()
    )


@contextmanager
def rounding_noise(model: nn.Module) -> Iterator[None]:
    """Add noise of the size of rounding errors to the outputs of layers.

    It shows which detections depend on rounding, for example because boxes
    have equal scores.

    Args:
        model (nn.Module): The noise is in its convolutions and linear layers.
    """

    def disturb(layer, args, output):
        # Without RoIs, there is no largest number.
        largest = output.abs().max() if output.numel() else 0
        return output + NOISE * largest * torch.randn_like(output)

    hooks = [
        layer.register_forward_hook(disturb)
        for layer in model.modules()
        if isinstance(layer, (nn.modules.conv._ConvNd, nn.Linear))
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def same_detections(one: dict, other: dict) -> int:
    """Return how many detections of an image are in both.

    They have the same label, corners within 0.1 pixels and scores within 0.001.

    Args:
        one (dict): ``bboxes`` of ``(K, 4)`` in pixels, ``scores`` and
            ``labels`` of ``(K,)``.
        other (dict): The same, with another number of detections.
    """
    if not (len(one['labels']) and len(other['labels'])):
        return 0
    close = one['labels'][:, None] == other['labels']
    for key, limit in (('bboxes', 0.1), ('scores', 1e-3)):
        apart = (one[key][:, None] - other[key]).abs()
        close = close & (
            apart.flatten(2).amax(2) < limit if apart.dim() > 2 else apart < limit
        )
    return int(min(close.any(0).sum(), close.any(1).sum()))


def main(config: str, checkpoint: str, inputs: str, outputs: str) -> None:
    """Run a stock model without mmpsbn; the arguments are files."""
    sys.modules['mmpsbn'] = None  # From here its import fails.
    from mmdet.registry import MODELS
    from mmdet.utils import register_all_modules

    register_all_modules()
    model = MODELS.build(Config.fromfile(config).model)
    weights = torch.load(checkpoint, map_location='cpu', weights_only=True)
    model.load_state_dict(weights['state_dict'])
    model.eval()
    # Written by the parent, which made it: boxes and metainfo of images.
    os.environ.pop('TORCH_FORCE_WEIGHTS_ONLY_LOAD', None)
    given = torch.load(inputs, weights_only=False)
    run = BatchRunner(given['data'], given['proposals'])
    torch.save(dict(raw=run(model), detections=run.detections(model)), outputs)


if __name__ == '__main__':
    main(*sys.argv[1:])
