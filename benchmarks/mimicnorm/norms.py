"""The normalizations that are compared, as arguments of the classifier.

"none" has the convs of MimicNorm, their start, biases and scalars, without
its two operations; "weight mean" and "last BN" have one each.
"""

from mmpsbn.layers import LastBNLinear

CENTERED = dict(
    conv_cfg=dict(type='MimicConv'), norm_cfg=dict(type='MimicNorm'))
PLAIN = dict(CENTERED, conv_cfg=dict(type='MimicConv', center=False))
NORMS = {
    'BN': dict(norm_cfg=dict(type='BN')),
    'GN': dict(norm_cfg=dict(type='GN', num_groups=8)),
    'none': PLAIN,
    'weight mean': CENTERED,
    'last BN': dict(PLAIN, linear=LastBNLinear),
    'MimicNorm': dict(CENTERED, linear=LastBNLinear),
}
