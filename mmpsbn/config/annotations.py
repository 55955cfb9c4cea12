"""Annotation files in COCO's layout, read and checked."""

import json
import math

from mmdet.datasets import CocoDataset

from mmpsbn.config.data import DataFiles, check_classes
from mmpsbn.errors import InputError


def _is_number(value) -> bool:
    return isinstance(value, (int, float)) and math.isfinite(value)


def _is_box(value) -> bool:
    return isinstance(value, list) and len(value) == 4 and all(map(_is_number, value))


# What MMDetection reads of COCO's layout: tests, and what they ask for.
NUMBER, TEXT = (
    (_is_number, 'a number'),
    (lambda value: isinstance(value, str), 'a text'),
)
IDENTITY = (lambda value: isinstance(value, (int, str)), 'a number')
LAYOUT = dict(
    images=dict(id=IDENTITY, file_name=TEXT, height=NUMBER, width=NUMBER),
    categories=dict(id=IDENTITY, name=TEXT),
    annotations=dict(
        id=IDENTITY,
        image_id=IDENTITY,
        category_id=IDENTITY,
        bbox=(_is_box, 'a list of x, y, width and height'),
        area=NUMBER,
    ),
)


class UniqueIds(CocoDataset.COCOAPI):
    """The index of an annotation file in which each id is unique.

    In pycocotools' index, the last of several images with one id silently
    gets the boxes of all, and categories likewise. It returns categories in
    the order of the file, by which MMDetection numbers labels, so this index
    refuses classes in another order.
    """

    def createIndex(self) -> None:
        super().createIndex()
        for part, index in (('images', self.imgs), ('categories', self.cats)):
            if len(index) != len(self.dataset.get(part, index)):
                raise ValueError(f"ids of '{part}' are not unique")

    def get_cat_ids(self, cat_names=(), *args, **kwargs) -> list:
        ids = super().get_cat_ids(cat_names, *args, **kwargs)
        found = [self.cats[index]['name'] for index in ids]
        if set(found) == set(cat_names) and found != list(cat_names):
            raise ValueError('categories are in another order than the classes')
        return ids


def check_annotations(files: DataFiles) -> None:
    """Raise an InputError with the first error in an annotation file."""
    content = read_annotations(files.annotations)
    for part, fields in LAYOUT.items():
        _check_part(files.annotations, part, content[part], fields)
    if not content['images']:
        raise InputError(
            f'{files.annotations} lists no images, so there is nothing to read. '
            'Check that it is the annotation file of this data set.'
        )
    classes = files.classes
    names = [category['name'] for category in content['categories']]
    check_classes(
        files.annotations, [name for name in names if name in classes], classes
    )
    if not content['annotations']:
        raise InputError(
            f'{files.annotations} has no boxes, but training and evaluation need them. '
            'Check that it is the annotation file of this data set.'
        )
    images = {image['id'] for image in content['images']}
    for annotation in content['annotations']:
        if annotation['image_id'] not in images:
            raise InputError(
                f'annotation {annotation["id"]} of {files.annotations} belongs to '
                f'the image {annotation["image_id"]}, which the file does not list. '
                'Correct the file.'
            )


def _check_part(file: str, part: str, items, fields: dict) -> None:
    if not isinstance(items, list):
        raise InputError(
            f"'{part}' in {file} is not a list, but COCO's layout requires one. "
            'Correct the file.'
        )
    ids = set()
    for index, item in enumerate(items):
        where = f"entry {index} of '{part}' in {file}"
        if not isinstance(item, dict):
            raise InputError(f'{where} is not a JSON object. Correct the file.')
        missing = [name for name in fields if name not in item]
        if missing:
            raise InputError(
                f"{where} has no {', '.join(missing)}, but COCO's layout requires it. "
                'Correct the file.'
            )
        for name, (test, kind) in fields.items():
            if not test(item[name]):
                raise InputError(
                    f'{where}: {name} is {item[name]!r}, but must be {kind}. Correct '
                    'the file.'
                )
        if item['id'] in ids:
            raise InputError(
                f'{where} has the id {item["id"]}, which another entry has too. Give '
                'each entry its own id.'
            )
        ids.add(item['id'])


def read_annotations(file: str) -> dict:
    """Read a COCO annotation file.

    Raises:
        InputError: If it is no JSON, or lacks a part of COCO's layout.
    """
    try:
        with open(file, encoding='utf-8') as stream:
            content = json.load(stream)
    except (ValueError, OSError) as error:
        raise InputError(
            f'the annotation file {file} cannot be read: {error}. Copy it again, or '
            'name another one.'
        ) from error
    missing = [
        part
        for part in ('images', 'annotations', 'categories')
        if not isinstance(content, dict) or part not in content
    ]
    if missing:
        raise InputError(
            f'the annotation file {file} has no '
            f"{' and no '.join(missing)}, but COCO's layout requires it. Correct the "
            'file.'
        )
    return content
