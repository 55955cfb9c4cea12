"""NMS and RoIAlign as operators of torch with a translation to ONNX.

MMCV's own are no operators that an exporter can see; they compute here.
"""

from collections.abc import Callable

import torch
from mmcv.ops import nms as mmcv_nms
from mmcv.ops import roi_align as mmcv_roi_align
from torch import Tensor

# ONNX's NonMaxSuppression drops the boxes whose score is not above this one.
# What must not take part in NMS has the score -1.
LEAST_SCORE = -0.5


def _operator(name: str, fake: Callable) -> Callable:
    """Make a function an operator, as the exporter needs it.

    torch before 2.4 has no such operators, and no exporter that uses them.
    """

    def decorate(function):
        if not hasattr(torch.library, 'custom_op'):
            return function
        operator = torch.library.custom_op(name, function, mutates_args=())
        operator.register_fake(fake)
        return operator

    return decorate


def _fake_nms(boxes, scores, iou_threshold):
    return torch.empty_like(scores, dtype=torch.bool)


def _fake_roi_align(
    features, boxes, images, height, width, scale, sampling_ratio, aligned
):
    return features.new_empty((boxes.shape[0], features.shape[1], height, width))


@_operator('mmpsbn::nms', _fake_nms)
def nms(boxes: Tensor, scores: Tensor, iou_threshold: float) -> Tensor:
    """Whether a box is kept: no better box that is kept overlaps it more.

    A mask has the shape of its input for any number of boxes that are kept.

    Args:
        boxes (Tensor): ``(B, N, 4)``, x1, y1, x2, y2.
        scores (Tensor): ``(B, N)``; boxes with the score -1 are not kept.
        iou_threshold (float): Of intersection over union.

    Returns:
        Tensor: Bool, ``(B, N)``.
    """
    keep = torch.zeros_like(scores, dtype=torch.bool)
    for mask, box, score in zip(keep, boxes, scores):
        valid = (score > LEAST_SCORE).nonzero().squeeze(1)
        if len(valid):
            mask[valid[mmcv_nms(box[valid], score[valid], iou_threshold)[1]]] = True
    return keep


@_operator('mmpsbn::roi_align', _fake_roi_align)
def roi_align(
    features: Tensor,
    boxes: Tensor,
    images: Tensor,
    height: int,
    width: int,
    scale: float,
    sampling_ratio: int,
    aligned: bool,
) -> Tensor:
    """RoIAlign by averages.

    Args:
        features (Tensor): ``(B, C, H, W)``.
        boxes (Tensor): ``(R, 4)``, x1, y1, x2, y2 in pixels of the image.
        images (Tensor): ``(R,)``, int64, the image of each box.
        height (int): Of the output; ``width`` likewise.
        scale (float): Pixels of the feature map for a pixel of the image.
        sampling_ratio (int): Samples in a bin and direction, 0 for as many as
            it has pixels.
        aligned (bool): Whether coordinates are shifted by half a pixel.

    Returns:
        Tensor: ``(R, C, height, width)``.
    """
    rois = torch.cat([images.unsqueeze(1).to(boxes), boxes], 1)
    return mmcv_roi_align(
        features, rois, (height, width), scale, sampling_ratio, 'avg', aligned
    )


def onnx_translations() -> dict[Callable, Callable]:
    """For ``torch.onnx.export(custom_translation_table=...)``."""
    from onnxscript import opset18 as op

    def onnx_nms(boxes, scores, iou_threshold):
        kept = op.NonMaxSuppression(
            boxes,
            op.Unsqueeze(scores, op.Constant(value_ints=[1])),
            op.Shape(boxes, start=1, end=2),
            op.Constant(value_floats=[iou_threshold]),
            op.Constant(value_floats=[LEAST_SCORE]),
        )
        # Rows of image, class 0 and box.
        where = op.Gather(kept, op.Constant(value_ints=[0, 2]), axis=1)
        ones = op.Expand(op.Constant(value_ints=[1]), op.Shape(kept, start=0, end=1))
        none = op.Expand(op.Constant(value_ints=[0]), op.Shape(scores))
        return op.Cast(op.ScatterND(none, where, ones), to=9)

    def onnx_roi_align(
        features, boxes, images, height, width, scale, sampling_ratio, aligned
    ):
        return op.RoiAlign(
            features,
            boxes,
            images,
            output_height=height,
            output_width=width,
            spatial_scale=scale,
            sampling_ratio=sampling_ratio,
            coordinate_transformation_mode='half_pixel'
            if aligned
            else 'output_half_pixel',
        )

    return {
        torch.ops.mmpsbn.nms.default: onnx_nms,
        torch.ops.mmpsbn.roi_align.default: onnx_roi_align,
    }
