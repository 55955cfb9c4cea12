"""The schedule of a config, multiplied by a factor."""

import math

from mmengine.config import Config

from mmpsbn.config.model import dicts_in
from mmpsbn.errors import InputError

# Schedulers whose end does not follow from the settings below.
ENDLESS = ('Exponential', 'CosineRestart', 'ReduceOnPlateau')
TOLERANCE = 0.05  # Of a length, if it is rounded to epochs.
DURATIONS = ('T_max', 'total_steps', 'step_size')


def stretch(cfg: Config, length: float) -> None:
    """Multiply the length of a config's schedule.

    The end of training, the milestones and ends of schedulers, and the
    ``switch_epoch`` of hooks are moved. The warm-up keeps its length.

    Raises:
        InputError: If the factor is not positive and finite, if it is not close
            to a whole number of epochs, or if a scheduler cannot be stretched.
    """
    if not 0 < length < math.inf:
        raise InputError(
            f'--lengths {length:g} is not supported: each is a multiple of the '
            "config's schedule, above 0 and finite. Try --lengths 1 2."
        )
    if length == 1:
        return
    loop = cfg.train_cfg
    key = 'max_iters' if 'max_iters' in loop else 'max_epochs'
    exact, before = loop[key] * length, loop[key]
    loop[key] = max(1, round(exact))
    if abs(loop[key] - exact) > TOLERANCE * exact:
        raise InputError(
            f'--lengths {length:g} of {before} {key[4:]} is {exact:g}, and a '
            f'training has a whole number of them. Try --lengths '
            f'{loop[key] / before:.3g}.'
        )
    schedulers = [x for x in dicts_in(cfg.get('param_scheduler')) if 'type' in x]
    ends = {}  # The ends of the warm-ups in epochs (True) and iterations.
    for node in filter(_is_warm_up, schedulers):
        ends[node.get('by_epoch', True)] = node.get('end', 0)
    for node in schedulers:
        if not _is_warm_up(node):
            _stretch_scheduler(node, length, ends.get(node.get('by_epoch', True), 0))
    for hook in cfg.get('custom_hooks') or []:
        if 'switch_epoch' in hook:
            hook['switch_epoch'] = round(hook['switch_epoch'] * length)


def _is_warm_up(node: dict) -> bool:
    kind = _kind(node)
    start = node.get('start_factor', node.get('factor', 1 / 3))
    return not node.get('begin') and (
        'Warmup' in kind
        or kind.startswith(('Linear', 'Constant'))
        and start < node.get('end_factor', 1)
    )


def _kind(node: dict) -> str:
    return str(node['type']).split('.')[-1]


def _stretch_scheduler(node: dict, length: float, warm_up: int) -> None:
    """Move the points of a scheduler that are after the warm-up."""
    begin = node.get('begin', 0)

    def move(point):
        return point if point <= warm_up else round(point * length)

    def extend(duration):
        return move(begin + duration) - move(begin)

    if _kind(node).startswith(ENDLESS):
        raise InputError(
            f'--lengths {length:g} is not supported with the scheduler '
            f'{_kind(node)}: its settings do not say where it ends. Use '
            'another param_scheduler, or leave --lengths out.'
        )
    for key in DURATIONS:
        if key in node:
            node[key] = extend(node[key])
    if 'milestones' in node:
        node['milestones'] = [extend(point) for point in node['milestones']]
    for key in ('begin', 'end'):
        if key in node:
            node[key] = move(node[key])
    if (
        'end' in node
        and node['end'] <= node.get('begin', 0)
        or any(node.get(key, 1) < 1 for key in DURATIONS)
    ):
        raise InputError(
            f'--lengths {length:g} is too short: the scheduler {_kind(node)} '
            'has no step left. Choose a larger multiple.'
        )
