"""What a detector computes before post-processing, to compare two models.

As a program, this file runs a stock model in a process that cannot import
mmpsbn: ``python raw_outputs.py CONFIG CHECKPOINT INPUTS OUTPUTS``.
"""

import os
import sys
from typing import List, Optional, Sequence

import torch
from torch import Tensor, nn


class OutputsOf:
    """Runs detectors, or backbones alone, on one batch of images.

    RoI heads see the proposals of the first detector, so that the outputs of
    the next can be compared with its own.

    Args:
        data (dict): ``inputs`` and ``data_samples``, as a data preprocessor
            gives them.
        proposals (list, optional): For each image, in the place of those of
            the first detector.
    """

    def __init__(self, data: dict, proposals: Optional[list] = None) -> None:
        self.inputs, self.samples = data['inputs'], data['data_samples']
        self.proposals = proposals

    @torch.no_grad()
    def __call__(self, model: nn.Module) -> List[Tensor]:
        if not hasattr(model, 'extract_feat'):
            return list(model(self.inputs))
        features = model.extract_feat(self.inputs)
        if not hasattr(model, 'roi_head'):
            return _tensors(model.bbox_head(features))
        if self.proposals is None:
            self.proposals = model.rpn_head.predict(
                features, self.samples, rescale=False)
        return _tensors(
            model.rpn_head(features)) + _tensors(
                model.roi_head.forward(features, self.proposals,
                                       self.samples))

    @torch.no_grad()
    def detections(self, model: nn.Module) -> List[dict]:
        """Boxes, scores and labels for each image, after post-processing."""
        results = model.predict(self.inputs, self.samples, rescale=False)
        return [{
            key: result.pred_instances[key]
            for key in ('bboxes', 'scores', 'labels')
        } for result in results]


def _tensors(node) -> List[Tensor]:
    if isinstance(node, Tensor):
        return [node]
    return [tensor for part in node for tensor in _tensors(part)]


@torch.no_grad()
def distance(outputs: Sequence[Tensor], expected: Sequence[Tensor]) -> float:
    """Mean over outputs of |output - expected| / |expected|, L2 norms."""
    return sum(
        float((one - other).norm() / other.norm())
        for one, other in zip(outputs, expected)) / len(outputs)


def largest_difference(outputs: Sequence[Tensor],
                       expected: Sequence[Tensor]) -> float:
    """Of any number of any output, relative to the output's largest."""
    return max(
        float((one - other).abs().max() / other.abs().max().clamp(min=1e-12))
        for one, other in zip(outputs, expected) if len(other))


def same_detections(one: dict, other: dict) -> int:
    """How many detections of an image are found in both.

    The same label, corners within 0.1 pixels and scores within 0.001.
    """
    if not (len(one['labels']) and len(other['labels'])):
        return 0
    close = one['labels'][:, None] == other['labels']
    for key, limit in (('bboxes', 0.1), ('scores', 1e-3)):
        apart = (one[key][:, None] - other[key]).abs()
        close = close & (apart.flatten(2).amax(2) < limit
                         if apart.dim() > 2 else apart < limit)
    return int(min(close.any(0).sum(), close.any(1).sum()))


def main(config: str, checkpoint: str, inputs: str, outputs: str) -> None:
    sys.modules['mmpsbn'] = None  # From here its import fails.
    from mmdet.registry import MODELS
    from mmdet.utils import register_all_modules
    from mmengine.config import Config
    register_all_modules()
    model = MODELS.build(Config.fromfile(config).model)
    weights = torch.load(checkpoint, map_location='cpu', weights_only=True)
    model.load_state_dict(weights['state_dict'])
    model.eval()
    # Written by the parent, which made it: boxes and metainfo of images.
    os.environ.pop('TORCH_FORCE_WEIGHTS_ONLY_LOAD', None)
    given = torch.load(inputs, weights_only=False)
    run = OutputsOf(given['data'], given['proposals'])
    torch.save(
        dict(raw=run(model), detections=run.detections(model)), outputs)


if __name__ == '__main__':
    main(*sys.argv[1:])
