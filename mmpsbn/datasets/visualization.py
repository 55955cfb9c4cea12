"""Detections beside the truth, as one picture."""

from collections.abc import Sequence

import matplotlib
import mmcv
import numpy as np
import torch
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from mmdet.structures.bbox import bbox_overlaps
from pycocotools.coco import COCO

# Colors of Okabe and Ito, told apart by color-blind readers as well.
TRUTH, RIGHT, WRONG = '#56B4E9', '#E69F00', '#CC79A7'


def draw_detections(
    samples: Sequence[dict], ann_file: str, out: str, score_thr: float = 0.5
) -> None:
    """Draw the truth of some images above what was detected in them.

    A detection is right if it overlaps a box of its class with an IoU of at
    least 0.5.

    Args:
        samples (Sequence[dict]): Of the predictions that ``tools/test.py
            --out`` writes.
        ann_file (str): The annotations of their images, in COCO's layout.
        out (str): The PNG to write.
        score_thr (float): Detections of a lower score are left out.
            Defaults to 0.5.
    """
    coco = COCO(ann_file)
    classes = [category['name'] for category in coco.dataset['categories']]
    labels_of = {
        category['id']: label
        for label, category in enumerate(coco.dataset['categories'])
    }
    with matplotlib.rc_context({'font.size': 9}):
        figure = Figure(figsize=(2.1 * len(samples), 4.6), layout='compressed')
        axes = figure.subplots(2, len(samples), squeeze=False)
        for (top, bottom), sample in zip(axes.T, samples):
            image = mmcv.imread(sample['img_path'], channel_order='rgb')
            for axis in (top, bottom):
                axis.imshow(image)
                axis.set(xticks=[], yticks=[])
            truth = coco.loadAnns(coco.getAnnIds(sample['img_id']))
            boxes = torch.tensor([item['bbox'] for item in truth]).view(-1, 4)
            boxes[:, 2:] += boxes[:, :2]
            labels = torch.tensor([labels_of[item['category_id']] for item in truth])
            for box, label in zip(boxes, labels):
                _draw(top, box, classes[label], TRUTH)
            found = sample['pred_instances']
            kept = found['scores'] >= score_thr
            for box, label, score in zip(
                found['bboxes'][kept], found['labels'][kept], found['scores'][kept]
            ):
                same = boxes[labels == label].float()
                right = bool((bbox_overlaps(box[None], same) >= 0.5).any())
                text = f'{classes[label]} {score:.2f}'.replace(' 0.', ' .')
                _draw(bottom, box, text, RIGHT if right else WRONG, right)
        axes[0, 0].set_ylabel('truth')
        axes[1, 0].set_ylabel(f'detected, score ≥ {score_thr}')
        handles = [
            Rectangle((0, 0), 1, 1, fill=False, edgecolor=RIGHT, linewidth=1.5),
            Rectangle(
                (0, 0), 1, 1, fill=False, edgecolor=WRONG, linewidth=1.5, linestyle='--'
            ),
        ]
        figure.legend(
            handles,
            ['class and box right (IoU ≥ 0.5)', 'wrong'],
            loc='outside lower center',
            ncols=2,
            frameon=False,
        )
        figure.savefig(out, dpi=110)


def _draw(axis, box, text: str, color: str, solid: bool = True) -> None:
    x1, y1, x2, y2 = np.asarray(box, dtype=float)
    axis.add_patch(
        Rectangle(
            (x1, y1),
            x2 - x1,
            y2 - y1,
            fill=False,
            edgecolor=color,
            linewidth=1.5,
            linestyle='-' if solid else '--',
        )
    )
    axis.text(
        x1,
        max(y1 - 2, 12),
        text,
        va='bottom',
        color='black',
        fontsize=8,
        clip_on=True,
        bbox=dict(facecolor=color, edgecolor='none', pad=1),
    )
