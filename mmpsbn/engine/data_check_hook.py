"""Data that would train or evaluate to nothing, stopped before it does."""

from mmengine.hooks import Hook
from mmengine.runner import Runner

from mmpsbn.registry import HOOKS
from .errors import InputError


@HOOKS.register_module()
class DataCheckHook(Hook):
    """Check that a data set has images and the classes the model predicts.

    MMDetection's CocoDataset leaves out every box whose category is not
    among its classes, and a run without boxes ends without an error.

    Raises:
        InputError: If a data set has no image, if its annotation file lacks
            a class, or if the model predicts another number of classes.
    """

    priority = 'VERY_HIGH'

    def before_train(self, runner: Runner) -> None:
        self._check(runner, runner.train_dataloader.dataset)

    def before_val(self, runner: Runner) -> None:
        self._check(runner, runner.val_dataloader.dataset)

    def before_test(self, runner: Runner) -> None:
        self._check(runner, runner.test_dataloader.dataset)

    def _check(self, runner: Runner, dataset) -> None:
        if len(dataset) == 0:
            raise InputError(
                f'{_name(dataset)} has no image to read: it lists none, or '
                'none with a box of the classes in metainfo.')
        classes = dataset.metainfo.get('classes')
        if classes is None:
            return
        found = getattr(dataset, 'cat_ids', classes)
        if len(found) != len(classes):
            raise InputError(
                f'{_name(dataset)} has {len(found)} of the {len(classes)} '
                f'classes in metainfo ({", ".join(classes[:3])}, ...). Set '
                "metainfo=dict(classes=(...)) of the dataset to the file's "
                "category names, and num_classes of the model's heads to "
                'their number.')
        for name, module in runner.model.named_modules():
            predicted = getattr(module, 'num_classes', None)
            # An RPN tells objects from background, whatever their class.
            if predicted is None or name.endswith('rpn_head'):
                continue
            if predicted != len(classes):
                raise InputError(
                    f'{name} predicts {predicted} classes, but '
                    f'{_name(dataset)} has {len(classes)}; set num_classes of '
                    f'the head to {len(classes)}.')


def _name(dataset) -> str:
    return getattr(dataset, 'ann_file', None) or type(dataset).__name__
