"""Errors of a run, explained by the file of the data set that caused them."""

import os.path as osp
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from mmdet.datasets import CocoDataset, XMLDataset
from mmdet.registry import DATASETS
from mmengine.config import Config
from mmengine.dataset import BaseDataset

from mmpsbn.config.annotations import UniqueIds, check_annotations
from mmpsbn.config.data import DataFiles, data_files
from mmpsbn.config.images import is_readable
from mmpsbn.errors import InputError, describe_error

# Files of MMEngine, MMDetection and pycocotools that read annotations. Errors
# of a data loader's process arrive as text.
READERS = ('base_dataset.py', 'coco.py', 'coco_metric.py')


@contextmanager
def explain_data_errors(cfg: Config, loaders: Sequence[str]):
    """Name the file of a data set that made a run fail, if a file did.

    The files are checked only after a failure, so this costs nothing if all
    is well. Meanwhile, CocoDataset reads with :class:`UniqueIds`: reading a
    large annotation file twice would take as long as loading it
    (test_bad_files.py needs it).

    Raises:
        InputError: If a file is the cause. Other errors pass through.
    """
    reader, CocoDataset.COCOAPI = CocoDataset.COCOAPI, UniqueIds
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        trace = ''.join(traceback.format_exception(error))

        def mentions(*words):
            return any(word in trace for word in words)

        frames = [frame.f_locals for frame, _ in traceback.walk_tb(error.__traceback__)]
        _explain_xml(frames, error)
        for files in data_files(cfg, loaders):
            if mentions(*READERS) and files.in_coco_layout:
                check_annotations(files)
            if mentions("'mask'", "'segmentation'"):
                _check_masks(files)
            if mentions('loading.py'):
                _check_listed_images(files)
        _explain_filters(frames, error)
        raise
    finally:
        CocoDataset.COCOAPI = reader


def _explain_xml(frames: list[dict], error: Exception) -> None:
    """Raise if an error comes from reading a file of PASCAL VOC's layout."""
    for names in frames:
        dataset, image = names.get('self'), names.get('img_info')
        if isinstance(dataset, XMLDataset) and isinstance(image, dict):
            raise InputError(
                f'the annotation file {image["xml_path"]} cannot be used: '
                f'{describe_error(error)}. {dataset.ann_file} lists its image, '
                "and in PASCAL VOC's layout each object has a name and a "
                'bndbox of xmin, ymin, xmax and ymax. Correct the file, or '
                'remove its line from the list.'
            ) from error


def _explain_filters(frames: list[dict], error: Exception) -> None:
    """Raise if an error comes from a data set that leaves out every image."""
    for names in frames:
        dataset = names.get('self')
        if isinstance(dataset, BaseDataset) and not getattr(dataset, 'data_list', 1):
            raise InputError(
                f'no image of {dataset.ann_file} is left: filter_cfg of the '
                'dataset removes those without a box of a class in metainfo, '
                'and small ones. Set metainfo=dict(classes=(...)) of the '
                'dataset to the names in the annotations, or change '
                'filter_cfg.'
            ) from error


def _samples(files: DataFiles) -> Iterator[dict]:
    """Iterate over what a data set gives its pipeline."""
    dataset = DATASETS.build(dict(files.dataset, pipeline=[]))
    yield from map(dataset.get_data_info, range(len(dataset)))


def _check_masks(files: DataFiles) -> None:
    """Raise an InputError if a data set has boxes without masks."""
    for sample in _samples(files):
        if any('mask' not in box for box in sample['instances']):
            raise InputError(
                f'{files.annotations} has boxes without masks (for example in '
                f'the image {sample["img_path"]}), but the config trains or '
                "evaluates masks. Add a 'segmentation' to each annotation, "
                'or choose a detector of boxes, such as Faster R-CNN, and '
                "metric='bbox' in the evaluator."
            )


def _check_listed_images(files: DataFiles) -> None:
    """Raise an InputError with the first listed image that cannot be read."""
    for sample in _samples(files):
        path = sample['img_path']
        if not osp.exists(path):
            raise InputError(
                f'the image {path} does not exist, but {files.annotations} lists it. '
                'Add the image, or remove it from the file.'
            )
        if not is_readable(path):
            raise InputError(
                f'the image {path} cannot be read. Replace it, '
                f'or remove it from {files.annotations}.'
            )
