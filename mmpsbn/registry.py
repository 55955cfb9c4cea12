"""The package's registries: scope ``mmpsbn``, below MMEngine's roots.

What is registered here is registered in the root as well, so that a config
finds it from every scope (``type='psBN'`` under MMDetection's, MMCV's or
MMEngine's default scope) and by its full name (``type='mmpsbn.psBN'``).
"""

from mmengine.registry import HOOKS as MMENGINE_HOOKS
from mmengine.registry import MODELS as MMENGINE_MODELS
from mmengine.registry import Registry

from mmpsbn import layers


class RootedRegistry(Registry):
    """A registry whose modules are found from its parent's scope too."""

    def _register_module(self, module, module_name=None, force=False):
        super()._register_module(module, module_name, force)
        self.parent._register_module(module, module_name, force)


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
