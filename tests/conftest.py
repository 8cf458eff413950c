import os
import random
import shutil
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from urllib.parse import urlsplit

import nbformat
import psutil
import pytest
from filelock import FileLock
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

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


# `lesson6` on the notebooks in the folder NBS, with plain pages in place of the site.
PROGRAM = """
import os, signal, sys
from pathlib import Path
from lesson6.book import command, running
signal.signal(signal.SIGINT, signal.default_int_handler) # ignored by what runs in the background
command.notebooks_path = running.notebooks_path = lambda: Path(os.environ['NBS'])
command.can_build = lambda: False
sys.argv = ['lesson6', *sys.argv[1:]]
sys.exit(command.main())
"""


def notebook(path, *cells, title='A notebook'):
    "Writes a notebook with these cells of code below its title."
    path.parent.mkdir(parents=True, exist_ok=True)
    nbformat.write(new_notebook(cells=[new_markdown_cell(f'# {title}'),
                                       *map(new_code_cell, cells)]), path)
    return path


def wait_until(true, seconds=60):
    "What `true()` says once it is true, or at the end of that time."
    until = time.monotonic() + seconds
    while not (seen := true()) and time.monotonic() < until: time.sleep(.02)
    return seen


def alive(pid):
    try: return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess: return False


def checkout(folder):
    "A folder in which `make` finds what it needs, installed already."
    for name in ('Makefile', 'pyproject.toml', 'settings.ini', 'setup.py', 'constraints.txt'):
        shutil.copy2(root/name, folder)
    (folder/'.venv').mkdir()
    (folder/'.venv'/'bin').symlink_to(Path(sys.executable).parent)
    (folder/'.venv'/'.ready').touch()
    return folder


def make(folder, *words):
    "What it printed."
    # A kernel that sees this variable lets through what the kernels it has started write while they
    # end, which is more than a user sees.
    env = {k: v for k, v in os.environ.items() if k != 'PYTEST_CURRENT_TEST'}
    done = subprocess.run(['make', *words], cwd=folder, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert not done.stderr, done.stderr
    return done.stdout


@pytest.fixture(scope='session')
def made(tmp_path_factory):
    "What `make docs` printed, and where the site is; pytest's workers share it."
    top = tmp_path_factory.getbasetemp()
    if 'PYTEST_XDIST_WORKER' in os.environ: top = top.parent
    folder, said = top/'site', top/'site.txt'
    with FileLock(top/'site.lock'):
        if not said.exists():
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
            said.write_text(make(checkout(folder), 'docs'), encoding='utf-8')
    return said.read_text(encoding='utf-8'), folder/'_site'


@pytest.fixture(scope='module')
def browser():
    "Its event loop ends with it, and what comes next may run one of its own."
    from playwright.sync_api import sync_playwright
    names = ['chromium', 'chromium-browser', 'google-chrome', 'google-chrome-stable',
             '/Applications/Google Chrome.app/Contents/MacOS/Google Chrome']
    found = next((shutil.which(n) for n in names if shutil.which(n)), None)
    if not found: pytest.skip('there is no Chromium or Chrome here: apt-get install chromium')
    with sync_playwright() as p:
        args = ['--no-sandbox', '--disable-gpu', '--disable-background-networking',
                '--disable-component-update', '--disable-dev-shm-usage', '--no-first-run']
        chromium = p.chromium.launch(executable_path=found, args=args)
        yield chromium
        chromium.close()


@pytest.fixture
def tab(browser):
    page = browser.new_page(viewport={'width': 1280, 'height': 900})
    page.complaints = []
    page.on('console', lambda m: m.type in ('error', 'warning')
            and page.complaints.append(f'{page.url}: {m.text}'))
    page.on('pageerror', lambda e: page.complaints.append(f'{page.url}: {e}'))
    page.on('requestfailed', lambda r: page.complaints.append(f'{page.url}: {r.url} is missing'))
    page.on('request', lambda r: urlsplit(r.url).scheme not in ('file', 'data', 'blob')
            and page.complaints.append(f'{page.url} asks for {r.url}'))
    yield page
    page.close()


def serious(tab, part=None, **options):
    "What axe-core finds that is serious or critical, a line each."
    from axe_playwright_python.sync_playwright import Axe
    found = (Axe().run(tab, context=part, options={'resultTypes': ['violations'], 'preload': False,
                                                   **options}).response['violations'])
    return [f"{tab.url.rpartition('/')[2]}: {v['id']} ({v['impact']}), {len(v['nodes'])}: "
            f"{v['nodes'][0]['html'][:160]}" for v in found
            if v['impact'] in ('serious', 'critical')]


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
