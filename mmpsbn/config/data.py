"""The files that the data sets of a config name."""

import filecmp
import json
import os
import os.path as osp
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from mmdet.datasets import CocoDataset, CocoPanopticDataset, XMLDataset
from mmdet.evaluation import CocoMetric
from mmdet.registry import DATASETS, METRICS
from mmengine.config import Config

from mmpsbn.config.errors import explain_config_errors
from mmpsbn.config.images import check_images, list_images
from mmpsbn.config.model import dicts_in, find_class
from mmpsbn.errors import InputError, describe_error

# Where the data sets of MMDetection's configs belong, and what they contain.
COCO = 'COCO2017', 'data/coco/', 'annotations/, train2017/, val2017/'
VOC = 'PASCAL VOC', 'data/VOCdevkit/', 'VOC2007/, VOC2012/'


class DataFiles(NamedTuple):
    """The files that one data set of a config reads."""

    annotations: str
    images: str
    dataset: dict
    """The data set's part of the config."""
    kind: type
    """Its class; ``object`` if there is none of this name."""

    @property
    def in_coco_layout(self) -> bool:
        """Whether the annotations are read as those of COCO."""
        load = getattr(self.kind, 'load_data_list', None)
        return load is CocoDataset.load_data_list

    @property
    def classes(self) -> tuple:
        """The names of its classes."""
        metainfo = self.dataset.get('metainfo') or {}
        return tuple(metainfo.get('classes', self.kind.METAINFO['classes']))


def data_files(cfg: Config, loaders: Sequence[str]) -> Iterator[DataFiles]:
    """Iterate over the local data sets of data loaders.

    This includes those in wrappers (repeated and concatenated data sets).
    """
    for loader in loaders:
        for dataset in dicts_in((cfg.get(loader) or {}).get('dataset')):
            root = dataset.get('data_root') or ''
            if not dataset.get('ann_file') or '://' in root:
                continue
            kind = find_class(cfg, DATASETS, dataset.get('type')) or object
            prefixes = dataset.get('data_prefix') or {}
            prefix = (
                osp.join(
                    prefixes.get('sub_data_root', ''),
                    dataset.get('img_subdir', 'JPEGImages'),
                )
                if issubclass(kind, XMLDataset)
                else prefixes.get('img', '')
            )
            yield DataFiles(
                osp.join(root, dataset['ann_file']),
                osp.join(root, prefix) or osp.curdir,
                dataset,
                kind,
            )


@explain_config_errors()
def check_data(cfg: Config, loaders: Sequence[str]) -> None:
    """Raise if files of the data sets are missing.

    Raises:
        InputError: With the files, and where the data set belongs.
    """
    sets = list(data_files(cfg, loaders))
    paths = [path for files in sets for path in files[:2]]
    missing = [path for path in dict.fromkeys(paths) if not osp.exists(path)]
    moved = os.environ.get('MMDET_DATASETS')
    root = cfg.get('data_root') or moved or ''
    if missing and not any(path.startswith(root) for path in paths):
        raise InputError(
            f'no data set of the config is under {root}, the value of '
            f'{"MMDET_DATASETS" if moved else "data_root"}; the first is {paths[0]}. '
            'A data_root that is set after the data sets, by a config that inherits '
            'them or by --cfg-options, does not change them. Remove it and set '
            'MMDET_DATASETS, or set data_root of each dataset and ann_file of each '
            'evaluator.'
        )
    if missing:
        name, root, content = (
            VOC if any(issubclass(files.kind, XMLDataset) for files in sets) else COCO
        )
        raise InputError(
            f'the data set is incomplete: {", ".join(missing)} '
            f'{"does" if len(missing) == 1 else "do"} not exist. Put {name} '
            f'under {cfg.get("data_root", root)} ({content}), or set '
            'MMDET_DATASETS to the folder that holds it. The demo makes its '
            'own data: python tools/make_demo_data.py --out data/digits.'
        )
    for files in sets:
        if not osp.getsize(files.annotations):
            raise InputError(
                f'the annotation file {files.annotations} is empty. Create or '
                'download it again.'
            )
    for loader in loaders:
        _check_ground_truth(cfg, loader)


def _check_ground_truth(cfg: Config, loader: str) -> None:
    """Raise if the ground truth of an evaluator is not that of its images.

    Images that are not evaluated would count as missed, or other boxes as
    those of an image.
    """
    sets = list(data_files(cfg, (loader,)))
    if len(sets) != 1 or not sets[0].in_coco_layout:
        return
    if issubclass(sets[0].kind, CocoPanopticDataset):
        return  # Its annotations are those of segments, without boxes.
    own = sets[0].annotations
    for metric in dicts_in(cfg.get(loader.replace('dataloader', 'evaluator'))):
        other = metric.get('ann_file')
        kind = find_class(cfg, METRICS, metric.get('type'))
        if kind is not CocoMetric or not other or '://' in other:
            continue
        if not (osp.isfile(other) and filecmp.cmp(own, other, shallow=False)):
            raise InputError(
                f'{loader} reads the images of {own}, but its evaluator has the ground '
                f'truth of {other}, another file or none. Set ann_file of the '
                'evaluator to that of the data set.'
            )


def check_classes(name: str, found: Sequence, classes: Sequence[str]) -> None:
    """Raise if an annotation file lacks classes, or has them in another order.

    MMDetection numbers labels by the order of the file.

    Args:
        name (str): The file.
        found (list): Those of its categories that are classes.
        classes (list[str]): The classes of the data set.

    Raises:
        InputError: With the numbers or names, and what to set.
    """
    if len(found) != len(classes):
        raise InputError(
            f'{name} has {len(found)} of the {len(classes)} classes in '
            f'metainfo ({", ".join(classes[:3])}, ...). Set '
            "metainfo=dict(classes=(...)) of the dataset to the file's "
            "category names, and num_classes of the model's heads to their "
            'number.'
        )
    if set(found) != set(classes):
        return  # Numbers instead of names.
    for label, (own, other) in enumerate(zip(found, classes)):
        if own != other:
            raise InputError(
                f'label {label} is {own} in {name}, because MMDetection numbers labels '
                "in the order of the file's categories, but metainfo names it "
                f"{other}. Sort 'categories' of each annotation file in the order of "
                'the classes, or name the classes in the order that all files have.'
            )


@explain_config_errors()
def find_images(cfg: Config, folder: str | None, number: int) -> list[str]:
    """Choose images of a folder at random, the same in every call.

    The first ones by name may all show one class. A larger number of images
    begins with those of a smaller number.

    Args:
        cfg (Config): The config whose training images are the default.
        folder (str, optional): The folder.
        number (int): The largest number of images.

    Raises:
        InputError: If there is none, or if one cannot be read.
    """
    if number < 1:
        raise InputError(
            f'--number {number} is not supported: at least one image is needed. '
            'Try --number 64.'
        )
    if folder is None:
        files = next(data_files(cfg, ('train_dataloader',)), None)
        if files is None or not osp.isdir(files.images):
            raise InputError(
                "the config's folder of training images "
                f'{files.images if files else ""} cannot be read; name a '
                'folder by --images.'
            )
        images = _training_images(files)
    else:
        images = list_images(folder)
    order = np.random.default_rng(0).permutation(len(images))
    images = [images[at] for at in order[:number]]
    check_images(images)
    return images


def _training_images(files: DataFiles) -> list[str]:
    """Return the images that the annotations list.

    A folder may have the images of training and of tests, and subfolders.
    """
    is_voc = issubclass(files.kind, XMLDataset)
    if not (is_voc or files.in_coco_layout and osp.isfile(files.annotations)):
        return list_images(files.images)
    try:
        with open(files.annotations, encoding='utf-8') as stream:
            if is_voc:
                names = [f'{name}.jpg' for name in stream.read().split()]
            else:
                listed = json.load(stream)['images']
                names = sorted({image['file_name'] for image in listed})
        if not names:
            raise ValueError('it lists no images')
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise InputError(
            f'the list of images {files.annotations} cannot be read '
            f'({describe_error(error)}). Correct ann_file of the dataset, or name a '
            'folder by --images.'
        ) from error
    return [osp.join(files.images, name) for name in names]
