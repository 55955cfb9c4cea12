"""What the runs of a comparison record: names of mAP, hooks and log files."""

from pathlib import Path

from mmdet.evaluation import CocoMetric, LVISMetric, VOCMetric
from mmengine.config import Config
from mmengine.registry import METRICS

from mmpsbn.compare.runs import Workload
from mmpsbn.config.model import dicts_in, find_class
from mmpsbn.errors import InputError

MEASUREMENTS = 20  # Measurements of filter collapse in a run.


def find_score_names(cfg: Config) -> tuple[list[str], list[str]]:
    """Find the names of mAP in the evaluations of a config.

    Returns:
        tuple: The names of mAP and, if it is measured, of mAP50 on the first
        validation set, and the names of mAP on other sets.
    """
    evaluator = cfg.get('val_evaluator') or []
    sets = None
    if 'metrics' in evaluator:  # An Evaluator, possibly of several data sets.
        sets, evaluator = evaluator.get('dataset_prefixes'), evaluator['metrics']
    metrics = [evaluator] if isinstance(evaluator, dict) else evaluator
    found = [
        [f'{name}/' * bool(name) + score for score in _name_scores(cfg, metric)]
        for name, metric in zip(sets or [''] * len(metrics), metrics)
    ]
    found = [names for names in found if names and names[0].endswith('mAP')]
    if not cfg.get('val_dataloader') or not found:
        raise InputError(
            'the comparison is by the mAP of boxes, and the config does not '
            'measure it: it needs a val_dataloader, and as val_evaluator '
            "CocoMetric with metric='bbox', or VOCMetric with metric='mAP'."
        )
    return found[0], [names[0] for names in found[1:]]


def _name_scores(cfg: Config, metric: dict) -> list[str]:
    """Return the names by which a metric logs the mAP and mAP50 of boxes."""
    kind = find_class(cfg, METRICS, str(metric.get('type'))) or object
    if issubclass(kind, CocoMetric) and not issubclass(kind, LVISMetric):
        measured = 'bbox' in metric.get('metric', 'bbox')
        measured = measured and not metric.get('format_only')
        items = metric.get('metric_items') or ('mAP', 'mAP_50')
        scores = [f'bbox_{item}' for item in ('mAP', 'mAP_50') if item in items]
    elif issubclass(kind, VOCMetric):
        measured = 'mAP' in metric.get('metric', 'mAP')
        thresholds = metric.get('iou_thrs', 0.5)
        if not isinstance(thresholds, (list, tuple)):
            thresholds = [thresholds]
        scores = ['mAP', *['AP50'] * (0.5 in thresholds)]
    else:
        return []
    prefix = metric.get('prefix') or kind.default_prefix
    return [f'{prefix}/{score}' for score in scores if measured]


def record_results(cfg: Config, folder: Path, workload: Workload) -> None:
    """Let the config of a run write the files that a comparison reads."""
    hooks = cfg.setdefault('default_hooks', {})
    checkpoint = hooks.setdefault('checkpoint', dict(type='CheckpointHook', interval=1))
    checkpoint['max_keep_ckpts'] = 1
    if workload.unit == 'iteration':
        # By MMEngine's default, all evaluations are of epoch 0, and there is
        # only one checkpoint at the end.
        hooks.setdefault('logger', dict(type='LoggerHook'))
        hooks['logger']['log_metric_by_epoch'] = False
        if checkpoint.get('by_epoch', True):
            interval = cfg.train_cfg.get('val_interval', 1000)
            checkpoint.update(by_epoch=False, interval=interval)
    cfg.custom_hooks = list(cfg.get('custom_hooks') or [])
    if not any('FilterCollapseHook' in str(hook['type']) for hook in cfg.custom_hooks):
        interval = max(10, workload.iterations // MEASUREMENTS)
        cfg.custom_hooks.append(
            dict(type='mmpsbn.FilterCollapseHook', interval=interval)
        )
    for node in dicts_in(cfg.val_evaluator):
        # Metrics read these files again, so parallel runs must not share one.
        if node.get('outfile_prefix'):
            node['outfile_prefix'] = str(folder / Path(node['outfile_prefix']).name)
    # A comparison reads results from the files of this backend.
    backends = (cfg.get('visualizer') or {}).get('vis_backends')
    if backends is not None and not any(
        str(backend['type']).endswith('LocalVisBackend') for backend in backends
    ):
        backends.append(dict(type='LocalVisBackend'))
