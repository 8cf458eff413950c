"Draws docs/twins.png, the front page's picture, from the drawn data: python docs/picture.py"
import csv
import warnings
from pathlib import Path

import matplotlib
import numpy as np
from PIL import Image

from lesson6.data import lesson_path

# fastai calls it while it is imported
warnings.filterwarnings('ignore', '`torch.jit.script` is deprecated', FutureWarning)
matplotlib.use('agg')
import matplotlib.pyplot as plt  # noqa: E402

out = Path(__file__).parent/'twins.png'


def wall(pictures, columns, size, gap=3):
    "Pictures side by side, each scaled to `size` (width, height)."
    w, h = size
    rows = -(-len(pictures)//columns)
    whole = Image.new('RGB', (columns*(w+gap)-gap, rows*(h+gap)-gap), 'white')
    for i, p in enumerate(pictures):
        whole.paste(p.convert('RGB').resize(size, Image.LANCZOS),
                    (i % columns*(w+gap), i//columns*(h+gap)))
    return whole


def square(p):
    side = min(p.size)
    return p.crop(((p.width-side)//2, (p.height-side)//2, (p.width+side)//2, (p.height+side)//2))


def pets():
    files = sorted((lesson_path('pets')/'images').glob('*.jpg'))
    breeds = sorted({f.name.rpartition('_')[0] for f in files})
    chosen = [next(f for f in files if f.name.startswith(f'{b}_'))
              for b in breeds[::len(breeds)//12 or 1][:12]]
    return wall([square(Image.open(f)) for f in chosen], 4, (96, 96))


def things():
    path = lesson_path('pascal')
    with open(path/'train.csv', newline='') as f: rows = list(csv.DictReader(f))
    rows = sorted(rows, key=lambda r: -len(r['labels'].split()))[:200:17]
    return wall([square(Image.open(path/'train'/r['fname'])) for r in rows[:12]], 4, (96, 96))


def heads():
    from lesson6.head_pose import get_ctr
    path, pictures = lesson_path('biwi'), []
    for person in sorted(p for p in path.iterdir() if p.is_dir())[:6]:
        file = sorted(person.glob('*_rgb.jpg'))[0]
        x, y = (float(v) for v in get_ctr(file))
        p = Image.open(file).convert('RGB')
        a = np.asarray(p).copy()
        yy, xx = np.mgrid[:p.height, :p.width]
        a[(xx-x)**2+(yy-y)**2 < 9**2] = (255, 40, 40)
        wide = p.height*129//147
        left = int(min(max(x-wide/2, 0), p.width-wide))
        pictures.append(Image.fromarray(a[:, left:left+wide]))
    return wall(pictures, 3, (129, 147))


def ratings():
    table = np.loadtxt(lesson_path('movielens')/'u.data', dtype=int, usecols=(0, 1, 2))
    grid = np.full((table[:, 0].max()+1, table[:, 1].max()+1), np.nan)
    grid[table[:, 0], table[:, 1]] = table[:, 2]
    seen = ~np.isnan(grid)
    return grid[np.argsort(-seen.sum(1))[:40]][:, np.argsort(-seen.sum(0))[:52]]


fig, axs = plt.subplots(1, 4, figsize=(13, 3.1), dpi=110, layout='constrained',
                        width_ratios=[395, 395, 393, 390])
for ax, picture, title in zip(axs, [pets(), things(), heads()],
                              ['Which breed?', 'Which things?', 'Where is the head?']):
    ax.imshow(picture, aspect='auto')
    ax.set_title(title)
axs[3].pcolormesh(ratings(), cmap='YlGnBu', edgecolors='white', linewidth=.2)
axs[3].set_title('Which film next?')
for ax in axs: ax.axis('off')
fig.savefig(out, metadata={'Software': None})
image = Image.open(out).convert('RGB').quantize(200)
image.save(out, optimize=True)
print(out.name, image.size, out.stat().st_size//1024, 'kB')
