/* The catalogue filters as one types or picks; a comparison takes two ticks, not three. Without it all works too. */
(() => {
  const form = document.getElementById('filters');
  let asked = null, wait = 0;

  const address = () => {
    const given = [...new FormData(form)].filter(([key, value]) => value && !(key === 'sort' && value === '-date'));
    const written = new URLSearchParams(given).toString();
    return form.getAttribute('action') + (written ? '?' + written : '');
  };

  const renew = (select, fresh) => {  // the options, not the select: it keeps the focus, and its list if it is open
    const value = select.value;
    select.replaceChildren(...[...fresh.options].map(option => document.importNode(option, true)));
    select.value = value;
  };

  const show = async () => {
    asked?.abort();
    asked = new AbortController();
    const url = address();
    try {
      const answer = await fetch(url, { signal: asked.signal, headers: { Accept: 'text/html' } });
      if (!answer.ok) return form.submit();
      const page = new DOMParser().parseFromString(await answer.text(), 'text/html');
      const results = page.getElementById('results');
      if (!results) return location.assign(url);
      document.getElementById('results').replaceWith(document.importNode(results, true));
      document.getElementById('count').textContent = page.getElementById('count').textContent;
      for (const select of form.querySelectorAll('select')) renew(select, page.getElementById(select.id));
      history.replaceState(null, '', url);
      ticks();
    } catch (error) {
      if (error.name !== 'AbortError') form.submit();
    }
  };

  const ticks = () => {
    const boxes = [...document.querySelectorAll('input[name=pick]')], go = document.getElementById('compare-go');
    if (!go) return;
    const ticked = boxes.filter(box => box.checked).length;
    for (const box of boxes) box.disabled = ticked >= 2 && !box.checked;
    go.disabled = ticked !== 2;
  };

  document.addEventListener('change', event => { if (event.target.name === 'pick') ticks(); });
  ticks();
  if (!form) return;
  form.addEventListener('input', () => { clearTimeout(wait); wait = setTimeout(show, 180); });
  form.addEventListener('submit', event => { event.preventDefault(); clearTimeout(wait); show(); });
})();
