"""Layers that act around the step of every torch optimizer.

psBN lets the optimizer step on beta while the layer holds beta + alpha, and
MimicNorm centers its filters after each step. Both have to happen in any
training loop, directly around the arithmetic of the step. torch's own
``register_optimizer_step_pre_hook`` and ``..._post_hook`` are not enough:

- torch skips the post-hooks if the step raises, and psBN would lose alpha
  (test_a_step_that_raises_leaves_the_bias_applied);
- the hooks of one optimizer run between the global ones. A hook that averages
  the weights, or runs the model again, would see beta instead of the bias
  (test_hooks_of_the_optimizer_see_the_applied_bias).

This module therefore wraps the ``step`` methods themselves, inside the
wrapper that runs torch's hooks. Optimizers without such layers are unchanged.
"""

import functools
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary, WeakSet

import torch
from torch import Tensor, nn
from torch.optim import Optimizer


class StepAware(nn.Module):
    """A mixin for layers that change a parameter around optimizer steps.

    List it before the layer's other base classes, and end the constructor
    with :meth:`join_steps`.
    """

    #: The name of the parameter.
    stepped: str
    #: A warning for layers whose optimizer cannot be followed.
    missed: str

    @staticmethod
    def before_step(layers: list, parameters: list[Tensor]) -> None:
        """Change the parameters of an optimizer's layers before its step.

        Args:
            layers (list[StepAware]): Layers that share this method.
            parameters (list[Tensor]): The parameter of each layer.
        """

    @staticmethod
    def after_step(layers: list, parameters: list[Tensor]) -> None:
        """Change the parameters after the step and before its closure runs.

        Args:
            layers (list[StepAware]): Layers that share this method.
            parameters (list[Tensor]): The parameter of each layer.
        """

    def join_steps(self) -> None:
        """Make the steps of every optimizer that holds the parameter act."""
        # torch.fx traces into modules that are not in torch.nn, but it cannot
        # trace forward passes that read shapes or count batches. Needed by
        # test_torch_fx_traces_it_like_bn and test_torch_fx_traces_it_like_a_conv.
        self.__module__ = nn.Module.__module__
        _wrap_optimizers()
        with _lock:
            _layers.add(self)
            _joined[0] += 1

    def leave_steps(self) -> None:
        """Undo :meth:`join_steps`, before the layer changes its class."""
        self.__dict__.pop('__module__', None)
        with _lock:
            _layers.discard(self)
            _joined[0] += 1

    def __setstate__(self, state: dict) -> None:
        super().__setstate__(state)
        self.join_steps()

    def is_missed(self) -> bool:
        """Return whether an optimizer trains a copy of the parameter.

        This is so if the parameter has a gradient and has changed since the
        last call. A gradient alone proves nothing: the parameter may belong
        to no optimizer, or to one that steps later.
        """
        parameter = self._parameters.get(self.stepped)
        if parameter is None or parameter.grad is None:
            return False
        before, norm = _norms.get(self), parameter.detach().norm()
        _norms[self] = norm
        return before is not None and bool(before != norm)


class Part(NamedTuple):
    """Layers of an optimizer whose parameters are changed in one call."""

    before_step: Callable
    after_step: Callable
    layers: list[StepAware]
    parameters: list[Tensor]


class Plan:
    """The layers that the steps of an optimizer change."""

    def __init__(self) -> None:
        self.held: list[int] = []
        self.owned: dict[int, tuple[StepAware, nn.Parameter, tuple]] = {}
        self.joined = self.steps = 0

    def update(self, parameters: list[nn.Parameter]) -> None:
        """Find the layers again if parameters or layers have been added.

        Layers that were found before are kept, because fully_shard replaces
        their parameters from time to time.

        Args:
            parameters (list[nn.Parameter]): All parameters of the optimizer.
        """
        held = list(map(id, parameters))
        if self.joined == _joined[0] and self.held == held:
            return
        found = {
            id(layer._parameters.get(layer.stepped)): layer for layer in _live_layers()
        }
        # A layer that has left the steps has another class.
        before = {
            key: layer
            for key, (layer, *_) in self.owned.items()
            if isinstance(layer, StepAware)
        }
        found = {**before, **found}
        self.owned = {}
        for parameter in parameters:
            layer = found.get(id(parameter))
            if layer is not None:
                # One operation on several DTensors needs them on one mesh.
                kind = (
                    layer.before_step,
                    layer.after_step,
                    getattr(parameter, 'device_mesh', None),
                )
                self.owned[id(parameter)] = layer, parameter, kind
                _reached.add(layer)
        self.held, self.joined = held, _joined[0]

    def parts(self) -> list[Part]:
        """Return the layers whose parameters are trained, in parts."""
        parts: dict[tuple, Part] = {}
        for key, (layer, parameter, kind) in self.owned.items():
            # A step changes a parameter with a gradient even if it is frozen.
            frozen = not parameter.requires_grad and parameter.grad is None
            # An optimizer may step within the step of one that wraps it.
            if frozen or key in _stepping:
                continue
            part = parts.get(kind)
            if part is None:
                part = parts[kind] = Part(kind[0], kind[1], [], [])
            part.layers.append(layer)
            part.parameters.append(parameter)
        return list(parts.values())


# Threads may build models and train others, and a signal may interrupt one.
_lock = threading.RLock()
_layers: 'WeakSet[StepAware]' = WeakSet()
_joined = [0]  # How often a layer has joined.
_reached: 'WeakSet[StepAware]' = WeakSet()
_norms: 'WeakKeyDictionary[StepAware, Tensor]' = WeakKeyDictionary()
_stepping: set[int] = set()  # The ids of the parameters that are in a step.


@functools.cache
def _wrap_optimizers() -> None:
    """Wrap the steps of all optimizer classes, present and future."""
    hooked = Optimizer.profile_hook_step

    @functools.wraps(hooked)
    def profile_hook_step(step: Callable) -> Callable:
        return hooked(_wrap(step))

    Optimizer.profile_hook_step = staticmethod(profile_hook_step)  # type: ignore[assignment,method-assign]
    # torch has wrapped the steps of optimizers that exist already, and
    # profilers and schedulers hold these wrappers. Replacing `cls.step` would
    # not reach them, so each wrapper gets another function to call. Needed by
    # test_optimizers_that_existed_before_and_schedulers and
    # test_decorated_steps_stay_decorated.
    code, wrappers, classes = hooked(_wrap).__code__, set(), [Optimizer]
    while classes:
        cls = classes.pop()
        classes += cls.__subclasses__()
        step: Any = cls.step
        while step and getattr(step, '__code__', None) is not code:
            step = getattr(step, '__wrapped__', None)
        if step is None and getattr(vars(cls).get('step'), 'hooked', False):
            # torch.compile of torch 2.1 has taken off torch's wrapper for good.
            cls.step = _wrap(cls.step)  # type: ignore[method-assign]
        wrappers.add(step)
    for wrapper in wrappers - {None}:
        for cell in wrapper.__closure__:
            if cell.cell_contents is wrapper.__wrapped__:
                # torch.compile of torch 2.1 replaces the wrapper by this attribute.
                cell.cell_contents = wrapper.__wrapped__ = _wrap(wrapper.__wrapped__)
                break


def _wrap(step: Callable) -> Callable:
    """Return a step that changes the layers before and after its arithmetic."""

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


# torch.compile may compile the arithmetic of a step, but must not trace the
# functions that find the layers (test_a_compiled_step).
@torch._disable_dynamo
def _parts(optimizer: Optimizer) -> list[Part]:
    """Return the layers that a step of an optimizer changes."""
    # A global dictionary of plans would keep the optimizer alive if a hook of
    # a layer refers to it (test_a_hook_of_a_layer_keeps_no_optimizer_alive).
    # Copies of an optimizer do not have this attribute.
    plan = vars(optimizer).get('_step_plan')
    if plan is None:
        plan = vars(optimizer)['_step_plan'] = Plan()
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
    """Undo the changes while a closure runs, which evaluates the model."""
    _leave(parts)
    try:
        yield
    finally:
        _enter(parts)
