"""When dead channels of psBN recover, as predicted and as observed.

Weight decay shrinks the beta of a dead channel by exp(-D) in each round. The
channel reopens when abs(beta) is less than alpha.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from .networks import ConvUnit, Network

ALPHA = 0.1
COLLAPSED = 0.1
"""The ratio abs(gamma / beta) up to which beta decides when a channel
reopens. A channel with a larger gamma may reopen earlier, by its largest
inputs."""


class Death(NamedTuple):
    """A channel that was alive at the end of a round and then died."""

    channel: int
    """Its number among the channels whose norm layer a ReLU follows."""
    died: int
    """The first round at whose end it is dead."""
    gamma: float
    """At the end of this round, like beta."""
    beta: float
    """The learned shift, without alpha."""
    predicted: int
    """The round of recovery by the formula."""
    simulated: int
    """The round of recovery with the simulated D, in which the momentum of
    each round starts at 0."""
    recovered: int = 0
    """The first later round at whose end it is alive, 0 if there is none."""

    @property
    def collapsed(self) -> bool:
        return abs(self.gamma) < COLLAPSED * abs(self.beta)


def predicted_rounds(beta: float, decay: float) -> int:
    """Predict after how many rounds a dead channel reopens.

    Args:
        beta (float): Its learned shift when it died.
        decay (float): D of one round.
    """
    if abs(beta) < ALPHA:
        return 1
    return math.floor(math.log(abs(beta) / ALPHA) / decay) + 1


def follow(
    net: Network,
    dead: dict[str, Tensor],
    number: int,
    decay: float,
    simulated_decay: float,
    deaths: list[Death],
) -> None:
    """Add the deaths and recoveries of a round to a list.

    Args:
        net (Network): A network with psBN.
        dead (dict): For each ReLU its dead channels.
        number (int): The number of the round.
        decay (float): D of one round by the formula.
        simulated_decay (float): D of one round by simulation.
        deaths (list[Death]): All earlier ones; it is extended.
    """
    units = [
        (net.get_submodule(name.rpartition('.')[0]), mask)
        for name, mask in dead.items()
    ]
    units = [(unit, mask) for unit, mask in units if isinstance(unit, ConvUnit)]
    masks = torch.cat([mask for _, mask in units]).tolist()
    gammas = torch.cat([unit.norm.weight for unit, _ in units]).tolist()
    betas = torch.cat([unit.norm.bias - unit.norm.alpha for unit, _ in units]).tolist()
    open_deaths = {
        death.channel: place
        for place, death in enumerate(deaths)
        if not death.recovered
    }
    for channel, is_dead in enumerate(masks):
        place = open_deaths.get(channel)
        if is_dead and place is None:
            deaths.append(
                Death(
                    channel,
                    number,
                    round(gammas[channel], 5),
                    round(betas[channel], 5),
                    *(
                        number + predicted_rounds(betas[channel], one)
                        for one in (decay, simulated_decay)
                    ),
                )
            )
        elif not is_dead and place is not None:
            deaths[place] = deaths[place]._replace(recovered=number)
