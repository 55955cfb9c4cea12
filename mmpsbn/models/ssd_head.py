"""MMDetection's SSDHead, able to predict.

``SSDHead`` has no ``loss_cls``, which MMDetection 3.3 reads in every
prediction, see https://github.com/open-mmlab/mmdetection/issues/11780.
"""

from mmdet.models.dense_heads import SSDHead as StockSSDHead

from mmpsbn.registry import MODELS


@MODELS.register_module()
class SSDHead(StockSSDHead):
    """MMDetection's head with the attribute that its predictions read.

    Configs name it ``mmpsbn.SSDHead``. It takes the arguments of MMDetection's
    ``SSDHead``, and its layers have the same names.
    """

    def __init__(self, *args, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        if not hasattr(self, 'loss_cls'):
            self.loss_cls = None
