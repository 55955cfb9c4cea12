"""A hook that stops a training before NaN or infinity reaches the weights."""

import json
from contextlib import contextmanager, nullcontext
from itertools import chain
from pathlib import Path

import torch
from mmengine.dist import all_reduce, barrier, is_main_process
from mmengine.hooks import Hook
from mmengine.runner import Runner
from torch import Tensor, nn
from torch.distributed.fsdp import FullyShardedDataParallel

from mmpsbn.detectors.outputs import floating_tensors
from mmpsbn.errors import DivergenceError, InputError
from mmpsbn.files import write_atomically
from mmpsbn.hooks.watched_step import unwrap
from mmpsbn.registry import HOOKS

ACTIONS = ('stop', 'skip')
#: The file in the work dir of a training that this hook has stopped.
DIVERGED = 'diverged.json'
# A scaler starts at 2 ** 16 and halves its scale with each step that it skips.
# No healthy training has a scale as small as this.
LEAST_SCALE = 2.0**-16


@HOOKS.register_module()
class NonFiniteHook(Hook):
    """Stop at, or skip, a step whose gradients are not all finite.

    Without this hook, NaN reaches every weight, and MMEngine trains on to the
    end. The hook checks a step just before the optimizer takes it, so weights
    and checkpoints stay finite. It then passes the batch through the model
    once more, to name the layer whose output is the first that is not finite.

    With mixed precision, the gradient scaler skips such steps itself while it
    searches for its scale. The hook checks what no scale can correct: a loss
    that is not finite, or a scale below 2^-16.

    When it stops a training, the main process writes ``diverged.json`` into
    the work dir, with the ``iteration`` and the ``cause``. The next training
    in this work dir removes the file.

    Args:
        action (str): 'stop' or 'skip'. Defaults to 'stop'.
        most_skipped (int): How many steps in a row are skipped at most.
            Defaults to 10.

    Raises:
        InputError: If the action is unknown.
        DivergenceError: In training, to stop it.
    """

    def __init__(self, action: str = 'stop', most_skipped: int = 10) -> None:
        if action not in ACTIONS:
            raise InputError(
                f'NonFiniteHook(action={action!r}) is not supported. Choose '
                f'{" or ".join(map(repr, ACTIONS))}.'
            )
        self.action, self.most_skipped = action, most_skipped
        self._skipped = 0
        self._batch = None

    def before_train(self, runner: Runner) -> None:
        if is_main_process():
            Path(runner.work_dir, DIVERGED).unlink(missing_ok=True)
        self._handles = [
            optimizer.register_step_pre_hook(
                lambda optimizer, *_: self._check(runner, optimizer)
            )
            for optimizer in _optimizers(runner.optim_wrapper)
        ]

    def after_train(self, runner: Runner) -> None:
        for handle in self._handles:
            handle.remove()

    def before_train_iter(
        self, runner: Runner, batch_idx: int, data_batch=None
    ) -> None:
        self._batch = data_batch

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch=None, outputs=None
    ) -> None:
        scaler = _scaler(runner.optim_wrapper)
        if scaler is None:
            return
        if not _everywhere(_finite(floating_tensors(outputs))):
            self._refuse(runner, 'the loss is not finite')
        elif scaler.get_scale() < LEAST_SCALE:
            self._refuse(
                runner, 'the gradients are not finite, however small the loss scale is'
            )
        else:
            self._skipped = 0

    def _check(self, runner: Runner, optimizer) -> None:
        # A fused optimizer receives scaled gradients, and skips the steps that
        # its scaler reports.
        if getattr(optimizer, 'found_inf', None) is not None:
            return
        parameters = list(
            chain.from_iterable(group['params'] for group in optimizer.param_groups)
        )
        if _everywhere(_finite([p.grad for p in parameters if p.grad is not None])):
            self._skipped = 0
            return
        self._refuse(runner, 'the gradients are not finite')
        for parameter in parameters:
            parameter.grad = None  # An optimizer does not step these.

    def _refuse(self, runner: Runner, problem: str) -> None:
        self._skipped += 1
        with _precision(runner):
            origin = find_origin(runner.model, self._batch)
        cause = f'{problem}; {origin}'
        what = f'iteration {runner.iter + 1}: {cause}.'
        if self.action == 'stop' or self._skipped > self.most_skipped:
            if is_main_process():
                found = dict(iteration=runner.iter + 1, cause=cause)
                write_atomically(
                    Path(runner.work_dir, DIVERGED), json.dumps(found).encode()
                )
            # The launcher kills all processes when the first one has ended.
            barrier()
            raise DivergenceError(
                f'{what} Training stopped before the step, so the weights of '
                'all checkpoints are finite. Try a smaller lr, a longer '
                'warm-up, or optim_wrapper.clip_grad. '
                'NonFiniteHook(action="skip") skips such steps.'
            )
        runner.logger.warning(f'{what} The step is skipped.')


def find_origin(model: nn.Module, batch) -> str:
    """Describe where NaN or infinity first appears in a forward pass.

    Args:
        model (nn.Module): The model of MMEngine in training mode, which is
            not changed.
        batch: A batch of its training data.
    """
    wrapper, model = model, unwrap(model)
    # Only FSDP's own forward joins the parts of a weight.
    run = wrapper if isinstance(wrapper, FullyShardedDataParallel) else model
    bad = [name for name, p in model.named_parameters() if not _finite([p])]
    if not _everywhere(not bad):
        return 'the weights were already non-finite before this step' + (
            f' (for example {bad[0]})' if bad else ''
        )
    found: list[str] = []
    handles = [
        module.register_forward_hook(_listener(name, found))
        for name, module in model.named_modules()
        if name
    ]
    try:
        with _restore_buffers(model), torch.no_grad():
            losses = run(
                **_as_arguments(model.data_preprocessor(batch, True)), mode='loss'
            )
    except Exception:  # MMDetection's samplers and losses may fail on NaN.
        losses = {}
    finally:
        for handle in handles:
            handle.remove()
    found += [
        name for name, value in losses.items() if not _finite(floating_tensors(value))
    ]
    if not found:
        return (
            'non-finite values first appeared in the backward pass (the forward pass '
            'and all losses were finite)'
        )
    return f'non-finite values first appeared in {found[0]}'


def _listener(name: str, found: list[str]):

    def listen(module, args, output):
        if not found and not _finite(floating_tensors(output)):
            found.append(
                name if _finite(floating_tensors(args)) else f'the input of {name}'
            )

    return listen


@contextmanager
def _restore_buffers(model: nn.Module):
    """Restore the running statistics of a model at the end."""
    buffers = {name: b.clone() for name, b in model.named_buffers()}
    try:
        yield
    finally:
        for name, buffer in model.named_buffers():
            buffer.copy_(buffers[name])


def _as_arguments(data) -> dict:
    return (
        data if isinstance(data, dict) else dict(zip(('inputs', 'data_samples'), data))
    )


def _finite(tensors: list[Tensor]) -> bool:
    tensors = [t.detach() for t in tensors if t.is_floating_point() and t.numel()]
    if not tensors:
        return True
    # A norm needs one pass and no memory. It may be infinite although all
    # values are finite, in half precision for example.
    norms = torch.stack([t.norm().float() for t in tensors])
    return bool(norms.isfinite().all()) or all(
        bool(t.isfinite().all()) for t in tensors
    )


def _optimizers(optim_wrapper) -> list[torch.optim.Optimizer]:
    if hasattr(optim_wrapper, 'optim_wrappers'):  # An OptimWrapperDict.
        return [w.optimizer for w in optim_wrapper.optim_wrappers.values()]
    return [optim_wrapper.optimizer]


def _scaler(optim_wrapper):
    """Return the gradient scaler; None if there is none or it is disabled."""
    scaler = getattr(optim_wrapper, 'loss_scaler', None)
    return scaler if scaler is not None and scaler.is_enabled() else None


def _precision(runner: Runner):
    """Return a context with the precision of a training's forward pass."""
    if _scaler(runner.optim_wrapper) is None:
        return nullcontext()
    return runner.optim_wrapper.optim_context(runner.model)


def _everywhere(finite: bool) -> bool:
    """Return whether all processes pass True, so that they decide alike.

    With FSDP each process has a part of the gradients, and the forward pass
    that searches for the layer waits for all processes.
    """
    flag = torch.tensor(float(finite))
    all_reduce(flag, 'min')
    return bool(flag)
