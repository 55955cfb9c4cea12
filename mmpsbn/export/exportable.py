"""A detector as a function of images that an exporter can follow.

What MMDetection's ``predict`` computes, in tensors whose shapes do not depend
on their values: candidates that a threshold or NMS removes stay in their
places with the score -1, and the detections of an image are padded.
"""

import sys
from typing import NamedTuple

import torch
from mmcv.ops import RoIAlign
from mmdet.models.dense_heads import AnchorHead, RPNHead
from mmdet.models.dense_heads.base_dense_head import BaseDenseHead
from mmdet.models.detectors import SingleStageDetector, TwoStageDetector
from mmdet.models.roi_heads import StandardRoIHead
from mmdet.models.roi_heads.bbox_heads import BBoxHead
from mmdet.models.roi_heads.roi_extractors import SingleRoIExtractor
from mmdet.models.task_modules.coders import DeltaXYWHBBoxCoder
from mmdet.models.task_modules.coders.delta_xywh_bbox_coder import delta2bbox
from torch import Tensor, nn

from mmpsbn.errors import InputError
from mmpsbn.export.operators import nms, roi_align

# Settings of NMS that are exported.
NMS = {'type', 'iou_threshold', 'class_agnostic', 'split_thr'}


class Candidates(NamedTuple):
    """Boxes before NMS; those whose score is -1 are none."""

    boxes: Tensor
    """``(B, N, 4)``, x1, y1, x2, y2 in pixels."""
    scores: Tensor
    """``(B, N)``."""
    groups: Tensor
    """``(B, N)``, int64: boxes of one group suppress each other."""


class Exportable(nn.Module):
    """Detections and raw outputs of a detector.

    Args:
        model (nn.Module): A single-stage detector with an anchor head, or
            Faster R-CNN.

    Raises:
        InputError: If it is another one, or if its post-processing is not
            plain NMS.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model.eval()
        self.two_stage = isinstance(model, TwoStageDetector)
        _check(model)

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """
        Args:
            images (Tensor): ``(B, 3, H, W)``, as the data preprocessor gives
                them.

        Returns:
            tuple[Tensor]: ``dets``, ``(B, K, 5)``, x1, y1, x2, y2 in pixels
            of the images and the score, best first; ``labels``, ``(B, K)``,
            -1 where an image has less than K; and the raw outputs, as in
            ``names``.
        """
        shape = images.shape[-2:]
        features = self.model.extract_feat(images)
        if not self.two_stage:
            head = self.model.bbox_head
            scores, boxes = _scores_and_boxes(head, features)
            found = _best(dense_candidates(head, scores, boxes, shape), head.test_cfg)
            return (*_detections(*found), *scores, *boxes)
        head = self.model.rpn_head
        scores, boxes = _scores_and_boxes(head, features)
        proposals, valid, _ = _best(
            dense_candidates(head, scores, boxes, shape, by_level=True), head.test_cfg
        )
        index = (
            torch.arange(
                images.shape[0], dtype=proposals.dtype, device=proposals.device
            )
            .view(-1, 1, 1)
            .expand(-1, proposals.shape[1], 1)
        )
        rois = torch.cat([index, proposals], 2).flatten(0, 1)
        roi_head = self.model.roi_head
        class_scores, deltas = roi_head.bbox_head(
            extract_rois(roi_head.bbox_roi_extractor, features, rois)
        )
        candidates = roi_candidates(roi_head, rois, valid, class_scores, deltas, shape)
        found = _best(candidates, roi_head.test_cfg)
        return (*_detections(*found), *scores, *boxes, rois, class_scores, deltas)

    @property
    def names(self) -> list[str]:
        """The names of the outputs."""
        head = self.model.rpn_head if self.two_stage else self.model.bbox_head
        levels = range(head.prior_generator.num_levels)
        prefix = 'rpn_' if self.two_stage else ''
        dense = [
            f'{prefix}{kind}_{level}'
            for kind in ('cls_score', 'bbox_pred')
            for level in levels
        ]
        rois = ['rois', 'cls_score', 'bbox_pred'] if self.two_stage else []
        return ['dets', 'labels', *dense, *rois]


def dense_candidates(
    head: AnchorHead,
    scores: list[Tensor],
    boxes: list[Tensor],
    shape: tuple[int, int],
    by_level: bool = False,
) -> Candidates:
    """The ``nms_pre`` best boxes of each level of an anchor head.

    Args:
        head (AnchorHead): Whose outputs these are.
        scores (list[Tensor]): For each level ``(B, A * C, H, W)``, logits.
        boxes (list[Tensor]): For each level ``(B, A * 4, H, W)``.
        shape (tuple[int, int]): Height and width of the images.
        by_level (bool): Whether the groups are levels (of an RPN) in the
            place of classes.
    """
    anchors = head.prior_generator.grid_priors(
        [level.shape[-2:] for level in scores], device=scores[0].device
    )
    levels = []
    for level, (logits, deltas, priors) in enumerate(zip(scores, boxes, anchors)):
        logits = (
            logits.permute(0, 2, 3, 1)
            .flatten(1)
            .unflatten(1, (-1, head.cls_out_channels))
        )
        if head.use_sigmoid_cls:
            score = logits.sigmoid()
        else:
            score = logits.softmax(-1)[..., :-1]
        classes = score.shape[2]
        score = score.flatten(1)
        threshold = head.test_cfg.get('score_thr', 0)
        if threshold > 0:
            score = score.where(score > threshold, -1)
        score, best = _top(score, head.test_cfg.get('nms_pre', -1))
        anchor = best // classes
        deltas = deltas.permute(0, 2, 3, 1).flatten(1).unflatten(1, (-1, 4))
        deltas = deltas.gather(1, anchor.unsqueeze(2).expand(-1, -1, 4))
        box = _decode(head.bbox_coder, priors[anchor], deltas, shape)
        least = head.test_cfg.get('min_bbox_size', -1)
        if least >= 0:
            size = box[..., 2:] - box[..., :2]
            score = score.where((size > least).all(2), -1)
        group = torch.full_like(best, level) if by_level else best % classes
        levels.append(Candidates(box, score, group))
    return Candidates(*(torch.cat(parts, 1) for parts in zip(*levels)))


def extract_rois(
    extractor: SingleRoIExtractor, features: tuple[Tensor, ...], rois: Tensor
) -> Tensor:
    """RoIAlign of each RoI on the level of its size.

    Each level sees all RoIs, those of other levels as boxes without an area,
    which take the least time. What they give is ignored.

    Args:
        extractor (SingleRoIExtractor): The detector's.
        features (tuple[Tensor]): For each level ``(B, C, H, W)``.
        rois (Tensor): ``(R, 5)``.

    Returns:
        Tensor: ``(R, C, height, width)``.
    """
    features = features[: extractor.num_inputs]
    level_of = extractor.map_roi_levels(rois, len(features)).unsqueeze(1)
    total = 0
    for level, (feature, layer) in enumerate(zip(features, extractor.roi_layers)):
        own = level_of == level
        found = roi_align(
            feature,
            rois[:, 1:].where(own, 0),
            rois[:, 0].long(),
            *layer.output_size,
            layer.spatial_scale,
            layer.sampling_ratio,
            layer.aligned,
        )
        total = total + found.where(own[:, :, None, None], 0)
    return total


def roi_candidates(
    roi_head: StandardRoIHead,
    rois: Tensor,
    valid: Tensor,
    logits: Tensor,
    deltas: Tensor,
    shape: tuple[int, int],
) -> Candidates:
    """A box for each RoI and class.

    Args:
        roi_head (StandardRoIHead): Whose outputs these are.
        rois (Tensor): ``(B * P, 5)``.
        valid (Tensor): ``(B, P)``, the scores of the proposals, -1 for none.
        logits (Tensor): ``(B * P, C + 1)``.
        deltas (Tensor): ``(B * P, C * 4)`` or ``(B * P, 4)``.
        shape (tuple[int, int]): Height and width of the images.
    """
    number, proposals = valid.shape
    head = roi_head.bbox_head
    scores = logits.softmax(1)[:, :-1]
    classes = scores.shape[1]
    threshold = roi_head.test_cfg.score_thr
    scores = scores.where((scores > threshold) & (valid.view(-1, 1) >= 0), -1)
    deltas = deltas.unflatten(1, (-1, 4))
    boxes = _decode(
        head.bbox_coder, rois[:, None, 1:].expand_as(deltas), deltas, shape
    ).expand(-1, classes, -1)
    groups = torch.arange(classes, device=scores.device).expand_as(scores)
    return Candidates(
        boxes.unflatten(0, (number, proposals)).flatten(1, 2),
        scores.unflatten(0, (number, proposals)).flatten(1, 2),
        groups.unflatten(0, (number, proposals)).flatten(1, 2),
    )


def _scores_and_boxes(head: AnchorHead, features: tuple[Tensor, ...]):
    outputs = head(features)
    if len(outputs) != 2:
        raise InputError(
            f'{type(head).__name__} cannot be exported: it has outputs other than '
            'scores and boxes, such as centerness. Use a RetinaNet or a Faster '
            'R-CNN.'
        )
    return outputs


def _top(scores: Tensor, number: int) -> tuple[Tensor, Tensor]:
    """The best scores of each row and where they are; all where number < 1."""
    total = scores.shape[1]
    return scores.topk(torch.sym_min(number, total) if number > 0 else total)


def _decode(
    coder: DeltaXYWHBBoxCoder, boxes: Tensor, deltas: Tensor, shape: tuple[int, int]
) -> Tensor:
    return delta2bbox(
        boxes.reshape(-1, 4),
        deltas.reshape(-1, 4),
        coder.means,
        coder.stds,
        shape,
        clip_border=coder.clip_border,
        add_ctr_clamp=coder.add_ctr_clamp,
        ctr_clamp=coder.ctr_clamp,
    ).view_as(deltas)


def _best(candidates: Candidates, test_cfg: dict) -> Candidates:
    """The ``max_per_img`` best boxes of each image that NMS keeps."""
    boxes, scores, groups = candidates
    apart = boxes
    if not test_cfg.nms.get('class_agnostic', False):
        # Boxes of two groups do not overlap once they are moved apart.
        step = boxes.amax((1, 2), keepdim=True) + 1
        apart = boxes + groups.unsqueeze(2) * step
    keep = nms(apart, scores, test_cfg.nms.iou_threshold)
    scores, best = _top(scores.where(keep, -1), test_cfg.max_per_img)
    boxes = boxes.gather(1, best.unsqueeze(2).expand(-1, -1, 4))
    # A box that is none has no area, and is no RoI to compute.
    boxes = boxes.where(scores.unsqueeze(2) >= 0, 0)
    return Candidates(boxes, scores, groups.gather(1, best))


def _detections(boxes: Tensor, scores: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    return (
        torch.cat([boxes, scores.clamp(min=0).unsqueeze(2)], 2),
        labels.where(scores >= 0, -1),
    )


def _check(model: nn.Module) -> None:
    two_stage = isinstance(model, TwoStageDetector)
    dense = getattr(model, 'rpn_head' if two_stage else 'bbox_head', None)
    predict = '_predict_by_feat_single'
    plain = RPNHead if two_stage else BaseDenseHead
    heads, parts = [dense], [dense]
    fits = (
        isinstance(model, (SingleStageDetector, TwoStageDetector))
        and isinstance(dense, AnchorHead)
        and getattr(type(dense), predict) is getattr(plain, predict)
    )
    if two_stage:
        roi_head = model.roi_head
        heads.append(roi_head.bbox_head)
        extractor = roi_head.bbox_roi_extractor
        parts += [roi_head, extractor, roi_head.bbox_head]
        fits = (
            fits
            and type(roi_head) is StandardRoIHead
            and not (roi_head.with_mask or roi_head.with_shared_head)
            and isinstance(roi_head.bbox_head, BBoxHead)
            and not roi_head.bbox_head.custom_cls_channels
            and type(extractor) is SingleRoIExtractor
            and all(
                getattr(layer, 'pool_mode', '') == 'avg'
                for layer in extractor.roi_layers
            )
        )
    fits = fits and all(type(head.bbox_coder) is DeltaXYWHBBoxCoder for head in heads)
    if not fits:
        names = ', '.join(type(part).__name__ for part in parts)
        raise InputError(
            f'{type(model).__name__} with {names} cannot be exported: '
            'single-stage detectors with an anchor head (RetinaNet) and '
            'Faster R-CNN can, with DeltaXYWHBBoxCoder, StandardRoIHead '
            'without masks, SingleRoIExtractor, a BBoxHead and RoIAlign.'
        )
    for test_cfg in [dense.test_cfg, *([roi_head.test_cfg] if two_stage else [])]:
        settings = (test_cfg or {}).get('nms') or {}
        if (
            settings.get('type', 'nms') != 'nms'
            or not {'iou_threshold'} <= set(settings) <= NMS
        ):
            raise InputError(
                f'NMS with the settings {dict(settings)} cannot be exported; '
                "set nms=dict(type='nms', iou_threshold=...) in the model's "
                'test_cfg.'
            )
    for name, layer in model.named_modules():
        # MMCV's compiled operators; other layers of mmcv.ops are plain torch.
        module = sys.modules[type(layer).__module__]
        if hasattr(module, 'ext_module') and not isinstance(layer, RoIAlign):
            raise InputError(
                f'{name} is a {type(layer).__name__} of MMCV, which ONNX does '
                'not have, so this detector cannot be exported. Use a detector '
                'without this layer. For deformable convolutions (dcn), train '
                'with plain convolutions.'
            )
