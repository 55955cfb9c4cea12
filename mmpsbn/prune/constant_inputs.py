"""Channels that arrive at a layer as one number, whatever the image."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle


class InputWatch:
    """Watches which input channels of layers are constant.

    A channel is *constant* for a layer if it is the same number at every
    position of every image, over all calls of the layer within ``with
    watch: ...``. A channel that a ReLU never opens is one, and the number is
    0; so is one whose gamma is 0, and the number is ReLU(beta).

    Args:
        model (nn.Module): The model of the layers.
        layers (iterable[str]): Names of convs and linear layers.

    Attributes:
        values (dict): For each layer that was called ``(C_in,)``, the number,
            and NaN for a channel that is not constant.
    """

    def __init__(self, model: nn.Module, layers: Iterable[str]) -> None:
        self.layers = {name: model.get_submodule(name) for name in layers}
        self.values: dict[str, Tensor] = {}
        self._handles: list[RemovableHandle] = []

    def __enter__(self) -> 'InputWatch':
        for name, layer in self.layers.items():
            self._handles.append(layer.register_forward_pre_hook(self._listener(name)))
        return self

    def __exit__(self, *error) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def _listener(self, name: str):

        @torch.no_grad()
        def listen(layer, args):
            if not args[0].numel():
                return
            dim = -1 if isinstance(layer, nn.Linear) else 1
            x = args[0].movedim(dim, 0).flatten(1)
            value = self.values.get(name, x[:, 0])
            same = (x == value[:, None]).all(1)  # Never of NaN.
            self.values[name] = value.where(same, torch.nan)

        return listen
