"""The data layer: which data is chosen, whether it is whole, and a download from a server that does
its worst."""
import io
import os
import shutil
import socket
import stat
import tarfile
import threading
import time
import zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib import import_module
from pathlib import Path

import pytest
from promises import kept

from lesson6 import data
from lesson6.data import (check_dataset, download_real, draw_twin, folders, full_counts,
                          lesson_path, profile, urls)
from lesson6.engine import sets
from lesson6.engine.sets import about

names = list(folders)


def sentence(e):
    "The text of an error, which must be one line with a way out."
    text = str(e.value)
    assert '\n' not in text and len(text) < 600 and text.endswith('.'), text
    return text


def files(path):
    return {p.relative_to(path): p.read_bytes() for p in path.rglob('*') if p.is_file()}


# What LESSON6_DATA chooses

def test_the_twins_are_the_default(environment):
    assert (profile.data, profile.drawn) == ('mini', True)
    environment.setenv('LESSON6_DATA', '')
    assert profile.drawn
    path = lesson_path('movielens')
    assert path.is_relative_to(os.environ['LESSON6_CACHE']) and path.name == 'ml-100k'


@pytest.mark.parametrize('size, says', [('films', 'remove that folder and run again'),
                                        (None, 'put it there, or set LESSON6_DATA=mini')])
def test_only_a_set_whose_size_is_known_can_be_had_again(tmp_path, size, says):
    expected = size and {'ratings': 1, 'films': 1}
    (tmp_path/'u.data').write_text('1\t1\t5\t0\n')
    for wrong in 'u.item is missing', 'holds (0 of 1|no) films':
        with pytest.raises(FileNotFoundError, match=f'{wrong}; {says}'):
            check_dataset('movielens', tmp_path, expected)
        (tmp_path/'u.item').write_text('\n')


def test_the_published_sizes_of_the_sets():
    assert full_counts == {'pets': {'pictures': 7_390, 'breeds': 37},
                           'pascal': {'pictures': 5_011, 'labels': 20},
                           'biwi': {'frames': 15_678, 'people': 24},
                           'movielens': {'ratings': 100_000, 'films': 1_682}}


def test_what_ends_like_a_picture():
    from lesson6.files import picture_endings
    assert ({'.jpg', '.jpeg', '.png', '.webp', '.tif', '.bmp', '.gif'} <= picture_endings()
            and not {'.pdf', '.mpg', '.h5', '.palm'} & picture_endings())


@pytest.mark.parametrize('name', names)
def test_a_twin_is_whole(name, twins, environment):
    expected = import_module(f'lesson6.mini.{name}').expected
    counts = check_dataset(name, twins[name], expected)
    assert list(counts)[0] in expected and all(expected.get(k, n) == n and type(n) is int
                                               for k, n in counts.items())


@pytest.mark.ci
@pytest.mark.parametrize('name', names)
def test_what_is_kept_is_what_would_be_drawn_now(name, twins, tmp_path):
    """Whoever changes a drawing gives it another VERSION, or readers would go on with the one that
    they have"""
    import_module(f'lesson6.mini.{name}').draw(tmp_path)
    assert files(tmp_path) == files(twins[name])


@pytest.mark.parametrize('name', names)
def test_a_folder_is_used_as_it_lies(name, twins, environment, tmp_path):
    environment.setenv('LESSON6_DATA', str(tmp_path))
    with pytest.raises(FileNotFoundError) as e: lesson_path(name)
    assert f'holds no folder {folders[name]}/' in sentence(e)
    shutil.copytree(twins[name], tmp_path/folders[name])
    assert lesson_path(name) == tmp_path/folders[name]
    assert not profile.drawn and about(name).startswith(f'{name}: from your own folder')


@pytest.mark.parametrize('chosen', ['full-size', 'Mini', '/no/such/folder', '~nobody/data',
                                    'x'*5000, __file__])
def test_neither_mini_nor_full_nor_a_folder(chosen, environment):
    environment.setenv('LESSON6_DATA', chosen)
    with pytest.raises(FileNotFoundError, match='neither mini, nor full, nor a folder'):
        lesson_path('pets')


def test_the_real_data_is_as_its_readme_says(real, environment):
    environment.setenv('LESSON6_DATA', str(real))
    assert (check_dataset('movielens', lesson_path('movielens'), full_counts['movielens'])
            == full_counts['movielens'])
    assert check_dataset('pets', lesson_path('pets')) == {'pictures': 370, 'breeds': 37}
    assert check_dataset('pascal', lesson_path('pascal')) == {'pictures': 600, 'labels': 20}


# Half a data set is named, not trained on

def rid(pattern):
    def f(path): sorted(path.rglob(pattern))[0].unlink()
    return f

def cut(name):
    def f(path): (path/name).write_bytes((path/name).read_bytes()[:(path/name).stat().st_size//2])
    return f

def lose(name): # its last line
    def f(path): (path/name).write_bytes(b''.join((path/name).read_bytes().splitlines(True)[:-1]))
    return f

def write(name, text):
    def f(path):
        (path/name).parent.mkdir(exist_ok=True)
        (path/name).write_bytes(text)
    return f

def folder(name):
    def f(path): (shutil.rmtree if (path/name).is_dir() else os.unlink)(path/name)
    return f

def chain(*fs):
    def f(path):
        for g in fs: g(path)
    return f

halves = [ # the set, what is done to it, what the sentence must say
    ('pets', folder('images'), '0 of {pictures:,} pictures'),
    ('pets', rid('*.jpg'), 'of {pictures:,} pictures'),
    ('pets', chain(folder('images'), write('images', b'')), '0 of {pictures:,} pictures'),
    ('pets', chain(folder('images'), lambda p: (p/'images').mkdir()), '0 of {pictures:,} pictures'),
    ('pets', lambda p: next(p.rglob('*.jpg')).rename(p/'images'/'holiday_1.jpg'), 'breeds'),
    ('pascal', folder('train.csv'), 'train.csv is missing'),
    ('pascal', folder('train'), '0 of {pictures:,} pictures'),
    ('pascal', rid('*.jpg'), 'of {pictures:,} pictures'),
    ('pascal', cut('train.csv'), 'has 2 fields where there should be 3'),
    ('pascal', lose('train.csv'), 'of {pictures:,} pictures'),
    ('pascal', write('train.csv', b'\xff'), 'train.csv is not text in UTF-8'),
    ('biwi', rid('rgb.cal'), 'of {people:,} people'),
    ('biwi', rid('*_pose.txt'), 'of {frames:,} frames'),
    ('biwi', rid('*_rgb.jpg'), 'of {frames:,} frames'),
    ('biwi', lambda p: [shutil.rmtree(d) for d in p.iterdir() if d.is_dir()],
     '0 of {frames:,} frames'),
    ('movielens', folder('u.data'), 'u.data is missing'),
    ('movielens', folder('u.item'), 'u.item is missing'),
    ('movielens', cut('u.data'), 'of {ratings:,} ratings'),
    ('movielens', lose('u.data'), 'of {ratings:,} ratings'),
    ('movielens', cut('u.item'), 'of {films:,} films'),
    ('movielens', write('u.data', b'\n\n'), '0 of {ratings:,} ratings'),
    ('movielens', chain(folder('u.data'), lambda p: (p/'u.data').mkdir()), 'u.data is missing'),
]

@pytest.mark.parametrize('name,damage,says', halves)
def test_half_a_data_set_is_named(name, damage, says, twins, environment, tmp_path):
    path = tmp_path/folders[name]
    shutil.copytree(twins[name], path)
    expected = check_dataset(name, path)
    damage(path)
    with pytest.raises((FileNotFoundError, ValueError)) as e: check_dataset(name, path, expected)
    assert says.format(**expected) in sentence(e) and folders[name] in str(e.value)
    assert e.type is ValueError or str(e.value).endswith('; remove that folder and run again.')


def test_half_a_real_set_is_named_where_fastai_left_it(full, twins, tmp_path):
    "A killed `untar_data` can leave half a set under the right name."
    path = tmp_path/'home'/'data'/'ml-100k'
    shutil.copytree(twins['movielens'], path)
    cut('u.data')(path)
    with pytest.raises(FileNotFoundError, match='remove that folder and run again'):
        lesson_path('movielens')


# The cache

def test_the_cache_is_where_it_is_set(environment, tmp_path):
    environment.setenv('LESSON6_CACHE', '~/drawn'); environment.setenv('HOME', str(tmp_path))
    assert data.cache_path() == tmp_path/'drawn'
    environment.delenv('LESSON6_CACHE')
    assert data.cache_path().is_relative_to(tmp_path) and data.cache_path().name == 'lesson6'


def test_no_home_folder_means_the_temporary_one(environment, tmp_path):
    environment.delenv('LESSON6_CACHE')
    environment.setenv('HOME', str(tmp_path/'gone')); environment.setenv('TMPDIR', str(tmp_path))
    environment.setattr('tempfile.tempdir', None)
    assert data.cache_path().parent == tmp_path
    if hasattr(os, 'getuid'):
        assert data.cache_path().name == f'lesson6-{os.getuid()}', (
            'everybody has a folder of their own')
    assert lesson_path('movielens').is_relative_to(tmp_path)
    assert about('movielens').startswith('movielens: made on this machine')


@pytest.mark.parametrize('how',
                         [KeyboardInterrupt, MemoryError, OSError(28, 'No space left on device')])
def test_drawing_that_is_interrupted_leaves_nothing(environment, how):
    class Stopping:
        "Shows progress for a while, then stops as Ctrl-C does."
        def __init__(self, items): self.items = items
        def __iter__(self):
            for i, x in enumerate(self.items):
                yield x
                raise how
    kind = how if isinstance(how, type) else type(how)
    with pytest.raises(kind) as e: draw_twin('pets', Stopping)
    if kind is OSError:
        assert ': No space left on device; make room there, or set LESSON6_CACHE' in sentence(e)
    cache = Path(os.environ['LESSON6_CACHE'])
    assert [p.name for p in cache.rglob('*') if not p.is_dir()] == ['oxford-iiit-pet.lock']
    assert not list(cache.rglob('*.part'))


# A download: the server does what `answer` says

class Server:
    "Serves what `answer(handler)` writes, and counts how often it was asked."
    def __init__(self):
        self.asked, self.stopping, server = 0, threading.Event(), self
        class Handler(BaseHTTPRequestHandler):
            def log_message(self, *args): pass
            def do_GET(self):
                server.asked += 1
                try: server.answer(self)
                except (BrokenPipeError, ConnectionResetError): pass
                self.close_connection = True
        self.http = ThreadingHTTPServer(('127.0.0.1', 0), Handler)
        self.http.daemon_threads = True
        threading.Thread(target=self.http.serve_forever, args=(0.05,), daemon=True).start()
    def url(self, name): return f'http://127.0.0.1:{self.http.server_port}/{name}'
    def stop(self): self.stopping.set(); self.http.shutdown(); self.http.server_close()


def head(h, body=None, length=None, status=200):
    h.send_response(status)
    if length or body is not None: h.send_header('Content-Length', str(length or len(body)))
    h.end_headers()

def send(body, length=None, status=200):
    def answer(h): head(h, body, length, status); h.wfile.write(body)
    return answer


@pytest.fixture
def server():
    server = Server()
    yield server
    server.stop()


@pytest.fixture
def full(environment, server, tmp_path):
    "`LESSON6_DATA=full`, with fastai's URLs on `server` and its home in a folder of the test's."
    from fastai.data.external import URLs, fastai_cfg
    environment.setenv('LESSON6_DATA', 'full')
    environment.setenv('FASTAI_HOME', str(tmp_path/'home'))
    fastai_cfg.cache_clear()
    for name in 'http_proxy', 'HTTP_PROXY', 'all_proxy', 'ALL_PROXY':
        environment.delenv(name, raising=False)
    for name, key in urls.items():
        environment.setattr(URLs, key, server.url(getattr(URLs, key).rpartition('/')[2]))
    yield environment
    fastai_cfg.cache_clear()


def pack(files, kind='tgz'):
    "An archive of [(name, bytes, or a TarInfo or ZipInfo with them)]."
    out = io.BytesIO()
    if kind == 'tgz':
        with tarfile.open(fileobj=out, mode='w:gz', compresslevel=1) as tar:
            for name, body in files:
                info = name if isinstance(name, tarfile.TarInfo) else tarfile.TarInfo(name)
                info.size = len(body) if info.isfile() else 0
                tar.addfile(info, io.BytesIO(body))
    else:
        with zipfile.ZipFile(out, 'w') as z:
            for name, body in files: z.writestr(name, body)
    return out.getvalue()

def pack_folder(path, kind):
    return pack([(f'{path.name}/{p.relative_to(path).as_posix()}', p.read_bytes())
                 for p in sorted(path.rglob('*')) if p.is_file()], kind)

def kind(name): return 'zip' if name == 'movielens' else 'tgz'

def nothing_kept(tmp_path):
    "Nothing lies outside fastai's home, and nothing but its settings and an empty lock in it."
    assert [p.name for p in tmp_path.iterdir()] == ['home']
    return sorted((p.relative_to(tmp_path/'home').as_posix(), p.stat().st_size)
                  for p in (tmp_path/'home').rglob('*') if not p.is_dir() and p.name != 'config.ini'
                  and not (p.suffix == '.lock' and not p.stat().st_size)) == []


def test_the_folder_of_a_person_may_be_a_link(twins, tmp_path):
    (tmp_path/'set').mkdir()
    for n in '01', '02': (tmp_path/'set'/n).symlink_to(twins['biwi']/n, target_is_directory=True)
    assert check_dataset('biwi', tmp_path/'set')['people'] == 2


def test_an_archive_is_read_to_its_checksum(tmp_path):
    "Its files are whole, and then comes an end that is not theirs."
    import gzip
    whole = io.BytesIO()
    with tarfile.open(fileobj=whole, mode='w') as tar:
        member = tarfile.TarInfo('set/a.txt')
        member.size = 4
        tar.addfile(member, io.BytesIO(b'here'))
    packed = gzip.compress(whole.getvalue() + bytes(3*2**20))
    for name, bytes_ in ('right.tgz', packed), ('wrong.tgz', packed[:-8] + bytes(8)):
        (tmp_path/name).write_bytes(bytes_)
    data._unpack(tmp_path/'right.tgz', tmp_path/'right')
    assert (tmp_path/'right'/'set'/'a.txt').read_text() == 'here'
    with pytest.raises(data._Broken, match='cannot be unpacked'):
        data._unpack(tmp_path/'wrong.tgz', tmp_path/'wrong')


@pytest.mark.parametrize('name', names)
def test_full_downloads_unpacks_and_is_found_by_fastai(name, full, server, twins, tmp_path, capsys):
    from fastai.data.external import URLs, untar_data
    full.setitem(full_counts, name, check_dataset(name, twins[name]))
    server.answer = send(pack_folder(twins[name], kind(name)))
    path = lesson_path(name)
    assert path == tmp_path/'home'/'data'/folders[name] == untar_data(getattr(URLs, urls[name]))
    assert files(path) == files(twins[name])
    assert server.asked == 1 and 'B/s' in capsys.readouterr().out
    assert lesson_path(name) == path and server.asked == 1
    assert about(name).startswith(f'{name}: the real set')
    shutil.rmtree(path) # the archive is still there, and needn't come again
    assert lesson_path(name) == path and server.asked == 1
    assert not list((tmp_path/'home').rglob('*.part'))


def test_an_archive_without_a_folder_of_its_own(full, server, twins, tmp_path):
    full.setitem(full_counts, 'movielens', check_dataset('movielens', twins['movielens']))
    server.answer = send(pack([(p.name, p.read_bytes()) for p in twins['movielens'].iterdir()],
                              'zip'))
    assert ({p.name for p in lesson_path('movielens').iterdir()}
            == {p.name for p in twins['movielens'].iterdir()})
    assert not list((tmp_path/'home').rglob('*.part'))


def test_a_set_that_fastai_already_has_asks_no_server(full, server, twins, tmp_path):
    full.setitem(full_counts, 'pets', check_dataset('pets', twins['pets']))
    shutil.copytree(twins['pets'], tmp_path/'home'/'data'/'oxford-iiit-pet')
    assert lesson_path('pets') and server.asked == 0


# What a bad server may do: (answer, what the sentence must say). `good` is the right archive.

def half_then(what):
    def make(good):
        def answer(h):
            head(h, good); h.wfile.write(good[:len(good)//2]); h.wfile.flush()
            if what == 'hang': h.stopping.wait(30)
        return answer
    return make

def drip(good):
    def answer(h):
        head(h, good)
        for b in good:
            h.wfile.write(bytes([b])); h.wfile.flush()
            if h.stopping.wait(.02): return
    return answer

def endless(good):
    def answer(h):
        h.send_response(200); h.end_headers()
        while not h.stopping.is_set(): h.wfile.write(bytes(2**20))
    return answer

def hang(good): return lambda h: h.stopping.wait(30)

def half_a_head(good):
    def answer(h):
        h.wfile.write(b'HTTP/1.1 200 OK\r\nContent-Le'); h.wfile.flush(); h.stopping.wait(30)
    return answer

def unlabelled_half(good):
    def answer(h): h.send_response(200); h.end_headers(); h.wfile.write(good[:len(good)//2])
    return answer

def half_a_chunk(good):
    def answer(h):
        h.protocol_version = 'HTTP/1.1'
        h.send_response(200); h.send_header('Transfer-Encoding', 'chunked'); h.end_headers()
        h.wfile.write(b'%x\r\n' % len(good) + good[:1000])
    return answer

def again(h): h.send_response(302); h.send_header('Location', h.path); h.end_headers()

def flipped(good):
    at = 2*len(good)//3
    return good[:at] + bytes([good[at] ^ 255]) + good[at+1:]

page = b'<!doctype html><title>Log in to the school network</title>' + b' '*1000

no_set = 'what came is not the data set'
bad_servers = {
    'says 404': (lambda good: send(b'not here', status=404),
                 'cannot be reached (HTTP Error 404: Not Found)'),
    'says 503': (lambda good: send(b'later', status=503), 'cannot be reached'),
    'sends us round in circles': (lambda good: again, 'cannot be reached'),
    'talks no HTTP': (lambda good: lambda h: h.wfile.write(b'220 mail\r\n'), 'cannot be reached'),
    'closes at once': (lambda good: lambda h: None, 'cannot be reached'),
    'never answers': (hang, 'cannot be reached (no answer in'),
    'stops in its first line': (half_a_head, 'cannot be reached (no answer in'),
    'hangs in the middle': (half_then('hang'), 'broke off after'),
    'cuts off in the middle': (half_then('close'), 'broke off after'),
    'cuts off, having told no length': (unlabelled_half, no_set),
    'cuts off in a chunk': (half_a_chunk, 'broke off after'),
    'drips a byte at a time': (drip, 'has all but stopped after'),
    'sends nothing': (lambda good: send(b''), no_set),
    'sends a log-in page': (lambda good: send(page), no_set),
    'sends a damaged archive': (lambda good: send(flipped(good)), no_set),
    'sends half as if it were all': (lambda good: send(good[:len(good)//2]), no_set),
}

def try_download(full, server, name, answer, tmp_path, wait=1.5, stall=2):
    server.answer = lambda h: (setattr(h, 'stopping', server.stopping), answer(h))
    began = time.monotonic()
    with pytest.raises((ConnectionError, ValueError, OSError)) as e:
        download_real(name, wait=wait, stall=stall)
    took = time.monotonic() - began
    assert took < wait + stall + 3, f'it took {took:.1f} s'
    text = sentence(e)
    assert (f'127.0.0.1:{server.http.server_port}' in text and 'set LESSON6_DATA=mini' in text
            and f'a folder that holds {folders[name]}/' in text)
    assert nothing_kept(tmp_path)
    return text, took


@pytest.mark.ci
@pytest.mark.parametrize('name', ['movielens', 'pascal'])
def test_bad_servers(name, full, server, twins, tmp_path):
    full.setitem(full_counts, name, check_dataset(name, twins[name]))
    good = pack_folder(twins[name], kind(name))
    slowest = 0
    # the rest is the same for a zip
    servers = {what: how for what, how in bad_servers.items() if name == 'pascal'
               or 'what came' in how[1]}
    for what, (make, says) in servers.items():
        text, took = try_download(full, server, name, make(good), tmp_path)
        assert says in text, f'{what}: {text}'
        slowest = max(slowest, took)
    server.answer = send(good) # and nothing has to be deleted by hand
    assert download_real(name).is_dir()
    kept('No network, bad network', 'A server that does its worst: one sentence, nothing kept '
                                    f'({name})',
         'a local server that ' + '; '.join(servers) + ' (waiting 1.5 s for an answer and 2 s '
                                                       'between pieces)', len(servers),
         'each time one sentence that names the address and the other choices, within '
         f'{slowest:.1f} s; no file kept; the next download from a good server was whole')


def test_no_server_at_all(full, server, tmp_path):
    server.stop()
    began = time.monotonic()
    with pytest.raises(ConnectionError) as e: lesson_path('pets')
    took = time.monotonic() - began
    assert (took < 5 and 'cannot be reached' in sentence(e) and 'LESSON6_DATA=mini' in str(e.value)
            and 'oxford-iiit-pet/' in str(e.value))
    assert nothing_kept(tmp_path)
    kept('No network, bad network', 'Nobody there',
         '`lesson_path("pets")` with `full` and a port where nothing listens', 1,
         f'{took:.1f} s, and: "{sentence(e).replace(str(server.http.server_port), "PORT")}"')


@pytest.mark.parametrize('how', ['no such name', 'a name server that is silent',
                                 'eight addresses that are silent'])
def test_no_network(how, full, tmp_path):
    """What a machine without a network sees; `urlopen`'s own timeout covers neither the name nor
    all addresses together."""
    def getaddrinfo(host, port, *args, **kw):
        if how == 'no such name': raise socket.gaierror(-3, 'Temporary failure in name resolution')
        if how == 'a name server that is silent': time.sleep(20)
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, '', ('10.0.0.1', 443))]*8
    class Silent(socket.socket):
        def connect(self, address):
            time.sleep(min(self.gettimeout() or 30, 30)); raise TimeoutError('timed out')
    full.setattr(socket, 'getaddrinfo', getaddrinfo); full.setattr(socket, 'socket', Silent)
    began = time.monotonic()
    with pytest.raises(ConnectionError, match='cannot be reached') as e:
        download_real('pets', wait=1)
    assert time.monotonic() - began < 3 and 'LESSON6_DATA=mini' in sentence(e)
    assert nothing_kept(tmp_path)


def test_fastais_own_checks_are_used(full, server, twins, tmp_path):
    """Size and md5 stand in fastai's table; a file that differs in either is refused, the size
    before anything is fetched."""
    from fastdownload.core import path_stats
    assert (data._known('https://s3.amazonaws.com/fast-ai-imageclas/oxford-iiit-pet.tgz')
            == (811706944, 'e4db5c768afd933bb91f5f594d7417a4'))
    good = pack_folder(twins['movielens'], 'zip')
    (tmp_path/'good').write_bytes(good)
    known = path_stats(tmp_path/'good'); (tmp_path/'good').unlink()
    full.setattr(data, '_known', lambda url: known)
    full.setitem(full_counts, 'movielens', check_dataset('movielens', twins['movielens']))
    assert 'bytes, not' in try_download(full, server, 'movielens', send(page), tmp_path)[0]
    text, _ = try_download(full, server, 'movielens', send(good[:1] + b'x' + good[2:]), tmp_path)
    assert 'not the one that fastai knows' in text
    text, _ = try_download(full, server, 'movielens', endless(good), tmp_path)
    assert 'does not end' in text
    # an archive of another version is replaced
    (tmp_path/'home'/'archive'/'ml-100k.zip').write_bytes(b'of last year')
    server.answer = send(good)
    assert lesson_path('movielens').is_dir()
    full.setattr(data, '_known', lambda url: (10**18, 'x'))
    shutil.rmtree(tmp_path/'home')
    asked = server.asked
    with pytest.raises(OSError, match=r'it needs 2000000000.0 GB; make room there, set '
                                      r'FASTAI_HOME'):
        download_real('movielens')
    assert server.asked == asked and nothing_kept(tmp_path)


# Archives that would write outside the data folder

def zip_link(name):
    info = zipfile.ZipInfo(name)
    info.create_system, info.external_attr = 3, (stat.S_IFLNK | 0o777) << 16
    return info

def special(kind, to='', name='pascal_2007/to'):
    def members(out):
        info = tarfile.TarInfo(name.format(out=out))
        info.type, info.linkname = kind, to.format(out=out)
        return [(info, b'')]
    return members

evil = { # what it is: the members to add to a right archive, which is a zip if it says so
    '../': lambda out: [('../../evil', b'x')],
    'a long way up': lambda out: [('../'*40 + str(out/'evil').lstrip('/'), b'x')],
    '.. in the middle': lambda out: [('pascal_2007/train/../../../evil', b'x')],
    'an absolute name': lambda out: [(str(out/'evil'), b'x')],
    'an absolute folder': special(tarfile.DIRTYPE, name='{out}/evil'),
    'a symbolic link outside': lambda out: [*special(tarfile.SYMTYPE, '{out}')(out),
                                            ('pascal_2007/to/evil', b'x')],
    'a symbolic link inside': special(tarfile.SYMTYPE, 'train.csv'),
    'a hard link outside': special(tarfile.LNKTYPE, '{out}/secret'),
    'a device file': special(tarfile.CHRTYPE), 'a block device': special(tarfile.BLKTYPE),
    'a pipe': special(tarfile.FIFOTYPE),
    'a backslash': lambda out: [('pascal_2007\\..\\..\\evil', b'x')],
    'a drive letter': lambda out: [('C:/evil', b'x')],
    'a zero in the name': lambda out: [('pascal_2007/tr\x1bain', b'x')],
    'a file where a folder is': lambda out: [('pascal_2007/train', b'x')],
    'a name of nothing': lambda out: [('', b'x')],
    'a zip with ../': lambda out: [('../../evil', b'x')],
    'a zip, absolute': lambda out: [(str(out/'evil'), b'x')],
    'a zip with a link': lambda out: [(zip_link('ml-100k/to'), str(out).encode()),
                                      ('ml-100k/to/evil', b'x')],
}

@pytest.mark.ci
def test_evil_archives(full, server, twins, tmp_path, tmp_path_factory):
    out = tmp_path_factory.mktemp('outside')
    (out/'secret').write_text('secret')
    for name in 'pascal', 'movielens':
        full.setitem(full_counts, name, check_dataset(name, twins[name]))
    for what, more in evil.items():
        name = 'movielens' if 'zip' in what else 'pascal'
        files = [(f'{folders[name]}/{p.relative_to(twins[name]).as_posix()}', p.read_bytes())
                 for p in sorted(twins[name].rglob('*')) if p.is_file()]
        text, _ = try_download(full, server, name,
                               send(pack(files[:3] + more(out) + files[3:], kind(name))), tmp_path)
        assert 'what came is not the data set' in text, f'{what}: {text}'
        assert ([p.name for p in out.iterdir()] == ['secret'] and (out/'secret').read_text()
                == 'secret' and (out/'secret').stat().st_nlink == 1), what
        assert not list(Path('/').glob('evil')) and not Path('evil').exists()
    kept('No network, bad network', 'An archive that points outside the data folder is refused',
         'a right archive with one member more: ' + '; '.join(evil), len(evil),
         'each time one sentence that names the member; nothing written outside, nothing kept')


@pytest.mark.parametrize('name', names)
def test_an_archive_that_lacks_a_file_is_refused(name, full, server, twins, tmp_path):
    full.setitem(full_counts, name, check_dataset(name, twins[name]))
    short = tmp_path/folders[name]
    shutil.copytree(twins[name], short)
    {'pets': rid('*.jpg'), 'pascal': rid('*.jpg'), 'biwi': rid('*_pose.txt'),
     'movielens': cut('u.data')}[name](short)
    body = pack_folder(short, kind(name))
    shutil.rmtree(short)
    text, _ = try_download(full, server, name, send(body), tmp_path)
    assert 'not whole' in text


def test_settings_of_fastai_that_are_half_written(full, server, twins, tmp_path):
    full.setitem(full_counts, 'movielens', check_dataset('movielens', twins['movielens']))
    server.answer = send(pack_folder(twins['movielens'], 'zip'))
    (tmp_path/'home').mkdir()
    (tmp_path/'home'/'config.ini').write_text('')
    assert lesson_path('movielens') == tmp_path/'home'/'data'/'ml-100k'


# A folder that holds only one of the two sets

def test_a_set_that_a_folder_lacks_is_replaced_and_said(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(data, 'substituted', {})
    (tmp_path/'ml-100k').mkdir()
    (tmp_path/'ml-100k'/'ratings.csv').write_text('user,title,rating\n1,a,3\n')
    monkeypatch.setenv('LESSON6_DATA', str(tmp_path))
    ratings, heads = data.lesson_paths('movielens', 'biwi')
    assert ratings == tmp_path/'ml-100k' and data.is_synthetic(heads)
    assert (data.substituted == {'biwi': 'your folder holds no biwi_head_pose/'}
            and 'biwi_head_pose' in capsys.readouterr().out)
    monkeypatch.setattr(sets, 'substituted', data.substituted)
    assert about('biwi') == 'biwi: synthetic, for your folder holds no biwi_head_pose/'
    with pytest.raises(FileNotFoundError, match='pascal_2007'): data.lesson_paths('pascal', 'biwi')
    with pytest.raises(ValueError, match='no data set'): data.lesson_paths('movielens', 'cats')


# Tables

def test_a_packed_table_that_is_damaged_is_named(tmp_path):
    import gzip
    from lesson6.files import read_text
    whole = gzip.compress(b'user,title,rating\n1,Alien,5\n'*200)
    (tmp_path/'u.csv.gz').write_bytes(whole[:14] + bytes([whole[14] ^ 255]) + whole[15:])
    with pytest.raises(ValueError, match='u.csv.gz cannot be unpacked'):
        read_text(tmp_path/'u.csv.gz')


def test_blanks_around_a_cell_make_no_second_title(tmp_path):
    from lesson6.tables import read_frame
    (tmp_path/'r.csv').write_text('user,title,rating\n1, Alien, 5\n2, Alien ,4\n3,Alien,3\n')
    table, _ = read_frame(tmp_path/'r.csv')
    assert table.title.tolist() == ['Alien']*3 and table.rating.tolist() == [5, 4, 3]


def test_quotes_after_a_blank_are_quotes(tmp_path):
    from lesson6.tables import read_rows
    (tmp_path/'r.csv').write_text('user, "title", "rating"\n1, "Alien, again", 5\n')
    rows = read_rows(tmp_path/'r.csv')
    assert rows.columns == ['user', 'title', 'rating'] and rows.cells('title') == ['Alien, again']


def test_a_first_line_that_is_missing_is_spelt_out(tmp_path):
    from lesson6.tables import read_rows
    (tmp_path/'p.csv').write_text('1,2,3,4,5\n')
    with pytest.raises(ValueError, match='such as fname,x,y'):
        read_rows(tmp_path/'p.csv', ('fname', 'x', 'y'), 3)
