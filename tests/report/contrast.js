// Every text that can be seen whose contrast to what is under it is below 4.5 to 1, and how many there are.
(() => {
  const parse = c => { const m = c.match(/[\d.]+/g).map(Number); return m.length === 3 ? [...m, 1] : m; };
  const linear = v => v / 255 <= .04045 ? v / 255 / 12.92 : ((v / 255 + .055) / 1.055) ** 2.4;
  const lum = ([r, g, b]) => .2126 * linear(r) + .7152 * linear(g) + .0722 * linear(b);
  const under = e => {
    if (e instanceof SVGElement) {
      const own = e.tagName === 'text' && e.parentNode.tagName === 'g' && e.parentNode.querySelector('rect');
      if (own) return parse(getComputedStyle(own).fill);
      e = e.closest('svg').parentNode;
    }
    for (; e; e = e.parentElement) { const c = parse(getComputedStyle(e).backgroundColor); if (c[3] > 0) return c; }
    throw Error('no background');
  };
  const worst = [];
  const texts = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  let many = 0;
  while (texts.nextNode()) {
    const e = texts.currentNode.parentElement;
    if (!texts.currentNode.data.trim() || /^(SCRIPT|STYLE|OPTION|title)$/.test(e.tagName) || !e.checkVisibility()) continue;
    many++;
    const style = getComputedStyle(e), ink = lum(parse(e instanceof SVGElement ? style.fill : style.color)), ground = lum(under(e));
    const ratio = (Math.max(ink, ground) + .05) / (Math.min(ink, ground) + .05);
    if (ratio < 4.5) worst.push([ratio.toFixed(2), e.tagName, e.className.baseVal ?? e.className, texts.currentNode.data.slice(0, 40)]);
  }
  return [many, worst];
})()
