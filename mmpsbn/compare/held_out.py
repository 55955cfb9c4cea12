"""Training images that are held out to choose learning rates."""

import json
from pathlib import Path

import numpy as np
from mmdet.datasets import CocoDataset
from mmengine.config import Config

from mmpsbn.config.annotations import check_annotations, read_annotations
from mmpsbn.config.data import DataFiles, data_files
from mmpsbn.config.model import dicts_in
from mmpsbn.errors import InputError
from mmpsbn.files import write_atomically

TRIES = 100  # Random splits, of which the first with all classes is taken.
FILES = ('tuning_train.json', 'tuning_held_out.json')


class HeldOut:
    """A split of a config's training images, the same for every call.

    Both parts are annotation files in COCO's layout; the images stay where
    they are. A split that leaves a class without images in a part is drawn
    again, with the next seed.

    Args:
        cfg (Config): Of the detector.
        share (float): Of the images that are held out.

    Raises:
        InputError: If the share is out of range, if the data is not in
            COCO's layout, or if no split has every class in both parts.
    """

    def __init__(self, cfg: Config, share: float) -> None:
        if not 0 < share < 1:
            raise InputError(
                f'--tune {share:g} is not supported: it is the share of the '
                'training images that are held out, between 0 and 1. Try '
                '--tune 0.2.'
            )
        self.share = share
        files = _training_files(cfg, share)
        check_annotations(files)
        self._content = read_annotations(files.annotations)
        held_out = _choose(self._content, _classes(files), share, files.annotations)
        every = {image['id'] for image in self._content['images']}
        self._parts = every - held_out, held_out

    @property
    def images(self) -> int:
        """How many images are held out."""
        return len(self._parts[1])

    def write(self, folder: Path) -> None:
        """Write the annotation files of both parts into a folder."""
        for name, images in zip(FILES, self._parts):
            part = dict(
                self._content,
                images=[
                    image for image in self._content['images'] if image['id'] in images
                ],
                annotations=[
                    box
                    for box in self._content['annotations']
                    if box['image_id'] in images
                ],
            )
            write_atomically(folder / name, json.dumps(part).encode())

    def use(self, cfg: Config, folder: Path) -> None:
        """Let a config train on one part and evaluate on the other."""
        train = _training_files(cfg, self.share).dataset
        test = next(data_files(cfg, ('val_dataloader',))).dataset
        train['ann_file'], held_out = (str((folder / name).resolve()) for name in FILES)
        test['ann_file'] = held_out
        for key in ('data_root', 'data_prefix'):
            test.pop(key, None)
            if key in train:
                test[key] = train[key]
        for node in dicts_in(cfg.val_evaluator):
            if 'ann_file' in node:
                node['ann_file'] = held_out


def _training_files(cfg: Config, share: float) -> DataFiles:
    """Find the training set, which both loaders have one of, like COCO's."""
    for loader in ('val_dataloader', 'train_dataloader'):
        found = list(data_files(cfg, (loader,)))
        if (
            len(found) != 1
            or getattr(found[0].kind, 'load_data_list', None)
            is not CocoDataset.load_data_list
        ):
            kinds = (
                ', '.join(str(files.dataset.get('type')) for files in found)
                or 'no local data set'
            )
            raise InputError(
                f"--tune {share:g} needs one data set in COCO's layout in "
                f'{loader}, because it writes a part of its annotations; the '
                f'config has {kinds}. Convert the data set to CocoDataset, or '
                'leave --tune out.'
            )
    return found[0]


def _classes(files: DataFiles) -> set[str]:
    return set(
        (files.dataset.get('metainfo') or {}).get(
            'classes', files.kind.METAINFO['classes']
        )
    )


def _choose(content: dict, classes: set[str], share: float, file: str) -> set[int]:
    """Choose the ids of the images to hold out."""
    names = {
        item['id']: item['name']
        for item in content['categories']
        if item['name'] in classes
    }
    having = {}
    for box in content['annotations']:
        if box['category_id'] in names and not box.get('iscrowd'):
            having.setdefault(names[box['category_id']], set()).add(box['image_id'])
    images = [image['id'] for image in content['images']]
    number = round(share * len(images))
    least = list(having)
    for seed in range(TRIES):
        order = np.random.default_rng(seed).permutation(len(images))
        held_out = {images[at] for at in order[:number]}
        lacking = [
            name
            for name, own in having.items()
            if own <= held_out or not own & held_out
        ]
        if not lacking:
            return held_out
        least = min(least, lacking, key=len)
    raise InputError(
        f'--tune {share:g} holds out {number} of the {len(images)} images of '
        f'{file}, and leaves {_listed(least)} without an image in one of the '
        f'two parts, in the best of {TRIES} random splits. Choose another '
        'share, or leave --tune out.'
    )


def _listed(classes: list[str]) -> str:
    shown = ', '.join(sorted(classes)[:5])
    return f'the class{"es" * (len(classes) > 1)} {shown}' + (
        ', ...' if len(classes) > 5 else ''
    )
