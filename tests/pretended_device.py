"""A GPU that is not there. The processor computes, but every tensor knows on which device it lies,
and what a real device refuses is refused.

    with pretended('cuda') as gpu:              # or 'mps'
        torch.zeros(3, device='cuda') + torch.zeros(3)          # DeviceFault

Refused are: tensors of two devices in one operation, tensors of the device turned into NumPy,
generators of the other device, and float64 on MPS. The device has its own stream of random numbers,
its own autocast, and its place in what `torch.save` writes. Not pretended: the digits of its
arithmetic, its speed, several devices, and operations that it lacks.
"""
from contextlib import ExitStack
from types import SimpleNamespace
from unittest.mock import patch

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter


class DeviceFault(RuntimeError):
    "What a real device would have refused"


class NoArray(DeviceFault, TypeError):
    "A tensor on the device was to become an array"


def storage_of(tensor):
    try: return tensor.untyped_storage()
    except NotImplementedError: return None     # a tensor without memory, such as a sparse one


def lies_there(tensor):
    "Whether a tensor lies on the pretended device"
    return getattr(storage_of(tensor), 'pretended', False)


def put(tensor, there):
    "Says of the memory of a tensor, and so of all that shares it, where it lies"
    storage_of(tensor).pretended = there
    return tensor


class Operations(TorchDispatchMode):
    """Sees each operation as it reaches the processor: who may take part in it, which random
    numbers it draws, and where its result lies"""
    # They copy from one device to another, or look at no numbers.
    across = {'copy_', '_to_copy', 'set_', '_local_scalar_dense', 'detach', 'alias', 'lift_fresh'}
    # Beside those that work number by number, they take a tensor without dimensions from the
    # processor.
    takes_a_number = {'fill_', 'fill', 'full_like', 'index_put_', 'index_put', '_index_put_impl_',
                      'masked_fill_', 'masked_fill'}

    def __init__(self, gpu):
        super().__init__()
        self.gpu = gpu

    def __torch_dispatch__(self, op, types, args=(), kwargs=None):
        kwargs, name = dict(kwargs or {}), op.overloadpacket.__name__
        given = list(tree_iter((args, kwargs)))
        inputs = [o for o in given if isinstance(o, Tensor)]
        there = any(map(lies_there, inputs))
        if there and name not in self.across: self.check_places(op, name, args, inputs)
        # A copy, and the way back, ask for the processor because they really run on it; who moves a
        # tensor there is seen in `Calls`.
        if (there and (name == '_to_copy' or torch._C._current_graph_task_id() >= 0)
            and not self.gpu.means(kwargs.get('device') or 'cpu')):
            kwargs.pop('device', None)
        if kwargs.get('device') is not None:
            there = self.gpu.means(kwargs['device'])
            if there: kwargs['device'] = torch.device('cpu')
        generator = next((o for o in given if isinstance(o, Generator)), None)
        if generator is not None and (generator._cdata in self.gpu.generators) != there:
            kinds = ('cpu', self.gpu.kind) if there else (self.gpu.kind, 'cpu')
            self.gpu.refuse(f"{op}: expected a '{kinds[1]}' device type for generator but found "
                            f"'{kinds[0]}'")
        if there and generator is None and torch.Tag.nondeterministic_seeded in op.tags:
            with self.gpu.stream(): result = op(*args, **kwargs)
        else: result = op(*args, **kwargs)
        if there and name != 'set_':
            before = {id(s): s for s in map(storage_of, inputs)}
            for o in tree_iter(result):
                if not isinstance(o, Tensor): continue
                if (self.gpu.kind == 'mps' and o.dtype == torch.float64
                    and name != '_local_scalar_dense'):
                    self.gpu.refuse(f"{op}: cannot make a MPS Tensor of float64, as the MPS "
                                    "framework doesn't support it")
                if id(storage_of(o)) not in before: put(o, True)
        return result

    def check_places(self, op, name, args, inputs):
        ours = [o for o in inputs if lies_there(o)]
        theirs = [o for o in inputs if not lies_there(o)]
        # the device takes positions from the processor, not the other way round
        if 'index' in name and isinstance(args[1], (list, tuple)):
            if lies_there(args[0]):
                theirs = [o for o in args[2:3] if isinstance(o, Tensor) and not lies_there(o)]
            elif ours: return self.mixed(op, inputs)
        if not theirs: return
        numbers_pass = (torch.Tag.pointwise in op.tags or name in self.takes_a_number
                        or name.startswith(('_foreach', '_fused')))
        alone = (all(o.dim() == 0 for o in theirs) and numbers_pass
                 and (any(o.dim() for o in ours) or all(o.dim() == 0 for o in inputs)))
        if name.startswith('_foreach') and not alone: alone = self.lists_agree(args)
        if not alone: self.mixed(op, inputs)

    def lists_agree(self, args): # an operation on lists is one for each row of them
        lists = [o for o in args if isinstance(o, (list, tuple)) and o and isinstance(o[0], Tensor)]
        return all(len({lies_there(o) for o in row if o.dim()}) <= 1
                   for row in zip(*lists, strict=True))

    def mixed(self, op, inputs):
        found = ', '.join(f'{self.gpu.place(o)}{list(o.shape)}' for o in inputs)
        self.gpu.refuse(f'{op}: expected all tensors to be on the same device, but found {found}')


class Calls(TorchFunctionMode):
    """Sees each function and property of a tensor as it is called: where it lies, and whereto it
    moves"""
    def __init__(self, gpu):
        super().__init__()
        self.gpu = gpu
        self.answers = {Tensor.to: self.to, Tensor.cpu: self.cpu, Tensor.cuda: self.cuda,
                        Tensor.type_as: self.to, Tensor.numpy: self.array,
                        Tensor.__array__: self.array,
                        Tensor.pin_memory: self.pinned, Tensor.__deepcopy__: self.copied,
                        Tensor.new: self.copied, Tensor.new_tensor: self.new_tensor,
                        torch.tensor: self.made, torch.as_tensor: self.made,
                        torch.asarray: self.made, torch.scalar_tensor: self.made}
        self.properties = {Tensor.device.__get__: self.gpu.place,
                           Tensor.get_device: lambda x: self.gpu.place(x).index if lies_there(x)
                           else -1,
                           Tensor.is_cpu.__get__: lambda x: not lies_there(x),
                           Tensor.is_cuda.__get__: lambda x: lies_there(x) and gpu.kind == 'cuda',
                           Tensor.is_mps.__get__: lambda x: lies_there(x) and gpu.kind == 'mps'}

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        try: answer, known = self.answers.get(func), self.properties.get(func)
        except TypeError: return func(*args, **kwargs)      # a function without a hash
        if known: return known(args[0])
        return answer(func, *args, **kwargs) if answer else func(*args, **kwargs)

    def move(self, x, there, **changes):
        "A copy on the other side; its gradient comes back"
        y = put(Tensor.to(x, copy=True, **changes), there)
        if there and self.gpu.kind == 'mps' and y.dtype == torch.float64:
            self.gpu.refuse("cannot convert a MPS Tensor to float64, as the MPS framework doesn't "
                            "support it")
        if y.requires_grad: y.register_hook(lambda grad: put(grad.clone(), not there))
        return y

    def to(self, func, x, *args, **kwargs):
        there, changes, copy = lies_there(x), {}, kwargs.pop('copy', False)
        kwargs.pop('non_blocking', None)
        if (other := kwargs.pop('other', None)) is not None: args = (other, *args)
        for o in [kwargs.pop('device', None), *args]:
            if isinstance(o, Tensor): there, changes['dtype'] = lies_there(o), o.dtype
            elif isinstance(o, torch.dtype): changes['dtype'] = o
            elif isinstance(o, (str, torch.device)) or type(o) is int: there = self.gpu.means(o)
        changes |= {k: v for k, v in kwargs.items() if v is not None}
        if there != lies_there(x): return self.move(x, there, **changes)
        if there and self.gpu.kind == 'mps' and changes.get('dtype') == torch.float64:
            return self.move(x, there, **changes)
        return Tensor.to(x, copy=copy, **changes) if changes or copy else x

    def cpu(self, func, x, *args, **kwargs):
        return self.move(x, False) if lies_there(x) else func(x, *args, **kwargs)
    def cuda(self, func, x, *args, **kwargs): return self.to(func, x, 'cuda')
    def pinned(self, func, x, *args): return x

    def array(self, func, x, *args, **kwargs):
        if lies_there(x):
            self.gpu.refuse(f"can't convert {self.gpu.device} device type tensor to numpy; use "
                            "Tensor.cpu() to copy it to host memory first", NoArray)
        return func(x, *args, **kwargs)

    def copied(self, func, x, *args, **kwargs): # they make their memory without an operation
        y = func(x, *args, **kwargs)
        return put(y, lies_there(x))

    def made(self, func, data, *args, device=None, **kwargs):
        y = func(data, *args, **kwargs)
        there = (isinstance(data, Tensor) and lies_there(data) if device is None
                 else self.gpu.means(device))
        return (y if there == lies_there(y)
                else self.move(y.detach(), there).requires_grad_(y.requires_grad))

    def new_tensor(self, func, x, data, *args, device=None, **kwargs):
        return self.made(func=lambda data, *a, **k: func(x, data, *a, **k), data=data,
                         device=self.gpu.place(x) if device is None else device, **kwargs)


Generator = torch.Generator


class DeviceGenerator(Generator):
    "A generator of the pretended device; its numbers are not those of one on the processor"
    def __new__(cls, device): return super().__new__(cls)
    def __init__(self, device): self.there = device
    @property
    def device(self): return self.there
    def manual_seed(self, seed): return super().manual_seed(seed + 1_000_003)


class Generators(type):
    "Stands for `torch.Generator`, which cannot make one for a device that is not there"
    def __call__(cls, device='cpu'):
        return cls.gpu.new_generator() if cls.gpu.means(device) else Generator(device)
    def __instancecheck__(cls, o): return isinstance(o, Generator)


class Pretended:
    """The device while it is there: `faults` lists all that it refused, `waits` counts how often it
    was waited for"""
    def __init__(self, kind):
        self.kind, self.device, self.faults, self.waits = kind, torch.device(kind, 0), [], 0
        # by address: an operation is handed the same generator as another Python object
        self.generators = {}
        self.generator = self.new_generator()
        self.seed(torch.initial_seed())

    def means(self, device):
        "Whether a device, as it is written, is this one"
        if isinstance(device, int): return self.kind == 'cuda'
        device = torch.device(device)
        if device.type == self.kind and device.index:
            self.refuse(f'invalid device ordinal: there is no {device}')
        return device.type == self.kind

    def place(self, x): return self.device if lies_there(x) else torch.device('cpu')
    def new_generator(self):
        made = DeviceGenerator(self.device)
        return self.generators.setdefault(made._cdata, made)

    def seed(self, seed): self.generator.manual_seed(int(seed) % 2**62)
    def wait(self, *args): self.waits += 1

    def refuse(self, message, kind=DeviceFault):
        fault = kind(f'[{self.kind}] {message}')
        self.faults.append(fault)
        raise fault

    def stream(self): return _Stream(self.generator)

    # In what is saved, a tensor's device stands beside it.
    def tag(self, storage):
        return f'{self.device}' if getattr(storage, 'pretended', False) else None
    def restore(self, storage, location):
        if location != 'cpu' and self.means(location):
            storage.pretended = True
            return storage


class _Stream: # the processor draws the device's numbers for as long
    def __init__(self, generator): self.generator = generator
    def __enter__(self):
        self.kept = torch.default_generator.get_state()
        torch.default_generator.set_state(self.generator.get_state())
    def __exit__(self, *error):
        self.generator.set_state(torch.default_generator.get_state())
        torch.default_generator.set_state(self.kept)


class pretended:
    """The context in which there is a device: `cuda`, a card of NVIDIA, or `mps`, a Mac's. fastai
    trains on it by default."""
    def __init__(self, kind):
        if kind not in ('cuda', 'mps'):
            raise ValueError(f"There is no pretended {kind!r}; there are 'cuda' and 'mps'.")
        self.kind = kind

    def __enter__(self):
        gpu, self.stack = Pretended(self.kind), ExitStack()
        for owner, name, value in replacements(gpu):
            self.stack.enter_context(patch.object(owner, name, value))
        for mode in (Operations(gpu), Calls(gpu)): self.stack.enter_context(mode)
        return gpu

    def __exit__(self, *error): return self.stack.__exit__(*error)


def autocasts(gpu):
    """The processor's autocast works for the device's, and the device's, which does nothing here,
    for the processor's"""
    other = {gpu.kind: 'cpu', 'cpu': gpu.kind}
    def swapped(f):
        return lambda *args: f(*(other.get(o, o) if isinstance(o, str) else o
                                 for o in (args or ('cuda',))))
    for name in ('is_autocast_enabled', 'get_autocast_dtype', 'set_autocast_enabled',
                 'set_autocast_dtype'):
        yield torch, name, swapped(getattr(torch, name))


def replacements(gpu):
    "Owner, name and value of all in PyTorch that asks the machine for its device"
    yield torch, 'Generator', Generators('Generator', (), {'gpu': gpu})
    yield torch.serialization, '_package_registry', [(5, gpu.tag, gpu.restore),
                                                     *torch.serialization._package_registry]
    yield from autocasts(gpu)
    def state(*args): return gpu.generator.get_state()
    def set_state(state, *args): gpu.generator.set_state(state)
    own = {'synchronize': gpu.wait, 'manual_seed': gpu.seed,
           'seed': lambda: gpu.seed(torch.initial_seed()), 'get_rng_state': state,
           'set_rng_state': set_state,
           'device_count': lambda: 1, 'empty_cache': lambda: None}
    if gpu.kind == 'mps':
        yield from ((torch.backends.mps, name, lambda *_: True)
                    for name in ('is_available', 'is_built', 'is_macos_or_newer')
                    if hasattr(torch.backends.mps, name))
        yield from ((torch.mps, name, value) for name, value in own.items())
    else:
        own |= {'is_available': lambda: True, 'current_device': lambda: 0,
                'get_device_name': lambda *args: 'a pretended GPU', '_lazy_init': lambda: None,
                'get_device_capability': lambda *args: (8, 0),
                'is_bf16_supported': lambda *args, **kwargs: True, 'manual_seed_all': gpu.seed,
                'seed_all': lambda: gpu.seed(torch.initial_seed()),
                'get_rng_state_all': lambda: [state()],
                'set_rng_state_all': lambda states: set_state(*states),
                'set_device': gpu.means, 'is_current_stream_capturing': lambda: False,
                'max_memory_allocated': lambda *args: 0,
                'mem_get_info': lambda *args: (2**33, 2**34),
                'memory_allocated': lambda *args: 0, 'reset_peak_memory_stats': lambda *args: None}
        yield from ((torch.cuda, name, value) for name, value in own.items())
    yield torch.accelerator, 'is_available', lambda: True
    yield (torch.accelerator, 'current_accelerator',
           lambda check_available=False: torch.device(gpu.kind))
    yield torch.accelerator, 'synchronize', gpu.wait
    yield (torch.accelerator, 'current_stream',
           lambda *args: SimpleNamespace(is_capturing=lambda: False))
