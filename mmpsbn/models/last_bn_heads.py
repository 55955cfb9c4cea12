"""Dense heads whose class scores have MimicNorm's last BN."""

from mmdet.models.dense_heads import RetinaHead, RetinaSepBNHead, RPNHead
from torch import Tensor

from mmpsbn.layers.last_bn import LastBNConv2d
from mmpsbn.registry import MODELS


class LastBNScores:
    """A mixin that adds a last BN to the class scores of an anchor head.

    One mean and one variance for each anchor and class normalize the scores
    of all pyramid levels. List the mixin before the head in the base classes.

    Args:
        last_bn (dict, optional): Arguments of
            :class:`~mmpsbn.layers.last_bn.LastBN`, for example ``affine`` and
            ``sync``. Defaults to None, which means no arguments.
        kwargs: Arguments of the head.
    """

    #: The name of the layer that computes the scores.
    score_layer: str

    def __init__(self, *args, last_bn: dict | None = None, **kwargs) -> None:
        self.last_bn = last_bn or {}
        super().__init__(*args, **kwargs)

    def _init_layers(self) -> None:
        super()._init_layers()
        conv = getattr(self, self.score_layer)
        setattr(
            self,
            self.score_layer,
            LastBNConv2d(
                conv.in_channels,
                conv.out_channels,
                conv.kernel_size,
                padding=conv.padding,
                **self.last_bn,
            ),
        )

    def forward(self, x: tuple[Tensor, ...]) -> tuple[list[Tensor], ...]:
        scores, boxes = super().forward(x)
        return getattr(self, self.score_layer).normalize(scores), boxes


@MODELS.register_module()
class LastBNRetinaHead(LastBNScores, RetinaHead):
    """RetinaHead with a last BN on its class scores, see LastBNScores."""

    score_layer = 'retina_cls'


@MODELS.register_module()
class LastBNRetinaSepBNHead(LastBNScores, RetinaSepBNHead):
    """RetinaSepBNHead with a last BN on its class scores, see LastBNScores."""

    score_layer = 'retina_cls'


@MODELS.register_module()
class LastBNRPNHead(LastBNScores, RPNHead):
    """RPNHead with a last BN on its objectness, see LastBNScores."""

    score_layer = 'rpn_cls'
