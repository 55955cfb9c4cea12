"""Known remedies for a loss of plasticity, applied to BN after each round."""

import torch
from torch import Tensor, nn

from .networks import Network

SHRINK = 0.6


@torch.no_grad()
def reset_dead_units(net: Network, dead: dict[str, Tensor]) -> None:
    """Reset dead units as ReDo does, without a change of the function.

    A unit gets new incoming weights, outgoing weights of 0, and the initial
    parameters and statistics of its norm layer. This applies to units whose
    output only one layer reads. A channel that a residual sum or a shortcut
    reads has no outgoing weights of its own.

    Args:
        net (Network): A network with batch norm.
        dead (dict): What :func:`~benchmarks.rounds.measures.look` returns.
    """
    masks = {id(net.get_submodule(name)): mask for name, mask in dead.items()}
    found = [(unit, reader, masks[id(unit.relu)]) for unit, reader in net.read_once]
    for unit, _, mask in found:
        fresh = torch.empty_like(unit.conv.weight)
        nn.init.kaiming_normal_(fresh)
        unit.conv.weight[mask] = fresh[mask]
        for values, initial in (
            (unit.norm.weight, 1),
            (unit.norm.bias, 0),
            (unit.norm.running_mean, 0),
            (unit.norm.running_var, 1),
        ):
            values[mask] = initial
    for _, reader, mask in found:
        reader.weight[:, mask] = 0


@torch.no_grad()
def shrink_and_perturb(net: Network, fresh: Network) -> None:
    """Move all parameters toward those of a new network.

    Args:
        net (Network): Keeps the share ``SHRINK`` of its parameters.
        fresh (Network): A newly initialized network. Its parameters get the
            remaining share and are the perturbation.
    """
    for old, new in zip(net.parameters(), fresh.parameters()):
        old.lerp_(new, 1 - SHRINK)
