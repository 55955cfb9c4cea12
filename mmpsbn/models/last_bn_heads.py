"""Dense heads whose class scores have MimicNorm's last BN."""

from mmdet.models.dense_heads import (
    ATSSHead,
    FCOSHead,
    GFLHead,
    PAAHead,
    RetinaHead,
    RetinaSepBNHead,
    RPNHead,
    VFNetHead,
)
from torch import Tensor, nn

from mmpsbn.errors import InputError
from mmpsbn.layers.last_bn import LastBN, LastBNConv2d
from mmpsbn.registry import MODELS

#: Maps a head to its layer that computes the class scores. :func:`add_last_bn`
#: adds to it.
SCORE_LAYERS: dict[type, str] = {}


class LastBNScores:
    """A mixin that adds a last BN to the class scores of a dense head.

    One mean and one variance for each anchor and class normalize the scores
    of all pyramid levels. :func:`add_last_bn` lists the mixin before the head
    in the base classes.

    Args:
        last_bn (dict, optional): Arguments of
            :class:`~mmpsbn.layers.last_bn.LastBN`, for example ``affine`` and
            ``sync``. Defaults to None, which means no arguments.
        kwargs: Arguments of the head.

    Raises:
        InputError: If the head has no such layer, or if the layer is not one
            convolution.
    """

    #: The name of the layer that computes the scores.
    score_layer: str

    def __init__(self, *args, last_bn: dict | None = None, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        conv = getattr(self, self.score_layer, None)
        if type(conv) is not nn.Conv2d:
            found = f'a {type(conv).__name__}' if conv is not None else 'missing'
            raise InputError(
                f'{type(self).__name__} cannot be built: its layer {self.score_layer} '
                f'is {found}. A last BN needs one torch.nn.Conv2d that computes the '
                'class scores of all pyramid levels. Use the head without a last BN, '
                'or name such a layer in add_last_bn.'
            )
        last = LastBNConv2d(
            conv.in_channels,
            conv.out_channels,
            conv.kernel_size,
            conv.stride,
            conv.padding,
            conv.dilation,
            conv.groups,
            **(last_bn or {}),
        )
        setattr(self, self.score_layer, last)

    def forward(self, *args, **kwargs) -> tuple[list[Tensor], ...]:
        scores, *others = super().forward(*args, **kwargs)
        layer = getattr(self, self.score_layer)
        if any(level.shape[1] != layer.out_channels for level in scores):
            raise InputError(
                f'{type(self).__name__} has no class scores to normalize: the first '
                f'outputs of its forward are not those of {self.score_layer}. Use the '
                'head without a last BN.'
            )
        return (layer.normalize(scores), *others)


def add_last_bn(head: type, score_layer: str) -> type:
    """Register a type of a dense head with a last BN on its class scores.

    The type is ``LastBN`` and the name of the head. The head must be
    registered by its own name, so that conversions to stock models find it.

    Args:
        head (type): A head whose ``forward`` returns the outputs of
            ``score_layer``, for all levels, first.
        score_layer (str): The name of the convolution that computes the class
            scores of all levels.

    Returns:
        type: The head with :class:`LastBNScores`.

    Examples:
        >>> from mmdet.models.dense_heads import DDODHead
        >>> add_last_bn(DDODHead, 'atss_cls').__name__
        'LastBNDDODHead'
    """
    name = f'LastBN{head.__name__}'
    doc = f'{head.__name__} with a last BN, see :class:`LastBNScores`.'
    members = dict(score_layer=score_layer, __doc__=doc, __module__=__name__)
    kind = type(name, (LastBNScores, head), members)
    MODELS.register_module(module=kind)
    SCORE_LAYERS[head] = score_layer
    return kind


LastBNATSSHead = add_last_bn(ATSSHead, 'atss_cls')
LastBNFCOSHead = add_last_bn(FCOSHead, 'conv_cls')
LastBNGFLHead = add_last_bn(GFLHead, 'gfl_cls')
LastBNPAAHead = add_last_bn(PAAHead, 'atss_cls')
LastBNRPNHead = add_last_bn(RPNHead, 'rpn_cls')
LastBNRetinaHead = add_last_bn(RetinaHead, 'retina_cls')
LastBNRetinaSepBNHead = add_last_bn(RetinaSepBNHead, 'retina_cls')
LastBNVFNetHead = add_last_bn(VFNetHead, 'vfnet_cls')


def heads_without_last_bn(model: nn.Module) -> list[str]:
    """Name the heads of a detector that score classes without a last BN."""
    heads = {name: x for name, x in model.named_children() if name.endswith('_head')}
    boxes = getattr(heads.pop('roi_head', None), 'bbox_head', None)
    heads = [*heads.items()]
    for head in boxes if isinstance(boxes, nn.ModuleList) else [boxes]:
        heads += [('roi_head.bbox_head', head)] if head else []
    found = {}
    for name, head in heads:
        layers = list(head.modules())
        scores = any(isinstance(layer, (nn.Conv2d, nn.Linear)) for layer in layers)
        if scores and not any(isinstance(layer, LastBN) for layer in layers):
            found[f'{name} ({type(head).__name__})'] = True
    return list(found)


def describe_last_bns() -> str:
    """Describe which heads can have a last BN, and how to add another one."""
    names = ', '.join(f'LastBN{head.__name__}' for head in SCORE_LAYERS)
    return (
        f'The types {names} have a last BN, and so have box heads with '
        "cls_predictor_cfg=dict(type='LastBNLinear'). mmpsbn.models.add_last_bn, "
        'called in a module of custom_imports, makes such a type of another head.'
    )
