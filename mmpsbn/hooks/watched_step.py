"""Watching a single training step of a model."""

from contextlib import AbstractContextManager

from mmengine.model import is_model_wrapper
from torch import nn


def unwrap(model: nn.Module) -> nn.Module:
    """Return a model without its wrapper, such as DDP."""
    return model.module if is_model_wrapper(model) else model


def watch_next_step(model: nn.Module, watch: AbstractContextManager) -> None:
    """Enter a context for the next ``train_step`` of a model only.

    MMEngine does not call ``after_train_iter`` if a step raises, so a hook
    that enters a context in ``before_train_iter`` would never leave it.

    Args:
        model (nn.Module): The model of a Runner.
        watch (context manager): Entered before the step, and left after it
            even if the step raises.
    """
    # torch.compile, if a config asks for it, has replaced the method, too.
    own = vars(model).get('train_step')

    def train_step(*args, **kwargs):
        if own is None:
            del model.train_step
        else:
            model.train_step = own
        with watch:
            return model.train_step(*args, **kwargs)

    model.train_step = train_step
