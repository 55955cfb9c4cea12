"""The normalizations that are compared, as layers of the classifier.

"none" has the convolutions of MimicNorm, their start, biases and scalars,
without its two operations; "weight mean" and "last BN" have one each.
"""

from functools import partial

from torch import nn

from benchmarks.shared.networks import Layers
from mmpsbn.layers import LastBNLinear, MimicConv, MimicNorm

CENTERED = Layers(MimicNorm, MimicConv)
PLAIN = Layers(MimicNorm, partial(MimicConv, center=False))
NORMS = {
    'BN': Layers(),
    'GN': Layers(partial(nn.GroupNorm, 8)),
    'none': PLAIN,
    'weight mean': CENTERED,
    'last BN': PLAIN._replace(linear=LastBNLinear),
    'MimicNorm': CENTERED._replace(linear=LastBNLinear),
}
