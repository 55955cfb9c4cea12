"""The files of a data set: looked for before a run, blamed after it fails."""

import json
import math
import os
import os.path as osp
import traceback
from contextlib import contextmanager
from typing import Iterator, List, NamedTuple, Optional, Sequence

import mmcv
from mmdet.datasets import CocoDataset, XMLDataset
from mmdet.registry import DATASETS
from mmengine.config import Config
from mmengine.dataset import BaseDataset

from .blame import blamed_on_config, in_a_sentence
from .config import dicts_in
from mmpsbn.errors import InputError


IMAGES = ('.jpg', '.jpeg', '.png', '.bmp')
# Of MMEngine, MMDetection and pycocotools: what reads annotations.
READERS = ('base_dataset.py', 'coco.py', 'coco_metric.py')
# Where the data sets of MMDetection's configs belong, and what they contain.
COCO = 'COCO2017', 'data/coco/', 'annotations/, train2017/, val2017/'
VOC = 'PASCAL VOC', 'data/VOCdevkit/', 'VOC2007/, VOC2012/'


def _is_number(value) -> bool:
    return isinstance(value, (int, float)) and math.isfinite(value)


def _is_box(value) -> bool:
    return isinstance(value, list) and len(value) == 4 and all(
        map(_is_number, value))


# What MMDetection reads of COCO's layout: tests, and what they ask for.
NUMBER, TEXT = (_is_number, 'a number'), (
    lambda value: isinstance(value, str), 'a text')
IDENTITY = (lambda value: isinstance(value, (int, str)), 'a number')
LAYOUT = dict(
    images=dict(id=IDENTITY, file_name=TEXT, height=NUMBER, width=NUMBER),
    categories=dict(id=IDENTITY, name=TEXT),
    annotations=dict(
        id=IDENTITY,
        image_id=IDENTITY,
        category_id=IDENTITY,
        bbox=(_is_box, 'a list of x, y, width and height'),
        area=NUMBER))


class UniqueIds(CocoDataset.COCOAPI):
    """The index of an annotation file, in which no id comes twice.

    In pycocotools' own the last of several images or categories of one id
    takes the boxes of all, without a word.
    """

    def createIndex(self) -> None:
        super().createIndex()
        for part, index in (('images', self.imgs), ('categories', self.cats)):
            if len(index) != len(self.dataset.get(part, index)):
                raise ValueError(f"ids of '{part}' are not unique")


class DataFiles(NamedTuple):
    """What one data set of a config reads."""

    annotations: str
    images: str
    dataset: dict
    """The data set's part of the config."""
    kind: type
    """Its class; ``object`` if there is none of this name."""


def data_files(cfg: Config, loaders: Sequence[str]) -> Iterator[DataFiles]:
    """The local files of the data sets of some data loaders.

    Wrappers (repeated, concatenated data sets) are looked into.
    """
    for loader in loaders:
        for dataset in dicts_in((cfg.get(loader) or {}).get('dataset')):
            root = dataset.get('data_root') or ''
            if not dataset.get('ann_file') or '://' in root:
                continue
            kind = dataset.get('type')
            if not isinstance(kind, type):
                kind = DATASETS.get(str(kind)) or object
            prefixes = dataset.get('data_prefix') or {}
            prefix = osp.join(
                prefixes.get('sub_data_root', ''),
                dataset.get('img_subdir', 'JPEGImages')) if issubclass(
                    kind, XMLDataset) else prefixes.get('img', '')
            yield DataFiles(
                osp.join(root, dataset['ann_file']), osp.join(root, prefix),
                dataset, kind)


@blamed_on_config()
def check_data(cfg: Config, loaders: Sequence[str]) -> None:
    """Raise if files of the data set are missing.

    Raises:
        InputError: With the files, where the data set belongs, and the way
            to do without it.
    """
    sets = list(data_files(cfg, loaders))
    paths = [path for files in sets for path in files[:2]]
    missing = [path for path in dict.fromkeys(paths) if not osp.exists(path)]
    if missing:
        name, root, content = VOC if any(
            issubclass(files.kind, XMLDataset) for files in sets) else COCO
        raise InputError(
            f'the data set is incomplete: {", ".join(missing)} '
            f'{"does" if len(missing) == 1 else "do"} not exist. Put {name} '
            f'under {cfg.get("data_root", root)} ({content}), or set '
            'MMDET_DATASETS to the folder that holds it. The demo makes its '
            'own data: python tools/make_demo_data.py --out data/digits.')
    for files in sets:
        if not osp.getsize(files.annotations):
            raise InputError(
                f'the annotation file {files.annotations} is empty.')


@contextmanager
def blamed_on_data(cfg: Config, loaders: Sequence[str]):
    """Name the file of the data set that made a run fail, if one did.

    The data set is looked through only after the failure, so that a run
    that is right pays nothing. Meanwhile CocoDataset reads by
    :class:`UniqueIds`.

    Raises:
        InputError: If a file is the cause; any other error passes.
    """
    reader, CocoDataset.COCOAPI = CocoDataset.COCOAPI, UniqueIds
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        trace = ''.join(traceback.format_exception(error))
        _blame_xml(error)
        for files in data_files(cfg, loaders):
            if any(name in trace for name in READERS) and getattr(
                    files.kind, 'load_data_list',
                    None) is CocoDataset.load_data_list:
                blame_annotations(files)
            if any(name in trace for name in ("'mask'", "'segmentation'")):
                _blame_masks(files)
            if 'loading.py' in trace:
                blame_images(files)
        _blame_filters(error)
        raise
    finally:
        CocoDataset.COCOAPI = reader


def blame_annotations(files: DataFiles) -> None:
    """Raise if an annotation file is not what MMDetection can read.

    Raises:
        InputError: With the first thing that is wrong.
    """
    content = read_annotations(files.annotations)
    for part, fields in LAYOUT.items():
        _blame_part(files.annotations, part, content[part], fields)
    if not content['images']:
        raise InputError(f'{files.annotations} lists no image.')
    names = {category['name'] for category in content['categories']}
    classes = tuple((files.dataset.get('metainfo') or {}).get(
        'classes', files.kind.METAINFO['classes']))
    check_classes(files.annotations,
                  [name for name in classes if name in names], classes)
    if not content['annotations']:
        raise InputError(f'{files.annotations} has no box.')
    images = {image['id'] for image in content['images']}
    for annotation in content['annotations']:
        if annotation['image_id'] not in images:
            raise InputError(
                f'annotation {annotation["id"]} of {files.annotations} is of '
                f'the image {annotation["image_id"]}, which is not listed.')


def _blame_part(file: str, part: str, items, fields: dict) -> None:
    if not isinstance(items, list):
        raise InputError(f"'{part}' of {file} is no list.")
    ids = set()
    for index, item in enumerate(items):
        where = f"entry {index} of '{part}' in {file}"
        if not isinstance(item, dict):
            raise InputError(f'{where} is no object with fields.')
        missing = [name for name in fields if name not in item]
        if missing:
            raise InputError(f'{where} has no {", ".join(missing)}.')
        for name, (test, kind) in fields.items():
            if not test(item[name]):
                raise InputError(f'{where}: {name} is {item[name]!r}, and has '
                                 f'to be {kind}.')
        if item['id'] in ids:
            raise InputError(f'{where}: another entry has the id '
                             f'{item["id"]} as well.')
        ids.add(item['id'])


def check_classes(name: str, found: Sequence, classes: Sequence[str]) -> None:
    """Raise if an annotation file lacks classes of the data set.

    Raises:
        InputError: With the numbers, and what to set.
    """
    if len(found) != len(classes):
        raise InputError(
            f'{name} has {len(found)} of the {len(classes)} classes in '
            f'metainfo ({", ".join(classes[:3])}, ...). Set '
            "metainfo=dict(classes=(...)) of the dataset to the file's "
            "category names, and num_classes of the model's heads to their "
            'number.')


def _blame_xml(error: Exception) -> None:
    """Raise if an error comes from reading a file of PASCAL VOC's layout."""
    for frame, _ in traceback.walk_tb(error.__traceback__):
        self = frame.f_locals.get('self')
        image = frame.f_locals.get('img_info')
        if isinstance(self, XMLDataset) and isinstance(image, dict):
            raise InputError(
                f'the annotation file {image["xml_path"]} cannot be used: '
                f'{in_a_sentence(error)}. {self.ann_file} lists its image, '
                "and in PASCAL VOC's layout each object has a name and a "
                'bndbox of xmin, ymin, xmax and ymax. Correct the file, or '
                'remove its line from the list.') from error


def _blame_filters(error: Exception) -> None:
    """Raise if an error comes from a data set that leaves out every image."""
    for frame, _ in traceback.walk_tb(error.__traceback__):
        self = frame.f_locals.get('self')
        if frame.f_code.co_name == '_serialize_data' and isinstance(
                self, BaseDataset) and not self.data_list:
            raise InputError(
                f'no image of {self.ann_file} is left: filter_cfg of the '
                'dataset removes those without a box of a class in metainfo, '
                'and small ones. Set metainfo=dict(classes=(...)) of the '
                'dataset to the names in the annotations, or change '
                'filter_cfg.') from error


def _samples(files: DataFiles) -> Iterator[dict]:
    """What a data set gives its pipeline."""
    dataset = DATASETS.build(dict(files.dataset, pipeline=[]))
    yield from map(dataset.get_data_info, range(len(dataset)))


def _blame_masks(files: DataFiles) -> None:
    """Raise if a data set has boxes without masks.

    Raises:
        InputError: With the first image of such a box.
    """
    for sample in _samples(files):
        if any('mask' not in box for box in sample['instances']):
            raise InputError(
                f'{files.annotations} has boxes without masks, for one in '
                f'the image {sample["img_path"]}, but the config trains or '
                "evaluates masks. Add a 'segmentation' to each annotation, "
                'or choose a detector of boxes, such as Faster R-CNN, and '
                "metric='bbox' in the evaluator.")


def blame_images(files: DataFiles) -> None:
    """Raise if an image of a data set cannot be read.

    Raises:
        InputError: With the first such image.
    """
    for sample in _samples(files):
        path = sample['img_path']
        if not osp.exists(path):
            raise InputError(f'the image {path} does not exist, but '
                             f'{files.annotations} lists it.')
        if not _readable(path):
            raise InputError(f'the image {path} cannot be read; replace it, '
                             f'or take it out of {files.annotations}.')


def read_annotations(file: str) -> dict:
    """Read a COCO annotation file.

    Raises:
        InputError: If it is no JSON, or lacks a part of COCO's layout.
    """
    try:
        with open(file, encoding='utf-8') as stream:
            content = json.load(stream)
    except (ValueError, OSError) as error:
        raise InputError(f'the annotation file {file} cannot be read: '
                         f'{error}') from error
    missing = [
        part for part in ('images', 'annotations', 'categories')
        if not isinstance(content, dict) or part not in content
    ]
    if missing:
        raise InputError(f'the annotation file {file} has no '
                         f"{' and no '.join(missing)}, which COCO's layout "
                         'has.')
    return content


@blamed_on_config()
def find_images(cfg: Config, folder: Optional[str],
                number: int) -> List[str]:
    """The first images of a folder, by name, which can be read.

    Args:
        cfg (Config): Whose training images are taken without a folder.
        folder (str, optional): Where they are.
        number (int): How many at most.

    Raises:
        InputError: If there is none, or if one cannot be read.
    """
    if number < 1:
        raise InputError(f'--number {number}: at least 1 image is needed.')
    if folder is None:
        files = next(data_files(cfg, ('train_dataloader', )), None)
        if files is None or not osp.isdir(files.images):
            raise InputError(
                "the config's folder of training images "
                f'{files.images if files else ""} cannot be read; name a '
                'folder by --images.')
        images = _training_images(files)
    else:
        images = list_images(folder)
    check_images(images[:number])
    return images[:number]


def _training_images(files: DataFiles) -> List[str]:
    if not issubclass(files.kind, XMLDataset):
        return list_images(files.images)
    # A folder of PASCAL VOC has the images of training and of tests.
    try:
        with open(files.annotations) as stream:
            names = stream.read().split()
    except OSError as error:
        raise InputError(f'{files.annotations} cannot be read '
                         f'({error.strerror}).') from error
    return [osp.join(files.images, f'{name}.jpg') for name in names]


def list_images(folder: str) -> List[str]:
    """The images of a folder, by name.

    Raises:
        InputError: If it cannot be read, or has none.
    """
    try:
        names = sorted(os.listdir(folder))
    except OSError as error:
        raise InputError(f'{folder} cannot be read ({error.strerror}).'
                         ) from error
    images = [
        osp.join(folder, name) for name in names
        if name.lower().endswith(IMAGES)
    ]
    if not images:
        raise InputError(f'{folder} has no image ({", ".join(IMAGES)}).')
    return images


def check_images(files: Sequence[str]) -> None:
    """Raise for an image that cannot be read.

    Raises:
        InputError: With its name.
    """
    for file in files:
        if not _readable(file):
            raise InputError(f'the image {file} cannot be read.')


def _readable(file: str) -> bool:
    try:
        return mmcv.imread(file) is not None
    except Exception:  # Of OpenCV, for an empty file, or of the disk.
        return False
