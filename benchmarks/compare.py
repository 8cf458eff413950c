"""Runs contenders in turn on the same data and cores, and writes a table and a chart. Machines are
noisy, so what counts is the ratio."""
import platform
import statistics
import time
from pathlib import Path

import matplotlib
import pandas as pd

matplotlib.use('agg')
import matplotlib.pyplot as plt  # noqa: E402

results = Path(__file__).parent/'results'


def side_by_side(
    # {name: function without arguments}; a function may return {column: value} of what else it
    # measured
    contenders: dict,
    baseline: str,       # the name that the others are compared with
    repeats: int = 3,    # rounds; in each of them every contender runs once, in turn
    # one row a contender: median seconds, fastest, slowest, times as fast as the baseline, and the
    # rest
) -> pd.DataFrame:
    seconds, extras = {n: [] for n in contenders}, {n: [] for n in contenders}
    for i in range(repeats):
        for name, f in contenders.items():
            start = time.perf_counter()
            extra = f() or {}
            seconds[name].append(extra.pop('seconds', time.perf_counter() - start))
            extras[name].append(extra)
            print(f'round {i+1}/{repeats}  {name:<44} {seconds[name][-1]:8.2f} s  {extra}',
                  flush=True)
    rows = []
    for name, ts in seconds.items():
        ratio = statistics.median(b/t for b, t in zip(seconds[baseline], ts, strict=True))
        rows.append({'': name, 'median s': statistics.median(ts), 'fastest s': min(ts),
                     'slowest s': max(ts),
                     'times as fast': ratio,
                     **{k: statistics.mean(e[k] for e in extras[name]) for k in extras[name][0]}})
    table = pd.DataFrame(rows).set_index('')
    table.attrs['seconds'] = seconds    # of each round, by name
    return table


def chart_words(title: str, ratios: pd.Series) -> str:
    "What a chart of ratios shows, for those who don't see it"
    bars = '; '.join(f'{name}: {ratio:.3g}' for name, ratio in ratios.items())
    return f'bar chart, {title}, times as fast as what it is compared with; {bars}'


def draw_chart(file: Path, title: str, ratios: pd.Series):
    "A bar for each ratio, from the top down"
    fig, ax = plt.subplots(figsize=(7, 0.5*len(ratios)+1), layout='constrained')
    ax.barh(ratios.index[::-1], ratios[::-1])
    ax.set(title=title, xlabel='times as fast (longer is better)')
    for y, v in enumerate(ratios[::-1]): ax.annotate(f' {v:.3g}', (v, y), va='center')
    ax.margins(x=0.12)
    fig.savefig(file)


def report(
    name: str,            # of the files
    title: str,           # of the table and the chart
    table: pd.DataFrame,  # as `side_by_side` returns it
    note: str = '',       # what was compared, on which data
    chart: bool = True,   # draw the ratios; of no use where they are all the same
):
    "Writes the table as Markdown, and its chart; the site shows both"
    results.mkdir(exist_ok=True)
    shown = table.astype(object).where(table.notna(), '')   # empty where not measured
    shown = shown.map(lambda v: f'{v:.4g}' if isinstance(v, float) else str(v))
    lines = [['what', *shown.columns], ['---']*(len(shown.columns)+1),
             *([n, *row] for n, row in zip(shown.index, shown.values, strict=True))]
    parts = [f'## {title}', note, '\n'.join(f'| {" | ".join(line)} |' for line in lines),
             f'{platform.system()}, {platform.machine()}, Python {platform.python_version()}']
    picture = results/f'{name}.svg'
    picture.unlink(missing_ok=True)
    if chart:
        ratios = table['times as fast'].dropna()
        draw_chart(picture, title, ratios)
        parts.insert(3, f'![{chart_words(title, ratios)}]({picture.name})')
    text = '\n\n'.join(parts)
    print(text)
    (results/f'{name}.md').write_text(f'{text}\n', encoding='utf-8')
