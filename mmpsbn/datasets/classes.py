"""The classes of a data set in COCO's layout."""

import json
import os

from mmpsbn.datasets.digits import CLASSES


def read_classes(data_root: str) -> tuple[str, ...]:
    """The category names in ``data_root``, by its val2017 annotations.

    Those of the digits where there is no such file, so that the demo's
    configs can be read before its data is made.
    """
    file = os.path.join(data_root, 'annotations', 'instances_val2017.json')
    if not os.path.isfile(file):
        return CLASSES
    with open(file, encoding='utf-8') as stream:
        return tuple(item['name'] for item in json.load(stream)['categories'])
