// The figures that a reader can move. Each kind gets its place on the page, the numbers that the notebook measured, and these tools.
(() => {
  'use strict'
  const svg = 'http://www.w3.org/2000/svg'
  const f = (x, digits) => x == null ? 'none' : x.toFixed(digits)
  const power = x => x.toExponential(1)
  const share = x => x == null ? 'none' : `${(100*x).toFixed(1)} %`
  let count = 0

  function make(tag, properties = {}, ...children) {
    const e = properties.svg ? document.createElementNS(svg, tag) : document.createElement(tag)
    for (const [k, v] of Object.entries(properties)) {
      if (k === 'svg') continue
      if (k in e && !properties.svg) e[k] = v
      else e.setAttribute(k, v)
    }
    e.append(...children)
    return e
  }
  const draw = (tag, properties, ...children) => make(tag, { ...properties, svg: true }, ...children)

  // A control with its label, and its number in text beside it.
  function labelled(box, words, control, shown) {
    control.id = `figure-control-${++count}`
    const row = make('div', { className: 'control' }, make('label', { htmlFor: control.id, textContent: words }), control)
    if (shown) row.append(shown)
    box.append(row)
    return control
  }
  function slider(box, words, [min, max, step], value, tell, moved) {
    const shown = make('output')
    const control = labelled(box, words, make('input', { type: 'range', min, max, step, value }), shown)
    shown.htmlFor = control.id
    const now = () => { const v = Number(control.value); shown.textContent = tell(v); control.setAttribute('aria-valuetext', tell(v)); moved(v) }
    control.addEventListener('input', now)
    return { control, now }
  }
  function choice(box, words, options, moved) {
    const control = labelled(box, words, make('select', {}, ...options.map(([value, text]) => make('option', { value, textContent: text }))))
    control.addEventListener('change', () => moved(control.value))
    return control
  }
  function spoken(box) { // what has changed, for the eye and for a screen reader
    const text = make('p', { className: 'says' })
    text.setAttribute('aria-live', 'polite')
    box.append(text)
    return text
  }
  function rows(head, lines) {
    return make('table', {}, make('thead', {}, make('tr', {}, ...head.map(o => make('th', { scope: 'col', textContent: o })))),
      make('tbody', {}, ...lines.map(line => make('tr', {}, ...line.map(o => make('td', { textContent: o }))))))
  }
  function cut(sheet, place, size, words) { // one picture of the sheet
    const scale = size/sheet.side
    const e = make('div', { className: 'cut' })
    e.setAttribute('role', 'img')
    e.setAttribute('aria-label', words)
    e.style.cssText = `width:${size}px;height:${size}px;background-image:url(${sheet.src});background-size:${sheet.columns*size}px auto;` +
      `background-position:-${place % sheet.columns*sheet.side*scale}px -${Math.floor(place/sheet.columns)*sheet.side*scale}px`
    return e
  }

  // A chart in the colours of the page, drawn anew when they change.
  async function chart(box, spec, words, data, signals) {
    const at = make('div', { className: 'chart' })
    at.setAttribute('role', 'img')
    at.setAttribute('aria-label', words)
    box.append(at)
    await lesson6.load('_figures/vega.js')
    let view
    const held = { data, signals }
    async function show() {
      const css = getComputedStyle(document.body), ink = css.getPropertyValue('--color-foreground-primary').trim() || css.color
      const faint = css.getPropertyValue('--color-background-border').trim() || '#ccc', brand = css.getPropertyValue('--color-brand-content').trim() || '#0b5d8a'
      const config = { aria: false, background: null, font: css.fontFamily, view: { stroke: null }, line: { color: brand }, point: { color: brand }, rule: { color: ink }, text: { color: ink },
        axis: { labelColor: ink, titleColor: ink, domainColor: ink, tickColor: ink, gridColor: faint, titleFontWeight: 'normal' },
        legend: { labelColor: ink, titleColor: ink, titleFontWeight: 'normal' }, range: { category: [brand, '#d9741b', '#8a8a3c'] } }
      view?.finalize()
      const filled = { ...spec, datasets: held.data, params: (spec.params ?? []).map(o => o.name in held.signals ? { ...o, value: held.signals[o.name] } : o) }
      view = (await vegaEmbed(at, filled, { actions: false, renderer: 'svg', config, tooltip: { theme: document.body.dataset.theme === 'dark' ? 'dark' : 'light' } })).view
      at.querySelector('svg').setAttribute('aria-hidden', 'true')
    }
    await show()
    new MutationObserver(show).observe(document.body, { attributes: true, attributeFilter: ['data-theme'] })
    matchMedia('(prefers-color-scheme: dark)').addEventListener('change', show)
    return {
      set(signals, data = {}) {
        Object.assign(held.signals, signals)
        Object.assign(held.data, data)
        for (const [name, value] of Object.entries(data)) view.data(name, value)
        for (const [name, value] of Object.entries(signals)) view.signal(name, value)
        return view.runAsync()
      }
    }
  }

  const kinds = {
    async learning_rate(box, d) {
      const controls = box.appendChild(make('div')), says = spoken(box), charts = box.appendChild(make('div', { className: 'pair' }))
      const lowest = Math.log10(d.lrs[0]), highest = Math.log10(d.lrs.at(-1)) + .5
      const walk = rate => {
        const steps = [{ step: 0, w: 1.4, loss: 1.96 }]
        for (let i = 1; i < 9; i++) { const w = steps.at(-1).w*(1 - 2*d.steepness*rate); steps.push({ step: i, w, loss: w*w }) }
        return steps
      }
      const start = Object.values(d.suggestions).at(-1) ?? d.lrs[Math.floor(d.lrs.length/2)]
      const [valley, losses] = await Promise.all([
        chart(charts, d.charts.valley, 'the steps of gradient descent in a valley', { steps: walk(start) }, {}),
        chart(charts, d.charts.losses, "the finder's loss at each rate, with a line at the chosen rate", { losses: d.lrs.map((rate, i) => ({ rate, loss: d.losses[i] })) }, { rate: start })])
      slider(controls, 'learning rate', [lowest.toFixed(2), highest.toFixed(2), .05], Math.log10(start), v => power(10**v), v => {
        const rate = 10**v, steps = walk(rate), last = steps.at(-1), at = d.lrs.reduce((a, r, i) => Math.abs(Math.log(r/rate)) < Math.abs(Math.log(d.lrs[a]/rate)) ? i : a, 0)
        const tried = Math.abs(Math.log(d.lrs[at]/rate)) < .5
        says.textContent = `Valley: from a loss of 1.96, eight steps lead to ${last.loss < 1e4 ? f(last.loss, 2) : power(last.loss)}. ` +
          (tried ? `This run's finder: a loss of ${f(d.losses[at], 2)} at a rate of ${power(d.lrs[at])}.` : "This run's finder has tried no such rate.")
        valley.set({}, { steps: steps.filter(o => Math.abs(o.w) <= 2.6) })
        losses.set({ rate })
      }).now()
    },

    async confusion(box, d) {
      const controls = box.appendChild(make('div')), says = spoken(box), n = d.vocab.length, pair = box.appendChild(make('div', { className: 'pair' }))
      const name = o => o.actual === o.guess ? `${d.vocab[o.actual]}, right: ${o.count}` : `${d.vocab[o.actual]} taken for ${d.vocab[o.guess]}: ${o.count}`
      const most = Math.max(...d.fields.map(o => o.count)), left = pair.appendChild(make('div')), matrix = left.appendChild(draw('svg', { viewBox: `0 0 ${n*10} ${n*10}`, class: 'matrix', 'aria-hidden': 'true' }))
      const shown = pair.appendChild(make('div', { className: 'cuts' })), squares = d.fields.map((o, i) => {
        const e = draw('rect', { x: o.guess*10, y: o.actual*10, width: 9.4, height: 9.4, 'fill-opacity': .25 + .75*o.count/most, class: o.actual === o.guess ? 'right' : 'wrong' })
        e.addEventListener('click', () => { select.value = i; show(i) })
        e.append(draw('title', {}, name(o)))
        matrix.append(e)
        return e
      })
      left.append(make('p', { className: 'note', textContent: 'A row for each true class, a column for each guess.' }))
      matrix.prepend(draw('rect', { x: 0, y: 0, width: n*10, height: n*10, class: 'field' }))
      const all = o => d.fields.filter(other => other.actual === o.actual).reduce((sum, other) => sum + other.count, 0)
      function show(i) {
        const o = d.fields[i]
        squares.forEach((e, j) => e.classList.toggle('chosen', j === Number(i)))
        says.textContent = `${o.count} of ${all(o)} pictures of ${d.vocab[o.actual]} were ` + (o.actual === o.guess ? 'recognised.' : `taken for ${d.vocab[o.guess]}.`) +
          (o.pictures.length && o.pictures.length < o.count ? ` The ${o.pictures.length} of which the model was surest:` : '')
        shown.replaceChildren(...o.pictures.map(([place, sure]) => make('figure', {}, cut(d.sheet, place, 84, `a picture of ${d.vocab[o.actual]}`), make('figcaption', { textContent: `${share(sure)} sure` }))))
      }
      const select = choice(controls, 'field of the matrix', d.fields.map((o, i) => [i, name(o)]), show)
      show(0)
    },

    async threshold(box, d) {
      const controls = box.appendChild(make('div')), says = spoken(box), at = box.appendChild(make('div')), shown = box.appendChild(make('div', { className: 'cards' }))
      const curves = d.thresholds.flatMap((threshold, i) => ['accuracy', 'precision', 'recall'].map(measure => ({ threshold, measure, share: d[measure][i] }))).filter(o => o.share != null)
      const lines = await chart(at, d.charts.curves, 'accuracy, precision and recall against the threshold, with a line at the chosen one', { curves }, { thresh: d.best, best: d.best })
      const cards = d.pictures.map((o, i) => {
        const list = make('ul')
        shown.append(make('figure', {}, cut(d.sheet, i, 96, `picture ${i+1}: ${o.labels.map(l => d.vocab[l]).join(', ') || 'no label'}`), list))
        return thresh => {
          const named = o.said.filter(([, p]) => p > thresh).map(([l]) => l), missed = o.labels.filter(l => !named.includes(l))
          list.replaceChildren(...named.map(l => make('li', { className: o.labels.includes(l) ? 'right' : 'wrong', textContent: `${d.vocab[l]}: ${o.labels.includes(l) ? 'right' : 'wrong'}` })),
            ...missed.map(l => make('li', { className: 'missed', textContent: `${d.vocab[l]}: missed` })))
          if (!list.children.length) list.append(make('li', { className: 'none', textContent: 'nothing' }))
        }
      })
      slider(controls, 'threshold', [.01, .99, .01], d.best, v => f(v, 2), v => {
        const i = Math.round(100*v) - 1
        says.textContent = `At ${f(v, 2)}: accuracy ${share(d.accuracy[i])}, precision ${share(d.precision[i])}, recall ${share(d.recall[i])}. The best accuracy, ${share(d.accuracy[Math.round(100*d.best) - 1])}, is at ${f(d.best, 2)}.`
        lines.set({ thresh: v })
        cards.forEach(card => card(v))
      }).now()
    },

    async camera(box, d) {
      const controls = box.appendChild(make('div')), says = spoken(box), pair = box.appendChild(make('div', { className: 'pair' }))
      const [x0, y0, z0] = d.centre, near = 320, wide = 520*Math.max(1, z0/900)   // the head that was measured is always within reach
      const ranges = [[-1, 1].map(o => o*Math.max(400, 2*Math.abs(x0))), [-1, 1].map(o => o*Math.max(300, 2*Math.abs(y0))), [Math.min(400, z0/2), Math.max(1400, 2*z0)]], far = ranges[2][1] + 100
      const above = pair.appendChild(draw('svg', { viewBox: `-60 ${-wide} ${far+160} ${2*wide}`, class: 'scene', role: 'img', 'aria-label': 'seen from above: camera, picture and head' }))
      const picture = pair.appendChild(draw('svg', { viewBox: `0 0 ${d.width} ${d.height}`, class: 'scene frame', role: 'img', 'aria-label': 'the picture, with the point where the centre of the head lands' }))
      const half = near*d.width/2/d.fx, line = (x1, y1, x2, y2, cls) => draw('line', { x1, y1, x2, y2, class: cls })
      const ray = line(0, 0, 0, 0, 'ray'), offset = line(0, 0, 0, 0, 'offset'), head = draw('circle', { r: 90, class: 'head' }), hit = draw('circle', { r: 22, class: 'hit' })
      const word = (x, y, text) => draw('text', { x, y, class: 'word' }, text)
      above.append(line(0, 0, far, 0, 'axis'), line(near, -half, near, half, 'plane'), ray, offset, head, hit, draw('rect', { x: -40, y: -30, width: 50, height: 60, class: 'lens' }), word(-50, 100, 'camera'), word(near-80, -half-30, 'picture'))
      const oval = draw('ellipse', { class: 'head' }), spot = draw('circle', { r: d.width/60, class: 'hit' })
      picture.append(line(d.cx, 0, d.cx, d.height, 'axis'), line(0, d.cy, d.width, d.cy, 'axis'), oval, spot)
      const at = [...d.centre]
      function show() {
        const [x, y, z] = at, px = d.fx*x/z + d.cx, py = d.fy*y/z + d.cy, inside = px >= 0 && px <= d.width && py >= 0 && py <= d.height
        says.textContent = `Right: ${f(d.fx, 1)} · ${f(x, 1)} / ${f(z, 1)} + ${f(d.cx, 1)} = ${f(px, 1)} pixels. Down: ${f(d.fy, 1)} · ${f(y, 1)} / ${f(z, 1)} + ${f(d.cy, 1)} = ${f(py, 1)} pixels.` + (inside ? '' : ' That is outside the picture.')
        const set = (e, o) => Object.entries(o).forEach(([k, v]) => e.setAttribute(k, v))
        set(ray, { x2: z, y2: x }); set(offset, { x1: z, x2: z, y2: x }); set(head, { cx: z, cy: x }); set(hit, { cx: near, cy: near*x/z })
        set(oval, { cx: px, cy: py, rx: d.fx*85/z, ry: d.fy*115/z }); set(spot, { cx: px, cy: py })
      }
      const names = ['to the right, mm', 'down, mm', 'away from the camera, mm']
      names.forEach((words, i) => slider(controls, words, [...ranges[i], 'any'], d.centre[i], v => f(v, 1), v => { at[i] = v; show() }).now())
    },

    async map(box, d) {
      const controls = box.appendChild(make('div')), says = spoken(box), at = box.appendChild(make('div')), tables = box.appendChild(make('div', { className: 'pair' }))
      const map = await chart(at, d.charts.map, 'the map of titles; each is also in the list to search', { titles: d.titles.map(({ title, x, y, mean, ratings }) => ({ title, x, y, mean, ratings })) }, { chosen: '', near: [] })
      const names = make('datalist', { id: `figure-titles-${++count}` }, ...d.titles.map(o => make('option', { value: o.title })))
      const search = labelled(controls, 'search a title', make('input', { type: 'search', placeholder: d.titles[0].title }))
      search.setAttribute('list', names.id)
      controls.append(names)
      function show(title) {
        const o = d.titles.find(t => t.title.toLowerCase() === title.trim().toLowerCase()) ?? (title.trim().length > 2 ? d.titles.find(t => t.title.toLowerCase().includes(title.trim().toLowerCase())) : undefined)
        if (!o) { if (title) says.textContent = `No title on the map has ${title} in it.`; return }
        who.value = ''
        says.textContent = `${o.title}: mean rating ${f(o.mean, 2)} of ${o.ratings}. Its nearest neighbour among all titles: ${o.near[0]?.[0] ?? 'none'}.`
        tables.replaceChildren(rows(['neighbours', 'cosine'], o.near.map(([t, c]) => [t, f(c, 2)])))
        map.set({ chosen: o.title, near: o.near.map(([t]) => t) })
      }
      search.addEventListener('input', () => show(search.value))
      const who = choice(controls, 'or a user', [['', 'nobody'], ...d.users.map((o, i) => [i, `${o.user} (${o.rated} ratings)`])], i => {
        search.value = ''
        if (i === '') { says.textContent = ''; tables.replaceChildren(); return map.set({ chosen: '', near: [] }) }
        const o = d.users[i]
        says.textContent = `User ${o.user} has rated ${o.rated} titles. Recommended first: ${o.shown[0]?.[0] ?? 'nothing'}.`
        tables.replaceChildren(rows(['rated highest', 'rating'], o.liked.map(([t, r]) => [t, String(r)])), rows(['recommended', 'prediction'], o.shown.map(([t, p]) => [t, f(p, 2)])))
        map.set({ chosen: '\u0000', near: [...o.liked, ...o.shown].map(([t]) => t) })
      })
      says.textContent = `${d.titles.length} titles, those with the most ratings.`
    },

    async weight_decay(box, d) {
      const controls = box.appendChild(make('div')), says = spoken(box), charts = box.appendChild(make('div', { className: 'pair' })), steepest = Math.max(...d.wd)
      const best = d.valid_loss.indexOf(Math.min(...d.valid_loss.filter(o => o != null)))   // null: that training diverged
      const sweep = d.wd.flatMap((wd, i) => [{ wd, of: 'training', loss: d.train_loss[i] }, { wd, of: 'validation', loss: d.valid_loss[i] }]).filter(o => o.wd > 0 && o.loss != null)
      const [losses, bowl] = await Promise.all([
        chart(charts, d.charts.losses, 'training and validation loss against weight decay, with a line at the chosen one', { sweep }, { wd: d.wd[best] }),
        chart(charts, d.charts.parabola, 'the penalty as a parabola over a weight, with dots at the mean size of the weights', {}, { wd: d.wd[best], size: d.size[best], steepest })])
      slider(controls, 'weight decay', [0, d.wd.length - 1, 1], best, i => String(d.wd[i]), i => {
        says.textContent = d.valid_loss[i] == null || d.size[i] == null ? `wd ${d.wd[i]}: the training diverged.` : `wd ${d.wd[i]}: training loss ${f(d.train_loss[i], 3)}, validation loss ${f(d.valid_loss[i], 3)}; the weights have a root mean square of ${f(d.size[i], 3)}, where the penalty is ${power(d.wd[i]*d.size[i]**2)}.`
        losses.set({ wd: d.wd[i] })
        bowl.set({ wd: d.wd[i], size: d.size[i] })
      }).now()
    }
  }

  lesson6.show = async (place, data) => {
    const box = make('div', { className: 'box' })
    box.setAttribute('role', 'group')
    box.setAttribute('aria-label', 'a figure to move')
    place.append(box)
    await kinds[data.kind](box, data)
    place.classList.add('ready')
    const cell = place.previousElementSibling
    cell?.querySelectorAll('.cell_output img').forEach(e => { e.hidden = true })
  }
})()
