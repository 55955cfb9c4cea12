"""The schedule of a config, multiplied by a factor."""

from mmengine.config import Config

from mmpsbn.config.model import dicts_in
from mmpsbn.errors import InputError

# Schedulers whose course does not follow from the settings below.
ENDLESS = ('Exponential', 'CosineRestart', 'ReduceOnPlateau')
DURATIONS = ('T_max', 'total_steps', 'step_size')


def stretch(cfg: Config, length: float) -> None:
    """Multiply the length of a config's schedule.

    Training, the milestones and ends of schedulers, and ``switch_epoch`` of
    hooks move. The warm-up keeps its length.

    Args:
        cfg (Config): It is changed.
        length (float): The factor.

    Raises:
        InputError: If a scheduler cannot be stretched.
    """
    if length == 1:
        return
    loop = cfg.train_cfg
    key = 'max_iters' if 'max_iters' in loop else 'max_epochs'
    loop[key] = max(1, round(loop[key] * length))
    schedulers = [
        node for node in dicts_in(cfg.get('param_scheduler')) if 'type' in node
    ]
    warm_ups = {
        node.get('by_epoch', True): node.get('end', 0)
        for node in schedulers
        if _is_warm_up(node)
    }
    for node in schedulers:
        if not _is_warm_up(node):
            _stretch_scheduler(
                node, length, warm_ups.get(node.get('by_epoch', True), 0)
            )
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

    def moved(point):
        return point if point <= warm_up else round(point * length)

    begin = node.get('begin', 0)

    def lasting(duration):
        return moved(begin + duration) - moved(begin)

    if _kind(node).startswith(ENDLESS):
        raise InputError(
            f'--lengths {length:g} is not supported with the scheduler '
            f'{_kind(node)}: its settings do not say where it ends. Use '
            'another param_scheduler, or leave --lengths out.'
        )
    for key in DURATIONS:
        if key in node:
            node[key] = lasting(node[key])
    if 'milestones' in node:
        node['milestones'] = [lasting(point) for point in node['milestones']]
    for key in ('begin', 'end'):
        if key in node:
            node[key] = moved(node[key])
    if (
        'end' in node
        and node['end'] <= node.get('begin', 0)
        or any(node.get(key, 1) < 1 for key in DURATIONS)
    ):
        raise InputError(
            f'--lengths {length:g} is too short: the scheduler {_kind(node)} '
            'has no step left. Choose a larger multiple.'
        )
