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

# Of MMEngine, MMDetection and pycocotools: what reads annotations.
READERS = ('base_dataset.py', 'coco.py', 'coco_metric.py')


@contextmanager
def explain_data_errors(cfg: Config, loaders: Sequence[str]):
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
        _explain_xml(error)
        for files in data_files(cfg, loaders):
            if (
                any(name in trace for name in READERS)
                and getattr(files.kind, 'load_data_list', None)
                is CocoDataset.load_data_list
            ):
                check_annotations(files)
            if any(name in trace for name in ("'mask'", "'segmentation'")):
                _check_masks(files)
            if 'loading.py' in trace:
                check_listed_images(files)
        _explain_filters(error)
        raise
    finally:
        CocoDataset.COCOAPI = reader


def _explain_xml(error: Exception) -> None:
    """Raise if an error comes from reading a file of PASCAL VOC's layout."""
    for frame, _ in traceback.walk_tb(error.__traceback__):
        self = frame.f_locals.get('self')
        image = frame.f_locals.get('img_info')
        if isinstance(self, XMLDataset) and isinstance(image, dict):
            raise InputError(
                f'the annotation file {image["xml_path"]} cannot be used: '
                f'{describe_error(error)}. {self.ann_file} lists its image, '
                "and in PASCAL VOC's layout each object has a name and a "
                'bndbox of xmin, ymin, xmax and ymax. Correct the file, or '
                'remove its line from the list.'
            ) from error


def _explain_filters(error: Exception) -> None:
    """Raise if an error comes from a data set that leaves out every image."""
    for frame, _ in traceback.walk_tb(error.__traceback__):
        self = frame.f_locals.get('self')
        if (
            frame.f_code.co_name == '_serialize_data'
            and isinstance(self, BaseDataset)
            and not self.data_list
        ):
            raise InputError(
                f'no image of {self.ann_file} is left: filter_cfg of the '
                'dataset removes those without a box of a class in metainfo, '
                'and small ones. Set metainfo=dict(classes=(...)) of the '
                'dataset to the names in the annotations, or change '
                'filter_cfg.'
            ) from error


def _samples(files: DataFiles) -> Iterator[dict]:
    """What a data set gives its pipeline."""
    dataset = DATASETS.build(dict(files.dataset, pipeline=[]))
    yield from map(dataset.get_data_info, range(len(dataset)))


def _check_masks(files: DataFiles) -> None:
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
                "metric='bbox' in the evaluator."
            )


def check_listed_images(files: DataFiles) -> None:
    """Raise if an image of a data set cannot be read.

    Raises:
        InputError: With the first such image.
    """
    for sample in _samples(files):
        path = sample['img_path']
        if not osp.exists(path):
            raise InputError(
                f'the image {path} does not exist, but {files.annotations} lists it.'
            )
        if not is_readable(path):
            raise InputError(
                f'the image {path} cannot be read; replace it, '
                f'or take it out of {files.annotations}.'
            )
