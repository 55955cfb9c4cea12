"""NEU-DET in COCO2017's layout, from the files that its authors publish.

    python -m benchmarks.real_images.neu_det SOURCE data/neu_det

SOURCE is a folder with the images (NAME.jpg) and their boxes (NAME.xml, in
the format of PASCAL VOC), in whatever subfolders. An image whose number is a
multiple of 5 goes to the validation set (360 images), the others to the
training set (1440 images).
"""

import argparse
import json
import re
import shutil
from pathlib import Path
from xml.etree import ElementTree

import mmcv

import mmpsbn.cli  # noqa: F401  First: it checks the stack.
from mmpsbn.cli.errors import exit_with_message
from mmpsbn.config.images import check_images
from mmpsbn.errors import InputError
from mmpsbn.files import output_folder

CLASSES = (
    'crazing',
    'inclusion',
    'patches',
    'pitted_surface',
    'rolled-in_scale',
    'scratches',
)
NAME = re.compile(rf'({"|".join(CLASSES)})_(\d+)')
IMAGES = 300  # Of each class.


def convert(source: Path, out: Path) -> dict[str, int]:
    """Write images and annotations in COCO2017's layout.

    Args:
        source (Path): The folder of the original files.
        out (Path): The folder to make.

    Returns:
        dict[str, int]: The number of images in each part.

    Raises:
        InputError: If files are missing or unreadable; nothing is written
            then.
    """
    if not source.is_dir():
        raise InputError(
            f'{source} is not a folder. Give the folder with the '
            'images and XML files of NEU-DET.'
        )
    images = {path.stem: path for path in sorted(source.rglob('*.jpg'))}
    boxes = {path.stem: path for path in sorted(source.rglob('*.xml'))}
    if not images or set(images) != set(boxes):
        alone = sorted(set(images) ^ set(boxes))[:3]
        raise InputError(
            f'{source} has {len(images)} images (.jpg) and {len(boxes)} '
            'annotation files (.xml); each image needs one of the same name'
            + (f', unlike {", ".join(alone)}' if alone else '')
            + '. Download NEU-DET again.'
        )
    check_images([str(path) for path in images.values()])
    parts: dict[str, dict[int, Path]] = dict(train2017={}, val2017={})
    for name, path in images.items():
        match = NAME.fullmatch(name)
        if match is None:
            raise InputError(
                f'{path} is not an image of NEU-DET: their names '
                'are like scratches_12.jpg.'
            )
        number = int(match[2])
        part = 'train2017' if number % 5 else 'val2017'
        parts[part][IMAGES * CLASSES.index(match[1]) + number] = path
    with output_folder(str(out)) as folder:
        (Path(folder) / 'annotations').mkdir()
        for part, paths in parts.items():
            (Path(folder) / part).mkdir()
            for path in paths.values():
                shutil.copy(path, Path(folder) / part)
            (Path(folder) / 'annotations' / f'instances_{part}.json').write_text(
                json.dumps(_annotations(paths, boxes))
            )
    return {part: len(paths) for part, paths in parts.items()}


def _annotations(paths: dict[int, Path], boxes: dict[str, Path]) -> dict:
    images, annotations = [], []
    for number, path in sorted(paths.items()):
        height, width = mmcv.imread(str(path)).shape[:2]
        images.append(dict(id=number, file_name=path.name, height=height, width=width))
        for name, corners in _objects(boxes[path.stem]):
            left, top, right, bottom = corners
            annotations.append(
                dict(
                    id=len(annotations) + 1,
                    image_id=number,
                    category_id=CLASSES.index(name) + 1,
                    iscrowd=0,
                    bbox=[left, top, right - left, bottom - top],
                    area=(right - left) * (bottom - top),
                )
            )
    return dict(
        images=images,
        annotations=annotations,
        categories=[
            dict(id=number, name=name) for number, name in enumerate(CLASSES, 1)
        ],
    )


def _objects(file: Path):
    """Iterate over the objects of an XML file: class and corners."""
    try:
        for item in ElementTree.parse(file).iter('object'):
            name = item.findtext('name')
            if name not in CLASSES:
                raise ValueError(f'the class {name} is not one of NEU-DET')
            yield (
                name,
                [
                    float(item.findtext(f'bndbox/{corner}'))
                    for corner in ('xmin', 'ymin', 'xmax', 'ymax')
                ],
            )
    except (ElementTree.ParseError, ValueError, TypeError) as error:
        raise InputError(
            f'{file} is not an annotation file of NEU-DET: {error}. Download it again.'
        ) from error


def main() -> None:
    parser = argparse.ArgumentParser(
        prog='python -m benchmarks.real_images.neu_det',
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument('source', type=Path)
    parser.add_argument('out', type=Path)
    args = parser.parse_args()
    for part, number in convert(args.source, args.out).items():
        print(f'{args.out / part}: {number} images')


if __name__ == '__main__':
    with exit_with_message():
        main()
