"""The style sheet and the script of report and catalogue; a page needs nothing of the script.

It adds hints to heat maps, sorting to tables, and copying to code.
"""

from eva_dist.render.colours import AMOUNT, DIFFERENCE

_BARS = "".join(
    f".bar.{palette.class_} {{ background: linear-gradient(to right, {', '.join(palette.stops)}); }}\n"
    for palette in (AMOUNT, DIFFERENCE)
)

CSS = (
    f"{_BARS}"
    """
:root { color-scheme: light dark; --back: #ffffff; --ink: #1b1f24; --soft: #57606a; --rule: #d8dee4; --pale: #f4f6f8;
  --link: #0b5cad; --bad: #a6360b; --badpale: #fdf0ea;
  --c0: #0072b2; --c1: #d55e00; --c2: #009e73; --c3: #b3508a; --c4: #b27c00; --c5: #3f9bd1; --c6: #555b62; }
@media (prefers-color-scheme: dark) { :root { --back: #14171b; --ink: #e6e9ed; --soft: #9aa4af; --rule: #333a42;
  --pale: #1c2127; --link: #7ab8f5; --bad: #ff9d6c; --badpale: #33211a;
  --c0: #4aa8e0; --c1: #f2823d; --c2: #2fc79d; --c3: #e49ac6; --c4: #efb435; --c5: #a5daf7; --c6: #b4bcc4; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--back); color: var(--ink); font: 16px/1.5 system-ui, sans-serif; }
header, main, footer { max-width: 84rem; margin: 0 auto; padding: 0 1rem; }
header { padding-top: 1.5rem; }
footer { margin: 3rem auto 2rem; color: var(--soft); font-size: .875rem; }
h1 { font-size: 1.6rem; line-height: 1.25; margin: 0 0 .75rem; text-wrap: balance; }
h2 { font-size: 1.2rem; margin: 2.5rem 0 .5rem; padding-top: .75rem; border-top: 1px solid var(--rule); }
h3 { font-size: .9375rem; margin: 0 0 .25rem; overflow-wrap: anywhere; }
p { max-width: 48rem; margin: .5rem 0; }
a { color: var(--link); }
code, pre { font: .875em ui-monospace, monospace; }
pre { white-space: pre-wrap; overflow-wrap: anywhere; max-height: 20rem; overflow: auto; margin: .25rem 0; }
.findings { font-size: 1.0625rem; max-width: 52rem; padding-left: 1.2rem; margin: 0; }
.findings li { margin: .4rem 0; }
.findings .bad { color: var(--bad); font-weight: 600; }
.note, figcaption, .legend, .scale { color: var(--soft); font-size: .875rem; }
figure { margin: 1rem 0 .5rem; }
figure.one { max-width: 33rem; }
figcaption { max-width: 48rem; margin-top: .5rem; }
.scroll { overflow-x: auto; margin: .75rem 0; border: 1px solid var(--rule); border-radius: 6px; }
.scroll:focus-visible { outline: 2px solid var(--link); }
table { border-collapse: collapse; font-size: .875rem; font-variant-numeric: tabular-nums; width: 100%; }
caption { text-align: left; color: var(--soft); padding: .5rem .75rem; }
th, td { padding: .3rem .55rem; text-align: right; white-space: nowrap; border-top: 1px solid var(--rule); }
thead th { vertical-align: bottom; background: var(--pale); border-top: 0; }
tbody th { font-weight: 600; position: sticky; left: 0; background: var(--back); }
th.text, td.text, .words th, .words td { text-align: left; }
.words td, .words th { white-space: normal; overflow-wrap: anywhere; }
.words th { min-width: 8rem; }
td a { display: inline-block; max-width: 10rem; overflow: hidden; text-overflow: ellipsis; vertical-align: bottom; }
tbody tr:hover > * { background: var(--pale); }
tr.reference > th { box-shadow: inset 3px 0 var(--link); }
th button { all: unset; cursor: pointer; }
th button:focus-visible, button.copy:focus-visible { outline: 2px solid var(--link); }
th[aria-sort=ascending] button::after { content: " \\2191"; }
th[aria-sort=descending] button::after { content: " \\2193"; }
.status { border-radius: 4px; padding: 0 .35rem; background: var(--pale); border: 1px solid var(--rule); }
.status.bad { color: var(--bad); border-color: currentColor; background: none; }
code.load { user-select: all; }
details.load { margin: 0; }
details.load > summary { cursor: pointer; color: var(--link); }
button.copy { font: inherit; margin-left: .5rem; padding: 0 .5rem; cursor: pointer; color: var(--link);
  background: none; border: 1px solid var(--rule); border-radius: 4px; }
.failures > li { background: var(--badpale); border-left: 3px solid var(--bad); padding: .5rem .75rem;
  margin: .5rem 0; }
.failures { list-style: none; padding: 0; }
details { margin: .75rem 0; }
details > summary { cursor: pointer; color: var(--link); }
.charts { display: grid; gap: 1rem; grid-template-columns: repeat(auto-fit, minmax(min(100%, 20rem), 1fr)); }
.panels { display: grid; gap: 1.25rem 1rem; grid-template-columns: repeat(auto-fill, minmax(min(100%, 17rem), 1fr)); }
.matrices { display: grid; gap: 1.5rem; grid-template-columns: repeat(auto-fit, minmax(min(100%, 20rem), 1fr));
  max-width: 62rem; }
svg { display: block; width: 100%; height: auto; }
svg text { fill: var(--soft); font: 11px system-ui, sans-serif; }
svg.chart text { font-size: 12px; }
.cells text { font: inherit; fill: #ffffff; } .cells text.dark { fill: #000000; }
svg.chart text.number { fill: var(--ink); font-size: 10.5px; paint-order: stroke; stroke: var(--back);
  stroke-width: 3px; }
.grid { stroke: var(--rule); }
.axis { stroke: var(--soft); fill: none; }
.mark { fill: currentColor; stroke: var(--back); stroke-width: 1; color: var(--ink); }
.mark.hollow { fill: none; stroke: currentColor; stroke-width: 1.8; }
.line { fill: none; stroke: currentColor; stroke-width: 1.6; opacity: .75; color: var(--ink); }
.c0.c0 { color: var(--c0); } .c1.c1 { color: var(--c1); } .c2.c2 { color: var(--c2); } .c3.c3 { color: var(--c3); }
.c4.c4 { color: var(--c4); } .c5.c5 { color: var(--c5); } .c6.c6 { color: var(--c6); }
.point:hover .mark { stroke: var(--ink); stroke-width: 2; }
.heat path { fill: none; shape-rendering: crispEdges; }
.heat .void { fill: url(#hatch); }
.scale .bar { display: inline-block; width: 8rem; height: .7rem; border-radius: 2px; vertical-align: baseline;
  border: 1px solid var(--rule); margin: 0 .25rem; }
.legend, .legend ul { list-style: none; display: flex; flex-wrap: wrap; gap: .1rem 1rem; padding: 0; margin: 0; }
.legend ul { display: inline-flex; margin-left: .75rem; }
.swatch { display: inline-block; width: 17px; height: 17px; margin-right: .2rem; vertical-align: -3px; }
#hint { position: fixed; z-index: 9; pointer-events: none; max-width: 22rem; padding: .3rem .6rem; font-size: .8125rem;
  background: var(--ink); color: var(--back); border-radius: 4px; }
.unseen { position: absolute; width: 1px; height: 1px; overflow: hidden; clip-path: inset(50%); white-space: nowrap;
  margin: 0; }
.defs { position: absolute; width: 0; height: 0; }
"""
)

SCRIPT = """
(() => {
  const hint = document.createElement('div'); hint.id = 'hint'; hint.hidden = true; document.body.append(hint);
  for (const map of document.querySelectorAll('svg.heat')) {
    const [left, top, width, height] = JSON.parse(map.dataset.box), grid = map.dataset.grid.split(';');
    const rows = JSON.parse(map.dataset.rows), columns = JSON.parse(map.dataset.columns);
    map.addEventListener('pointermove', event => {
      const box = map.getBoundingClientRect(), unit = map.viewBox.baseVal.width / box.width;
      const row = Math.floor(((event.clientY - box.top) * unit - top) / height);
      const column = Math.floor(((event.clientX - box.left) * unit - left) / width);
      hint.hidden = !(row in rows && column in columns);
      if (hint.hidden) return;
      hint.textContent = `${grid[row].split(',')[column] || 'none'}: ${rows[row]}, ${columns[column]}`;
      hint.style.left = Math.max(4, Math.min(event.clientX + 12, innerWidth - hint.offsetWidth - 4)) + 'px';
      hint.style.top = Math.min(event.clientY + 16, innerHeight - hint.offsetHeight - 4) + 'px';
    });
    map.addEventListener('pointerleave', () => { hint.hidden = true; });
  }
  for (const table of document.querySelectorAll('table.sortable')) {
    const body = table.tBodies[0];
    [...table.tHead.rows[0].cells].forEach((head, at) => {
      const button = document.createElement('button');
      button.type = 'button'; button.append(...head.childNodes); head.append(button);
      button.addEventListener('click', () => {
        const down = head.getAttribute('aria-sort') === 'ascending';
        for (const other of table.tHead.rows[0].cells) other.removeAttribute('aria-sort');
        head.setAttribute('aria-sort', down ? 'descending' : 'ascending');
        const value = row => row.cells[at].dataset.v ?? row.cells[at].textContent;
        const rows = [...body.rows].sort((a, b) => {
          const [x, y] = [value(a), value(b)];
          if (x === '' || y === '') return (x === '') - (y === '');
          const order = isNaN(x) || isNaN(y) ? x.localeCompare(y) : x - y;
          return down ? -order : order;
        });
        body.append(...rows);
      });
    });
  }
  const copy = async code => {
    if (navigator.clipboard) return navigator.clipboard.writeText(code.textContent);
    getSelection().selectAllChildren(code);  // http and not this machine: there is no clipboard but the old one
    if (!document.execCommand('copy')) throw new Error('not copied');
  };
  const told = document.createElement('p'); told.className = 'unseen'; told.setAttribute('role', 'status');
  document.body.append(told);
  for (const code of document.querySelectorAll('code.load')) {
    const button = document.createElement('button');
    const tell = text => { button.textContent = text; told.textContent = text; };
    button.type = 'button'; button.className = 'copy'; button.textContent = 'Copy';
    if (code.dataset.name) button.setAttribute('aria-label', `Copy: ${code.dataset.name}`);
    button.addEventListener('click', () => copy(code).then(() => tell('Copied'), () => tell('Select and copy it'))
      .then(() => setTimeout(() => { tell('Copy'); told.textContent = ''; }, 1500)));
    (code.closest('pre') ?? code).after(button);
  }
})();
"""
