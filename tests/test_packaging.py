"""The package: what is in the wheel, that it works away from the repository, and that no fact
stands in two places with two values."""
import ast
import email
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
import sysconfig
import zipfile
from configparser import ConfigParser
from importlib.metadata import packages_distributions
from pathlib import Path

import nbformat
import pytest
import yaml
from conftest import root
from packaging.requirements import Requirement

from lesson6.book import address, site
from lesson6.book.options import command_parser

settings = ConfigParser(delimiters=['='], interpolation=None)
settings.read(root/'settings.ini', encoding='utf-8')
settings = settings['DEFAULT']


@pytest.fixture(scope='session')
def wheel(tmp_path_factory):
    "Built from the files that a clone holds, and nothing else that lies around."
    folder = tmp_path_factory.mktemp('build')
    for name in ('pyproject.toml', 'settings.ini', 'setup.py', 'README.md', 'LICENSE'):
        shutil.copy2(root/name, folder)
    for name in 'lesson6', 'nbs', 'docs':
        shutil.copytree(root/name, folder/name,
                        ignore=shutil.ignore_patterns('__pycache__', '.ipynb_checkpoints',
                                                      'models'))
    done = subprocess.run([sys.executable, '-m', 'build', '--wheel', '--no-isolation', '--outdir',
                           str(folder/'dist')], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return next((folder/'dist').glob('*.whl'))


@pytest.mark.ci
def test_wheel_holds_notebooks_weights_and_settings_of_the_site(wheel):
    held = set(zipfile.ZipFile(wheel).namelist())
    for path in (root/'nbs').rglob('*.ipynb'):
        if '.ipynb_checkpoints' not in path.parts:
            assert f'lesson6/{path.relative_to(root).as_posix()}' in held
    for path in (root/'lesson6').rglob('*.py'): assert path.relative_to(root).as_posix() in held
    for path in (root/'lesson6').rglob('*.safetensors'):
        assert path.relative_to(root).as_posix() in held
    for path in [root/'docs'/'conf.py', *(root/'docs'/'static').iterdir()]:
        assert f'lesson6/{path.relative_to(root).as_posix()}' in held
    assert not [n for n in held if n.startswith(('tests/', 'nbs/', 'docs/', 'benchmarks/'))]


@pytest.mark.ci
def test_wheel_says_what_settings_say(wheel):
    with zipfile.ZipFile(wheel) as z:
        facts = email.message_from_bytes(z.read(next(n for n in z.namelist()
                                                     if n.endswith('.dist-info/METADATA'))))
    assert (facts['Version'] == settings['version'] and facts['Summary'] == settings['description']
            and (facts['License-Expression'] or facts['License']) == settings['license'])
    asked = [Requirement(r) for r in facts.get_all('Requires-Dist')]
    def extra(name):
        return sorted(r.name.lower() for r in asked if f'extra == "{name}"' in str(r.marker))
    def said(key):
        return sorted(Requirement(r).name.lower() for r in settings[key].strip().splitlines())
    assert sorted(r.name.lower() for r in asked if not r.marker) == said('requirements')
    assert extra('dev') == said('dev_requirements') and extra('book') == said('book_requirements')
    assert (facts['Requires-Python'] == '>=3.11' and 'README' not in facts.get_payload()[:20]
            and facts.get_payload().startswith('# lesson6'))


@pytest.fixture(scope='session')
def away(wheel, tmp_path_factory):
    """The wheel in an empty environment, away from the repository; what it requires is lent by this
    one, by a .pth file, so that nothing is downloaded."""
    folder = tmp_path_factory.mktemp('away')
    subprocess.run([sys.executable, '-m', 'venv', '--without-pip', str(folder/'env')], check=True)
    python = folder/'env'/'bin'/'python'
    subprocess.run([sys.executable, '-m', 'pip', '--python', str(python), 'install', '--quiet',
                    '--no-deps', '--no-index', str(wheel)], check=True)
    own = Path(subprocess.run([python, '-c',
                               'import sysconfig; print(sysconfig.get_path("purelib"))'],
                              capture_output=True, text=True, check=True).stdout.strip())
    (own/'lent.pth').write_text(sysconfig.get_path('purelib') + '\n')
    env = ({k: v for k,v in os.environ.items() if not k.startswith(('LESSON6_', 'PYTHON'))}
           | {'LESSON6_CACHE': str(folder/'cache')})
    (folder/'work').mkdir()
    def lesson6(*words):
        return subprocess.run([python.parent/'lesson6', *words], cwd=folder/'work', env=env,
                              capture_output=True, text=True)
    where = subprocess.run([python, '-c', 'import lesson6; print(lesson6.__file__)'],
                           cwd=folder/'work', env=env, capture_output=True, text=True,
                           check=True).stdout
    assert where.startswith(str(folder)), where
    return lesson6, folder


@pytest.mark.ci
def test_wheel_copies_the_notebooks(away):
    lesson6, folder = away
    done = lesson6('notebooks', 'my-lesson6')
    assert done.returncode == 0, done.stderr
    assert ({p.name for p in (folder/'work'/'my-lesson6').glob('*.ipynb')}
            == {p.name for p in (root/'nbs').glob('*.ipynb')})


@pytest.mark.ci
def test_wheel_draws_its_data(away):
    lesson6, folder = away
    done = lesson6('data')
    assert done.returncode == 0, done.stdout + done.stderr
    assert len(re.findall('whole: ', done.stdout)) == 4 and next((folder/'cache').rglob('u.data'))


@pytest.mark.ci
def test_wheel_has_a_doctor(away):
    lesson6, _ = away
    done = lesson6('doctor')
    assert done.returncode == 0 and f"lesson6 {settings['version']}" in done.stdout, (
        done.stdout + done.stderr)


@pytest.mark.slow
def test_wheel_runs_a_section(away):
    lesson6, folder = away
    done = lesson6('run', 'collab')
    assert done.returncode == 0, done.stdout + done.stderr
    assert 'claims hold.' in done.stdout and 'FAILS' not in done.stdout
    assert (folder/'work'/'_run'/'04_collab.html').exists()
    assert lesson6('site').returncode == 0
    assert all((folder/'work'/'_site'/f'{o}.html').exists() for o in ('index', '04_collab'))


# One place for each fact

def test_constraints_are_names_and_versions():
    lines = (root/'constraints.txt').read_text().splitlines()
    assert all(re.fullmatch(r'[A-Za-z0-9._-]+==[A-Za-z0-9.+!]+', l)
               for l in lines), [l for l in lines if '==' not in l]
    held = {re.sub(r'[-_.]+', '-', l.split('==')[0]).lower(): l.split('==')[1] for l in lines}
    assert len(held) == len(lines)
    for key in 'requirements', 'book_requirements', 'class_requirements', 'dev_requirements':
        for r in map(Requirement, settings[key].strip().splitlines()):
            name = re.sub(r'[-_.]+', '-', r.name).lower()
            assert name in held and r.specifier.contains(held[name], prereleases=True), r


def required(*keys):
    return {re.sub(r'[-_.]+', '-', Requirement(r).name).lower() for key in keys
            for r in settings[key].strip().splitlines()}


def test_what_is_imported_is_required():
    """Each module that lesson6 imports comes from a requirement, not from what happens to come
    along; only the book needs the extra."""
    pytest.importorskip('altair', reason='where a module comes from is known only where it is '
                        'installed, so this takes the extra `book`')
    owners = packages_distributions()
    core = required('requirements') | {'lesson6'}
    # which the notebook tools and Sphinx bring along for good
    book = core | required('book_requirements') | {'nbformat', 'docutils'}
    for path in (root/'lesson6').rglob('*.py'):
        of_book = 'book' in path.parts or path.name == 'train.py'
        # testing is for a checkout
        more = {'testing.py': {'nbdev'},
                **dict.fromkeys(('confined.py', 'grading.py', 'classroom.py'),
                                required('class_requirements'))}
        said = book | more.get(path.name, set()) if of_book else core
        for node in ast.walk(ast.parse(path.read_text(encoding='utf-8'))):
            names = ([a.name for a in node.names] if isinstance(node, ast.Import) else [node.module]
                     if isinstance(node, ast.ImportFrom) and not node.level else [])
            for name in {n.partition('.')[0] for n in names} - set(sys.stdlib_module_names):
                assert {o.lower().replace('_', '-') for o in owners.get(name, [name])} & said, (
                    f'{path.name} imports {name}')


@pytest.mark.parametrize('host', sorted((root/'tests'/'hosts').glob('*.txt')), ids=lambda p: p.stem)
def test_core_replaces_nothing_on_a_host(host):
    """What a host has installed satisfies what lesson6 asks for, so that installing it leaves the
    running kernel alone."""
    has = dict(l.split('==') for l in host.read_text().splitlines() if not l.startswith('#'))
    has = {re.sub(r'[-_.]+', '-', name).lower(): version for name,version in has.items()}
    asked = {re.sub(r'[-_.]+', '-', r.name).lower(): r.specifier
             for r in map(Requirement, settings['requirements'].strip().splitlines())}
    assert len(asked.keys() & has.keys()) > 15
    changed = {n: f'{has[n]}, asked for {s}' for n,s in asked.items() if n in has
               and not s.contains(has[n], prereleases=True)}
    assert not changed


def test_one_version():
    assert ("\nversion: "
            f"{settings['version']}\n" in (root/'CITATION.cff').read_text(encoding='utf-8'))
    assert f"## {settings['version']}" in (root/'CHANGELOG.md').read_text(encoding='utf-8')


def test_make_address_says_the_url_as_the_command_takes_it():
    words = re.search(r'lesson6\.book\.address (.*)', (root/'Makefile').read_text())[1]
    for url in 'https://git.example.org/our/lesson6', '':
        said = shlex.split(words.replace('$(URL)', url))
        assert command_parser(address.main, 'address').parse_args(said).url == url


def test_one_address(tmp_path):
    """Set on a copy, set again and taken out, it stands in every place that has to spell it out,
    and nowhere stays an old one."""
    files = ['pyproject.toml', 'CITATION.cff', 'README.md', 'CONTRIBUTING.md',
             *(f'nbs/{p.name}' for p in sorted((root/'nbs').glob('0*.ipynb')))]
    (tmp_path/'nbs').mkdir()
    for name in files: shutil.copy(root/name, tmp_path/name)
    places = re.findall('<!-- address: (.*) -->', (root/'README.md').read_text(encoding='utf-8'))
    assert set(places) == {'clone', 'cloud', 'install'}
    assert address.set_address(site.repository(), tmp_path) == []
    def saying(url): return [n for n in files if url in (tmp_path/n).read_text(encoding='utf-8')]
    first, second = 'https://git.example.net/their/lesson6', 'https://github.com/someone/other'
    address.set_address(first, tmp_path)
    assert saying(first) == files
    address.set_address(second, tmp_path)
    assert saying(second) == files and not saying(first)
    assert (tomllib.loads((tmp_path/'pyproject.toml').read_text())['project']['urls']
            == {'Repository': second})
    address.set_address(site.repository(), tmp_path)
    assert not saying(second) and all((tmp_path/n).read_bytes() == (root/n).read_bytes()
                                      for n in files)


@pytest.mark.parametrize('url', ['lesson6', 'http://example.org/a', 'https://example.org',
                                 'https://example.org/a b', 'https://example.org/a"'])
def test_what_is_no_address_is_refused(url, tmp_path):
    with pytest.raises(ValueError, match='is no address of a repository'):
        address.set_address(url, tmp_path)


def test_citation_and_forms_can_be_read():
    citation = yaml.safe_load((root/'CITATION.cff').read_text(encoding='utf-8'))
    assert {'cff-version', 'title', 'message', 'authors', 'version', 'license'} <= set(citation)
    for path in [*(root/'.github').rglob('*.y*ml'), root/'.pre-commit-config.yaml']:
        assert yaml.safe_load(path.read_text(encoding='utf-8')), path
    for path in (root/'.github'/'ISSUE_TEMPLATE').glob('*.yml'):
        form = yaml.safe_load(path.read_text(encoding='utf-8'))
        if path.stem == 'config': continue
        assert ({'name', 'description', 'body'} <= set(form)
                and all(b['type'] in ('input', 'textarea', 'markdown', 'dropdown', 'checkboxes')
                        for b in form['body']))
    assert (json.loads((root/'.devcontainer'/'devcontainer.json').read_text())['postCreateCommand']
            == 'make hooks')


def test_workflows():
    lint = shutil.which('actionlint')
    if not lint: pytest.skip('there is no actionlint here; the test workflow runs it')
    done = subprocess.run([lint], cwd=root, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_no_machine_and_no_registry_is_named():
    found = []
    names = subprocess.run(['git', 'ls-files'], cwd=root, capture_output=True, text=True)
    if names.returncode: pytest.skip('this is no git checkout')
    for name in names.stdout.splitlines():
        if (name.endswith(('.png', '.safetensors')) or name.startswith('tests/')
            or not (root/name).exists()):
            continue
        for m in re.findall(r'(?<![\w.~])/(?:root|home/\w+|Users/\w+|work/\w+|tmp/\w{3,})(?:/'
                            r'[\w.-]+)*|files\.pythonhosted\.org|pypi\.org/simple',
                            (root/name).read_text(encoding='utf-8')):
            found.append(f'{name}: {m}')
    assert not found, found


def test_hooks_clean_what_is_committed(tmp_path):
    """pre-commit, in a repository of its own, refuses a notebook that carries what its kernel left,
    and leaves it clean."""
    pytest.importorskip('pre_commit')
    for name in ('pyproject.toml', '.pre-commit-config.yaml'): shutil.copy2(root/name, tmp_path)
    for name in 'nbs', 'lesson6': (tmp_path/name).mkdir()
    (tmp_path/'.venv').symlink_to(sys.prefix)
    cell = nbformat.v4.new_code_cell('1', execution_count=7,
                                     metadata={'collapsed': True,
                                               'vscode': {'languageId': 'python'}})
    nbformat.write(nbformat.v4.new_notebook(cells=[nbformat.v4.new_markdown_cell('# One'), cell]),
                   tmp_path/'nbs'/'one.ipynb')
    git = ['git', '-c', 'user.name=a', '-c', 'user.email=a@b', '-C', str(tmp_path)]
    subprocess.run([*git, 'init', '-q'], check=True)
    subprocess.run([*git, 'add', 'nbs', 'pyproject.toml', '.pre-commit-config.yaml'], check=True)
    done = subprocess.run([Path(sys.executable).parent/'pre-commit', 'run', '--all-files'],
                          cwd=tmp_path, capture_output=True, text=True,
                          env={**os.environ, 'PRE_COMMIT_HOME': str(tmp_path/'.hooks')})
    assert done.returncode == 1 and 'files were modified by this hook' in done.stdout, (
        done.stdout + done.stderr)
    after = nbformat.read(tmp_path/'nbs'/'one.ipynb', 4).cells[1]
    assert after.execution_count is None and not after.metadata
