"""A data set and a model that do not belong together, stopped at once."""

from mmdet.models.dense_heads import RPNHead
from mmdet.models.dense_heads.base_dense_head import BaseDenseHead
from mmdet.models.roi_heads import BBoxHead
from mmengine.hooks import Hook
from mmengine.runner import Runner

from mmpsbn.registry import HOOKS
from .data import check_classes
from mmpsbn.errors import InputError


@HOOKS.register_module()
class DataCheckHook(Hook):
    """Check that a data set has the classes that the model predicts.

    MMDetection's CocoDataset leaves out every box whose category is not
    among its classes, without a word.

    Raises:
        InputError: If the annotation file lacks a class, or if the model
            predicts another number of classes.
    """

    priority = 'VERY_HIGH'

    def before_train(self, runner: Runner) -> None:
        self._check(runner, runner.train_dataloader.dataset)

    def before_val(self, runner: Runner) -> None:
        self._check(runner, runner.val_dataloader.dataset)

    def before_test(self, runner: Runner) -> None:
        self._check(runner, runner.test_dataloader.dataset)

    def _check(self, runner: Runner, dataset) -> None:
        classes = dataset.metainfo.get('classes')
        if classes is None:
            return
        name = getattr(dataset, 'ann_file', type(dataset).__name__)
        check_classes(name, getattr(dataset, 'cat_ids', classes), classes)
        for part, module in runner.model.named_modules():
            # An RPN tells objects from background, whatever their class.
            if isinstance(module, (BaseDenseHead, BBoxHead)) and not \
                    isinstance(module, RPNHead) and \
                    module.num_classes != len(classes):
                raise InputError(
                    f'{part} predicts {module.num_classes} classes, but '
                    f'{name} has {len(classes)}; set num_classes of the head '
                    f'to {len(classes)}.')
