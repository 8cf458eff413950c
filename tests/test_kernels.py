"""Kernels and tests that are forked from a process which has imported the libraries: as good as new
ones.

A kernel that is started warm and one that is started cold are asked the same questions. Only Linux
forks.
"""
import asyncio
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from contextlib import asynccontextmanager
from pathlib import Path

import psutil
import pytest
from conftest import alive, notebook, root, wait_until

from lesson6.book import kernels, testing
from lesson6.book.kernels import can_fork, kernel_manager
from lesson6.book.running import CellFailed, run_notebook

pytestmark = [pytest.mark.ci, pytest.mark.skipif(not can_fork, reason='there is no safe fork here, '
                                                 'so every kernel starts cold')]


def printed(path, *cells, warm=True, env=None):
    "What the last cell prints"
    nb = run_notebook(notebook(path, *cells), env, progress=False, warm=warm)
    return ''.join(o.text for o in nb.cells[-1].outputs if o.get('name') == 'stdout').strip()


# A warm kernel is what a cold one would have been

LOOK = """
import json, multiprocessing, os, random, signal, sys, threading, warnings
import matplotlib, numpy as np, pandas as pd, torch
from fastai.vision.all import *
from fastprogress.core import IN_NOTEBOOK
from threadpoolctl import threadpool_info
from huggingface_hub.utils import tqdm as of_the_hub
from tqdm.auto import tqdm
plt.plot([1, 2]); plt.show()
def name(f): return getattr(f, '__qualname__', str(f))
print(json.dumps(dict(
    argv=[a for a in sys.argv if not a.endswith('.json')], path=sys.path,
    executable=sys.executable, main=sorted(vars(sys.modules['__main__']))[:5],
    cwd=os.getcwd(), env={k: v for k,v in os.environ.items() if k != 'JPY_PARENT_PID'},
    leads=[os.getsid(0) == os.getpid(), os.getpgid(0) == os.getpid()], stdin=os.read(0, 1).decode(),
    threads=[torch.get_num_threads(), torch.get_num_interop_threads()],
    pools=sorted([i['prefix'], i['num_threads']] for i in threadpool_info()),
    python_threads=sorted(t.name.split('-')[0] for t in threading.enumerate()
                          if t.name != 'EndWithParent'),
    signals={s.name: name(signal.getsignal(s)) for s in signal.valid_signals()
             if isinstance(s, signal.Signals)},
    blocked=sorted(signal.pthread_sigmask(signal.SIG_BLOCK, [])),
    warnings=sorted(str(f) for f in warnings.filters), warnoptions=sys.warnoptions,
    notebook=IN_NOTEBOOK, backend=plt.get_backend(),
    bars=[progress_bar.__name__, *(c.__module__ for o in (tqdm, of_the_hub) for c in o.__mro__)],
    interactive=plt.isinteractive(),
    rc={k: str(v) for k,v in matplotlib.rcParams.items()},
    events={k: [name(f) for f in v] for k,v in get_ipython().events.callbacks.items()},
    start=multiprocessing.get_start_method(),
    device=str(default_device()), works=torch.ones(3, device=default_device()).sum().item(),
    dtype=str(torch.get_default_dtype()), grad=torch.is_grad_enabled(),
    deterministic=torch.are_deterministic_algorithms_enabled(),
    numpy=np.geterr(), pandas=pd.options.display.max_rows,
    ours=[m for m in sys.modules if m.startswith('lesson6')],
    cuda=[torch.cuda.is_available(), torch.cuda.is_initialized()],
    limits=sys.getrecursionlimit(), switch=sys.getswitchinterval())))
"""


@pytest.mark.parametrize('threads', ['1', '3', ''])
def test_a_warm_kernel_is_as_a_cold_one(threads, tmp_path, monkeypatch):
    "But for its number and its random numbers, nothing that we could think of differs"
    monkeypatch.delenv('OMP_NUM_THREADS', raising=False)
    env = {'LESSON6_COLOUR': 'red', **({'OMP_NUM_THREADS': threads} if threads else {})}
    warm, cold = [json.loads(printed(tmp_path/'look.ipynb', LOOK, warm=w, env=env))
                  for w in (True, False)]
    assert cold['env']['LESSON6_COLOUR'] == 'red' and (threads != '1' or cold['threads'][0] == 1)
    assert {k: (warm[k], cold[k]) for k in cold if warm[k] != cold[k]} == {}


def test_it_is_forked(tmp_path):
    """Its parent is the fork server, and a cold one's is this process; the server has a single
    thread and has not asked for a GPU"""
    parent = int(printed(tmp_path/'a.ipynb', 'import os; print(os.getppid())'))
    assert (parent != os.getpid()
            and int(printed(tmp_path/'a.ipynb', 'import os; print(os.getppid())')) == parent)
    assert len(os.listdir(f'/proc/{parent}/task')) == 1
    maps = Path(f'/proc/{parent}/maps').read_text()
    assert 'libtorch' in maps and 'libcuda.so' not in maps and 'libnvidia-ml' not in maps
    assert (int(printed(tmp_path/'a.ipynb', 'import os; print(os.getppid())', warm=False))
            == os.getpid())


TRAIN = """
from fastai.vision.all import *
set_seed(42, reproducible=True)
x = torch.randn(512, 3, 8, 8); y = (x.mean((1, 2, 3)) > 0).long()
train, valid = list(zip(x[:384], y[:384])), list(zip(x[384:], y[384:]))
dls = DataLoaders.from_dsets(train, valid, bs=32, device='cpu')
net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1),
                    Flatten(), nn.Linear(8, 2))
learn = Learner(dls, net, loss_func=CrossEntropyLossFlat(), metrics=accuracy)
with learn.no_bar(), learn.no_logging(): learn.fit_one_cycle(3, 1e-2)
"""


@pytest.mark.parametrize('threads', ['1', '2'])
def test_numbers_are_the_same_to_the_last_digit(threads, tmp_path):
    show = ("print([v.hex() for row in learn.recorder.values for v in row], "
            "[p.double().sum().item().hex() for p in net.parameters()], np.random.rand().hex(), "
            "(x.numpy().reshape(512, -1)@x.numpy().reshape(512, -1).T).sum().item().hex())")
    warm, cold = [printed(tmp_path/'train.ipynb', TRAIN, show, warm=w,
                          env={'OMP_NUM_THREADS': threads}) for w in (True, False)]
    assert warm == cold and warm.count('0x') > 10


@pytest.mark.parametrize('name, value', [('MPLCONFIGDIR', '{folder}'), ('OMP_NUM_THREADS', 'many'),
                                         ('OPENBLAS_NUM_THREADS', '1')])
def test_what_a_library_reads_while_it_is_imported_makes_a_kernel_cold(name, value, tmp_path):
    env = {name: value.format(folder=tmp_path)}
    printed(tmp_path/'a.ipynb', '1')
    assert (printed(tmp_path/'a.ipynb', f'import os; print(os.getppid() == {os.getpid()}, '
                                        f'os.environ[{name!r}])', env=env) == f'True {env[name]}')


def test_without_fork_kernels_start_cold(tmp_path, monkeypatch):
    monkeypatch.setattr(kernels, 'can_fork', False)
    assert int(printed(tmp_path/'a.ipynb', 'import os; print(os.getppid())')) == os.getpid()


# Interrupted, killed, left behind

@asynccontextmanager
async def kernel(folder):
    km = kernel_manager()
    await km.start_kernel(env=dict(os.environ), cwd=str(folder))
    client = km.client()
    client.start_channels()
    try:
        await client.wait_for_ready(60)
        yield km, client
    finally:
        client.stop_channels()
        await km.shutdown_kernel(now=True)


async def reply(client, code, meanwhile=None):
    asked = asyncio.create_task(client.execute_interactive(code, timeout=60,
                                                           output_hook=lambda m: meanwhile()
                                                           if meanwhile and 'ready'
                                                           in str(m['content']) else None))
    return (await asked)['content']


def test_an_interrupt_reaches_one_kernel(tmp_path):
    async def two():
        async with kernel(tmp_path) as (a, asks_a), kernel(tmp_path) as (b, asks_b):
            wait = asyncio.create_task(asks_b.execute_interactive('import time; time.sleep(3)',
                                                                  timeout=60))
            interrupted = await reply(asks_a, 'print("rea" + "dy", flush=True); import time; '
                                              'time.sleep(60)',
                                      lambda: asyncio.ensure_future(a.interrupt_kernel()))
            return interrupted, await reply(asks_a, '1'), (await wait)['content']
    interrupted, after, other = asyncio.run(two())
    assert (interrupted['ename'] == 'KeyboardInterrupt'
            and after['status'] == other['status'] == 'ok')


def test_a_kernel_can_be_restarted(tmp_path):
    async def restart():
        async with kernel(tmp_path) as (km, client):
            before = km.provisioner.pid
            await km.restart_kernel(now=True)
            await client.wait_for_ready(60)
            return before, km.provisioner.pid, (await reply(client, '1'))['status']
    before, after, status = asyncio.run(restart())
    assert before != after and status == 'ok' and not alive(before)


def test_at_its_end_a_kernel_does_what_a_python_does(tmp_path):
    "What is registered with `atexit`, and its exit code is 0"
    async def end():
        async with kernel(tmp_path) as (km, client):
            await reply(client, 'import atexit; from pathlib import Path; '
                                'atexit.register(Path("ended").touch)')
            process = km.provisioner.process
            await km.shutdown_kernel()
            return process.returncode
    assert asyncio.run(end()) == 0 and (tmp_path/'ended').exists()


@pytest.mark.parametrize('end', ['os._exit(9)', 'os.kill(os.getpid(), 9)'])
def test_a_killed_kernel_is_told(end, tmp_path):
    with pytest.raises(CellFailed, match='bad.ipynb, code cell 2 of 2 failed with an end of the '
                                         'kernel'):
        run_notebook(notebook(tmp_path/'bad.ipynb', 'import os', end), progress=False, warm=True)


def test_a_killed_server_ends_its_kernels_and_a_new_one_starts(tmp_path):
    with pytest.raises(CellFailed, match='an end of the kernel'):
        run_notebook(notebook(tmp_path/'bad.ipynb', 'import os, time', 'os.kill(os.getppid(), 9); '
                              'time.sleep(60)'), progress=False, warm=True)
    assert printed(tmp_path/'a.ipynb', 'print(1)') == '1'


def test_a_server_that_cannot_import_leaves_kernels_cold(tmp_path):
    (tmp_path/'torchvision.py').write_text('raise SystemError("broken")')
    code = f'''
import os, sys
from pathlib import Path
from lesson6.book.running import run_notebook
path = Path({str(notebook(tmp_path/'a.ipynb', 'import os; print(os.getppid())'))!r})
nb = run_notebook(path, progress=False, warm=True)
print(int(nb.cells[-1].outputs[0].text) == os.getpid())'''
    done = subprocess.run([sys.executable, '-c', code],
                          env={**os.environ, 'PYTHONPATH': f'{tmp_path}:{root}'},
                          capture_output=True, text=True, timeout=120)
    assert done.stdout.strip() == 'True', done.stderr


SLEEPS = 'import os, subprocess, time; from pathlib import Path', '''
child = subprocess.Popen(['sleep', '600'])
Path('pids.part').write_text(f'{os.getpid()} {os.getppid()} {child.pid}')
Path('pids.part').rename(Path(name)); time.sleep(600)'''
RUN = '''
import sys
from pathlib import Path
from lesson6.book.running import Stopped, run_together
try: list(run_together([(Path(p), {}, None, Path(p).stem) for p in sys.argv[1:]], 2, warm=True))
except Stopped as e: sys.exit(130)
'''


@pytest.fixture
def start(tmp_path):
    """Starts a program on two notebooks that sleep, in a group of its own as a terminal does; gives
    it and what it has started"""
    started = []
    def f(*words):
        paths = [notebook(tmp_path/n/f'{n}.ipynb', f'name = {n!r}', *SLEEPS) for n in 'ab']
        program = subprocess.Popen([sys.executable, *words, *map(str, paths)], cwd=tmp_path,
                                   stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                                   start_new_session=True)
        started.append(program)
        return program, lambda: [int(pid) for p in paths for pid in (p.parent/p.stem).read_text()
                                 .split() if wait_until((p.parent/p.stem).exists)]
    yield f
    for program in started: program.kill(); program.communicate()


@pytest.mark.parametrize('words', [['-c', RUN], ['-m', 'lesson6.book.testing']],
                         ids=['kernels', 'tests'])
@pytest.mark.parametrize('how', [signal.SIGKILL, signal.SIGINT], ids=['killed', 'Ctrl-C'])
def test_nothing_is_left_behind(words, how, start, tmp_path):
    program, pids = start(*words)
    assert wait_until(lambda: all((tmp_path/n/n).exists() for n in 'ab'))
    started = pids()
    os.killpg(program.pid, how) if how == signal.SIGINT else program.kill()
    out, err = program.communicate(timeout=20)
    assert program.returncode == (130 if how == signal.SIGINT else -how)
    assert 'Traceback' not in err, err
    assert wait_until(lambda: not any(map(alive, started)), 10)


def test_ctrl_c_while_the_libraries_are_imported(start):
    program, _ = start('-c', RUN)
    def server():
        return [c for c in psutil.Process(program.pid).children()
                if any('multiprocessing.forkserver' in word for word in c.cmdline())]
    assert wait_until(server)
    time.sleep(.5)
    os.killpg(program.pid, signal.SIGINT)
    out, err = program.communicate(timeout=20)
    assert program.returncode == 130 and 'Traceback' not in err, err


# python -m lesson6.book.testing

def test_a_notebook_that_is_named_twice_is_tested_once(tmp_path, monkeypatch, capsys):
    path = tmp_path/'a.ipynb'
    path.write_text('{}')
    monkeypatch.setattr(testing, 'test_together', lambda paths, *_: [(p, 0, 1.) for p in paths])
    testing.main(str(path), str(path))
    assert '1 notebook passed' in capsys.readouterr().out


def tested(*words, **env):
    return subprocess.run([sys.executable, '-m', 'lesson6.book.testing', *map(str, words)],
                          env={**os.environ, **env}, capture_output=True, text=True, timeout=200)


@pytest.mark.parametrize('cold', [[], ['--cold']], ids=['warm', 'cold'])
def test_each_notebook_is_tested_by_itself(cold, tmp_path):
    "All are tested, also after one that fails, and none sees what another has changed"
    change = ("import os; assert 'LESSON6_COLOUR' not in os.environ and "
              "os.environ['OMP_NUM_THREADS'] == '1'; os.environ['LESSON6_COLOUR'] = 'red'")
    notebook(tmp_path/'a.ipynb', change)
    notebook(tmp_path/'b.ipynb', change, '1/0')
    notebook(tmp_path/'c.ipynb', change, 'os.kill(os.getpid(), 9)')
    notebook(tmp_path/'d.ipynb', change, 'import torch; assert torch.get_num_threads() == 1')
    done = tested(*[tmp_path/f'{n}.ipynb' for n in 'bcad'], *cold, OMP_NUM_THREADS='1')
    assert done.returncode == 1
    assert (f'{tmp_path}/b.ipynb: the test failed.' in done.stderr
            and 'ZeroDivisionError' in done.stderr)
    assert (f'{tmp_path}/c.ipynb: the test was ended by SIGKILL; the machine may have run out of '
            'memory.' in done.stderr)
    assert done.stderr.rstrip().endswith(f'2 of 4 notebooks failed: {tmp_path}/b.ipynb, {tmp_path}/'
                                         'c.ipynb') or done.stderr.rstrip().endswith(
        f'2 of 4 notebooks failed: {tmp_path}/c.ipynb, {tmp_path}/b.ipynb')
    assert len(re.findall(r'^ *\d+\.\d s  .*\.ipynb', done.stdout, re.M)) == 4


def test_tests_that_pass(tmp_path):
    notebook(tmp_path/'a.ipynb', 'assert True')
    done = tested(tmp_path)
    assert done.returncode == 0 and '1 notebook passed' in done.stdout and not done.stderr, (
        done.stderr)


@pytest.mark.parametrize('words, says', [(['{folder}'], 'There is no notebook in {folder}.'),
                                         (['{folder}/x.ipynb'], 'There is no {folder}/x.ipynb.'),
                                         ([], 'Name the notebooks to test, or their folders.'),
                                         (['--at-once', '0', '{folder}'], 'give how many')])
def test_nothing_to_test_is_an_error(words, says, tmp_path):
    done = tested(*[w.format(folder=tmp_path) for w in words])
    assert (done.returncode == 1 and says.format(folder=tmp_path) in done.stderr
            and 'Traceback' not in done.stderr)


def test_the_environment_of_a_kernel_is_not_that_of_the_server_in_the_making(monkeypatch):
    "While one thread starts the server, another one copies the variables for its kernel"
    monkeypatch.setenv('OMP_NUM_THREADS', '7')
    inside, done = threading.Event(), threading.Event()
    def start():
        with kernels._lock, kernels._as_the_server_starts():
            inside.set()
            done.wait(.2)
    thread = threading.Thread(target=start)
    thread.start()
    assert inside.wait(10) and 'OMP_NUM_THREADS' not in os.environ
    assert kernels.environment()['OMP_NUM_THREADS'] == '7'
    thread.join()
