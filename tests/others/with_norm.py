"""Run pytest where ``BN`` of a config builds another norm layer.

    python tests/others/with_norm.py psBN tests/test_cnn/test_conv_module.py

``BN``, ``BN1d``, ``BN2d``, ``BN3d`` and ``SyncBN`` of MMEngine's registry
become psBN's layers, or are not changed. The other arguments are pytest's.
The tests know nothing of it. Each begins with the same random numbers, and its
property ``norm layers`` in a JUnit file counts those that it built.
"""

import sys

import mmcv.cnn  # noqa: F401  Registers BN.
import pytest
from mmengine.registry import MODELS
from mmengine.runner import set_random_seed
from torch.nn.modules.module import register_module_buffer_registration_hook

NAMES = ('BN', 'BN1d', 'BN2d', 'BN3d', 'SyncBN')
NORMS = ('BN', 'psBN')


def put_in_place_of_bn(norm: str) -> tuple:
    """Register the layers of ``norm``, and return what NAMES now build."""
    if norm == 'psBN':
        import mmpsbn.layers  # noqa: F401

        for name in NAMES:
            layer = MODELS.get(f'ps{name}')
            MODELS.register_module(name, force=True, module=layer)
    return tuple(MODELS.get(name) for name in NAMES)


class NormLayers:
    """Counts the layers of these classes that each test builds."""

    def __init__(self, layers: tuple) -> None:
        self.layers = layers

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_call(self, item):
        built = []

        def note(module, name, buffer):
            # Without running statistics it is registered as None.
            if name == 'running_mean' and isinstance(module, self.layers):
                built.append(name)

        set_random_seed(0)
        handle = register_module_buffer_registration_hook(note)
        try:
            return (yield)
        finally:
            handle.remove()
            item.user_properties.append(('norm layers', len(built)))


if __name__ == '__main__':
    if len(sys.argv) < 2 or sys.argv[1] not in NORMS:
        sys.exit(
            f'error: give one of {", ".join(NORMS)}, then the arguments of pytest.'
        )
    sys.dont_write_bytecode = True
    layers = put_in_place_of_bn(sys.argv[1])
    sys.exit(pytest.main(sys.argv[2:], plugins=[NormLayers(layers)]))
