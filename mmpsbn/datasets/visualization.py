"""Pictures of detections next to the ground truth."""

from collections.abc import Sequence

import mmcv
import torch
from matplotlib.patches import Rectangle
from mmdet.structures.bbox import bbox_overlaps
from pycocotools.coco import COCO

from mmpsbn.analysis.style import COLORS, figure_file

SOLID = dict(fill=False, lw=1.5)
RIGHT, WRONG = dict(SOLID, ec=COLORS[1]), dict(SOLID, ec=COLORS[3], ls='--')
FOUND = dict(SOLID, ec=COLORS[4])
SCORE_THR = 0.5  # The lowest score of a detection that is drawn.


def draw_detections(samples: Sequence[dict], ann_file: str, out: str) -> None:
    """Draw the ground truth of some images above the detections in them.

    A detection is right if it overlaps a box of its class with an IoU of at
    least 0.5. An object without such a detection is missed.

    Args:
        samples (list[dict]): Some of the predictions that ``tools/test.py
            --out`` writes.
        ann_file (str): The annotations of their images, in COCO's layout.
        out (str): The PNG to write.
    """
    coco = COCO(ann_file)
    categories = coco.dataset['categories']
    names = [category['name'] for category in categories]
    labels_of = {category['id']: label for label, category in enumerate(categories)}
    with figure_file(out, 2.1 * len(samples), 4.6) as figure:
        figure.set_layout_engine('compressed')
        axes = figure.subplots(2, len(samples), squeeze=False)
        for column, sample in zip(axes.T, samples):
            image = mmcv.imread(sample['img_path'], channel_order='rgb')
            for axis in column:
                axis.imshow(image)
                axis.set(xticks=[], yticks=[])
                axis.spines[:].set_visible(False)
            truth = coco.loadAnns(coco.getAnnIds(sample['img_id']))
            boxes = torch.tensor([item['bbox'] for item in truth]).float().view(-1, 4)
            boxes[:, 2:] += boxes[:, :2]
            labels = torch.tensor([labels_of[item['category_id']] for item in truth])
            kept = sample['pred_instances']['scores'] >= SCORE_THR
            found, found_labels, scores = (
                sample['pred_instances'][key][kept]
                for key in ('bboxes', 'labels', 'scores')
            )
            match = bbox_overlaps(found, boxes) >= 0.5
            match &= found_labels[:, None] == labels
            for box, label, one in zip(boxes, labels, match.T):
                _draw(column[0], box, names[label], FOUND if one.any() else WRONG)
            for box, label, score, one in zip(found, found_labels, scores, match):
                text = f'{names[label]} {score:.2f}'.replace(' 0.', ' .')
                _draw(column[1], box, text, RIGHT if one.any() else WRONG)
        axes[0, 0].set_ylabel('ground truth')
        axes[1, 0].set_ylabel(f'detected, score ≥ {SCORE_THR}')
        figure.legend(
            [Rectangle((0, 0), 1, 1, **style) for style in (FOUND, RIGHT, WRONG)],
            ['object found', 'class and box right (IoU ≥ 0.5)', 'missed or wrong'],
            loc='outside lower center',
            ncols=3,
        )


def _draw(axis, box, text: str, style: dict) -> None:
    x1, y1, x2, y2 = box.tolist()
    axis.add_patch(Rectangle((x1, y1), x2 - x1, y2 - y1, **style))
    frame = dict(facecolor=style['ec'], edgecolor='none', pad=1)
    # Labels of boxes that overlap do not: what is wrong has its label below.
    below = style is WRONG
    place = (x1, min(y2 + 2, axis.get_ylim()[0] - 12) if below else max(y1 - 2, 12))
    label = dict(va='top' if below else 'bottom', fontsize=8, clip_on=True)
    axis.text(*place, text, bbox=frame, **label)
