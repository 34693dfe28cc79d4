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
