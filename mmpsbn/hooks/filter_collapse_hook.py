"""A hook that watches filter collapse while a detector trains."""

import json
import os.path as osp

import torch
from mmengine.dist import all_reduce, is_main_process
from mmengine.hooks import Hook
from mmengine.runner import Runner

from mmpsbn.analysis.collapse import (
    ChannelWatch,
    Outputs,
    channels_of,
    keeps_statistics,
    stage_of,
)
from mmpsbn.errors import InputError
from mmpsbn.files import write_atomically
from mmpsbn.hooks.watched_step import unwrap, watch_next_step
from mmpsbn.registry import HOOKS

HISTORY = 'filter_collapse.jsonl'
UNSEEN, DEAD, ALIVE = range(3)


@HOOKS.register_module()
class FilterCollapseHook(Hook):
    """Count the channels that no image of some training steps opens.

    At the start, every ``interval`` iterations and at the end, the hook
    watches ``sample`` training steps with
    :class:`~mmpsbn.analysis.ChannelWatch`. With several processes, a channel
    is dead if it is dead in all of them. The results go to two places:

    - The message hub, and so the console, ``vis_data`` and other backends,
      gets the shares of dead channels: ``collapse/dead``,
      ``collapse/dead_after_sum`` (where a residual sum comes before the
      rectifier), and ``collapse/STAGE`` (without sums). ``collapse/died`` and
      ``collapse/recovered`` are the numbers of channels that have died or
      recovered since the last measurement.
    - ``filter_collapse.jsonl`` in the work dir gets a line for each
      measurement, with the dead channels of every layer.

    Args:
        interval (int): Iterations between measurements. Defaults to 500.
        sample (int): Training steps in a measurement. Defaults to 4.
        warn_above (float): The share of dead channels, without those after
            sums, above which the hook warns once. Defaults to 0.1.

    Raises:
        InputError: If an argument is out of range.
    """

    def __init__(
        self, interval: int = 500, sample: int = 4, warn_above: float = 0.1
    ) -> None:
        if not 1 <= sample <= interval:
            raise InputError(
                f'FilterCollapseHook(interval={interval}, sample={sample}) is not '
                'supported: sample must be from 1 to interval. Try interval=500 and '
                'sample=4.'
            )
        if not 0 <= warn_above <= 1:
            raise InputError(
                f'FilterCollapseHook(warn_above={warn_above}) is not supported: a '
                'share must be from 0 to 1. Try warn_above=0.1.'
            )
        self.interval, self.sample = interval, sample
        self.warn_above, self._warned = warn_above, False
        self._watch: ChannelWatch | None = None
        self._watched = 0
        self._last: dict[str, list[int]] = {}

    def before_train(self, runner: Runner) -> None:
        """Keep the history up to the iteration that a run resumes from."""
        self._watch = None  # The last step of an earlier run may have failed.
        if not is_main_process():
            return
        path = osp.join(runner.work_dir, HISTORY)
        lines = [line for line in read_history(path) if line['iter'] <= runner.iter]
        if lines:
            self._last = _dead(lines[-1])
        write_atomically(
            path, ''.join(json.dumps(line) + '\n' for line in lines).encode()
        )

    def before_train_iter(
        self, runner: Runner, batch_idx: int, data_batch=None
    ) -> None:
        if self._watch is None and self._begins(runner):
            self._watch = ChannelWatch(unwrap(runner.model))
            self._watched = 0
        if self._watch is not None:
            watch_next_step(runner.model, self._watch)

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch=None, outputs=None
    ) -> None:
        if self._watch is None:
            return
        self._watched += 1
        if self._watched == self.sample or runner.iter + 1 == runner.max_iters:
            device = next(runner.model.parameters()).device
            found, self._watch = combine_processes(self._watch, device), None
            self._report(runner, found)

    def _begins(self, runner: Runner) -> bool:
        return (
            runner.iter % self.interval == 0
            or runner.iter == runner.max_iters - self.sample
        )

    def _report(self, runner: Runner, found: dict[str, Outputs]) -> None:
        if not found:
            self._warn(
                runner,
                'FilterCollapseHook found no norm layer that a ReLU or Leaky ReLU '
                'follows, so it has nothing to watch. Remove the hook.',
            )
            return
        line = dict(
            iter=runner.iter + 1,
            epoch=runner.epoch + 1,
            layers={
                name: dict(
                    channels=len(output.dead),
                    after_sum=output.after_sum,
                    dead=output.dead.nonzero().flatten().tolist(),
                )
                for name, output in found.items()
            },
        )
        dead = _dead(line)
        pairs = [
            (set(self._last.get(name, now)), set(now)) for name, now in dead.items()
        ]
        line['died'] = sum(len(now - before) for before, now in pairs)
        line['recovered'] = sum(len(before - now) for before, now in pairs)
        self._last = dead
        scalars = {**shares(line), 'died': line['died'], 'recovered': line['recovered']}
        for name, value in scalars.items():
            runner.message_hub.update_scalar(f'train/collapse/{name}', value)
        if is_main_process():
            with open(osp.join(runner.work_dir, HISTORY), 'a') as file:
                file.write(json.dumps(line) + '\n')
        share = scalars.get('dead', 0)
        if share > self.warn_above and not self._warned:
            model = unwrap(runner.model)
            fixed = any(keeps_statistics(model, name) for name in dead)
            self._warn(
                runner,
                f'{share:.0%} of the channels before a ReLU are dead '
                f'at iteration {line["iter"]}: they are not positive for any image of '
                'the watched steps. psBN can recover them if weight decay has enough '
                f'time{" and norm_eval is False" if fixed else ""}. With a lower '
                f'learning rate{", or norm_eval=False" if fixed else ""}, fewer '
                'channels die.',
            )

    def _warn(self, runner: Runner, message: str) -> None:
        if not self._warned:
            runner.logger.warning(message)
        self._warned = True


def shares(line: dict) -> dict[str, float]:
    """Return the shares of dead channels in a line of the history.

    Returns:
        dict: ``dead`` and ``dead_after_sum`` if there are such layers, and
        each stage (such as ``backbone.layer1``) of layers without a sum.
    """
    counts: dict[str, list[int]] = {}
    for name, layer in line['layers'].items():
        keys = ['dead_after_sum'] if layer['after_sum'] else ['dead', stage_of(name)]
        for key in keys:
            count = counts.setdefault(key, [0, 0])
            count[0] += len(layer['dead'])
            count[1] += layer['channels']
    return {key: dead / channels for key, (dead, channels) in counts.items()}


def read_history(path: str) -> list[dict]:
    """Read ``filter_collapse.jsonl``, if it exists, without an incomplete last line."""
    lines = []
    if not osp.isfile(path):
        return lines
    with open(path) as file:
        for line in file:
            try:
                lines.append(json.loads(line))
            except json.JSONDecodeError:
                break
    return lines


def _dead(line: dict) -> dict[str, list[int]]:
    return {name: layer['dead'] for name, layer in line['layers'].items()}


def combine_processes(watch: ChannelWatch, device: torch.device) -> dict[str, Outputs]:
    """Combine what was seen in all processes.

    Args:
        watch (ChannelWatch): The watch of this process.
        device (torch.device): The device that the processes communicate from.

    Returns:
        dict: The outputs of each norm layer that a rectifier followed in any
        process. A channel is dead if it was alive in none.
    """
    outputs = watch.outputs
    sizes = [channels_of(layer) for layer in watch.layers.values()]
    states = [
        (~outputs[name].dead).long() + DEAD
        if name in outputs
        else torch.full((size,), UNSEEN, device=device)
        for name, size in zip(watch.layers, sizes)
    ]
    summed = torch.tensor(
        [name in outputs and outputs[name].after_sum for name in watch.layers],
        dtype=torch.long,
        device=device,
    )
    state = torch.cat([summed, *states])
    all_reduce(state, 'max')
    summed, *states = state.cpu().split([len(summed), *sizes])
    return {
        name: Outputs(own == DEAD, bool(after_sum))
        for name, own, after_sum in zip(watch.layers, states, summed)
        if own[0] != UNSEEN
    }
