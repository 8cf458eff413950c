import os
import random
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

root = Path(__file__).parent.parent
own_cache = os.environ.get('LESSON6_CACHE')
os.environ['LESSON6_PROGRESS'] = 'off' # answers that a test checks are not the user's


def python(code, *args, env=None, check=True, **kw):
    "Runs `code` in a fresh Python"
    r = subprocess.run([sys.executable, '-W', 'ignore', '-c', textwrap.dedent(code),
                        *map(str, args)], env={**os.environ, **(env or {})},
                       capture_output=True, text=True, timeout=600, **kw)
    assert not check or r.returncode == 0, r.stdout[-3000:] + r.stderr[-3000:]
    return r


@pytest.fixture(scope='session')
def real():
    "The folder of real data; tests that need it are skipped where there is none."
    path = Path(os.environ.get('LESSON6_REAL', root.parent/'shared'/'real'))
    if not path.is_dir(): pytest.skip(f'there is no real data at LESSON6_REAL={path}')
    return path


@pytest.fixture(scope='session')
def twins():
    "The four twins from the user's cache, where the notebooks left them."
    from lesson6.data import draw_twin
    class Twins(dict):
        def __missing__(self, name):
            with pytest.MonkeyPatch.context() as env:
                env.setenv('LESSON6_CACHE', own_cache or '')
                return self.setdefault(name, draw_twin(name))
    return Twins()


@pytest.fixture
def environment(monkeypatch, tmp_path):
    "A cache of its own and no settings from outside."
    for name in ('LESSON6_DATA', 'LESSON6_ARCH', 'LESSON6_SEED', 'XDG_CACHE_HOME'):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv('LESSON6_CACHE', str(tmp_path/'cache'))
    return monkeypatch


@pytest.fixture(autouse=True)
def same_environment_afterwards():
    "What a test, or an answer that it runs, writes into the environment is gone with it."
    before = dict(os.environ)
    yield
    os.environ.clear()
    os.environ.update(before)


@pytest.fixture(autouse=True)
def same_random_numbers():
    "Each test begins with the same random numbers, whatever ran before it and in whatever process."
    import numpy
    random.seed(42)
    numpy.random.seed(42)
    if torch := sys.modules.get('torch'): torch.manual_seed(42)


@pytest.fixture(autouse=True)
def no_figures_afterwards():
    "What a test has drawn is gone with it; pyplot would go on drawing into it"
    yield
    if pyplot := sys.modules.get('matplotlib.pyplot'): pyplot.close('all')


def pytest_collection_modifyitems(items):
    """The files that take longest come first, so that no worker is left alone with one of them at
    the end."""
    items.sort(key=lambda item: item.path.name not in ('test_site.py', 'test_figures.py',
                                                       'test_faults.py', 'test_device.py',
                                                       'test_kernels.py', 'test_train.py'))


def pytest_terminal_summary(terminalreporter, config):
    "A whole run on the oldest versions is told on the page of promises."
    if (config.option.keyword or config.option.markexpr != 'not slow'
        or hasattr(config, 'workerinput')):
        return
    from promises import how_it_ended
    ended = {how: terminalreporter.stats.get(how, [])
             for how in ('passed', 'failed', 'error', 'skipped')}
    how_it_ended(len(ended['passed']), [r.nodeid for r in ended['failed'] + ended['error']],
                 len(ended['skipped']), again=getattr(config.option, 'lf', False))
