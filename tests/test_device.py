"""The notebooks and the command for training, on a device that is only pretended: what would stop
them on a GPU or on a Mac stops them here.
"""
import ast
import importlib
import io
import json
import multiprocessing
import os
import re
import subprocess
import sys
import tempfile
import traceback
import warnings
from contextlib import redirect_stderr, redirect_stdout
from copy import deepcopy
from functools import cache
from itertools import islice
from multiprocessing.connection import wait
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pytest
import torch
from pretended_device import DeviceFault, NoArray, pretended

root = Path(__file__).parent.parent
modules = ['pets', 'multilabel', 'head_pose', 'collab', 'regularisation', 'picture_loaders',
           'ratings_at_scale', 'training', 'train']
kinds = ['cuda', 'mps']
# other processes, which the pretended device does not reach
elsewhere = re.compile(r'%pip|\blaunch\(|subprocess.run\(')


def exported(path):
    "The module that a notebook is exported to, as in `engine.training`; '' if there is none"
    return next(iter(re.findall(r'^#\| default_exp (\S+)', path.read_text(encoding='utf-8')
                                .replace('\\n', '\n').replace('"', '\n'), re.MULTILINE)), '')


@cache
def notebook(module):
    "The notebook of a module, wherever it is kept"
    found = [p for p in sorted((root/'nbs').rglob('*.ipynb'))
             if exported(p) in (module, f'engine.{module}', f'book.{module}')]
    assert len(found) == 1, (
        f'There are {len(found)} notebooks of the module {module}: name it in `modules` as it is '
        'named there.')
    return found[0]


def short_trainings():
    """Of a training a few batches an epoch, of a search for the learning rate 25 steps: enough to
    meet every line"""
    from fastai.callback.schedule import LRFinder
    from fastai.learner import Learner
    fit, finder = Learner.fit, LRFinder.__init__
    def short_fit(self, n_epoch, *args, **kwargs):
        with patch.object(self, 'most', 3 if n_epoch <= 5 else 1, create=True):
            return fit(self, min(n_epoch, 12), *args, **kwargs)
    def all_batches(self):
        self.n_iter = (len(self.dl) if hasattr(self, 'lr_finder')
                       else min(getattr(self, 'most', None) or len(self.dl), len(self.dl)))
        for batch in islice(enumerate(self.dl), self.n_iter): self.one_batch(*batch)
    def short_finder(self, *args, num_it=100, **kwargs):
        finder(self, *args, num_it=min(num_it, 25), **kwargs)
    Learner.fit, Learner.all_batches, LRFinder.__init__ = short_fit, all_batches, short_finder


def innermost(error):
    "The last line of the notebook or of the package that an error came through"
    frames = [f for f in traceback.extract_tb(error.__traceback__) if 'ipython-input' in f.filename
              or root/'lesson6' in Path(f.filename).parents]
    return (f'{Path(frames[-1].filename).name}:{frames[-1].lineno} `{frames[-1].line.strip()}`'
            if frames else '')


def last_line(error): # fastai puts a line before what a callback raises
    return (str(error).strip() or '-').splitlines()[-1].strip()


def run_cells(path, gpu):
    """Runs a notebook statement by statement, and lists what the device refused and what else
    broke. A result that is missed is no fault: nothing was trained."""
    from IPython.core.interactiveshell import InteractiveShell
    shell, faults, lost, skipped = InteractiveShell.instance(), [], set(), False
    sys.displayhook = shell.display_formatter.format
    for i, cell in enumerate(json.loads(path.read_text(encoding='utf-8'))['cells']):
        if cell['cell_type'] != 'code': continue
        source = shell.transform_cell(''.join(cell['source']))
        name, statements, before = (shell.compile.cache(source, i), ast.parse(source).body,
                                    len(faults))
        for node in statements:
            makes = ({n.id for n in ast.walk(node) if isinstance(n, ast.Name)
                      and isinstance(n.ctx, ast.Store)} | {getattr(node, 'name', '')})
            if elsewhere.search(ast.get_source_segment(source, node)):
                lost, skipped = lost | makes, True
                continue
            shown, seen = node is statements[-1], len(gpu.faults)
            try:
                exec(compile(ast.Interactive([node]) if shown else ast.Module([node], []), name,
                             'single' if shown else 'exec'), shell.user_ns)
            except Exception as e:
                lost |= makes
                follows = (len(faults) > before or isinstance(e, NameError) and e.name in lost
                           or isinstance(e, FileNotFoundError) and skipped)
                if e not in gpu.faults and not follows and not isinstance(e, AssertionError):
                    gpu.faults.append(e)
            faults += [f'{path.stem}[{i}]: {type(e).__name__}: {last_line(e)} at {innermost(e)}'
                       for e in gpu.faults[seen:]]
        if 'matplotlib.pyplot' in sys.modules: sys.modules['matplotlib.pyplot'].close('all')
    return faults


def resume(section, gpu):
    """Trains a section whole, and once more with a break after its first epoch; lists in what they
    differ"""
    train = importlib.import_module(f'lesson6.{exported(notebook("train"))}')
    after_epoch = train.Checkpoint.after_epoch
    def break_off(self):
        after_epoch(self)
        raise EOFError('broken off')
    whole = train.train_section(section, epochs=2, bs=16, out=Path('whole'))
    with patch.object(train.Checkpoint, 'after_epoch', break_off):
        try: train.train_section(section, epochs=2, bs=16, out=Path('broken'))
        except EOFError: pass
    try: resumed = train.train_section(section, epochs=2, bs=16, out=Path('broken'))
    except Exception as e:
        return [f'{section}, resumed: {type(e).__name__}: {last_line(e)} at {innermost(e)}']
    assert np.isfinite(whole).all(), whole
    return [] if resumed == whole else [f'{section}, resumed: {resumed} instead of {whole}']


def sections():
    return list(importlib.import_module(f'lesson6.{exported(notebook("train"))}').sections)


def on_device(job, send):
    "One job in a process of its own, in an empty folder: a notebook to run, or a section to resume"
    what, name, kind = job
    with tempfile.TemporaryDirectory() as folder, pretended(kind) as gpu:
        os.chdir(folder)
        short_trainings()
        try:
            with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
                faults = (run_cells(notebook(name), gpu) if what == 'notebook'
                          else resume(name, gpu))
        except Exception: faults = [f'{name}: {traceback.format_exc()}']
        finally: os.chdir(root)
    send.send(faults)


def in_forks(jobs, at_once=2):
    """Each job in a fork of this process, which has imported all that takes long; pairs of a job
    and what it found"""
    fork, waiting, running = multiprocessing.get_context('fork'), list(jobs), {}
    while waiting or running:
        while waiting and len(running) < at_once:
            receive, send = fork.Pipe(duplex=False)
            process = fork.Process(target=on_device, args=(waiting[0], send))
            process.start()
            send.close()
            running[receive] = waiting.pop(0), process
        for receive in wait(list(running)):
            job, process = running.pop(receive)
            try: yield job, receive.recv()
            except EOFError: yield job, [f'{job[1]}: its process ended without a word']
            process.join()


def prepare():
    "Imports what the notebooks import, once, and draws the data if it is not there"
    warnings.filterwarnings('ignore')
    sys.path.insert(0, str(root))
    import fastai.collab
    import fastai.vision.all  # noqa: F401
    import IPython.core.interactiveshell  # noqa: F401
    import matplotlib
    import pyarrow.parquet  # noqa: F401
    matplotlib.use('agg')
    torch.set_num_threads(1)
    from lesson6.data import folders, lesson_path
    for name in folders: lesson_path(name)
    for name in [m for m in sys.modules if m.split('.')[0] == 'lesson6']:
        del sys.modules[name]   # each notebook imports the package itself


def main(which):
    prepare()
    jobs = {'resume': [('resume', name, kinds[i%2]) for i,name in enumerate(sections())],
            'resume both': [('resume', name, kind) for name in sections() for kind in kinds],
            'notebooks': [('notebook', name, kind) for name in modules for kind in kinds],
            'half': [('notebook', name, kinds[i%2]) for i,name in enumerate(modules)]}[which]
    print(json.dumps([[*job, faults] for job, faults in in_forks(jobs)]))


@pytest.fixture(params=kinds)
def gpu(request):
    with pretended(request.param) as gpu: yield gpu


def test_what_the_device_refuses(gpu):
    here, there, number = torch.ones(3), torch.ones(3, device=gpu.kind), torch.tensor(2.)
    refused = [lambda: here + there, lambda: here + number.to(gpu.kind),
               lambda: torch.cat([here, there]), lambda: torch.nn.Linear(3, 2)(there),
               lambda: torch.nn.Linear(3, 2).to(gpu.kind)(here),
               lambda: here[torch.tensor([0], device=gpu.kind)], lambda: torch.equal(here, there),
               lambda: torch.where(there > 0, here, there),
               lambda: torch.nn.functional.embedding(torch.tensor([1]),
                                                     torch.ones(3, 2, device=gpu.kind)),
               lambda: torch.rand(3, device=gpu.kind, generator=torch.Generator()),
               lambda: torch.rand(3, generator=torch.Generator(gpu.kind))]
    for f in refused:
        with pytest.raises(DeviceFault): f()
    for f in (there.numpy, lambda: np.asarray(there), lambda: np.array([there, there])):
        with pytest.raises(TypeError): f()
    assert (sum(isinstance(e, NoArray) for e in gpu.faults) == 3
            and len(gpu.faults) == len(refused) + 3)
    if gpu.kind == 'cuda': assert there.double().dtype == torch.float64
    else:
        for f in (there.double, lambda: here.double().to('mps'),
                  lambda: torch.zeros(3, dtype=torch.float64, device='mps')):
            with pytest.raises(DeviceFault, match='float64'): f()


def test_what_lies_on_the_device_stays_there_and_comes_back(gpu):
    from fastai.torch_core import default_device
    from fastai.vision.core import TensorImage
    here, there, device = torch.ones(3), torch.ones(3, device=gpu.kind), torch.device(gpu.kind, 0)
    on = [there + torch.tensor(2.), there[torch.tensor([0])], there.clone(), deepcopy(there),
          there.view(3, 1), there.new_zeros(2), there.new_tensor([1.]), torch.zeros_like(there),
          here.to(gpu.kind), here.to(there), here.to(device, torch.float16),
          torch.tensor([1.], device=gpu.kind), torch.as_tensor([1], device=gpu.kind),
          TensorImage(here).to(gpu.kind), torch.where(there > 0, torch.tensor(1.), there),
          torch.rand(2, device=gpu.kind), there.to(torch.float16, copy=True)]
    assert (all(x.device == device for x in on) and type(on[13]) is TensorImage
            and default_device().type == gpu.kind)
    assert all(x.device.type == 'cpu'
               for x in (there.cpu(), there.to('cpu'), here + 1, here.to(here),
                         torch.tensor(there.tolist()), torch.from_numpy(there.cpu().numpy())))
    weights, model = torch.ones(3, requires_grad=True), torch.nn.Linear(3, 1).to(gpu.kind)
    model(weights.to(gpu.kind)*there).cpu().sum().backward()
    assert weights.grad.device.type == 'cpu' and model.weight.grad.device == device
    file = io.BytesIO()
    torch.save(model.state_dict(), file)
    for where, lies in (None, device), ('cpu', torch.device('cpu')), (gpu.kind, device):
        file.seek(0)
        assert {x.device for x in torch.load(file, map_location=where).values()} == {lies}
    assert not gpu.faults


def test_the_device_draws_numbers_of_its_own_and_computes_in_its_own_autocast(gpu):
    torch.manual_seed(1)
    there, here = torch.rand(5, device=gpu.kind), torch.rand(5)
    torch.manual_seed(1)
    assert (torch.equal(here, torch.rand(5)) and torch.equal(there, torch.rand(5, device=gpu.kind))
            and not torch.equal(here, there.cpu()))
    one, two = (torch.rand(5, device=gpu.kind, generator=torch.Generator(gpu.kind).manual_seed(3))
                for _ in range(2))
    assert (torch.equal(one, two) and torch.Generator(gpu.kind).device.type == gpu.kind
            and torch.Generator().device.type == 'cpu')
    model, x = torch.nn.Linear(3, 1).to(gpu.kind), torch.ones(1, 3, device=gpu.kind)
    for device, dtype in (gpu.kind, torch.bfloat16), ('cpu', torch.float32):
        with torch.autocast(device, dtype=torch.bfloat16):
            assert model(x).dtype == dtype and torch.is_autocast_enabled(device)
    torch.accelerator.synchronize()
    assert gpu.waits == 1


def test_afterwards_there_is_no_device():
    before = torch.Generator, torch.get_autocast_dtype, torch.cuda.is_available()
    with pretended('mps'): assert torch.backends.mps.is_available()
    assert ((torch.Generator, torch.get_autocast_dtype, torch.cuda.is_available()) == before
            and not torch.backends.mps.is_available())
    assert torch.ones(2).device.type == 'cpu'


def run(which):
    for name in ('LESSON6_DATA', 'LESSON6_ARCH', 'LESSON6_SEED'): os.environ.pop(name, None)
    done = subprocess.run([sys.executable, __file__, which], capture_output=True, text=True,
                          timeout=900, env={**os.environ, 'OMP_NUM_THREADS': '1'})
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


forks = pytest.mark.skipif(not hasattr(os, 'fork'), reason='the notebooks run in forked processes')


def assert_no_faults(found, names, kinds=kinds):
    seen = {(name, kind) for _, name, kind, _ in found}
    assert ({(name, kind) for name in names for kind in kinds} <= seen
            and {*names} <= {name for name, _ in seen})
    faults = [f'{kind}, {fault}' for _, _, kind, faults in found for fault in faults]
    assert not faults, '\n'.join(['', *faults])


@pytest.mark.ci
@forks
def test_every_cell_of_the_notebooks_runs_where_a_gpu_is():
    "Every second notebook on a pretended CUDA device, the others on a Mac's"
    assert_no_faults(run('half'), modules, ())


@pytest.mark.slow
@forks
def test_every_cell_of_the_notebooks_runs_on_either_kind_of_gpu():
    assert_no_faults(run('notebooks'), modules)


trained = ['pets', 'multilabel', 'head_pose', 'collab', 'regularisation']


@pytest.mark.ci
@forks
def test_a_training_that_is_taken_up_again_on_a_device_ends_as_an_undisturbed_one():
    assert_no_faults(run('resume'), trained, ())


@pytest.mark.slow
@forks
def test_a_training_is_taken_up_again_on_either_kind_of_gpu():
    assert_no_faults(run('resume both'), trained)


if __name__ == '__main__': main(sys.argv[1])
