"""Memory that training takes, counted exactly and on any hardware."""

from collections.abc import Callable, Iterable

from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks


def saved_bytes(forward: Callable, parameters: Iterable[Tensor]) -> int:
    """Bytes that autograd saves in a forward for its backward.

    Distinct storages are counted, each once and whole. The parameters
    themselves are not counted, copies of them are.

    Args:
        forward (callable): Runs the forward; what it returns is held until
            all is counted.
        parameters (iterable[Tensor]): What is not counted.

    Returns:
        int: Bytes.
    """
    own = {p.untyped_storage().data_ptr() for p in parameters}
    saved = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            saved[storage.data_ptr()] = storage.nbytes()
        # Not the tensor: an output that its own node saves would never be
        # freed.
        return tensor.detach()

    with saved_tensors_hooks(pack, lambda tensor: tensor):
        held = forward()
    del held
    return sum(saved.values())
