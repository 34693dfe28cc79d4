/* The catalogue filters as one types or picks; a comparison takes two ticks, not three. Without it all works too. */
(() => {
  const form = document.getElementById('filters');
  let asked = null, wait = 0, busy = false;

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
    const own = asked = new AbortController();
    const url = address();
    busy = true;
    try {
      const answer = await fetch(url, { signal: own.signal, headers: { Accept: 'text/html' } });
      if (!answer.ok) return form.submit();
      const page = new DOMParser().parseFromString(await answer.text(), 'text/html');
      const results = page.getElementById('results');
      if (!results) return location.assign(url);
      document.getElementById('results').replaceWith(document.importNode(results, true));
      document.getElementById('count').textContent = page.getElementById('count').textContent;
      for (const select of form.querySelectorAll('select')) renew(select, page.getElementById(select.id));
      history.replaceState(null, '', url);
      carry(ticks());
    } catch (error) {
      if (error.name !== 'AbortError') form.submit();
    } finally {
      if (own === asked) busy = false;
    }
  };

  const ticks = () => {  // those of this page's boxes, and those that no box here shows
    const boxes = [...document.querySelectorAll('input[type=checkbox][name=pick]')];
    const elsewhere = [...document.querySelectorAll('#results input[type=hidden][name=pick]')];
    const names = [...boxes.filter(box => box.checked), ...elsewhere].map(input => input.value);
    for (const box of boxes) box.disabled = names.length >= 2 && !box.checked;
    const go = document.getElementById('compare-go');
    if (go) go.disabled = names.length !== 2;
    return names;
  };

  const withTicks = (address, names) => {
    const url = new URL(address, location.href);
    url.searchParams.delete('pick');
    for (const name of names) url.searchParams.append('pick', name);
    return url.pathname + url.search;
  };

  const carry = names => {  // to wherever one goes on in the catalogue
    document.getElementById('picks').replaceChildren(...names.map(value =>
      Object.assign(document.createElement('input'), { type: 'hidden', name: 'pick', value })));
    for (const link of document.querySelectorAll('#results a[href^="/?"], #results a[href="/"]'))
      link.setAttribute('href', withTicks(link.href, names.filter(name => name !== link.dataset.drop)));
  };

  document.addEventListener('change', event => {
    if (event.target.name !== 'pick') return;
    const names = ticks();
    if (!form) return;
    carry(names);
    history.replaceState(null, '', withTicks(location.href, names));
    if (busy) show();  // what is under way does not know of this tick
  });
  const ticked = ticks();
  if (!form) return;
  carry(ticked);
  form.addEventListener('input', () => { clearTimeout(wait); wait = setTimeout(show, 180); });
  form.addEventListener('submit', event => { event.preventDefault(); clearTimeout(wait); show(); });
})();
