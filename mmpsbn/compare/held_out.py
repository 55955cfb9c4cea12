"""Training images that are held out to choose learning rates."""

import json
from pathlib import Path

import numpy as np
from mmengine.config import Config

from mmpsbn.config.annotations import check_annotations, read_annotations
from mmpsbn.config.data import DataFiles, data_files
from mmpsbn.config.model import dicts_in
from mmpsbn.errors import InputError
from mmpsbn.files import write_atomically

TRIES = 100  # Random splits, of which the first with all classes is taken.
# The annotation files of both parts.
FILES = ('tuning_train.json', 'tuning_held_out.json')


class HeldOut:
    """A split of a config's training images, the same for every call.

    Both parts are annotation files in COCO's layout. The images are not
    copied. If a split leaves a class without images in a part, the next seed
    is tried.

    Args:
        cfg (Config): The config of a detector.
        share (float): The share of the images that are held out.

    Raises:
        InputError: If the images cannot be split in this way.
    """

    def __init__(self, cfg: Config, share: float) -> None:
        if not 0 < share < 1:
            raise InputError(
                f'--tune {share:g} is not supported: it is the share of the training '
                'images that are held out, between 0 and 1. Try --tune 0.2.'
            )
        self.share = share
        files = _find_training_files(cfg, share)
        check_annotations(files)
        self._content = read_annotations(files.annotations)
        held_out = _choose_images(self._content, files, share)
        every = {image['id'] for image in self._content['images']}
        self._parts = every - held_out, held_out

    @property
    def images(self) -> int:
        """The number of images that are held out."""
        return len(self._parts[1])

    def write(self, folder: Path) -> None:
        """Write the annotation files of both parts into a folder."""
        content = self._content
        for name, part in zip(FILES, self._parts):
            images = [x for x in content['images'] if x['id'] in part]
            boxes = [x for x in content['annotations'] if x['image_id'] in part]
            own = dict(content, images=images, annotations=boxes)
            write_atomically(folder / name, json.dumps(own).encode())

    def use(self, cfg: Config, folder: Path) -> None:
        """Let a config train on one part and evaluate on the other."""
        train = _find_training_files(cfg, self.share).dataset
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


def _find_training_files(cfg: Config, share: float) -> DataFiles:
    """Find the training set, and check that both loaders have a CocoDataset."""
    for loader in ('val_dataloader', 'train_dataloader'):
        found = list(data_files(cfg, (loader,)))
        if len(found) != 1 or not found[0].in_coco_layout:
            kinds = ', '.join(str(files.dataset.get('type')) for files in found)
            raise InputError(
                f"--tune {share:g} needs one data set in COCO's layout in "
                f'{loader}, because it writes a part of its annotations; the '
                f'config has {kinds or "no local data set"}. Convert the data '
                'set to CocoDataset, or leave --tune out.'
            )
    return found[0]


def _choose_images(content: dict, files: DataFiles, share: float) -> set[int]:
    """Choose the ids of the images to hold out."""
    classes = files.classes
    names = {x['id']: x['name'] for x in content['categories'] if x['name'] in classes}
    found: dict[str, set[int]] = {}
    for box in content['annotations']:
        name = names.get(box['category_id'])
        if name and not box.get('iscrowd'):
            found.setdefault(name, set()).add(box['image_id'])
    images = [image['id'] for image in content['images']]
    number = round(share * len(images))
    fewest = list(found)
    for seed in range(TRIES):
        order = np.random.default_rng(seed).permutation(len(images))
        held_out = {images[at] for at in order[:number]}
        parts = ((x, own & held_out, own) for x, own in found.items())
        lacking = [x for x, some, every in parts if not some or some == every]
        if not lacking:
            return held_out
        fewest = min(fewest, lacking, key=len)
    shown = ', '.join(sorted(fewest)[:5]) + ', ...' * (len(fewest) > 5)
    raise InputError(
        f'--tune {share:g} holds out {number} of the {len(images)} images of '
        f'{files.annotations}, and leaves the class{"es" * (len(fewest) > 1)} '
        f'{shown} without an image in one of the two parts, in the best of '
        f'{TRIES} random splits. Choose another share, or leave --tune out.'
    )
