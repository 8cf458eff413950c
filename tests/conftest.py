import os
from pathlib import Path

import pytest

root = Path(__file__).parent.parent


@pytest.fixture(scope='session')
def real():
    "The folder of real data; tests that need it are skipped where there is none."
    path = Path(os.environ.get('LESSON6_REAL', root.parent/'shared'/'real'))
    if not path.is_dir(): pytest.skip(f'there is no real data at LESSON6_REAL={path}')
    return path


@pytest.fixture
def environment(monkeypatch, tmp_path):
    "A cache of its own and no settings from outside."
    for name in ('LESSON6_DATA', 'LESSON6_ARCH', 'LESSON6_SEED', 'LESSON6_CLAIMS', 'XDG_CACHE_HOME'): monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv('LESSON6_CACHE', str(tmp_path/'cache'))
    return monkeypatch


@pytest.fixture(autouse=True)
def same_environment_afterwards():
    "What a test, or an answer that it runs, writes into the environment is gone with it."
    before = dict(os.environ)
    yield
    os.environ.clear()
    os.environ.update(before)


def pytest_terminal_summary(terminalreporter, config):
    "A whole run on the oldest versions is told on the page of promises."
    if config.option.keyword or hasattr(config, 'workerinput'): return
    from promises import how_it_ended
    ended = {how: terminalreporter.stats.get(how, []) for how in ('passed', 'failed', 'error', 'skipped')}
    how_it_ended(len(ended['passed']), [r.nodeid for r in ended['failed'] + ended['error']], len(ended['skipped']), again=config.option.lf)
