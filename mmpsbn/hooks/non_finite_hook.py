"""Gradients that are NaN or infinite, caught before they reach the weights."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from itertools import chain

import torch
from mmengine.dist import all_reduce
from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from mmengine.runner import Runner
from torch import Tensor, nn
from torch.distributed.fsdp import FullyShardedDataParallel

from mmpsbn.errors import InputError
from mmpsbn.registry import HOOKS

ACTIONS = ('stop', 'skip')
# No training gets here: a scaler starts at 2 ** 16, and halves its scale with
# each step that it skips.
LEAST_SCALE = 2.0**-16


@HOOKS.register_module()
class NonFiniteHook(Hook):
    """Stop at, or skip, a step whose gradients are not all finite.

    Without it NaN goes into every weight, and MMEngine trains on to the end.
    The step is judged just before the optimizer takes it, so that weights and
    checkpoints stay good. The batch then goes through the model once more, to
    name the layer that the first NaN or infinity came out of.

    With mixed precision it is the gradient scaler that skips steps, as it
    does while it looks for its scale. What no scale mends, a loss that is not
    finite or a scale below 2^-16, is judged here.

    Args:
        action (str): 'stop' or 'skip'. Defaults to 'stop'.
        most_skipped (int): Steps one after the other to skip at most.
            Defaults to 10.

    Raises:
        InputError: If an argument is none of these; in training, to stop.
    """

    def __init__(self, action: str = 'stop', most_skipped: int = 10) -> None:
        if action not in ACTIONS:
            raise InputError(
                f'NonFiniteHook(action={action!r}): it is one of '
                f'{", ".join(map(repr, ACTIONS))}.'
            )
        self.action, self.most_skipped = action, most_skipped
        self._skipped = 0
        self._batch = None

    def before_train(self, runner: Runner) -> None:
        self._handles = [
            optimizer.register_step_pre_hook(
                lambda optimizer, *_: self._judge(runner, optimizer)
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
        if not _everywhere(_finite(list(_tensors(outputs)))):
            self._refuse(runner, 'the loss is not finite')
        elif scaler.get_scale() < LEAST_SCALE:
            self._refuse(
                runner, 'the gradients are not finite, however small the loss scale is'
            )
        else:
            self._skipped = 0

    def _judge(self, runner: Runner, optimizer) -> None:
        # A fused optimizer gets scaled gradients, and leaves out by itself
        # the steps that its scaler tells it to.
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
            parameter.grad = None  # What an optimizer does not step.

    def _refuse(self, runner: Runner, problem: str) -> None:
        self._skipped += 1
        with _precision(runner):
            origin = find_origin(runner.model, self._batch)
        what = f'iteration {runner.iter + 1}: {problem}; {origin}.'
        if self.action == 'stop' or self._skipped > self.most_skipped:
            raise InputError(
                f'{what} Training stopped before the step, and checkpoints '
                'are of finite weights. Try a smaller lr, a longer warm-up, '
                'or optim_wrapper.clip_grad; NonFiniteHook(action="skip") '
                'leaves out such steps.'
            )
        runner.logger.warning(f'{what} The step is skipped.')


def find_origin(model: nn.Module, batch) -> str:
    """Where NaN or infinity comes from in a training forward, in words.

    Args:
        model (nn.Module): MMEngine's, in training mode; it stays as it is.
        batch: Of its training data.
    """
    wrapper, model = model, (model.module if is_model_wrapper(model) else model)
    # Without FSDP's own forward the parts of a weight stay apart.
    run = wrapper if isinstance(wrapper, FullyShardedDataParallel) else model
    bad = [name for name, p in model.named_parameters() if not _finite([p])]
    if not _everywhere(not bad):
        return 'the weights were not before it' + (f', {bad[0]} for one' if bad else '')
    found: list[str] = []
    handles = [
        module.register_forward_hook(_listener(name, found))
        for name, module in model.named_modules()
        if name
    ]
    try:
        with _buffers_kept(model), torch.no_grad():
            losses = run(
                **_as_arguments(model.data_preprocessor(batch, True)), mode='loss'
            )
    except Exception:  # NaN makes MMDetection's samplers and losses stumble.
        losses = {}
    finally:
        for handle in handles:
            handle.remove()
    found += [
        name for name, value in losses.items() if not _finite(list(_tensors(value)))
    ]
    if not found:
        return 'all layers and losses are, so that it began in the backward'
    return f'it began in {found[0]}'


def _listener(name: str, found: list[str]):

    def listen(module, args, output):
        if not found and not _finite(list(_tensors(output))):
            found.append(
                name if _finite(list(_tensors(args))) else f'the input of {name}'
            )

    return listen


@contextmanager
def _buffers_kept(model: nn.Module):
    """Running statistics, as they were."""
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
    # A norm is read once and written nowhere; that of finite values may be
    # infinite, in half precision for one.
    norms = torch.stack([t.norm().float() for t in tensors])
    return bool(norms.isfinite().all()) or all(
        bool(t.isfinite().all()) for t in tensors
    )


def _tensors(value) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
        return
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, (list, tuple)):
        for item in value:
            yield from _tensors(item)


def _optimizers(optim_wrapper) -> list[torch.optim.Optimizer]:
    if hasattr(optim_wrapper, 'optim_wrappers'):  # An OptimWrapperDict.
        return [w.optimizer for w in optim_wrapper.optim_wrappers.values()]
    return [optim_wrapper.optimizer]


def _scaler(optim_wrapper):
    """The gradient scaler that is at work, or None."""
    scaler = getattr(optim_wrapper, 'loss_scaler', None)
    return scaler if scaler is not None and scaler.is_enabled() else None


def _precision(runner: Runner):
    """That of a training forward, for a with statement."""
    if _scaler(runner.optim_wrapper) is None:
        return nullcontext()
    return runner.optim_wrapper.optim_context(runner.model)


def _everywhere(finite: bool) -> bool:
    """Whether so in all processes, which have to decide as one.

    FSDP gives each its own part of the gradients, and the forward that looks
    for the layer waits for all.
    """
    flag = torch.tensor(float(finite))
    all_reduce(flag, 'min')
    return bool(flag)
