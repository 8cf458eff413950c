// What scrolls sideways can be reached and scrolled by keyboard, and only that.
function markScrollers() {
  for (const e of document.querySelectorAll('.highlight pre, .output, .output > *, .table-wrapper, .cell_output pre, .sig, div.math')) {
    if (e.scrollWidth > e.clientWidth + 1) {
      e.tabIndex = 0
      if (!e.hasAttribute('role')) { e.setAttribute('role', 'region'); e.setAttribute('aria-label', 'scrolls sideways') }
    } else if (e.tabIndex === 0 && e.getAttribute('aria-label') === 'scrolls sideways') {
      e.removeAttribute('tabindex'); e.removeAttribute('role'); e.removeAttribute('aria-label')
    }
  }
}
addEventListener('load', markScrollers)
addEventListener('resize', markScrollers)

// Figures that answer back. Nothing of them is loaded before one is near the screen; until it has come, and if it can't, the picture stays.
window.lesson6 = {
  figures: {}, loaded: {},
  load(file) {
    return this.loaded[file] ??= new Promise((done, failed) => {
      const script = document.createElement('script')
      script.src = (document.documentElement.dataset.content_root || './') + file
      script.onload = done
      script.onerror = () => failed(new Error(`${file} could not be loaded`))
      document.head.append(script)
    })
  },
  async start(place) {
    await this.load('_static/figures.js')
    await this.load(place.dataset.file)
    await this.show(place, this.figures[place.dataset.file])
  }
}
addEventListener('DOMContentLoaded', () => {
  const near = new IntersectionObserver(places => {
    for (const place of places.filter(o => o.isIntersecting)) {
      near.unobserve(place.target)
      lesson6.start(place.target).catch(why => { place.target.replaceChildren(); console.warn(why) })
    }
  }, { rootMargin: '300px' })
  document.querySelectorAll('.answering').forEach(place => near.observe(place))
})
