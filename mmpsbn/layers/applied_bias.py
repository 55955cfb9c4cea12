"""The bias that a psBN layer applies, as the rest of the stack sees it."""

from functools import wraps

import torch
from torch import Tensor

# In-place methods that give a tensor its first value, as initializers do.
_INITIALIZERS = ('fill_', 'zero_', 'normal_', 'uniform_')
# Names that end like in-place methods, yet write no values.
_NO_WRITES = ('requires_grad_', 'detach_', 'share_memory_')


class AppliedBias(Tensor):
    """``beta + alpha``, a tensor whose in-place methods reach ``beta``.

    The learned parameter of psBN is beta; the bias it applies, beta + alpha,
    exists only as a sum. Code that *reads* a norm layer's bias (fusing it
    into a conv, saving it) needs nothing more. Code that *writes* it in
    place (initializers, EMA through the state dict, the broadcast of initial
    weights) would write to a temporary, so here the value goes on to beta:

    - an initializer (``fill_``, ``zero_``, ``normal_``, ``uniform_``) says
      where the learned parameter starts: beta becomes that value;
    - every other in-place method, ``copy_`` and ``lerp_`` among them, works
      on the sum: beta becomes the result minus alpha.

    ``data`` and ``detach()`` are made anew from beta and write to it as
    well; ``grad`` and ``requires_grad`` are beta's, but those of a detached
    bias are its own. Results of operations, copies and pickles are plain
    tensors.
    """

    __torch_function__ = torch._C._disabled_torch_function_impl
    _beta = None
    _alpha = 0.0
    _detached = False

    @classmethod
    def of(cls, beta: Tensor, alpha: float) -> 'AppliedBias':
        bias = (beta + alpha).as_subclass(cls)
        bias._beta, bias._alpha = beta, alpha
        return bias

    def _owner(self, name: str) -> tuple:
        """The descriptor of an attribute of autograd, and its owner."""
        owner = self if self._detached or self._beta is None else self._beta
        return getattr(Tensor, name), owner

    @torch.no_grad()
    def _write_back(self, initialized: bool) -> None:
        if self._beta is None:
            return
        if initialized:
            self._beta.copy_(self)
            Tensor.add_(self, self._alpha)
        else:
            self._beta.copy_(self.as_subclass(Tensor) - self._alpha)

    @torch.no_grad()
    def detach(self) -> Tensor:
        if self._beta is None:
            return super().detach().as_subclass(type(self))
        bias = type(self).of(self._beta, self._alpha)
        bias._detached = True
        return bias

    @property
    def data(self) -> Tensor:
        return self.detach()

    @data.setter
    def data(self, value: Tensor) -> None:
        self._beta.data = value - self._alpha

    @property
    def grad(self):
        descriptor, owner = self._owner('grad')
        return descriptor.__get__(owner)

    @grad.setter
    def grad(self, value) -> None:
        descriptor, owner = self._owner('grad')
        descriptor.__set__(owner, value)

    @property
    def requires_grad(self) -> bool:
        descriptor, owner = self._owner('requires_grad')
        return descriptor.__get__(owner)

    @requires_grad.setter
    def requires_grad(self, value: bool) -> None:
        descriptor, owner = self._owner('requires_grad')
        descriptor.__set__(owner, value)

    def requires_grad_(self, requires_grad: bool = True) -> Tensor:
        self.requires_grad = requires_grad
        return self

    def to(self, *args, **kwargs) -> Tensor:
        # The same type, which MMEngine's broadcast insists on.
        return super().to(*args, **kwargs).as_subclass(type(self))

    def type(self, *args, **kwargs):
        if args or kwargs:
            return super().type(*args, **kwargs)
        # torch puts this name into its error when the bias is assigned as
        # another module's parameter, as convert_sync_batchnorm does.
        return ('the bias of psBN, beta + alpha: BN and SyncBN cannot hold '
                'its alpha; to synchronize psBN, set '
                "norm_cfg=dict(type='psSyncBN') instead of sync_bn or "
                'convert_sync_batchnorm')

    def __deepcopy__(self, memo) -> Tensor:
        return self.as_subclass(Tensor).detach().clone()

    def __reduce_ex__(self, protocol):
        return self.as_subclass(Tensor).detach().__reduce_ex__(protocol)


def _writing(name: str):
    method = getattr(Tensor, name)

    @wraps(method)
    def write(self, *args, **kwargs):
        result = method(self, *args, **kwargs)
        self._write_back(initialized=name in _INITIALIZERS)
        return self if isinstance(result, Tensor) else result

    return write


for _name in dir(Tensor):
    _in_place = _name.endswith('_') and not _name.startswith('_')
    if (_in_place and _name not in _NO_WRITES) or _name in (
            '__setitem__', '__iadd__', '__isub__', '__imul__', '__itruediv__'):
        setattr(AppliedBias, _name, _writing(_name))
