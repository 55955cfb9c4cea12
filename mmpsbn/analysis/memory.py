"""Exact counts of the memory that training needs, on any hardware."""

from collections.abc import Callable, Iterable

from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks


def saved_bytes(forward: Callable, parameters: Iterable[Tensor]) -> int:
    """Count the bytes that a forward pass stores for the backward pass.

    Each storage counts once and with its whole size. The parameters do not
    count, but copies of them do.

    Args:
        forward (callable): Runs the forward pass and returns its outputs.
        parameters (iterable[Tensor]): The parameters, which do not count.

    Returns:
        int: The number of bytes.
    """
    own = {p.untyped_storage().data_ptr() for p in parameters}
    saved: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            saved[storage.data_ptr()] = storage.nbytes()
        # If a node stored its own output, that would never be freed.
        return tensor.detach()

    with saved_tensors_hooks(pack, lambda tensor: tensor):
        outputs = forward()
    del outputs  # Until here, no storage is freed and used again.
    return sum(saved.values())
