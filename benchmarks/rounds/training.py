"""A run: a network that is trained round after round."""

import copy
import io
import math
import pickle
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from mmpsbn.errors import InputError
from mmpsbn.files import write_atomically

from .measures import effective_rank, look, weight_norm
from .networks import Network, accuracy, new_network, seed_torch
from .recovery import Death, follow
from .remedies import reset_dead_units, shrink_and_perturb
from .studies import SCRATCH, Run, Study
from .tasks import BATCH, Task, images, task_of

MOMENTUM, WARM_UP = 0.9, 10
CHECKPOINT_EVERY = 10
CHANCE = 0.5


class Round(NamedTuple):
    """What is recorded of a round; NaN if the loss was not finite."""

    round: int
    accuracy: float
    """On the test images of the round."""
    dead: float
    """The share of the channels before a ReLU that are dead."""
    rank: float
    """The effective rank of the features."""
    norm: float
    """The L2 norm of the weights of all convolutions."""
    died: int
    """Channels that are dead and were alive at the end of the last round. For a
    network from scratch, these are all dead channels."""
    recovered: int
    """Channels that are alive and were dead at the end of the last round."""


Result = tuple[list[Round], list[Death]]


def learning_rates(lr: float, steps: int) -> list[float]:
    """List the learning rate of each step: a warm-up, then a cosine to 0."""
    return [
        lr * min(1, (step + 1) / WARM_UP) * (1 + math.cos(math.pi * step / steps)) / 2
        for step in range(steps)
    ]


def decay_of(lr: float, weight_decay: float, steps: int) -> float:
    """Compute D of one round, see docs/methods.md."""
    return weight_decay / (1 - MOMENTUM) * sum(learning_rates(lr, steps))


def simulated_decay_of(lr: float, weight_decay: float, steps: int) -> float:
    """Simulate D of one round.

    It is about 10 % below the formula, because the momentum of each round
    starts at 0.
    """
    beta, momentum = 1.0, 0.0
    for current in learning_rates(lr, steps):
        momentum = MOMENTUM * momentum + weight_decay * beta
        beta -= current * momentum
    return -math.log(beta)


def replayed(net: Network, images: Tensor) -> Network:
    """Let a GPU replay the passes of a network's training as CUDA graphs.

    It computes these small layers faster than Python launches their kernels.
    The ``forward`` of a copy would run the graphs of the original.

    Args:
        net (Network): It is changed in place, and its state is kept.
        images (Tensor): A batch, which is unchanged.

    Returns:
        Network: The network. On a CPU it is unchanged.
    """
    if images.is_cuda:
        state = copy.deepcopy(net.state_dict())
        # The graphs write every later batch into the one of the capture.
        torch.cuda.make_graphed_callables(net.train(), (images.clone(),))
        net.load_state_dict(state)  # The capture updates running statistics.
    return net


def fit(net: Network, task: Task, run: Run) -> bool:
    """Train a network on the task of a round.

    Returns:
        bool: Whether the loss was finite in all steps.
    """
    net.train()
    optimizer = torch.optim.SGD(
        net.parameters(), run.lr, momentum=MOMENTUM, weight_decay=run.weight_decay
    )
    # Reading a bool in each step would wait for the GPU.
    finite = torch.ones((), dtype=torch.bool, device=task.batches.device)
    for lr, chosen in zip(learning_rates(run.lr, len(task.batches)), task.batches):
        optimizer.param_groups[0]['lr'] = lr
        loss = F.cross_entropy(
            net(task.train_images[chosen]), task.train_labels[chosen]
        )
        finite &= loss.isfinite()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return bool(finite)


def train(
    job: tuple[Study, Run],
    rounds: int,
    work_dir: Path,
    root: str | None = None,
    device: str = 'cpu',
) -> Result:
    """Train a run on one thread, from its last checkpoint if it has one.

    On a CPU the same run gives the same result, also with interruptions.

    Args:
        job (tuple): The study and its run.
        rounds (int): The number of rounds.
        work_dir (Path): The folder of the checkpoints.
        root (str, optional): The folder of CIFAR-10.
        device (str): The device. Defaults to ``'cpu'``.

    Raises:
        InputError: If the data or the checkpoint cannot be read.
    """
    torch.set_num_threads(1)
    study, run = job
    data = images(study.data, root, device)

    def new(number: int) -> Network:
        return new_network(
            study.network, run.method, data.train_images.shape[1], run.seed, number
        ).to(device)

    net = replayed(new(1), data.train_images[:BATCH])
    file = checkpoint_of(job, work_dir)
    history: list[Round] = []
    deaths: list[Death] = []
    dead = {}
    if file.exists():
        state = read_checkpoint(file, device)
        net.load_state_dict(state['net'])
        history = [Round(*values) for values in state['history']]
        deaths = [Death(*values) for values in state['deaths']]
        dead = state['dead']
    for number in range(len(history) + 1, rounds + 1):
        if run.method == SCRATCH:
            # A new network would need new CUDA graphs.
            net.load_state_dict(new(number).state_dict())
        elif history and math.isnan(history[-1].dead):
            history.append(_lost(number))
            continue
        task = task_of(study.data, data, run.seed, number)
        seed_torch(run.seed, number)
        net.reset_classifier()
        seen = look(net, task.train_images) if fit(net, task, run) else None
        if seen is None or not seen.features.isfinite().all():
            history.append(_lost(number))
            continue
        history.append(_round(net, task, number, seen, dead))
        dead = {} if run.method == SCRATCH else seen.dead
        if run.method == 'psBN':
            decays = (
                of(run.lr, run.weight_decay, len(task.batches))
                for of in (decay_of, simulated_decay_of)
            )
            follow(net, dead, number, *decays, deaths)
        elif run.method == 'BN+ReDo':
            reset_dead_units(net, dead)
        elif run.method == 'BN+S&P':
            shrink_and_perturb(net, new(number + 1))
        if len(history) % CHECKPOINT_EVERY == 0:
            write_checkpoint(
                file,
                net=net.state_dict(),
                dead=dead,
                history=[list(one) for one in history],
                deaths=[list(one) for one in deaths],
            )
    return history, deaths


def checkpoint_of(job: tuple[Study, Run], work_dir: Path) -> Path:
    """Name the file of a run's last checkpoint."""
    study, run = job
    return work_dir / study.name / ('-'.join(map(str, run)) + '.pth')


def write_checkpoint(file: Path, **state) -> None:
    """Write a checkpoint of a run, which replaces the last one as a whole."""
    file.parent.mkdir(parents=True, exist_ok=True)
    content = io.BytesIO()
    torch.save(state, content)
    write_atomically(file, content.getvalue())


def read_checkpoint(file: Path, device: str = 'cpu') -> dict:
    """Read a checkpoint of a run.

    Raises:
        InputError: If it cannot be read.
    """
    try:
        return torch.load(file, device, weights_only=True)
    except (RuntimeError, EOFError, pickle.UnpicklingError) as error:
        raise InputError(
            f'{file} is not a checkpoint of a run: {error}. '
            'Delete it; the run then starts over.'
        ) from error


def read_last(file: Path, rounds: int) -> dict:
    """Read the checkpoint of a run's last round.

    Raises:
        InputError: If it cannot be read, or if there is only an earlier one.
    """
    state = read_checkpoint(file) if file.exists() else {}
    last = len(state.get('history', []))
    if last != rounds:
        raise InputError(
            f'the last checkpoint of {file.stem} is that of round {last}, but the '
            f'model of round {rounds} is pruned: the loss of the run was not finite, '
            f'or {file} is from another study. Delete the file, if it exists, and '
            'repeat the command. A run whose loss is not finite cannot be pruned.'
        )
    return state


def _round(net, task, number, seen, dead) -> Round:
    now = torch.cat([*seen.dead.values()])
    before = torch.cat([*dead.values()]) if dead else torch.zeros_like(now)
    return Round(
        number,
        round(accuracy(net, task.test_images, task.test_labels), 4),
        round(float(now.double().mean()), 4),
        round(effective_rank(seen.features), 2),
        round(weight_norm(net), 2),
        int((now & ~before).sum()),
        int((before & ~now).sum()),
    )


def _lost(number: int) -> Round:
    return Round(number, CHANCE, math.nan, math.nan, math.nan, 0, 0)
