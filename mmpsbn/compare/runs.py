"""The runs of a comparison: planned, run side by side, gone on with."""

import copy
import hashlib
import json
import math
import os
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from typing import NamedTuple

import torch
from mmdet.evaluation import CocoMetric, LVISMetric, VOCMetric
from mmengine.config import Config
from mmengine.registry import DATASETS, METRICS, DefaultScope

from mmpsbn.checkpoints.matching import (
    check_compatible,
    keep_class_layers,
    layer_name,
    mimicnorm_parts_in,
)
from mmpsbn.checkpoints.reading import read_checkpoint
from mmpsbn.compare import tether
from mmpsbn.compare.costs import Cost
from mmpsbn.compare.held_out import HeldOut
from mmpsbn.compare.initial import write_initial
from mmpsbn.compare.intervals import scipy_stats
from mmpsbn.compare.placing import placing_remarks, replace_norm
from mmpsbn.compare.processes import LOCK, explain_exit, interrupt, lock_folder, start
from mmpsbn.compare.schedule import stretch
from mmpsbn.compare.tables import format_lr
from mmpsbn.config.data import find_images
from mmpsbn.config.data_errors import explain_data_errors
from mmpsbn.config.errors import explain_config_errors
from mmpsbn.config.model import dicts_in, mimic_inside, mimicnorm_parts, type_of
from mmpsbn.config.reading import TRAINING_LOADERS
from mmpsbn.convert import convert_to_mimicnorm
from mmpsbn.convert.stock_config import stock_model
from mmpsbn.detectors.build import build_model
from mmpsbn.errors import InputError
from mmpsbn.files import write_atomically
from mmpsbn.hooks.filter_collapse_hook import HISTORY, read_history
from mmpsbn.hooks.non_finite_hook import DIVERGED

PLAN = 'comparison.json'
# The version of work dirs. Since 2, runs of one seed share initial weights.
FORMAT = 2
# Tuning runs have seeds of their own, from here on.
TUNING_SEED = 1000
# Of a run, in its folder.
RESULT, OUTPUT, SECONDS = 'result.json', 'output.txt', 'seconds.txt'
# Of the first runs, until one has told: data loading, checkpoints; seconds of
# start-up.
OVERHEAD, START = 1.2, 15
MEASUREMENTS = 20  # Of filter collapse in a run.
CALIBRATION = 16  # Images for weights of MimicNorm.


class Run(NamedTuple):
    """One training of one normalization."""

    norm: str
    lr: float | None
    """None until the tuning runs that choose it have ended."""
    seed: int
    length: float = 1
    """As a multiple of the config's schedule."""
    tuning: bool = False
    """Whether it is evaluated on held-out training images."""

    @property
    def name(self) -> str:
        length = f'_x{format_lr(self.length)}' if self.length != 1 else ''
        return (
            f'{"tuning_" * self.tuning}{self.norm}{length}_'
            f'lr{format_lr(self.lr)}_seed{self.seed}'
        )

    def __str__(self) -> str:
        lr = 'to be chosen' if self.lr is None else format_lr(self.lr)
        length = f', {format_lr(self.length)} x schedule' if self.length != 1 else ''
        return (
            f'{"tuning " * self.tuning}{self.norm}{length}, lr {lr}, seed {self.seed}'
        )


class Length(NamedTuple):
    """How long a training of a config is."""

    iterations: int
    evaluations: int
    images: int
    """Of the validation set."""
    unit: str
    """What evaluations are counted by."""


class Comparison:
    """One detector, trained with several normalizations.

    Each run has a folder with its config, logs, last checkpoint and, once it
    has ended, ``result.json``; a run that has this is not repeated, and any
    other goes on from its last checkpoint. The same work dir takes more
    normalizations, learning rates, lengths and seeds later.

    With ``tune``, the learning rate of each normalization and length is
    chosen by runs that do not see a part of the training images, and that are
    evaluated on this part. The final runs train on all training images, and
    only they are evaluated on the validation set.

    Runs of one seed share the order of the data, and their initial weights
    wherever shapes allow, see :func:`~mmpsbn.compare.initial.write_initial`.

    All start from the config's ``load_from``, a detector with BN, or from the
    pretrained weights that its model names: as they are where the layers are
    those of BN, without the norm layers for GN, converted for MimicNorm and
    for each of its parts (MimicBody, BN+LastBN).
    Layers that predict classes are reinitialized if the detector has others.

    Args:
        cfg (Config): Of the detector, with any normalization.
        cfgs (dict[str, Config]): For each normalization, by the name that it
            has in reports, the config with it; see
            :func:`~mmpsbn.compare.replace_norm`.
        lrs (list[float]): Learning rates; empty for the config's.
        seeds (list[int]): Random seeds.
        work_dir (str): The folder.
        processes (int): Of each run, over torch's launcher if more than 1.
        lengths (list[float]): Of the schedule, as multiples of the config's.
        tune (float, optional): Share of the training images on which learning
            rates are chosen.
        tune_seeds (int): How many tuning runs each learning rate has.

    Raises:
        InputError: If the config measures no mAP, if what it starts from is
            another detector, if a normalization does not fit the detector,
            if the training images cannot be split, or if the folder is of
            another comparison.
    """

    @explain_config_errors()
    def __init__(
        self,
        cfg: Config,
        cfgs: dict[str, Config],
        lrs: Sequence[float],
        seeds: Sequence[int],
        work_dir: str,
        processes: int = 1,
        lengths: Sequence[float] = (1,),
        tune: float | None = None,
        tune_seeds: int = 1,
    ) -> None:
        scipy_stats()  # The report needs it, after hours of training.
        #: The names of mAP and, if it is measured, of mAP50 in evaluations.
        self.scores, self._other_sets = _score_names(cfg)
        self.cfg, self.cfgs, self.processes = cfg, cfgs, processes
        # What is asked for twice is one run.
        self.lrs = list(dict.fromkeys(list(lrs) or [_learning_rate(cfg)]))
        self.lengths, self.seeds = (
            list(dict.fromkeys(lengths)),
            list(dict.fromkeys(seeds)),
        )
        self.held_out = None
        #: The runs that choose learning rates.
        self.tuning: list[Run] = []
        if tune is not None:
            self.held_out = HeldOut(cfg, tune)
            if len(self.lrs) < 2:
                raise InputError(
                    f'--tune {tune:g} has nothing to choose from: the only '
                    f'learning rate is {format_lr(self.lrs[0])}. Give at '
                    'least two --lrs, or leave --tune out.'
                )
            self.tuning = [
                Run(norm, lr, TUNING_SEED + seed, length, True)
                for seed in range(tune_seeds)
                for length in self.lengths
                for lr in self.lrs
                for norm in cfgs
            ]
        self._placing = placing_remarks(cfg, cfgs)
        # Layers for which what all start from has no weights.
        self._reinitialized = _check_load_from(cfg, cfgs)
        self.work_dir = Path(work_dir)
        self._plan = dict(
            format=FORMAT, config=cfg.pretty_text, processes=processes, tune=tune
        )
        self._check_folder()
        self._lengths = self._all_lengths()
        #: What evaluations are counted by.
        self.unit = next(iter(self._lengths.values())).unit
        self.failures: dict[Run, str] = {}
        self._interrupted = threading.Event()
        # Runs at once may start from the same converted weights.
        self._preparing = threading.Lock()
        self._lock = None

    @property
    def runs(self) -> list[Run]:
        """All runs: those that choose learning rates, and the final ones."""
        return [*self.tuning, *self.finals]

    @property
    def finals(self) -> list[Run]:
        """The runs that the report compares."""
        # Seed by seed, so that an early end has something of everything.
        if self.tuning:
            lrs = {
                (norm, length): self.chosen(norm, length)
                for length in self.lengths
                for norm in self.cfgs
            }
            return [
                Run(norm, lr, seed, length)
                for seed in self.seeds
                for (norm, length), lr in lrs.items()
            ]
        return [
            Run(norm, lr, seed, length)
            for seed in self.seeds
            for length in self.lengths
            for lr in self.lrs
            for norm in self.cfgs
        ]

    def chosen(self, norm: str, length: float) -> float | None:
        """Choose a learning rate, by the mean mAP of the tuning runs.

        Of several that are equally good, the lowest is chosen.

        Returns:
            float: The learning rate; None if a tuning run has not ended.
        """
        scores: dict[float, float] = {}
        for run in self.tuning:
            if (run.norm, run.length) == (norm, length):
                result = self.result(run)
                if result is None:
                    return None
                scores[run.lr] = scores.get(run.lr, 0) + result['metrics'].get(
                    self.scores[0], 0
                )
        return max(sorted(scores), key=scores.get)

    def length(self, run: Run) -> Length:
        return self._lengths[run.length, run.tuning]

    def folder(self, run: Run) -> Path:
        return self.work_dir / run.name

    def result(self, run: Run) -> dict | None:
        """Of a run that has ended: ``metrics``, ``seconds``, ``diverged``."""
        if run.lr is None:
            return None
        file = self.folder(run) / RESULT
        return json.loads(file.read_text()) if file.exists() else None

    def curve(self, run: Run, metric: str) -> dict[int, float]:
        """A metric by epoch, or by iteration where the config counts so."""
        return {
            line['step']: line[metric] for line in self._scalars(run) if metric in line
        }

    def history(self, run: Run) -> list[dict]:
        """Of filter collapse, see FilterCollapseHook."""
        file = self.folder(run) / HISTORY
        return read_history(str(file)) if file.exists() else []

    def done(self, run: Run) -> float:
        """The share of its iterations that a run has behind it."""
        if run.lr is None:
            return 0.0
        if self.result(run):
            return 1.0
        steps = [line['iter'] for line in self._scalars(run) if 'iter' in line]
        return min(1.0, max(steps, default=0) / self.length(run).iterations)

    def estimate(self, run: Run, costs: dict[str, Cost]) -> float:
        """Estimate the seconds of a run.

        They are those of other runs like it, or those of its steps and
        evaluations, corrected by the runs that have ended.
        """
        seen = [(other, self.result(other)) for other in self.runs]
        seen = [
            (other, found['seconds'])
            for other, found in seen
            if found and not found.get('diverged')
        ]
        kind = run._replace(lr=None, seed=0)
        same = [
            seconds
            for other, seconds in seen
            if other._replace(lr=None, seed=0) == kind
        ]
        if same:
            return sum(same) / len(same)
        factor = OVERHEAD
        if seen:
            factor = sum(seconds for _, seconds in seen) / sum(
                self._bare(other, costs) for other, _ in seen
            )
        return factor * self._bare(run, costs)

    def remarks(self) -> list[str]:
        """What puts a normalization in another position than the others."""
        sources = [str(node[key]) for node, key in _starts(self.cfg)]
        remarks = []
        if 'FrozenBN' in self.cfgs and not sources:
            remarks.append(
                'FrozenBN normalizes with the running statistics it starts '
                'from, and the config starts from no weights: it is the '
                'identity here.'
            )
        of_gn = type_of(self.cfg.model.backbone.get('norm_cfg')) == 'GN'
        if of_gn and sources:
            remarks.append(
                f'{", ".join(sources)} is taken as of GN, like the '
                'config: no other normalization finds its running '
                'statistics there.'
            )
        elif 'GN' in self.cfgs and sources:
            remarks.append(
                f'GN takes {", ".join(sources)} without the norm '
                'layers; its own are reinitialized.'
            )
        for norm, cfg in self.cfgs.items():
            starts = [str(node[key]) for node, key in _converted_starts(cfg)]
            if starts:
                remarks.append(
                    f'{norm} starts from {", ".join(starts)}, '
                    'converted as by tools/convert.py if the '
                    'weights are those of BN.'
                )
        if self._reinitialized:
            layers = ', '.join(self._reinitialized)
            remarks.append(
                f'{layers} are reinitialized: '
                f'{self.cfg.load_from} is of another number of '
                'classes.'
            )
        if self._other_sets:
            remarks.append(
                f'The mAP is {self.scores[0]}; the config also '
                f'measures {", ".join(self._other_sets)}.'
            )
        return remarks + self._placing

    def write(self) -> None:
        """Make the folder, and hold it until this process has ended.

        Raises:
            InputError: If it cannot be written, or if another process holds
                it.
        """
        try:
            self.work_dir.mkdir(parents=True, exist_ok=True)
            self._lock = self._lock or lock_folder(self.work_dir)
            # Another comparison may have made the folder in the meantime.
            self._check_folder()
            write_atomically(self.work_dir / PLAN, json.dumps(self._plan).encode())
            if self.held_out:
                self.held_out.write(self.work_dir)
        except OSError as error:
            raise InputError(
                f'the work dir {self.work_dir} cannot be '
                f'written: {error.strerror}. Choose another with '
                '--work-dir.'
            ) from error

    def interrupt(self) -> None:
        """Let the runs in progress end, as after Ctrl-C."""
        self._interrupted.set()

    def run(
        self,
        run: Run,
        watch: Callable[[float], None],
        environment: dict[str, str] | None = None,
    ) -> bool:
        """Train a run to its end, from where it is.

        Args:
            run (Run): Of this comparison.
            watch (callable): Is called with the share that is done, about
                once a second.
            environment (dict, optional): Variables for its processes, see
                :func:`divide_machine`.

        Returns:
            bool: Whether it ended, be it by divergence; if not,
            :attr:`failures` says why.

        Raises:
            KeyboardInterrupt: If it was interrupted, by :meth:`interrupt` from
                another thread.
        """
        folder, begin = self.folder(run), time.monotonic()
        folder.mkdir(exist_ok=True)
        config = folder / 'config.py'
        with self._preparing:
            self._config(run).dump(config)
        (folder / DIVERGED).unlink(missing_ok=True)
        before = self._seconds_before(run)
        with open(folder / OUTPUT, 'w') as output:
            child = start(
                [*self._train(), str(config), '--work-dir', str(folder), '--resume'],
                output,
                self._lock,
                environment,
            )
            try:
                while child.poll() is None and not self._interrupted.is_set():
                    watch(self.done(run))
                    self._interrupted.wait(1)
            finally:
                interrupt(child)
                write_atomically(
                    folder / SECONDS, str(before + time.monotonic() - begin).encode()
                )
        if child.returncode and self._interrupted.is_set():
            raise KeyboardInterrupt
        diverged = bool(child.returncode) and (folder / DIVERGED).exists()
        if child.returncode and not diverged:
            self.failures[run] = explain_exit(
                child.returncode, (folder / OUTPUT).read_text(errors='replace')
            )
            return False
        evaluations = (
            []
            if diverged
            else [
                line
                for line in self._scalars(run)
                if 'step' in line and 'iter' not in line
            ]
        )
        if not (evaluations or diverged):
            self.failures[run] = (
                'training ended, but no evaluation was logged: the config '
                'needs a LoggerHook in default_hooks.'
            )
            return False
        result = dict(
            metrics=evaluations[-1] if evaluations else {},
            seconds=before + time.monotonic() - begin,
            diverged=diverged,
        )
        write_atomically(folder / RESULT, json.dumps(result).encode())
        return True

    def _seconds_before(self, run: Run) -> float:
        """Of earlier, interrupted goes at a run."""
        file = self.folder(run) / SECONDS
        return float(file.read_text()) if file.exists() else 0.0

    def _train(self) -> list[str]:
        train = str(_tools() / 'train.py')
        if self.processes == 1:
            return [train]
        return [
            '-m',
            'torch.distributed.run',
            '--standalone',
            f'--nproc_per_node={self.processes}',
            tether.__file__,
            train,
            '--launcher=pytorch',
        ]

    @explain_config_errors()
    def _config(self, run: Run) -> Config:
        cfg = copy.deepcopy(self.cfgs[run.norm])
        stretch(cfg, run.length)
        if run.tuning:
            self.held_out.use(cfg, self.work_dir)
        cfg.optim_wrapper.optimizer.lr = run.lr
        cfg.randomness = dict(cfg.get('randomness', {}), seed=run.seed)
        hooks = cfg.setdefault('default_hooks', {})
        hooks.setdefault('checkpoint', dict(type='CheckpointHook', interval=1))
        hooks['checkpoint']['max_keep_ckpts'] = 1
        if self.unit == 'iteration':
            # By MMEngine's default, all are evaluations of epoch 0, and a
            # checkpoint is written only at the end.
            hooks.setdefault('logger', dict(type='LoggerHook'))
            hooks['logger']['log_metric_by_epoch'] = False
            if hooks['checkpoint'].get('by_epoch', True):
                hooks['checkpoint'].update(
                    by_epoch=False, interval=cfg.train_cfg.get('val_interval', 1000)
                )
        interval = max(10, self.length(run).iterations // MEASUREMENTS)
        custom = list(cfg.get('custom_hooks') or [])
        if not any('FilterCollapseHook' in str(hook['type']) for hook in custom):
            custom.append(dict(type='mmpsbn.FilterCollapseHook', interval=interval))
        cfg.custom_hooks = custom
        for node in dicts_in(cfg.val_evaluator):
            # Metrics read these files again, and runs at once share no file.
            if node.get('outfile_prefix'):
                node['outfile_prefix'] = str(
                    self.folder(run) / Path(node['outfile_prefix']).name
                )
        # Results are read from its files.
        backends = (cfg.get('visualizer') or {}).get('vis_backends')
        if backends is not None and not any(
            str(backend['type']).endswith('LocalVisBackend') for backend in backends
        ):
            backends.append(dict(type='LocalVisBackend'))
        self._convert_start(cfg)
        if not cfg.get('load_from') or self._reinitialized:
            cfg.load_from = str(
                write_initial(
                    replace_norm(self.cfg, 'BN'), cfg, run.seed, self.work_dir
                )
            )
        return cfg

    def _convert_start(self, cfg: Config) -> None:
        """Make weights of BN that training starts from fit MimicNorm."""
        model = repr(cfg.model)
        for node, key in _converted_starts(cfg):
            source = node[key]
            # Other files of the same name, and other models, have other ones.
            digest = hashlib.sha256(f'{source}\n{model}'.encode()).hexdigest()
            out = self.work_dir / (f'converted_{Path(source).stem}_{digest[:8]}.pth')
            if not out.exists():
                checkpoint = read_checkpoint(source)
                if any(mimicnorm_parts_in(checkpoint.state_dict)):
                    continue
                convert_to_mimicnorm(
                    cfg, checkpoint, find_images(cfg, None, CALIBRATION), str(out)
                )
            node[key] = str(out)

    def _scalars(self, run: Run) -> list[dict]:
        """What a run has logged, over all goes at it."""
        files = sorted(self.folder(run).glob('*/vis_data/scalars.json'))
        return [line for file in files for line in read_history(str(file))]

    def _bare(self, run: Run, costs: dict[str, Cost]) -> float:
        cost, length = costs[run.norm], self.length(run)
        return (
            START
            + cost.step * length.iterations
            + cost.inference
            * (length.evaluations * length.images / cost.batch / self.processes)
        )

    def _check_folder(self) -> None:
        try:
            if not self.work_dir.exists():
                return
            if not self.work_dir.is_dir():
                raise InputError(f'the work dir {self.work_dir} is no folder.')
            if all(file.name == LOCK for file in self.work_dir.iterdir()):
                return
            file = self.work_dir / PLAN
            found = file.read_text() if file.exists() else None
        except OSError as error:
            raise InputError(
                f'the work dir {self.work_dir} cannot be read: '
                f'{error.strerror}. Choose another with '
                '--work-dir.'
            ) from error
        if found is None:
            raise InputError(
                f'the work dir {self.work_dir} is not empty and '
                'holds no comparison; choose another with '
                '--work-dir.'
            )
        if json.loads(found) != self._plan:
            raise InputError(
                f'the work dir {self.work_dir} belongs to another comparison: '
                'its config, --cfg-options, --tune or number of processes '
                'were different, or another version of mmpsbn made it. Choose '
                'another with --work-dir.'
            )

    def _all_lengths(self) -> dict[tuple[float, bool], Length]:
        """How long the runs are, by multiple and by whether they tune."""
        train, val = _sizes(self.cfg)
        found = {}
        for length in self.lengths:
            if not 0 < length < math.inf:
                raise InputError(
                    f'--lengths {length:g} is not supported: each is a '
                    "multiple of the config's schedule, above 0 and finite. "
                    'Try --lengths 1 2.'
                )
            cfg = copy.deepcopy(self.cfg)
            stretch(cfg, length)
            _check_evaluated(cfg)
            found[length, False] = _length(cfg, self.processes, train, val)
            if self.held_out:
                found[length, True] = _length(
                    cfg,
                    self.processes,
                    round(train * (1 - self.held_out.share)),
                    self.held_out.images,
                )
        return found


def divide_machine(at_once: int, processes: int) -> list[dict[str, str]]:
    """Divide the cores, and the GPUs if there are any, among parallel runs.

    More runs than GPUs share them, which is faster for small detectors.

    Args:
        at_once (int): How many runs.
        processes (int): Of each run.

    Returns:
        list[dict[str, str]]: Environment variables; those that the user has
        set are left alone.

    Raises:
        InputError: If there are fewer GPUs than processes of one run.
    """
    if at_once == 1:
        return [{}]
    threads = max(1, len(os.sched_getaffinity(0)) // at_once // processes)
    shared = dict(OMP_NUM_THREADS=os.environ.get('OMP_NUM_THREADS', str(threads)))
    gpus = torch.cuda.device_count()
    if not gpus:
        return [shared] * at_once
    if gpus < processes:
        raise InputError(
            f'--processes {processes} needs {processes} GPUs; there are '
            f'{gpus}. Lower --processes.'
        )
    visible = os.environ.get('CUDA_VISIBLE_DEVICES')
    names = visible.split(',') if visible else list(map(str, range(gpus)))
    groups = gpus // processes
    return [
        dict(
            shared,
            CUDA_VISIBLE_DEVICES=','.join(
                names[number % groups * processes :][:processes]
            ),
        )
        for number in range(at_once)
    ]


def _learning_rate(cfg: Config) -> float:
    lr = (cfg.optim_wrapper.get('optimizer') or {}).get('lr')
    if lr is None:
        raise InputError(
            'optim_wrapper.optimizer.lr of the config is not '
            'set: a comparison trains with one optimizer, whose '
            'learning rate it sets. Set it in the config.'
        )
    return lr


def _score_names(cfg: Config) -> tuple[list[str], list[str]]:
    """Find the names of mAP in the evaluations of a config.

    Returns:
        tuple: The names of mAP and, if it is measured, of mAP50 on the first
        validation set, and those of mAP on other sets.

    Raises:
        InputError: If the config does not measure the mAP of boxes at the end
            of training.
    """
    evaluator = cfg.get('val_evaluator') or []
    if 'metrics' in evaluator:  # An Evaluator, of several data sets perhaps.
        sets = evaluator.get('dataset_prefixes')
        evaluator = evaluator['metrics']
    else:
        sets = None
    metrics = [evaluator] if isinstance(evaluator, dict) else evaluator
    found = []
    for name, metric in zip(sets or [''] * len(metrics), metrics):
        found.append(
            [f'{name}/' * bool(name) + score for score in _scores_of(cfg, metric)]
        )
    found = [names for names in found if names and names[0].endswith('mAP')]
    if not cfg.get('val_dataloader') or not found:
        raise InputError(
            'the comparison is by the mAP of boxes, and the config does not '
            'measure it: it needs a val_dataloader, and as val_evaluator '
            "CocoMetric with metric='bbox', or VOCMetric with metric='mAP'."
        )
    return found[0], [names[0] for names in found[1:]]


def _check_evaluated(cfg: Config) -> None:
    """Raise unless the config evaluates at the end of training."""
    train_cfg = cfg.train_cfg
    last = train_cfg.get('max_iters') or train_cfg.max_epochs
    if train_cfg.get('val_begin', 1) > last:
        raise InputError(
            f'train_cfg.val_begin={train_cfg.val_begin} of the config is '
            f'after the end of training, {last}, so that mAP is never '
            'measured; set it to 1.'
        )


def _scores_of(cfg: Config, metric: dict) -> list[str]:
    """Name what a metric logs as the mAP and the mAP50 of boxes."""
    with (
        DefaultScope.overwrite_default_scope(cfg.get('default_scope', 'mmdet')),
        METRICS.switch_scope_and_registry(None) as registry,
    ):
        kind = registry.get(str(metric.get('type'))) or object
    if issubclass(kind, CocoMetric) and not issubclass(kind, LVISMetric):
        measured = 'bbox' in metric.get('metric', 'bbox') and not metric.get(
            'format_only'
        )
        scores = [
            f'bbox_{item}'
            for item in ('mAP', 'mAP_50')
            if item in (metric.get('metric_items') or [item])
        ]
    elif issubclass(kind, VOCMetric):
        measured = 'mAP' in metric.get('metric', 'mAP')
        thresholds = metric.get('iou_thrs', 0.5)
        at_50 = 0.5 in (
            thresholds if isinstance(thresholds, (list, tuple)) else [thresholds]
        )
        scores = ['mAP', *['AP50'] * at_50]
    else:
        return []
    prefix = metric.get('prefix') or kind.default_prefix
    return [f'{prefix}/{score}' for score in scores if measured]


def _check_load_from(cfg: Config, cfgs: dict[str, Config]) -> list[str]:
    """Raise unless a comparison can start from the config's detector.

    MMEngine loads what fits, so that from another detector training starts at
    random weights.

    Returns:
        list[str]: Layers that are reinitialized for other classes.
    """
    path = cfg.get('load_from')
    if not path:
        return []
    checkpoint = read_checkpoint(path)
    parts = mimicnorm_parts_in(checkpoint.state_dict)
    converted = any(parts)
    others = [
        norm for norm, other in cfgs.items() if mimicnorm_parts(other.model) != parts
    ]
    if converted and others:
        kind = 'MimicNorm' if parts[0] else 'a last BN'
        names = ', '.join(others)
        raise InputError(
            f'the checkpoint {path} is of {kind}, and nothing '
            f'else can start from it: {names} cannot. Name the '
            'checkpoint with BN that it was made from, or leave '
            f'{names} out of --norms.'
        )
    model = build_model(
        cfg, (next(iter(cfgs.values())) if converted else replace_norm(cfg, 'BN')).model
    )
    checkpoint, reinitialized = keep_class_layers(model, checkpoint)
    check_compatible(model, checkpoint)
    for norm, other in cfgs.items():
        if converted or not mimic_inside(other.model):
            continue
        missing = [
            key
            for key in build_model(cfg, stock_model(other.model)).state_dict()
            if key not in model.state_dict()
        ]
        if missing:
            raise InputError(
                f'{norm} cannot start from {path}: its {layer_name(missing[0])} '
                'has no counterpart there, since norm layers of each pyramid '
                'level apart (RetinaSepBNHead) do not fold into convs that '
                f'the levels share. Leave {norm} out, or load_from.'
            )
    return reinitialized


def _starts(cfg: Config):
    """Where a config names weights to start from: dicts and keys."""
    for node in dicts_in(cfg.model):
        if node.get('type') == 'Pretrained' and node.get('checkpoint'):
            yield node, 'checkpoint'
    if cfg.get('load_from'):
        yield cfg, 'load_from'


def _converted_starts(cfg: Config):
    """Those of _starts that have to fit a body or heads of MimicNorm."""
    body, last_bn = mimicnorm_parts(cfg.model)
    for node, key in _starts(cfg):
        # A pretrained backbone has no last BN.
        if body or last_bn and key == 'load_from':
            yield node, key


def _tools() -> Path:
    """The folder of train.py: of a clone, or of an installed package."""
    package = Path(__file__).resolve().parent.parent
    for folder in (package.parent / 'tools', package / '.mim' / 'tools'):
        if folder.is_dir():
            return folder
    raise InputError('tools/train.py was not found beside the package.')


def _sizes(cfg: Config) -> tuple[int, int]:
    """Count the training and the validation images of a config."""
    with (
        explain_data_errors(cfg, TRAINING_LOADERS),
        DefaultScope.overwrite_default_scope(cfg.get('default_scope', 'mmdet')),
        redirect_stdout(StringIO()),
    ):
        return tuple(
            len(DATASETS.build(copy.deepcopy(cfg[loader]['dataset'])))
            for loader in TRAINING_LOADERS
        )


def _length(cfg: Config, processes: int, train: int, val: int) -> Length:
    train_cfg = cfg.train_cfg
    if 'max_iters' in train_cfg:
        iterations = train_cfg.max_iters
        interval = train_cfg.get('val_interval', 1000)  # MMEngine's default.
        return Length(iterations, max(1, iterations // interval), val, 'iteration')
    batch = cfg.train_dataloader.batch_size * processes
    epochs, interval = train_cfg.max_epochs, train_cfg.get('val_interval', 1)
    return Length(
        epochs * math.ceil(train / batch), max(1, epochs // interval), val, 'epoch'
    )
