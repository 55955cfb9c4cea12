"""Layers that act around the step of every torch optimizer.

psBN lets the optimizer step on beta while the layer holds beta + alpha, and
MimicNorm centers its filters after each step. Both have to happen in any
training loop, directly around the arithmetic of the step. torch's own
``register_optimizer_step_pre_hook`` and ``..._post_hook`` do not fit:

- torch skips the post-hooks if the step raises, and psBN would lose alpha;
- the hooks of one optimizer run between the global ones. A hook that averages
  the weights, or that runs the model once more, would see beta instead of the
  bias.

This module therefore wraps the ``step`` methods themselves, inside of the
wrapper that runs torch's hooks. Optimizers without such layers are unchanged.
"""

import functools
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple
from weakref import WeakKeyDictionary, WeakSet

import torch
from torch import Tensor, nn
from torch.optim import Optimizer


class StepAware:
    """A mixin for modules that change a parameter around optimizer steps.

    It stands before the module in the list of bases, and the constructor ends
    with :meth:`join_steps`.
    """

    #: The name of the parameter.
    stepped: str
    #: What is lost if an optimizer cannot be followed, and what to do.
    missed: str

    @staticmethod
    def before_step(
        layers: Sequence['StepAware'], parameters: Sequence[nn.Parameter]
    ) -> None:
        """Prepare the parameters of an optimizer's layers for its step."""

    @staticmethod
    def after_step(
        layers: Sequence['StepAware'], parameters: Sequence[nn.Parameter]
    ) -> None:
        """Finish after the step, and before each call of its closure."""

    def join_steps(self) -> None:
        """Let the steps of the optimizer that holds the parameter act."""
        # torch.fx inlines what is not torch's, and cannot trace a forward pass
        # that asks for shapes or counts batches.
        self.__dict__['__module__'] = nn.Module.__module__
        _wrap_optimizers()
        with _lock:
            _layers.add(self)
            _joined[0] += 1

    def __setstate__(self, state) -> None:
        super().__setstate__(state)
        self.join_steps()

    def is_missed(self) -> bool:
        """Whether an optimizer trains the layer by a copy of the parameter.

        The parameter has then changed since the last call. One that has a
        gradient alone may belong to no optimizer, or to one that steps later.
        """
        parameter = self._parameters.get(self.stepped)
        if getattr(parameter, 'grad', None) is None:
            return False
        before, norm = _norms.get(self), parameter.detach().norm()
        _norms[self] = norm
        return before is not None and bool(before != norm)


class Part(NamedTuple):
    """Layers of an optimizer that are changed together."""

    before_step: Callable
    after_step: Callable
    layers: list[StepAware]
    parameters: list[nn.Parameter]


class Plan:
    """The layers that the steps of an optimizer change."""

    def __init__(self) -> None:
        self.held: list[int] = []
        self.owned: dict[int, tuple[StepAware, nn.Parameter, tuple]] = {}
        self.joined = self.steps = 0

    def update(self, parameters: list[nn.Parameter]) -> None:
        """Find the layers again if parameters or layers have been added.

        A layer that was found once is kept, because fully_shard replaces its
        parameter from time to time.

        Args:
            parameters (list[nn.Parameter]): All that the optimizer holds.
        """
        held = list(map(id, parameters))
        if self.joined == _joined[0] and self.held == held:
            return
        found = {
            id(layer._parameters.get(layer.stepped)): layer for layer in _live_layers()
        }
        found = {**{key: own[0] for key, own in self.owned.items()}, **found}
        self.owned = {}
        for parameter in parameters:
            layer = found.get(id(parameter))
            if layer is not None:
                # One operation on several DTensors takes one mesh.
                kind = (
                    layer.before_step,
                    layer.after_step,
                    getattr(parameter, 'device_mesh', None),
                )
                self.owned[id(parameter)] = layer, parameter, kind
                _reached.add(layer)
        self.held, self.joined = held, _joined[0]

    def parts(self) -> list[Part]:
        """The layers whose parameters are trained, in parts."""
        parts: dict[tuple, Part] = {}
        for key, (layer, parameter, kind) in self.owned.items():
            # A step changes what has a gradient, even if it was frozen later.
            frozen = not parameter.requires_grad and parameter.grad is None
            # An optimizer may step within the step of one that wraps it.
            if frozen or key in _stepping:
                continue
            part = parts.get(kind)
            if part is None:
                part = parts[kind] = Part(*kind[:2], [], [])
            part.layers.append(layer)
            part.parameters.append(parameter)
        return list(parts.values())


# Threads may build models and train others, and a signal may interrupt one.
_lock = threading.RLock()
_layers: 'WeakSet[StepAware]' = WeakSet()
_joined = [0]  # The number of layers that have ever joined.
_reached: 'WeakSet[StepAware]' = WeakSet()
_norms: 'WeakKeyDictionary[StepAware, Tensor]' = WeakKeyDictionary()
_stepping: set[int] = set()  # Parameters within a step.


@functools.cache
def _wrap_optimizers() -> None:
    """Wrap the steps of all optimizer classes, present and future."""
    hooked = Optimizer.profile_hook_step

    @functools.wraps(hooked)
    def profile_hook_step(step: Callable) -> Callable:
        return hooked(_wrap(step))

    Optimizer.profile_hook_step = staticmethod(profile_hook_step)
    # Others may have decorated a step that torch has wrapped. Therefore its
    # wrapper stays, and calls another function.
    code, wrappers, classes = hooked(_wrap).__code__, set(), [Optimizer]
    while classes:
        cls = classes.pop()
        classes += cls.__subclasses__()
        step = cls.step
        while step and getattr(step, '__code__', None) is not code:
            step = getattr(step, '__wrapped__', None)
        wrappers.add(step)
    for wrapper in wrappers - {None}:
        for cell in wrapper.__closure__:
            if cell.cell_contents is wrapper.__wrapped__:
                cell.cell_contents = _wrap(wrapper.__wrapped__)


def _wrap(step: Callable) -> Callable:

    @functools.wraps(step)
    def wrapper(optimizer: Optimizer, *args, **kwargs):
        parts = _parts(optimizer)
        if not parts:
            return step(optimizer, *args, **kwargs)

        def outside(argument):
            # Some optimizers take the model, too.
            is_closure = callable(argument) and not isinstance(argument, nn.Module)
            return _outside(parts)(argument) if is_closure else argument

        with _inside(parts):
            return step(
                optimizer,
                *map(outside, args),
                **{name: outside(arg) for name, arg in kwargs.items()},
            )

    return wrapper


# torch.compile of a step compiles the arithmetic alone. It must not trace the
# functions that keep account of the layers.
@torch._disable_dynamo
def _parts(optimizer: Optimizer) -> list[Part]:
    """The layers that a step of an optimizer changes."""
    # A global dictionary of plans would keep the optimizer alive if a hook of
    # a layer refers to it. Copies of an optimizer do not copy this attribute.
    plan = vars(optimizer).get('_step_plan')
    if plan is None:
        plan = optimizer._step_plan = Plan()
    plan.update([p for group in optimizer.param_groups for p in group['params']])
    if plan.steps < 2:
        _warn_of_missed()
        plan.steps += 1
    return plan.parts()


def _live_layers() -> list[StepAware]:
    with _lock:
        return list(_layers)


def _warn_of_missed() -> None:
    missed: dict[str, list[StepAware]] = {}
    for layer in _live_layers():
        if layer.training and layer not in _reached and layer.is_missed():
            missed.setdefault(layer.missed, []).append(layer)
    for message, layers in missed.items():
        _reached.update(layers)  # One warning is enough.
        warnings.warn(f'{len(layers)} {message}', stacklevel=5)


@torch._disable_dynamo
@torch.no_grad()
def _enter(parts: list[Part]) -> None:
    for part in parts:
        _stepping.update(map(id, part.parameters))
        part.before_step(part.layers, part.parameters)


@torch._disable_dynamo
@torch.no_grad()
def _leave(parts: list[Part]) -> None:
    for part in parts:
        # Ctrl-C may have come before the part was entered.
        if id(part.parameters[0]) in _stepping:
            _stepping.difference_update(map(id, part.parameters))
            part.after_step(part.layers, part.parameters)


@contextmanager
def _inside(parts: list[Part]) -> Iterator[None]:
    try:
        _enter(parts)
        yield
    finally:
        _leave(parts)


@contextmanager
def _outside(parts: list[Part]) -> Iterator[None]:
    """For a closure, which sees the layers as they are between steps."""
    _leave(parts)
    try:
        yield
    finally:
        _enter(parts)
