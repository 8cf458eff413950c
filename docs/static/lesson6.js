// What scrolls sideways can be reached and scrolled by keyboard, and only that.
function markScrollers() {
  for (const e of document.querySelectorAll('.highlight pre, .output > *, .table-wrapper, .cell_output pre, .sig, div.math')) {
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
