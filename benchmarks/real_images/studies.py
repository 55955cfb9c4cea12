"""The studies of the benchmark: detectors, normalizations, learning rates."""

import math
import os
from pathlib import Path
from typing import NamedTuple

from mmengine.config import Config

from mmpsbn.cluster import Cluster
from mmpsbn.compare import Comparison, replace_norm
from mmpsbn.compare.runs import Run
from mmpsbn.config.data import check_data
from mmpsbn.config.reading import TRAINING_LOADERS, read_config
from mmpsbn.hooks.filter_collapse_hook import shares
from mmpsbn.statistics.tables import format_lr

from .results import Outcome, Results

CONFIGS = Path(__file__).resolve().parents[2] / 'configs' / 'real_images'
FINETUNED = {
    1: ('BN', 'FrozenBN', 'psBN', 'GN', 'MimicNorm', 'BN+LastBN'),
    0.5: ('BN', 'psBN', 'MimicNorm'),
}
SCRATCH = ('BN', 'psBN', 'MimicNorm')
HELD_OUT = 0.2
SEEDS = 5


class Study(NamedTuple):
    """One detector, trained with several normalizations."""

    title: str
    config: str
    lrs: tuple[float, ...]
    """The learning rates to choose from, with steps of at most 2.5."""
    norms: dict[float, tuple[str, ...]] = FINETUNED
    """The normalizations for each length, as a multiple of the config's
    schedule. The first one is the baseline."""
    untuned: tuple[float, ...] = ()
    """The lengths for which no learning rates are tuned. They take those of
    the first length."""
    settings: dict = {}
    """Settings of the config to override."""


STUDIES = {
    'faster-rcnn': Study(
        'Faster R-CNN on EfficientNet-Lite0 from ImageNet',
        'faster-rcnn_efficientnet-lite0_fpn_bn_neu-det.py',
        (0.004, 0.01, 0.025, 0.06, 0.15),
    ),
    'retinanet': Study(
        'RetinaNet on EfficientNet-Lite0 from ImageNet',
        'retinanet_efficientnet-lite0_fpn_bn_neu-det.py',
        (0.004, 0.01, 0.02, 0.04),
        {**FINETUNED, 1.5: ('BN', 'FrozenBN', 'psBN', 'MimicNorm')},
        (1.5,),
    ),
    'scratch': Study(
        'Faster R-CNN on a half-width ResNet-18 from random weights',
        'faster-rcnn_r18-half_fpn_bn_neu-det.py',
        (0.01, 0.025, 0.06, 0.15),
        {1: SCRATCH, 2: SCRATCH},
        (2,),
        {'train_cfg.max_epochs': 6, 'param_scheduler.1.T_max': 6},
    ),
}


class RecordedComparison(Comparison):
    """A comparison whose results are rows of a CSV file.

    A run with a row is not repeated, even if its folder is lost.

    Args:
        results (Results): The rows.
        *args: See :class:`~mmpsbn.compare.Comparison`.
        **kwargs: Likewise.
    """

    def __init__(self, results: Results, *args, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        self.results = results

    def result(self, run: Run) -> dict | None:
        row = self.results.get(run)
        if row is None:
            return None
        return dict(
            metrics=dict(zip(self.score_names, (row.mAP, row.mAP50))),
            seconds=row.seconds,
            diverged=bool(row.diverged),
        )

    def run(self, run: Run, *args, **kwargs) -> bool:
        ended = super().run(run, *args, **kwargs)
        if ended:
            result, history = super().result(run), self.history(run)
            scores = (result['metrics'].get(name, 0.0) for name in self.score_names)
            dead = (
                shares(history[at]).get('dead', 0.0) if history else math.nan
                for at in (0, -1)
            )
            outcome = Outcome(
                *(round(score, 4) for score in scores),
                *(round(share, 5) for share in dead),
                int(result['diverged']),
                round(result['seconds'], 1),
                result['device'],
            )
            self.results.add(run, outcome)
        return ended


def comparisons(
    study: Study,
    results: Results,
    data: str,
    work_dir: Path,
    seeds: int = SEEDS,
    cfg_options: dict | None = None,
    cluster: Cluster | None = None,
):
    """Iterate over the comparisons of a study, one for each length.

    Args:
        study (Study): The study.
        results (Results): Its rows; results of new runs are added.
        data (str): The folder of NEU-DET in COCO2017's layout.
        work_dir (Path): Takes the folders of the runs.
        seeds (int): How many final runs each normalization has.
        cfg_options (dict, optional): Settings of the config to override.
        cluster (Cluster, optional): Trains the runs as its jobs.

    Raises:
        InputError: If the data is missing or does not fit.
    """
    cfg = study_config(study, data, cfg_options)

    def compare(name, length, norms, lrs, **options):
        return RecordedComparison(
            results,
            cfg,
            {norm: replace_norm(cfg, norm) for norm in norms},
            lrs,
            range(seeds),
            work_dir / name,
            lengths=[length],
            cluster=cluster,
            **options,
        )

    for length, norms in study.norms.items():
        name = f'x{length:g}'
        if length not in study.untuned:
            yield compare(name, length, norms, study.lrs, tune=HELD_OUT)
            continue
        # Normalizations are left out if their tuning runs failed.
        best = results.best_lrs(study.norms, study.untuned)
        known = [norm for norm in norms if (norm, length) in best]
        for lr in dict.fromkeys(best[norm, length] for norm in known):
            chosen = [norm for norm in known if best[norm, length] == lr]
            yield compare(f'{name}_lr{format_lr(lr)}', length, chosen, [lr])


def study_config(study: Study, data: str, cfg_options: dict | None = None) -> Config:
    """Read the config of a study, evaluated once at the end of training.

    Raises:
        InputError: If the data is missing or does not fit.
    """
    os.environ['MMDET_DATASETS'] = os.path.join(data, '')
    cfg = read_config(
        str(CONFIGS / study.config), {**study.settings, **(cfg_options or {})}
    )
    check_data(cfg, TRAINING_LOADERS)
    cfg.train_cfg.val_interval = cfg.train_cfg.max_epochs
    return cfg


def number_of_runs(study: Study) -> int:
    """Count the runs of a study, tuning runs and final ones."""
    return sum(
        len(norms) * (SEEDS + len(study.lrs) * (length not in study.untuned))
        for length, norms in study.norms.items()
    )
