"""A hook that stops if a data set and a model do not belong together."""

from collections.abc import Iterator, Sequence

from mmdet.datasets import XMLDataset
from mmdet.models.dense_heads import DETRHead
from mmdet.models.dense_heads.base_dense_head import BaseDenseHead
from mmdet.models.roi_heads import BBoxHead, FCNMaskHead
from mmengine.hooks import Hook
from mmengine.runner import Runner

from mmpsbn.config.data import check_classes
from mmpsbn.errors import InputError
from mmpsbn.hooks.watched_step import unwrap
from mmpsbn.registry import HOOKS

HEADS = BaseDenseHead, BBoxHead, DETRHead, FCNMaskHead


@HOOKS.register_module()
class DataCheckHook(Hook):
    """Check that a data set has the classes that the model predicts.

    MMDetection leaves out every box whose category is not among the classes
    of the data set, without a message.

    Raises:
        InputError: If an annotation file lacks a class, if no box of PASCAL
            VOC's layout is of a class, or if the model predicts another
            number of classes.
    """

    priority = 'VERY_HIGH'

    def before_train(self, runner: Runner) -> None:
        self._check(runner, runner.train_dataloader.dataset)

    def before_val(self, runner: Runner) -> None:
        self._check(runner, runner.val_dataloader.dataset)

    def before_test(self, runner: Runner) -> None:
        self._check(runner, runner.test_dataloader.dataset)

    def _check(self, runner: Runner, dataset) -> None:
        for part in _unwrapped(dataset):
            classes = part.metainfo.get('classes')
            if classes is not None:
                _check_boxes(part, classes)
                _check_heads(runner, part, len(classes))


def _unwrapped(dataset) -> Iterator:
    """Iterate over the data sets in those that repeat, concatenate or mix others."""
    if hasattr(dataset, 'dataset'):
        yield from _unwrapped(dataset.dataset)
    elif hasattr(dataset, 'datasets'):
        for part in dataset.datasets:
            yield from _unwrapped(part)
    else:
        yield dataset


def _name(dataset) -> str:
    return getattr(dataset, 'ann_file', type(dataset).__name__)


def _check_boxes(dataset, classes: Sequence[str]) -> None:
    check_classes(_name(dataset), getattr(dataset, 'cat_ids', classes), classes)
    if isinstance(dataset, XMLDataset) and not any(
        dataset.get_data_info(index)['instances'] for index in range(len(dataset))
    ):
        raise InputError(
            f'none of the {len(dataset)} images of {_name(dataset)} has a box '
            f'of a class in metainfo ({", ".join(classes[:3])}, ...). Set '
            'metainfo=dict(classes=(...)) of the dataset to the names of the '
            "objects in its XML files, and num_classes of the model's heads "
            'to their number.'
        )


def _check_heads(runner: Runner, dataset, number: int) -> None:
    model = unwrap(runner.model)
    if hasattr(model, 'language_model'):
        return  # It takes the names of any number of classes.
    for part, module in model.named_modules():
        if not isinstance(module, HEADS) or _any_class(part, module):
            continue
        if module.num_classes != number:
            raise InputError(
                f'{part} predicts {module.num_classes} classes, but '
                f'{_name(dataset)} has {number}; set num_classes of the head '
                f'to {number}.'
            )


def _any_class(part: str, head) -> bool:
    """Return whether a head has one output for all classes, as in an RPN."""
    return (
        'rpn_head' in part.split('.')
        or 'RPN' in type(head).__name__
        or getattr(head, 'class_agnostic', False)
    )
