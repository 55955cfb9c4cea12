"""A comparison: its runs, their folders, results and remaining time."""

import copy
import json
import statistics
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from mmengine.config import Config

from mmpsbn.cluster import Cluster
from mmpsbn.compare import initial, processes
from mmpsbn.compare.costs import Costs
from mmpsbn.compare.held_out import HeldOut
from mmpsbn.compare.placing import FIXED, describe_placing, replace_norm
from mmpsbn.compare.recording import find_score_names, record_results
from mmpsbn.compare.runs import TUNING_SEED, Run, Workload, compute_workloads
from mmpsbn.compare.schedule import stretch
from mmpsbn.config.errors import explain_config_errors
from mmpsbn.config.model import type_of
from mmpsbn.errors import InputError
from mmpsbn.files import write_atomically
from mmpsbn.hooks.filter_collapse_hook import HISTORY, read_history
from mmpsbn.hooks.non_finite_hook import DIVERGED
from mmpsbn.statistics.tables import format_lr

PLAN = 'comparison.json'
FORMAT = 2  # The version of work dirs.
# Files in the folder of a run.
CONFIG, RESULT, JOB = 'config.py', 'result.json', 'job.txt'
# Assumed factor for data loading and checkpoints until the first run has ended.
OVERHEAD = 1.2


class Comparison:
    """One detector, trained with several normalizations.

    Each run has a folder with its config, logs, last checkpoint and, once it
    has ended, ``result.json``. A run that has this file is not repeated. Any
    other run resumes from its last checkpoint. More normalizations, learning
    rates, lengths and seeds can be added to a work dir later.

    With ``tune``, the learning rate of each normalization and length is
    chosen by runs that do not train on a part of the training images, and
    that are evaluated on this part. The final runs train on all training
    images, and only they are evaluated on the validation set.

    Runs of one seed share the order of the data, and their initial weights
    wherever shapes allow, see :func:`~mmpsbn.compare.initial.write_initial`.

    All runs start from the config's ``load_from``, a detector with BN, or from
    the pretrained weights that its model names. The weights are unchanged
    where the layers are those of BN, have no norm layers for GN, and are
    converted for MimicNorm and for each of its parts (MimicBody, BN+LastBN).
    Layers that predict classes are reinitialized if the detector has others.

    Args:
        cfg (Config): The config of a detector with any normalization.
        cfgs (dict[str, Config]): For the name of each normalization in reports,
            the config with it, see :func:`~mmpsbn.compare.replace_norm`.
        lrs (list[float]): The learning rates. If empty, the config's is used.
        seeds (list[int]): The random seeds.
        work_dir (str): The folder of the comparison.
        processes (int): The processes of each run. More than 1 are started by
            torch's launcher.
        lengths (list[float]): The lengths of training, as multiples of the
            config's schedule.
        tune (float, optional): The share of the training images on which
            learning rates are chosen.
        tune_seeds (int): How many tuning runs each learning rate has.
        cluster (Cluster, optional): Trains the runs as its jobs.

    Raises:
        InputError: If the config measures no mAP, if a normalization or the
            weights do not fit the detector, if the training images cannot be
            split, or if the folder belongs to another comparison.
    """

    @explain_config_errors()
    def __init__(
        self,
        cfg: Config,
        cfgs: dict[str, Config],
        lrs: Sequence[float],
        seeds: Sequence[int],
        work_dir: str,
        *,
        processes: int = 1,
        lengths: Sequence[float] = (1,),
        tune: float | None = None,
        tune_seeds: int = 1,
        cluster: Cluster | None = None,
    ) -> None:
        #: The names of mAP and, if it is measured, of mAP50 in evaluations.
        self.score_names, self._other_sets = find_score_names(cfg)
        self.cfg, self.cfgs, self.processes = cfg, cfgs, processes
        #: Trains the runs; None if they are processes of this machine.
        self.cluster = cluster
        lr = (cfg.optim_wrapper.get('optimizer') or {}).get('lr')
        if not lrs and lr is None:
            raise InputError(
                'optim_wrapper.optimizer.lr of the config is not set: a comparison '
                'sets the learning rate of one optimizer. Set it in the config.'
            )
        # A value that is given twice is one run.
        self.lrs = list(dict.fromkeys(lrs or [lr]))
        self.lengths = list(dict.fromkeys(lengths))
        self.seeds = list(dict.fromkeys(seeds))
        self.held_out = None if tune is None else HeldOut(cfg, tune)
        if self.held_out and len(self.lrs) < 2:
            raise InputError(
                f'--tune {tune:g} has nothing to choose from: the only '
                f'learning rate is {format_lr(self.lrs[0])}. Give at '
                'least two --lrs, or leave --tune out.'
            )
        #: The runs that choose learning rates.
        self.tuning = [
            Run(norm, lr, TUNING_SEED + seed, length, tuning=True)
            for seed in range(tune_seeds if self.held_out else 0)
            for length in self.lengths
            for lr in self.lrs
            for norm in cfgs
        ]
        self._placing = describe_placing(cfg, cfgs)
        # Layers for which the common start has no weights.
        self._reinitialized = initial.check_load_from(cfg, cfgs)
        self.work_dir = Path(work_dir)
        self._plan = dict(
            format=FORMAT, config=cfg.pretty_text, processes=processes, tune=tune
        )
        self._check_folder()
        self._workloads = compute_workloads(
            cfg, self.lengths, processes=processes, held_out=self.held_out
        )
        #: What evaluations are counted by: ``epoch`` or ``iteration``.
        self.unit = next(iter(self._workloads.values())).unit
        #: The reasons of runs that have failed in this process.
        self.failures: dict[Run, str] = {}
        # In memory, because the remaining time is computed every second.
        self._results: dict[Run, dict] = {}
        self._progress: dict[Run, float] = {}
        self._interrupted = threading.Event()
        # Parallel runs may start from the same converted weights.
        self._preparing = threading.Lock()
        self._lock = None

    @property
    def runs(self) -> list[Run]:
        """All runs: those that choose learning rates, and the final ones."""
        return [*self.tuning, *self.finals]

    @property
    def finals(self) -> list[Run]:
        """The runs that the report compares."""
        lrs = self.lrs[:1] if self.tuning else self.lrs
        settings = [
            (norm, self.choose_lr(norm, length) if self.tuning else lr, length)
            for length in self.lengths
            for lr in lrs
            for norm in self.cfgs
        ]
        # Seed by seed, so that the report of some seeds has all settings.
        return [
            Run(norm, lr, seed, length)
            for seed in self.seeds
            for norm, lr, length in settings
        ]

    def choose_lr(self, norm: str, length: float) -> float | None:
        """Choose a learning rate by the mean mAP of the tuning runs.

        Of several that are equally good, the lowest is chosen. It is None
        until all tuning runs have ended.
        """
        scores: dict[float, float] = {}
        for run in self.tuning:
            if run.kind == (norm, length, True):
                result = self.result(run)
                if result is None:
                    return None
                score = result['metrics'].get(self.score_names[0], 0)
                scores[run.lr] = scores.get(run.lr, 0) + score
        return max(sorted(scores), key=scores.get)

    def workload(self, run: Run) -> Workload:
        """Return how long a run is."""
        return self._workloads[run.length, run.tuning]

    def folder(self, run: Run) -> Path:
        """Return the folder of a run."""
        return self.work_dir / run.name

    def result(self, run: Run) -> dict | None:
        """Return the results of a run; None before its end.

        They are ``metrics``, ``seconds``, ``diverged`` and ``device``.
        """
        if run not in self._results and run.lr is not None:
            file = self.folder(run) / RESULT
            if file.exists():
                self._results[run] = json.loads(file.read_text())
        return self._results.get(run)

    def curve(self, run: Run, metric: str) -> dict[int, float]:
        """Return a metric by epoch, or by iteration if the config counts so."""
        return {
            line['step']: line[metric] for line in self._scalars(run) if metric in line
        }

    def history(self, run: Run) -> list[dict]:
        """Return what FilterCollapseHook has measured in a run."""
        return read_history(str(self.folder(run) / HISTORY))

    def progress(self, run: Run) -> float:
        """Return the share of its iterations that a run has completed."""
        if run.lr is None:
            return 0.0
        if self.result(run):
            return 1.0
        if run not in self._progress:
            self._read_progress(run)
        return self._progress[run]

    def _read_progress(self, run: Run) -> None:
        steps = [line['iter'] for line in self._scalars(run) if 'iter' in line]
        share = max(steps, default=0) / self.workload(run).iterations
        self._progress[run] = min(1.0, share)

    def _scalars(self, run: Run) -> list[dict]:
        """Return what a run has logged, also before interruptions."""
        files = sorted(self.folder(run).glob('*/vis_data/scalars.json'))
        return [line for file in files for line in read_history(str(file))]

    def estimate_seconds(self, costs: Costs) -> dict[Run, float]:
        """Estimate the seconds of each run, from its start to its end.

        The mean of ended runs of the same kind is used, or else the time of
        its steps and evaluations, corrected by runs of other kinds.
        """
        runs, ended = self.runs, {}
        bare: dict[tuple, float] = {}
        for run in runs:
            workload, cost = self.workload(run), costs[run.norm]
            bare[run.kind] = workload.estimate_seconds(cost, self.processes)
            result = self.result(run)
            if result and not result.get('diverged'):
                ended.setdefault(run.kind, []).append(result['seconds'])
        seconds = {kind: statistics.mean(own) for kind, own in ended.items()}
        factor = OVERHEAD
        if ended:
            expected = sum(len(own) * bare[kind] for kind, own in ended.items())
            factor = sum(map(sum, ended.values())) / expected
        return {run: seconds.get(run.kind, factor * bare[run.kind]) for run in runs}

    def remarks(self) -> list[str]:
        """Return what distinguishes a normalization apart from its layers."""
        sources = ', '.join(initial.name_starts(self.cfg))
        remarks = []
        fixed = ' and '.join(norm for norm in self.cfgs if norm in FIXED)
        if fixed and not sources:
            remarks.append(
                f'The running statistics of {fixed} are those of the starting weights. '
                'The config starts from random weights, so nothing is normalized there.'
            )
        if sources and type_of(self.cfg.model.backbone.get('norm_cfg')) == 'GN':
            remarks.append(
                f'{sources} is assumed to be a checkpoint with GN, because the config '
                'has GN. It has no running statistics for the other normalizations.'
            )
        elif sources and 'GN' in self.cfgs:
            remarks.append(
                f'GN loads {sources} without the norm layers, which are reinitialized.'
            )
        for norm, cfg in self.cfgs.items():
            starts = ', '.join(initial.name_starts(cfg, converted=True))
            if starts:
                remarks.append(
                    f'{norm} starts from {starts}, converted as by '
                    'tools/convert.py if the weights are those of BN.'
                )
        if self._reinitialized:
            remarks.append(
                f'{", ".join(self._reinitialized)} are reinitialized, because '
                f'{self.cfg.load_from} was trained with another number of classes.'
            )
        if self._other_sets:
            remarks.append(
                f'The mAP is {self.score_names[0]}; the config also measures '
                f'{", ".join(self._other_sets)}.'
            )
        return remarks + self._placing

    def write(self) -> None:
        """Make the folder, and hold it until this process has ended.

        Raises:
            InputError: If it cannot be written, or another process holds it.
        """
        with self._explain_errors('written'):
            self.work_dir.mkdir(parents=True, exist_ok=True)
            self._lock = self._lock or processes.lock_folder(self.work_dir)
            # Another comparison may have made the folder in the meantime.
            self._check_folder()
            write_atomically(self.work_dir / PLAN, json.dumps(self._plan).encode())
            if self.held_out:
                self.held_out.write(self.work_dir)

    def interrupt(self) -> None:
        """End the runs in progress, as Ctrl-C does."""
        self._interrupted.set()

    def run(
        self,
        run: Run,
        watch: Callable[[float], None],
        environment: dict[str, str] | None = None,
    ) -> bool:
        """Train a run to its end, from its last checkpoint if there is one.

        Args:
            run (Run): A run of this comparison.
            watch (callable): Is called about once a second with the share of
                iterations that is completed.
            environment (dict, optional): Environment variables of its
                processes, see :func:`~.processes.divide_machine`.

        Returns:
            bool: Whether the run ended, possibly by divergence. If not,
            :attr:`failures` has the reason.

        Raises:
            KeyboardInterrupt: If another thread called :meth:`interrupt`.
        """
        folder = self.folder(run)
        folder.mkdir(exist_ok=True)
        with self._preparing:
            self._config(run).dump(folder / CONFIG)
        train = self._train_here if self.cluster is None else self._train_on_cluster
        try:
            status, device = train(run, watch, environment)
        except InputError as error:
            self.failures[run] = str(error)
            return False
        diverged = bool(status) and (folder / DIVERGED).exists()
        evaluations = [
            line for line in self._scalars(run) if 'step' in line and 'iter' not in line
        ]
        if status and not diverged:
            text = (folder / processes.OUTPUT).read_text(errors='replace')
            self.failures[run] = processes.explain_exit(status, text)
        elif not (diverged or evaluations):
            self.failures[run] = (
                'training ended, but no evaluation was logged: the config '
                'needs a LoggerHook in default_hooks.'
            )
        else:
            result = dict(
                metrics={} if diverged else evaluations[-1],
                seconds=processes.read_seconds(folder),
                diverged=diverged,
                device=device,
            )
            write_atomically(folder / RESULT, json.dumps(result).encode())
            self._results[run] = result
            return True
        return False

    def _train_here(self, run: Run, watch, environment) -> tuple[int, str]:
        """Train a run in a child; its exit status and the device."""
        with processes.count_seconds(self.folder(run)):
            child = processes.start_training(
                self.folder(run) / CONFIG, self.processes, environment, [self._lock]
            )
            try:
                self._watch(run, watch, lambda: child.poll() is not None)
            finally:
                processes.interrupt_child(child)
        if child.returncode and self._interrupted.is_set():
            raise KeyboardInterrupt
        return child.returncode, processes.name_device()

    def _train_on_cluster(self, run: Run, watch, environment) -> tuple[int, str]:
        """Train a run in a job; its exit status and the device."""
        training = partial(
            processes.run_training,
            self.folder(run).absolute() / CONFIG,
            self.processes,
            environment,
        )
        job = self.cluster.start(self.folder(run) / JOB, training)
        try:
            self._watch(run, watch, job.has_ended)
            if self._interrupted.is_set():
                raise KeyboardInterrupt
        except BaseException:
            job.cancel()
            raise
        return job.result()

    def _watch(self, run: Run, watch, ended: Callable[[], bool]) -> None:
        """Report the progress of a run until it ends or is interrupted."""
        while not (ended() or self._interrupted.is_set()):
            self._read_progress(run)
            watch(self._progress[run])
            self._interrupted.wait(1)

    @explain_config_errors()
    def _config(self, run: Run) -> Config:
        """Return the config of a run, and write the weights it starts from."""
        cfg = copy.deepcopy(self.cfgs[run.norm])
        stretch(cfg, run.length)
        if run.tuning:
            self.held_out.use(cfg, self.work_dir)
        cfg.optim_wrapper.optimizer.lr = run.lr
        cfg.randomness = dict(cfg.get('randomness', {}), seed=run.seed)
        record_results(cfg, self.folder(run), self.workload(run))
        initial.convert_starts(cfg, self.work_dir)
        initial.remove_starting_norms(cfg, self.work_dir)
        if not cfg.get('load_from') or self._reinitialized:
            reference = replace_norm(self.cfg, 'BN')
            cfg.load_from = initial.write_initial(
                reference, cfg, seed=run.seed, folder=self.work_dir
            )
        return cfg

    @contextmanager
    def _explain_errors(self, action: str) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise InputError(
                f'the work dir {self.work_dir} cannot be {action}: '
                f'{error.strerror}. Choose another with --work-dir.'
            ) from error

    def _check_folder(self) -> None:
        """Raise unless the work dir is new or belongs to this comparison."""
        with self._explain_errors('read'):
            if not self.work_dir.exists():
                return
            if all(file.name == processes.LOCK for file in self.work_dir.iterdir()):
                return
            file = self.work_dir / PLAN
            found = file.read_text() if file.exists() else None
        if found is None:
            raise InputError(
                f'the work dir {self.work_dir} is not empty and holds no '
                'comparison. Choose another with --work-dir.'
            )
        if json.loads(found) != self._plan:
            raise InputError(
                f'the work dir {self.work_dir} belongs to another comparison: its '
                'config, --cfg-options, --tune or number of processes were different, '
                'or another version of mmpsbn made it. Choose another with --work-dir.'
            )
