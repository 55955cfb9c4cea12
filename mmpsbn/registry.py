"""The package's registries, children of MMEngine's with the scope ``mmpsbn``.

Modules are registered here and in the parent. A config therefore finds them
from every scope (``type='psBN'`` under MMDetection's, MMCV's or MMEngine's
default scope) and by their full names (``type='mmpsbn.psBN'``).
"""

from functools import partial

from mmengine.registry import HOOKS as MMENGINE_HOOKS
from mmengine.registry import MODELS as MMENGINE_MODELS
from mmengine.registry import Registry

from mmpsbn import layers


class RootedRegistry(Registry):
    """A registry whose modules are registered in its parent, too."""

    def register_module(self, name=None, force=False, module=None):
        if module is None:  # It is called as a decorator.
            return partial(self.register_module, name, force)
        self.parent.register_module(name, force, module)
        return super().register_module(name, force, module)


MODELS = RootedRegistry(
    'model',
    parent=MMENGINE_MODELS,
    scope='mmpsbn',
    locations=['mmpsbn', 'mmpsbn.models'],
)

HOOKS = RootedRegistry(
    'hook', parent=MMENGINE_HOOKS, scope='mmpsbn', locations=['mmpsbn.hooks']
)

# MMEngine and MMCV keep norm layers and convolutions in MODELS.
for _layer, _names in {
    layers.PSBatchNorm1d: 'psBN1d',
    layers.PSBatchNorm2d: ['psBN', 'psBN2d'],
    layers.PSBatchNorm3d: 'psBN3d',
    layers.PSSyncBatchNorm: 'psSyncBN',
    layers.MimicConv: None,
    layers.MimicNorm: None,
    layers.LastBNLinear: None,
}.items():
    MODELS.register_module(name=_names, module=_layer)
