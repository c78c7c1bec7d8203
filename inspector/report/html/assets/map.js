// The picture of stage-2 tables: IPA from left to right, to scale; a lane for memslots and one for each level.
// A map has one panel (dump) or two that share the axis (diff): see inspector/report/html/dump.py and diff.py.
if (DATA.maps && DATA.maps.length) (() => {
const LANE = {over: 12, axis: 20, marks: 18, slots: 18, level: 26, gap: 3};
let now = 0, from = 0, to = 1, selected = null, mark = -1, height = 0;

const MAPS = DATA.maps.map(map => ({...map, panels: map.panels.map(panel => panel && new Table(panel))}));
const map = () => MAPS[now];
const panels = () => map().panels.filter(Boolean);
const whole = () => Math.max(...panels().map(panel => panel.end));
const grain = () => 2 ** panels()[0].data.shift;

// --- the view ---

const box = $('map'), svg = document.createElementNS(SVG, 'svg');
box.append(svg);
let width = 0, gutter = 0;
// Folded: what is in use gets room by the logarithm of its size, holes a little each, and nothing is to scale.
let folds = null;
function foldsOf() {
  const bounds = new Set([0, whole()]), used = [], slots = [];
  for (const panel of panels()) for (const [rows, into] of [[panel.data.ranges, used], [panel.data.slots, slots]]) for (const row of rows) {
    const end = Math.min(row[0] + row[1], whole());
    if (row[0] < end) into.push([row[0], end]);
  }
  for (const list of [used, slots]) {
    list.sort((a, b) => a[0] - b[0]);
    const joined = [];
    for (const [start, end] of list) {
      const last = joined[joined.length - 1];
      if (last && start <= last[1]) last[1] = Math.max(last[1], end); else joined.push([start, end]);
    }
    list.splice(0, list.length, ...joined);
    for (const [start, end] of list) { bounds.add(start); bounds.add(end); }
  }
  const edges = [...bounds].sort((a, b) => a - b), found = [];
  let room = 0, at = 0, slot = 0;
  for (let n = 0; n + 1 < edges.length; n++) {
    const [start, end] = [edges[n], edges[n + 1]];
    while (at < used.length && used[at][1] <= start) at++;
    while (slot < slots.length && slots[slot][1] <= start) slot++;
    const inUse = at < used.length && used[at][0] <= start, inSlot = slot < slots.length && slots[slot][0] <= start;
    const takes = inUse ? 1 + Math.log2((end - start) / grain()) / 2 : 0.5;
    found.push({start, end, room, takes, hole: !inUse, slot: inSlot});
    room += takes;
  }
  found.total = room;
  return found;
}
function search(key, value) {
  let low = 0, high = folds.length - 1;
  while (low < high) { const mid = (low + high + 1) >> 1; if (folds[mid][key] <= value) low = mid; else high = mid - 1; }
  return folds[low];
}
function roomOf(address) {
  if (!folds) return address;
  const one = search('start', address);
  return one.room + (address - one.start) / (one.end - one.start) * one.takes;
}
function addressOf(room) {
  if (!folds) return room;
  const one = search('room', room);
  return one.start + (room - one.room) / one.takes * (one.end - one.start);
}
const x = address => gutter + (roomOf(address) - roomOf(from)) / (roomOf(to) - roomOf(from)) * (width - gutter);
const addressAt = px => addressOf(roomOf(from) + (px - gutter) / (width - gutter) * (roomOf(to) - roomOf(from)));
function fold() {
  folds = folds ? null : foldsOf();
  if (folds) view(0, whole()); else fit();
}
function view(a, b) {
  const end = whole(), least = grain();
  let span = Math.min(Math.max(b - a, least), end);
  if (b - a !== span) { const middle = (a + b) / 2; a = middle - span / 2; }
  from = Math.min(Math.max(a, 0), end - span);
  to = from + span;
  draw();
}
function around(start, length) {
  const margin = Math.max(length, grain()) * 0.5;
  view(start - margin, start + Math.max(length, grain()) + margin);
}
function fit() {
  let a = Infinity, b = 0;
  for (const panel of panels()) for (const rows of [panel.data.ranges, panel.data.slots]) for (const row of rows) {
    a = Math.min(a, row[0]); b = Math.max(b, row[0] + row[1]);
  }
  if (b) view(a - (b - a) * 0.02, b + (b - a) * 0.02); else view(0, whole());
}
function zoom(factor, at) {
  if (at === undefined) {
    at = (from + to) / 2;
    if (selected && selected.ia < to && selected.ia + selected.size > from && selected.size < to - from) at = selected.ia + selected.size / 2;
  }
  const [left, middle, right] = [from, at, to].map(roomOf);
  move(middle - (middle - left) * factor, middle + (right - middle) * factor);
}
// To places in units of the axis: addresses, or where it is folded what they have room for.
function move(left, right) {
  if (!folds) { view(left, right); return; }
  const span = Math.min(right - left, folds.total);
  left = Math.min(Math.max(left, 0), folds.total - span);
  view(addressOf(left), left + span >= folds.total ? whole() : addressOf(left + span));
}
function pan(part) {
  const [left, right] = [from, to].map(roomOf);
  move(left + (right - left) * part, right + (right - left) * part);
}

// --- drawing ---

function patterns() {
  const defs = shape(svg, 'defs', {});
  const line = (id, d) => {
    const p = shape(defs, 'pattern', {id, width: 6, height: 6, patternUnits: 'userSpaceOnUse'});
    shape(p, 'path', {d, class: 'hatch'});
  };
  line('h-r', 'M-1,1 l2,-2 M0,6 l6,-6 M5,7 l2,-2');
  line('h-rx', 'M3,0 v6');
  line('h-rwx', 'M-1,1 l2,-2 M0,6 l6,-6 M5,7 l2,-2 M-1,5 l2,2 M0,0 l6,6 M5,-1 l2,2');
  line('h-odd', 'M0,3 h6 M3,0 v6');
}
const KIND = {'R--': 'r', 'RW-': 'rw', 'RWX': 'rwx', 'R-X': 'rx'};
function kindOf(panel, range) {
  const pattern = panel.pattern(range);
  return pattern ? KIND[pattern.permissions.slice(0, 2) + (pattern.permissions[2] === '-' ? '-' : 'X')] || 'odd' : 'mixed';
}
// Items in order of address, each at least a visible sliver, and one for each column of pixels.
function lane(items, extent, put) {
  let last = -1;
  for (const item of items) {
    const [start, end] = extent(item);
    if (end <= from || start >= to) continue;
    const left = Math.max(x(start), gutter - 3), right = Math.min(x(end), width + 3);
    const sliver = right - left < 1.5;
    if (sliver) {
      const column = Math.floor(left);
      if (column === last) continue;
      last = column;
    }
    put(item, left, sliver ? 2 : right - left);
  }
}
function label(y, text, title) { shape(svg, 'text', {x: 0, y, class: 'lane'}, text, title); }
const roomFor = text => text.length * 6.7 + 8;
function drawAxis(y) {
  if (folds) { drawFolds(y); return; }
  const step = 2 ** Math.ceil(Math.log2((to - from) / Math.max(1, (width - gutter) / 118)));
  const g = shape(svg, 'g', {class: 'axis'});
  for (let at = Math.ceil(from / step) * step; at < to; at += step) {
    if (at !== Math.floor(at)) break;
    const px = x(at), text = hex(at);
    shape(g, 'line', {x1: px, x2: px, y1: y + 14, y2: height});
    if (px + roomFor(text) <= width + 4) shape(g, 'text', {x: px + 3, y: y + 13}, text);
  }
}
function drawFolds(y) {
  const g = shape(svg, 'g', {class: 'axis'});
  let free = gutter;
  for (const one of folds) {
    if (one.end <= from || one.start >= to) continue;
    const left = Math.max(x(one.start), gutter), right = Math.min(x(one.end), width);
    if (one.hole) shape(svg, 'rect', {x: left, y: y + 16, width: Math.max(right - left, 1), height: height - y - 16, class: one.slot ? 'empty' : 'hole'}, undefined, `${one.slot ? 'in a memslot, not mapped' : 'hole'}: IPA ${hex(one.start)}-${hex(one.end)}, ${approximate(one.end - one.start)}`);
    const text = one.hole ? approximate(one.end - one.start) : hex(one.start);
    if (left < free || (one.hole && roomFor(text) > right - left) || left + roomFor(text) > width) continue;
    shape(g, 'text', {x: left + 2, y: y + 13, class: one.hole ? 'gap' : ''}, text);
    if (!one.hole) shape(g, 'line', {x1: left, x2: left, y1: y + 5, y2: height});
    free = left + roomFor(text);
  }
}
function drawOverview(y) {
  const end = whole(), scale = at => gutter + at / end * (width - gutter);
  shape(svg, 'rect', {x: gutter, y, width: width - gutter, height: LANE.over, class: 'ground'});
  const columns = new Set();
  for (const panel of panels()) for (const range of panel.data.ranges) {
    const left = Math.floor(scale(range[IPA])), right = scale(range[IPA] + range[SIZE]);
    if (right - left < 2 && columns.has(left)) continue;
    columns.add(left);
    shape(svg, 'rect', {x: left, y: y + 3, width: Math.max(right - left, 1.5), height: LANE.over - 6, class: 'some'});
  }
  const left = Math.min(scale(from), width - 4);
  shape(svg, 'rect', {x: left, y: y + .5, width: Math.max(scale(to) - left, 4), height: LANE.over - 1, class: 'brush'});
  label(y + 10, size(end), 'The whole IPA space, to scale; the frame is what is shown below');
}
const told = one => el('p', {class: 'told'}, el('span', {class: 'mark ' + one.kind}, SIGN[one.kind]), ' ' + one.text);
const SIGN = {error: '✖', note: '▲', gone: '−', came: '+', changed: '~'};
function drawMarks(y) {
  label(y + 13, DATA.mark_name, 'Each is listed in the table above');
  let last = -100, text = null, many = 0, signs = null;
  map().marks.map((one, at) => [one, at]).sort((a, b) => a[0].ipa - b[0].ipa).forEach(([one, at]) => {
    if (one.ipa === null || one.ipa >= to || one.ipa + Math.max(one.size, 1) <= from) return;
    const left = Math.max(x(one.ipa), gutter), right = Math.min(x(one.ipa + one.size), width);
    if (right - left > 14) shape(svg, 'rect', {x: left, y: y + 15, width: right - left, height: 3, class: 'mark ' + one.kind});
    const px = (left + Math.max(right, left)) / 2;
    if (px - last < 20) { many++; signs.add(SIGN[one.kind]); text.textContent = [...signs].join('') + (many + 1); return; }
    last = px; many = 0; signs = new Set([SIGN[one.kind]]);
    const anchor = px < gutter + 20 ? 'start' : px > width - 20 ? 'end' : 'middle';
    text = shape(svg, 'text', {x: Math.min(Math.max(px, gutter), width), y: y + 12, 'text-anchor': anchor, class: 'mark ' + one.kind + (at === mark ? ' on' : ''), 'data-mark': at}, SIGN[one.kind]);
    text.addEventListener('click', () => goMark(at));
  });
}
function drawPanel(panel, y, name) {
  const data = panel.data;
  if (name) { label(y + 11, name); shape(svg, 'line', {x1: 0, x2: width, y1: y - 3, y2: y - 3, class: 'rule'}); y += 16; }
  label(y + 13, 'slots', 'Memslots');
  lane(data.slots, slot => [slot[0], slot[0] + slot[1]], (slot, left, wide) => {
    const [ipa, length, id, space, hva, flags, backing] = slot;
    const g = shape(svg, 'g', {class: 'slot' + (wide > 2 ? '' : ' thin')});
    shape(g, 'rect', {x: left, y: y + 2, width: wide, height: LANE.slots - 4}, undefined, `memslot ${id}${space ? ` of address space ${space}` : ''}: IPA ${hex(ipa)}-${hex(ipa + length)}, HVA ${hva}, ${flags}; ${backing}`);
    const text = `${id}  ${size(length)}${flags === '-' ? '' : ' ' + flags}`, short = String(id);
    const fits = [text, short].find(one => roomFor(one) < wide);
    if (fits) shape(g, 'text', {x: Math.max(left, gutter) + 4, y: y + 13}, fits);
    g.addEventListener('click', () => select({ia: ipa, size: length}));
  });
  y += LANE.slots + LANE.gap;
  for (const level of panel.levels) {
    label(y + 11, `L${level}`, `Level ${level}: an entry covers ${size(panel.span(level))}`);
    shape(svg, 'text', {x: 22, y: y + 11, class: 'lane'}, size(panel.span(level)));
    lane(panel.tables[level], page => [page.ia, page.end], (page, left, wide) => {
      const g = shape(svg, 'g', {class: 'table' + (wide > 2 ? '' : ' thin'), 'data-page': hex(page.pa)});
      const known = `level ${level} table ${hex(page.pa)}, IPA ${hex(page.ia)}-${hex(page.end)}, ${page.entries} entries${page.count === null ? '' : `, page_count ${page.count}`}`;
      shape(g, 'rect', {x: left, y, width: wide, height: LANE.level - 2}, undefined, known);
      const text = hex(page.pa) + (page.count === null ? '' : ` refs ${page.count}`);
      const fits = [text, hex(page.pa)].find(one => roomFor(one) < wide);
      if (fits) shape(g, 'text', {x: Math.max(left, gutter) + 4, y: y + 10}, fits);
      g.addEventListener('click', () => select({ia: page.ia, size: page.end - page.ia, page}));
    });
    lane(panel.leaves[level], range => [range[IPA], range[IPA] + range[SIZE]], (range, left, wide) => {
      const kind = kindOf(panel, range), pattern = panel.pattern(range), top = y + 12, tall = LANE.level - 14;
      const g = shape(svg, 'g', {class: 'leaf ' + kind + (wide > 2 ? '' : ' thin'), 'data-ipa': hex(range[IPA]), 'data-size': range[SIZE], 'data-level': level});
      const what = pattern ? pattern.text : 'several kinds of leaves';
      const where = `IPA ${hex(range[IPA])}-${hex(range[IPA] + range[SIZE])}`;
      shape(g, 'rect', {x: left, y: top, width: wide, height: tall}, undefined, `${where} level ${level} ${range[PA] < 0 ? 'PAs scattered' : 'PA ' + hex(range[PA])} ${what}, ${range[LEAVES]} x ${size(panel.span(level))}`);
      if (wide > 3 && kind !== 'rw') shape(g, 'rect', {x: left, y: top, width: wide, height: tall, fill: `url(#h-${kind === 'mixed' ? 'odd' : kind})`, class: 'over'});
      if (pattern && pattern.leaf.memory_type !== 'normal') shape(g, 'line', {x1: left, x2: left + wide, y1: top + tall - 1.5, y2: top + tall - 1.5, class: pattern.leaf.memory_type.startsWith('device') ? 'device' : 'uncached'});
      if (pattern && !pattern.leaf.af) shape(g, 'line', {x1: left, x2: left + wide, y1: top + 1, y2: top + 1, class: 'noaf'});
      const right = left + wide, start = Math.max(left, gutter), room = Math.min(right, width) - start;
      if (room > 28) {
        const perm = pattern ? pattern.permissions : 'mixed';
        const long = `${perm} ${range[LEAVES]} x ${size(panel.span(level))}${range[PA] < 0 ? '' : ' → ' + hex(range[PA])}${pattern ? ' ' + pattern.leaf.memory_type : ''}`;
        const fits = [long, `${perm} ${size(range[MAPPED])}`, perm].find(one => roomFor(one) < room);
        if (fits) shape(g, 'text', {x: start + 4, y: top + 10}, fits);
      }
      g.addEventListener('click', () => select({ia: range[IPA], size: range[SIZE], range}));
    });
    const odd = panel.tables[level].flatMap(page => page.end <= from || page.ia >= to ? [] : [...page.others].map(([index, one]) => ({...one, ia: page.ia + index * panel.span(level)})));
    lane(odd, one => [one.ia, one.ia + panel.span(level)], (one, left, wide) => {
      const g = shape(svg, 'g', {class: 'other'});
      shape(g, 'rect', {x: left, y: y + 12, width: wide, height: LANE.level - 14}, undefined, `IPA ${hex(one.ia)} level ${level} ${one.raw} ${one.text}`);
      if (roomFor(one.text) < wide) shape(g, 'text', {x: Math.max(left, gutter) + 4, y: y + 22}, one.text);
      g.addEventListener('click', () => select({ia: one.ia, size: panel.span(level)}));
    });
    y += LANE.level + LANE.gap;
  }
  return y;
}
function draw() {
  if (!box.clientWidth) return;
  width = box.clientWidth;
  gutter = width < 640 ? 46 : 74;
  const two = map().panels.length > 1;
  height = LANE.over + LANE.axis + LANE.marks + 4;
  for (const panel of map().panels) height += (two ? 19 : 0) + (panel ? LANE.slots + LANE.gap + panel.levels.length * (LANE.level + LANE.gap) : 16);
  svg.replaceChildren();
  svg.setAttribute('width', width);
  svg.setAttribute('height', height);
  svg.setAttribute('viewBox', `0 0 ${width} ${height}`);
  patterns();
  let y = 0;
  drawOverview(y);
  y += LANE.over;
  drawAxis(y);
  y += LANE.axis;
  if (selected && selected.ia < to && selected.ia + selected.size > from) {
    const left = Math.max(x(selected.ia), gutter), right = Math.min(x(selected.ia + selected.size), width);
    shape(svg, 'rect', {x: left - 1, y: y - 2, width: Math.max(right - left, 1) + 2, height: height - y + 2, class: 'chosen'});
  }
  drawMarks(y);
  y += LANE.marks + 4;
  map().panels.forEach((panel, at) => {
    if (panel) y = drawPanel(panel, y, two ? DATA.sides[at] : '') + (two ? 3 : 0);
    else { label(y + 11, DATA.sides[at] + ': no table'); y += 32; }
  });
  const span = to - from;
  $('shown').textContent = `IPA ${hex(Math.floor(from))} – ${hex(Math.ceil(to))}  (${folds ? 'holes folded, not to scale; ' : ''}${span < 1024 * 1024 ? Math.round(span / 1024 * 10) / 10 + 'K' : approximate(span)})`;
  box.dataset.from = from;
  box.dataset.to = to;
}
function approximate(n) {
  let unit = 0;
  while (n >= 1024 && unit < 6) { n /= 1024; unit++; }
  return (Math.round(n * 10) / 10) + UNITS[unit];
}

// --- what is chosen: its walk, and the tree opened there ---

function select(what, quiet) {
  selected = what;
  const detail = $('detail');
  detail.replaceChildren();
  if (!what) { draw(); return; }
  panels().forEach(panel => {
    const side = map().panels.length > 1 ? DATA.sides[map().panels.indexOf(panel)] + ': ' : '';
    detail.append(el('h3', {}, `${side}IPA ${hex(what.ia)}${what.size ? `–${hex(what.ia + what.size)} (${size(what.size)})` : ''}`));
    const rows = el('tbody', {});
    let steps = panel.walk(what.ia);
    if (what.page) {
      const end = steps.findIndex(step => step.page.pa === what.page.pa);
      if (end >= 0) steps = steps.slice(0, Math.max(end, 1));
    }
    for (const step of steps) {
      const refs = step.page.count === null ? '' : `${step.page.count}${step.page.state ? ' ' + step.page.state : ''}`;
      rows.append(el('tr', {}, el('td', {}, `L${step.level}`), el('td', {}, `${hex(step.page.pa)}[${step.index}]`), el('td', {class: 'n'}, refs), el('td', {}, step.raw || '–'), el('td', {class: 'wide'}, step.text)));
    }
    const head = el('tr', {}, ...['level', 'table[index]', 'refs', 'descriptor', 'decoded'].map(text => el('th', {scope: 'col'}, text)));
    detail.append(el('div', {class: 'scroll', tabindex: '0'}, el('table', {}, el('thead', {}, head), rows)));
    for (const slot of panel.data.slots) if (slot[0] <= what.ia && what.ia < slot[0] + slot[1]) {
      detail.append(el('p', {}, `memslot ${slot[2]}: IPA ${hex(slot[0])}–${hex(slot[0] + slot[1])}, HVA ${slot[4]}, ${slot[5] === '-' ? 'no flags' : slot[5]}; behind it: ${slot[6] || 'not known'}`));
    }
  });
  for (const one of map().marks) if (one.ipa !== null && one.ipa < what.ia + Math.max(what.size, 1) && what.ia < one.ipa + Math.max(one.size, 1)) {
    detail.append(told(one));
  }
  openTo(what.ia, what.page);
  for (const row of document.querySelectorAll('tr.here')) row.classList.remove('here');
  const row = what.range && document.querySelector(`#t${now} tr[data-ipa="${hex(what.range[IPA])}"][data-level="${what.range[LEVEL]}"]`);
  if (row) row.classList.add('here');
  draw();
  // Browsers refuse too many of these, as a key that is held down makes: then the address is an old one.
  if (!quiet) try { history.replaceState(null, '', `#t${now}@${hex(what.ia)}+${hex(what.size)}`); } catch { /* */ }
}
const MOST_ROWS = 1024;
function fill(panel, page, inside) {
  const each = panel.span(page.level), rows = [];
  for (const [index, kid] of page.kids) rows.push([index, kid, null, 1]);
  for (const [index, other] of page.others) rows.push([index, null, `${other.raw} ${other.text}`, 1]);
  for (const range of panel.leaves[page.level]) {
    const start = Math.max(range[IPA], page.ia), end = Math.min(range[IPA] + range[SIZE], page.end);
    if (start >= end) continue;
    const leaf = panel.leaf(range, start), many = (end - start) / each;
    rows.push([(start - page.ia) / each, null, `${leaf.raw || ''} ${leaf.text}`, many, start]);
  }
  rows.sort((a, b) => a[0] - b[0]);
  for (const [index, kid, text, many] of rows.slice(0, MOST_ROWS)) {
    const name = many > 1 ? `[${index}–${index + many - 1}]` : `[${index}]`;
    const ia = page.ia + index * each;
    if (kid) inside.append(branch(panel, kid, name));
    else {
      const row = el('button', {class: 'row', type: 'button', 'data-ia': ia, 'data-end': ia + many * each}, `${name.padEnd(9)} ${hex(ia).padEnd(14)} ${text}`);
      row.addEventListener('click', () => { reveal(ia, many * each); select({ia, size: many * each, range: panel.rangeAt(page.level, ia)}); });
      inside.append(row);
    }
  }
  if (rows.length > MOST_ROWS) inside.append(el('p', {}, `and ${rows.length - MOST_ROWS} more entries`));
  if (!rows.length) inside.append(el('p', {}, panel.complete ? 'no entries' : 'nothing of it is in this file'));
}
function branch(panel, page, name) {
  const refs = page.count === null ? 'refs not known' : `refs ${page.count}${page.state ? ' ' + page.state : ''}`;
  const entries = `${page.entries} ${page.entries === 1 ? 'entry' : 'entries'}`;
  const head = el('summary', {}, `${name.padEnd(9)} ${hex(page.ia).padEnd(14)} ${page.raw ? page.raw + ' table' : 'root table'} ${hex(page.pa)} L${page.level}, ${refs}, ${entries}`);
  const inside = el('div', {class: 'inside'}), made = el('details', {'data-pa': hex(page.pa)}, head, inside);
  const filled = () => { if (!inside.hasChildNodes()) fill(panel, page, inside); };
  made.addEventListener('toggle', filled);
  made.fill = filled;
  head.addEventListener('click', () => { reveal(page.ia, page.end - page.ia); select({ia: page.ia, size: page.end - page.ia, page}); });
  return made;
}
function growTree() {
  const tree = $('tree');
  tree.replaceChildren();
  map().panels.forEach((panel, at) => {
    if (!panel) return;
    if (map().panels.length > 1) tree.append(el('h3', {}, DATA.sides[at]));
    const top = el('div', {class: 'top', 'data-panel': at});
    for (const root of panel.roots) top.append(branch(panel, root, `${root.index + 1} of ${panel.roots.length}`));
    tree.append(top);
  });
}
function openTo(ia, upto) {
  for (const row of $('tree').querySelectorAll('.at')) row.classList.remove('at');
  map().panels.forEach((panel, at) => {
    if (!panel) return;
    let place = $('tree').querySelector(`.top[data-panel="${at}"]`), last = null;
    for (const step of panel.walk(ia)) {
      const found = [...place.children].find(one => one.dataset.pa === hex(step.page.pa));
      if (!found) break;
      last = found.firstChild;
      if (upto && upto.pa === step.page.pa) break;
      found.fill();
      found.open = true;
      place = found.lastChild;
      const row = [...place.children].find(one => one.dataset.ia && Number(one.dataset.ia) <= ia && ia < Number(one.dataset.end));
      if (row) last = row;
    }
    if (!last) return;
    last.classList.add('at');
    const tree = $('tree');
    tree.scrollTop += last.getBoundingClientRect().top - tree.getBoundingClientRect().top - tree.clientHeight / 3;
  });
}
// In sight, at the same scale where it can be seen at that.
function reveal(ia, length) {
  const seen = x(ia + length) - x(ia);
  if (ia >= from && ia + length <= to && seen >= 2) return;
  if (seen < 2 || seen > width - gutter) { around(ia, length); return; }
  const middle = roomOf(ia + length / 2), half = (roomOf(to) - roomOf(from)) / 2;
  move(middle - half, middle + half);
}

// --- from place to place ---

function choose(at) {
  now = (at + MAPS.length) % MAPS.length;
  if (folds) folds = foldsOf();
  selected = null;
  mark = -1;
  $('which').value = now;
  $('detail').replaceChildren(el('p', {}, 'Choose something in the picture or the tree: its walk, descriptors and memslot are shown here.'));
  document.querySelectorAll('section.map').forEach((one, n) => one.classList.toggle('current', n === now));
  document.querySelectorAll('tr[data-map]').forEach(row => row.classList.toggle('here', Number(row.dataset.map) === now));
  $('notice').replaceChildren(...map().notice.map(text => el('p', {}, text)));
  growTree();
  fit();
}
function goMark(at) {
  mark = at;
  const one = map().marks[at];
  if (one.ipa === null) { $('detail').replaceChildren(told(one)); draw(); return; }
  around(one.ipa, one.size);
  const end = panels()[0].walk(one.ipa).pop();
  select({ia: one.ipa, size: one.size || grain(), range: end && end.range});
}
function step(by) {
  if (!MAPS.some(one => one.marks.length)) { $('detail').replaceChildren(el('p', {}, `There are no ${DATA.mark_name}.`)); return; }
  let at = mark + by;
  if (mark < 0 && by < 0) at = -1;
  while (at < 0 || at >= map().marks.length) {
    choose(now + by);
    at = by > 0 ? 0 : map().marks.length - 1;
  }
  goMark(at);
}
function neighbour(by) {
  const panel = panels()[panels().length - 1], all = panel.data.ranges;
  if (!all.length) return;
  let at = all.findIndex(range => selected && range === selected.range);
  if (at < 0) {
    const ia = selected ? selected.ia : from;
    at = by > 0 ? all.findIndex(range => range[IPA] >= ia) : all.findLastIndex(range => range[IPA] < ia);
    if (at < 0) at = by > 0 ? 0 : all.length - 1;
  } else at = (at + by + all.length) % all.length;
  const range = all[at];
  reveal(range[IPA], range[SIZE]);
  select({ia: range[IPA], size: range[SIZE], range});
}
function goTo(text) {
  const wanted = text.trim().replace(/_/g, '');
  const ia = /^(0x)?[0-9a-f]+$/i.test(wanted) ? parseInt(wanted, 16) : NaN;
  if (!(ia < whole())) { $('shown').textContent = `'${text}' is no IPA of this guest: hexadecimal, below ${hex(whole())}`; return; }
  const last = panels()[0].walk(ia).pop(), to = last ? last.ia : ia;
  around(to, last ? last.size : grain());
  select({ia, size: grain(), range: last && last.range});
}
function follow() {
  const found = /^#t(\d+)(?:@(0x[0-9a-f]+)\+(0x[0-9a-f]+))?$/.exec(location.hash);
  if (!found || !(Number(found[1]) < MAPS.length)) return false;
  choose(Number(found[1]));
  if (found[2]) {
    const ia = parseInt(found[2], 16), length = parseInt(found[3], 16);
    around(ia, length);
    const end = panels()[0].walk(ia).pop();
    select({ia, size: length, range: end && end.range && end.range[IPA] === ia ? end.range : undefined}, true);
  }
  return true;
}
Object.assign(KEYS, {
  '+': () => zoom(0.5), '=': () => zoom(0.5), '-': () => zoom(2), 'ArrowLeft': () => pan(-0.2), 'ArrowRight': () => pan(0.2),
  'ArrowUp': () => zoom(0.5), 'ArrowDown': () => zoom(2),
  'Home': () => view(0, whole()), 'f': fit, 'c': fold, 'n': () => step(1), 'p': () => step(-1), 'j': () => neighbour(1), 'k': () => neighbour(-1),
  ']': () => choose(now + 1), '[': () => choose(now - 1), 'Enter': () => selected && around(selected.ia, selected.size),
  'g': () => $('goto').focus(), 'Escape': () => select(null),
});
for (const button of document.querySelectorAll('button[data-key]')) button.addEventListener('click', () => KEYS[button.dataset.key]());
MAPS.forEach((one, at) => $('which').append(el('option', {value: at}, one.name)));
$('which').addEventListener('change', () => choose(Number($('which').value)));
$('goto').addEventListener('keydown', event => {
  if (event.key === 'Enter') { goTo($('goto').value); box.focus(); }
  if (event.key === 'Escape') box.focus();
});
document.addEventListener('click', event => {
  const link = event.target.closest('a[data-mark], a[data-ipa]');
  if (!link) return;
  event.preventDefault();
  choose(Number(link.dataset.of));
  if (link.dataset.mark !== undefined) goMark(Number(link.dataset.mark));
  else {
    const ia = Number(link.dataset.ipa), end = panels()[0].walk(ia).pop();
    around(ia, Number(link.dataset.size));
    select({ia, size: Number(link.dataset.size), range: end && end.range});
  }
  box.scrollIntoView({block: 'nearest'});
  box.focus({preventScroll: true});
});
box.addEventListener('wheel', event => {
  if (!event.ctrlKey) return;
  event.preventDefault();
  zoom(event.deltaY < 0 ? 0.7 : 1 / 0.7, addressAt(event.clientX - box.getBoundingClientRect().left));
}, {passive: false});
let drag = null;
box.addEventListener('pointerdown', event => { drag = {x: event.clientX, left: roomOf(from), right: roomOf(to)}; });
addEventListener('pointerup', () => { drag = null; });
box.addEventListener('pointermove', event => {
  if (!drag || Math.abs(event.clientX - drag.x) < 4) return;
  const by = (drag.x - event.clientX) / (width - gutter) * (drag.right - drag.left);
  move(drag.left + by, drag.right + by);
});
box.addEventListener('dblclick', event => zoom(0.25, addressAt(event.clientX - box.getBoundingClientRect().left)));
new ResizeObserver(() => { if (box.clientWidth !== width) draw(); }).observe(box);
addEventListener('hashchange', follow);
$('viewer').hidden = false;
if (!follow()) {
  const first = MAPS.findIndex(one => one.marks.length);
  choose(first < 0 ? 0 : first);
}
})();
