"""The site: what stands on its pages, and how they behave in a browser.

It is built once, by `make docs` in a folder of its own, of the notebooks as they are stored.
The browser is Chromium or Chrome; where there is none, those tests are skipped.
"""
import gc
import json
import os
import re
import shutil
from importlib import import_module
from pathlib import Path
from urllib.parse import unquote, urlsplit

import nbformat
import pytest
from bs4 import BeautifulSoup
from conftest import checkout, make, python, root, serious

from lesson6.book import site
from lesson6.book.running import find_notebooks, notebooks_path
from lesson6.claims import statements

sections = [p for p in find_notebooks() if re.match(r'0\d_', p.name)]


@pytest.fixture(scope='module')
def pages(made):
    "Every page, read; in millions of objects, which the garbage collector passes over meanwhile."
    files = [p for p in sorted(made[1].rglob('*.html')) if '_static' not in p.parts]
    gc.disable()
    read = {p.relative_to(made[1]).as_posix(): BeautifulSoup(p.read_text(encoding='utf-8'),
                                                             'html.parser') for p in files}
    gc.freeze()
    gc.enable()
    yield read
    gc.unfreeze()


# What is in the notebooks

@pytest.mark.parametrize('address', ['', 'https://git.example.org/our/lesson6'])
def test_first_cell_does_something_only_where_the_package_is_missing(address, tmp_path):
    """Run as IPython runs it: with the package nothing happens; without it pip is asked for a wheel
    that lies there, or for the repository, or a sentence says what to do."""
    code = """
import sys
from IPython.core.interactiveshell import InteractiveShell
shell, asked = InteractiveShell.instance(), []
shell.register_magic_function(lambda line: asked.append(line), 'line', 'pip')
if sys.argv[1] == 'without': sys.modules['lesson6'] = None
result = shell.run_cell(sys.argv[2])
print(asked, result.error_in_exec or '')
"""
    def said(how):
        done = python(code, how, site.first_cell('pets', address), cwd=tmp_path)
        return done.stdout.strip().splitlines()[-1]
    assert said('with') == '[]'
    without = said('without')
    if address: assert without == f"['install --quiet git+{address}']"
    else:
        assert without.startswith('[] lesson6 is not installed here: put its wheel next to this '
                                  'notebook')
    (tmp_path/'lesson6-0.1.0-py3-none-any.whl').touch()
    assert said('without') == "['install --quiet lesson6-0.1.0-py3-none-any.whl']"


# What is on the pages

@pytest.mark.ci
def test_the_site_begins_on_the_front_page(made):
    out, folder = made
    assert out.strip() == 'Open _site/index.html in a browser.' and (folder/'index.html').exists()


@pytest.mark.ci
def test_every_notebook_has_a_page(pages):
    for path in find_notebooks():
        name = path.relative_to(notebooks_path()).with_suffix('.html').as_posix()
        if name == 'index.html': continue # JupyterLab's start page; the site's is the README
        assert pages[name].h1, f'{name} has no title'


def test_what_stays_the_same_keeps_its_time_and_what_is_left_over_goes(tmp_path):
    "So that a site that is built again is built of what has changed, and of nothing else."
    def write(**files):
        sources = site.Sources(tmp_path)
        for name, text in files.items(): sources.write(name, text)
        sources.end()
        return {p.name: (p.read_text(), p.stat().st_mtime_ns) for p in tmp_path.iterdir()}
    before, after = write(same='1', other='1', gone='1'), write(same='1', other='2')
    assert set(after) == {'same', 'other'} and after['other'][0] == '2'
    assert after['same'] == before['same']


@pytest.mark.ci
def test_a_site_is_built_again_over_the_old_one(made, tmp_path):
    folder = shutil.copytree(made[1].parent, tmp_path/'again', symlinks=True)
    assert make(folder, 'docs').strip() == 'Open _site/index.html in a browser.'


@pytest.mark.ci
def test_one_notebook_is_run_and_has_a_page_of_its_own(tmp_path):
    out = make(checkout(tmp_path), 'run', 'NB=book/running')
    assert out.strip().splitlines()[-1].endswith('Open _run/book/running.html in a browser.')
    page = (tmp_path/'_run'/'book'/'running.html').read_text(encoding='utf-8')
    assert 'bad.ipynb, code cell 2 of 2 failed with ZeroDivisionError' in page
    assert not (tmp_path/'_site').exists()


@pytest.mark.ci
def test_pages_show_outputs(pages):
    text = pages['book/running.html'].get_text()
    assert 'bad.ipynb, code cell 2 of 2 failed with ZeroDivisionError' in text
    for name in ('book/running.html', 'data/datasets.html'):
        code = '\n'.join(c.get_text() for c in pages[name].select('div.cell_input'))
        assert 'default_exp' not in code and not re.search(r'^#\| ', code, re.M)
    # the hidden cell at its end
    assert 'shutil.rmtree(folder)' not in pages['book/running.html'].get_text()


@pytest.mark.ci
def test_every_exported_name_is_in_the_reference(pages):
    for path in find_notebooks():
        module = site.module_of(nbformat.read(path, as_version=4))
        if not module: continue
        for name in (m := import_module(f'lesson6.{module}')).__all__:
            home = getattr(getattr(m, name), '__module__', '') if callable(getattr(m, name)) else ''
            # a section hands on the engine's
            home = home.removeprefix('lesson6.') if home.startswith('lesson6.') else module
            assert pages[f'reference/{home}.html'].find(id=f'lesson6.{home}.{name}'), (
                f'lesson6.{home}.{name} is not in the reference')


@pytest.mark.ci
def test_reference_says_types_errors_and_source(pages):
    entry = pages['reference/data.html'].find(id='lesson6.data.check_dataset').find_parent('dl')
    text = entry.get_text()
    assert ('expected: dict = None' in text and 'FileNotFoundError' in text
            and 'def check_dataset(' in text)
    assert entry.find('a', href=re.compile(r'data/datasets\.html#'))


@pytest.mark.ci
def test_claims(made, pages):
    stored = json.loads((made[1]/'claims.json').read_text())
    assert len(stored) >= 25 and not [v['id'] for v in stored if v['verdict'] == 'does not hold']
    text = ' '.join(pages['result.html'].get_text()
                    .translate({ord(curly): plain for curly, plain in zip('’‘“”', "''\"\"")})
                    .split())
    for s in statements.values(): assert ' '.join(s.says.replace('`', '').split()) in text, s.id


@pytest.mark.ci
def test_speed(pages):
    "Every table that is kept, and every chart."
    kept = root/'benchmarks'/'results'
    titles = {f.read_text(encoding='utf-8').splitlines()[0][3:] for f in kept.glob('*.md')}
    page = pages['speed.html'].article
    assert titles == {h.find(string=True).replace('’', "'") for h in page.select('h2')}
    assert len(page.select('table')) == len(titles)
    assert {Path(i['src']).name for i in page.select('img')} == {f.name for f in kept.glob('*.svg')}


@pytest.mark.ci
def test_the_contents_show_where_one_is(pages):
    "The list beside a page marks this page and what it is below; the same titles beside all."
    front = pages['index.html'].select('.sidebar-tree a')
    names = {a['href']: a.get_text() for a in front}
    assert len(names) == len(front) and {*names, 'index.html', 'search.html'} == set(pages)
    for name,page in pages.items():
        links = page.select('.sidebar-tree a')
        assert [a.get_text() for a in links] == list(names.values()), name
        here = page.select('.sidebar-tree .current-page > a')
        assert [a.get_text() for a in here] == [names[n] for n in [name] if n in names], name
        assert [a for a in links if a['href'] == '#'] == here, name
        open_now = [box.find_parent('li') for box in page.select('.sidebar-tree input[checked]')]
        assert open_now == page.select('.sidebar-tree li.current:has(ul)'), name
        assert open_now == page.select('.sidebar-tree li:has(ul):is(.current-page, '
                                       ':has(.current-page))'), name


@pytest.mark.ci
def test_what_changed_is_gathered(pages):
    notes = [n for p in sections for n in site.changes(nbformat.read(p, as_version=4))]
    assert len(pages['changes.html'].select('article h3')) == len(notes)


@pytest.mark.ci
def test_no_page_asks_a_server(made, pages):
    "No script, style, font or picture comes from elsewhere. (Links may lead there.)"
    for name,page in pages.items():
        for tag,key in (('script', 'src'), ('link', 'href'), ('img', 'src'), ('iframe', 'src'),
                        ('source', 'src'), ('video', 'src')):
            for t in page.find_all(tag, attrs={key: True}):
                assert not re.match(r'(https?:)?//', t[key]), f'{name}: {t}'
    for css in made[1].rglob('*.css'):
        assert not re.search(r'(@import|url\()\s*["\']?(https?:)?//',
                             css.read_text(encoding='utf-8')), css


@pytest.mark.ci
def test_internal_links(made, pages):
    "Each leads to a file, and its #part to something on that page."
    ids = {n: {t['id'] for t in p.find_all(id=True)}
           | {t['name'] for t in p.find_all('a', attrs={'name': True})} for n,p in pages.items()}
    broken = []
    for name,page in pages.items():
        for tag,key in (('a', 'href'), ('img', 'src'), ('link', 'href'), ('script', 'src')):
            for t in page.find_all(tag, attrs={key: True}):
                link = urlsplit(t[key])
                if link.scheme or link.netloc or name in ('search.html',): continue
                target = (made[1]/name).parent/unquote(link.path) if link.path else made[1]/name
                if not target.exists(): broken.append(f'{name}: {t[key]}'); continue
                other = os.path.relpath(target, made[1])
                if link.fragment and other in ids and unquote(link.fragment) not in ids[other]:
                    broken.append(f'{name}: {t[key]}')
    assert not broken, broken[:20]


@pytest.mark.ci
def test_figures_are_described(pages):
    for name,page in pages.items():
        for img in page.find_all('img'):
            alt = img.get('alt', '').strip()
            assert (alt and alt != 'A figure that has no words yet'
                    and not alt.endswith(('.png', '.jpg', '.svg'))), f'{name}: {img.get("src")}'


@pytest.mark.ci
def test_no_machine_path(pages):
    for name,page in pages.items():
        found = re.search(r'(/home/\w+|/root|/Users/\w+|/tmp/\w+)[^\s]*', page.get_text())
        assert not found, f'{name}: {found[0]}'


# In a browser

# Of the thousands of coloured words of the code axe-core sees the first of each colour, or it would
# take minutes.
ONE_OF_EACH = """const seen = new Set()
for (const word of document.querySelectorAll('.highlight pre span'))
    if (seen.has(word.className)) word.replaceWith(...word.childNodes)
    else seen.add(word.className)
for (const code of document.querySelectorAll('.highlight pre')) code.normalize()"""


@pytest.mark.ci
def test_every_page_in_a_browser(tab, made, pages):
    """No complaint in the console, nothing missing, nothing asked of a server, axe-core content, no
    sideways scrolling on a phone.

    The pages of the reference are all made alike, so axe-core looks at every tenth of them, and at
    the contrast of one.
    """
    barriers, wide = [], []
    alike = [name for name in pages if name.startswith('reference/')]
    for name in pages:
        tab.set_viewport_size({'width': 1280, 'height': 900})
        tab.goto((made[1]/name).as_uri())
        if name not in alike or name in alike[::10]:
            tab.evaluate(ONE_OF_EACH)
            contrast = name not in alike or name == alike[0]
            barriers += serious(tab, rules={'color-contrast': {'enabled': contrast}})
        tab.set_viewport_size({'width': 390, 'height': 844})
        width = tab.evaluate('document.documentElement.scrollWidth')
        if width > 390: wide.append(f'{name} is {width} px wide')
    assert not tab.complaints, tab.complaints
    assert not barriers, '\n'.join(barriers)
    assert not wide, wide


@pytest.mark.ci
def test_axe_finds_what_is_wrong(tab, made):
    "The check above can fail: a picture without words and pale text are found."
    tab.goto((made[1]/'index.html').as_uri())
    tab.evaluate("""document.querySelector('article').insertAdjacentHTML('beforeend',
        '<img src="data:image/gif;base64,R0lGODlhAQABAAAAACw=">' +
        '<div class="highlight"><pre>a <span class="pale" style="color:#eee;background:#fff">pale' +
        '</span></pre></div>')""" + '\n' + ONE_OF_EACH)
    assert {b.split(': ')[1].split(' ')[0] for b in serious(tab)} == {'image-alt', 'color-contrast'}


@pytest.mark.ci
def test_dark_pages_can_be_read(tab, made, pages):
    tab.emulate_media(color_scheme='dark')
    barriers = []
    for name in ['index.html', 'result.html', 'changes.html', 'twins.html', 'reference/data.html',
                 *[f'{p.stem}.html' for p in sections]]:
        tab.goto((made[1]/name).as_uri())
        for img in tab.query_selector_all('.cell_output img'):
            assert img.evaluate('e => getComputedStyle(e).backgroundColor') == 'rgb(255, 255, 255)'
        tab.evaluate(ONE_OF_EACH)
        barriers += serious(tab, runOnly=['color-contrast'])
    assert not barriers, '\n'.join(barriers)


@pytest.mark.ci
@pytest.mark.parametrize('word, leads_to', [('DotProductBias', 'reference/collab.html'),
                                            ('check_dataset', 'reference/data.html')])
def test_search(tab, made, word, leads_to):
    "From a file, without a server."
    if not (made[1]/leads_to).exists(): pytest.skip(f'there is no {leads_to} yet')
    tab.goto((made[1]/'index.html').as_uri())
    tab.fill('input[name=q]', word)
    tab.press('input[name=q]', 'Enter')
    tab.wait_for_selector('#search-results li a', timeout=10000)
    found = [a.get_attribute('href') for a in tab.query_selector_all('#search-results li a')]
    assert any(leads_to in href for href in found), found
    assert not tab.complaints, tab.complaints


@pytest.mark.ci
def test_theme_button(tab, made):
    "Light, dark, and back, without a server."
    tab.emulate_media(color_scheme='light')
    tab.goto((made[1]/'data/datasets.html').as_uri())
    before = tab.evaluate('getComputedStyle(document.body).backgroundColor')
    seen = set()
    for _ in range(3):
        tab.click('.theme-toggle-header' if tab.is_visible('.theme-toggle-header')
                  else '.theme-toggle-content button')
        seen.add(tab.evaluate('getComputedStyle(document.body).backgroundColor'))
    assert before in seen and len(seen) == 2 and not tab.complaints
