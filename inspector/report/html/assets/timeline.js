// The course of a trace: operations from left to right by number (a trace has no clock); a lane for each kind of
// operation, and one for each table from its making to its end.  See inspector/report/html/trace.py.
if (DATA.courses && DATA.courses.length) (() => {
const LANE = {axis: 18, marks: 18, name: 17, life: 13, gap: 6};
const MOST_LIVES = 60;
const [FIRST, TABLE, NAME, OPERATIONS, FAILED, EVENTS] = [0, 1, 2, 3, 4, 5];
const box = $('map'), svg = document.createElementNS(SVG, 'svg');
box.append(svg);
let now = 0, from = 1, to = 2, mark = -1, chosen = null, width = 0, gutter = 0;
const course = () => DATA.courses[now];
const x = at => gutter + (at - from) / (to - from) * (width - gutter);
function view(a, b) {
  const end = course().operations + 1, least = Math.min(Math.max(course().width * 4, 8), end - 1);
  const span = Math.min(Math.max(b - a, least), end - 1);
  if (b - a !== span) a = (a + b - span) / 2;
  from = Math.min(Math.max(a, 1), end - span);
  to = from + span;
  draw();
}
function zoom(factor) {
  let at = (from + to) / 2;
  if (chosen !== null && chosen >= from && chosen < to) at = chosen;
  view(at - (at - from) * factor, at + (to - at) * factor);
}
const pan = part => view(from + (to - from) * part, to + (to - from) * part);
function label(y, text) { shape(svg, 'text', {x: 0, y, class: 'lane'}, text); }
function drawAxis(y, height) {
  const rough = (to - from) / Math.max(1, (width - gutter) / 80), ten = 10 ** Math.floor(Math.log10(rough));
  const step = Math.max(1, [1, 2, 5, 10].map(n => n * ten).find(n => n >= rough));
  const g = shape(svg, 'g', {class: 'axis'});
  label(y + 13, 'operation');
  for (let at = Math.ceil(from / step) * step; at < to; at += step) {
    const px = x(at), text = at.toLocaleString('en');
    shape(g, 'line', {x1: px, x2: px, y1: y + 6, y2: height});
    if (px + text.length * 6.7 + 4 < width) shape(g, 'text', {x: px + 3, y: y + 13}, text);
  }
}
function drawMarks(y, marks, size) {
  let last = -100, text = null, many = 0;
  for (const [one, at] of marks) {
    if (one[0] + 1 <= from || one[0] >= to) continue;
    const px = Math.min(Math.max(x(one[0] + .5), gutter), width);
    if (px - last < 20) { many++; text.textContent = `✖${many + 1}`; continue; }
    last = px; many = 0;
    const anchor = px < gutter + 20 ? 'start' : px > width - 20 ? 'end' : 'middle';
    text = shape(svg, 'text', {x: px, y: y + size, 'text-anchor': anchor, class: 'mark error' + (at === mark ? ' on' : ''), 'data-mark': at}, '✖', one[2]);
    text.addEventListener('click', () => goMark(at));
  }
}
// Pieces of a lane, those of one column of pixels as one.
function columns(pieces) {
  const found = [];
  for (const piece of pieces) {
    if (piece[FIRST] + course().width <= from || piece[FIRST] >= to) continue;
    const left = Math.max(x(piece[FIRST]), gutter), right = Math.min(x(piece[FIRST] + course().width), width), last = found[found.length - 1];
    if (last && left < last.left + 2) { last.operations += piece[OPERATIONS]; last.failed += piece[FAILED]; last.events += piece[EVENTS]; last.right = Math.max(last.right, right); last.end = piece[FIRST] + course().width - 1; continue; }
    found.push({left, right: Math.max(right - (right - left > 4 ? 1 : 0), left + 2), operations: piece[OPERATIONS], failed: piece[FAILED], events: piece[EVENTS], piece, end: piece[FIRST] + course().width - 1});
  }
  return found;
}
function choosePiece(one) {
  const name = course().names[one.piece[NAME]], table = one.piece[TABLE] ? `table ${one.piece[TABLE]}` : 'no table that is known';
  chosen = one.piece[FIRST];
  const which = one.end === one.piece[FIRST] ? `operation ${one.end}` : `operations ${one.piece[FIRST]}–${one.end}`;
  $('detail').replaceChildren(el('p', {class: 'mono'}, `${which}: ${one.operations === 1 ? `${name}, ${table}` : `${one.operations} here, the first ${name} on ${table}`}; ${one.events} events, ${one.failed} returned an error. inspector replay FILE --explain ${one.piece[FIRST]} tells it event by event.`));
  draw();
}
function bars(y, tall, pieces, title) {
  for (const one of columns(pieces)) {
    const high = Math.min(tall, 4 + 2 * Math.log2(one.operations));
    const text = `${title}, operations ${one.piece[FIRST]}–${one.end}: ${one.operations}, ${one.events} events, ${one.failed} returned an error`;
    const bar = shape(svg, 'rect', {x: one.left, y: y + tall - high, width: one.right - one.left, height: high, class: 'bar' + (one.failed ? ' failed' : ''), 'data-operations': one.operations}, undefined, text);
    bar.addEventListener('click', () => choosePiece(one));
  }
}
function draw() {
  if (!box.clientWidth) return;
  width = box.clientWidth;
  gutter = width < 640 ? 92 : 150;
  const data = course(), lives = data.tables.filter(life => life[1] < to && (life[2] === null || life[2] >= from));
  const shown = lives.slice(0, MOST_LIVES), height = LANE.axis + LANE.marks + data.names.length * LANE.name + LANE.gap + shown.length * LANE.life + (lives.length > shown.length ? 16 : 0) + 2;
  svg.replaceChildren();
  svg.setAttribute('width', width);
  svg.setAttribute('height', height);
  svg.setAttribute('class', 'time');
  drawAxis(0, height);
  let y = LANE.axis;
  label(y + 13, 'findings');
  const marks = data.marks.map((one, at) => [one, at]);
  if (chosen !== null && chosen >= from && chosen < to) shape(svg, 'rect', {x: x(chosen), y, width: Math.max(x(chosen + data.width) - x(chosen), 2), height: height - y, class: 'chosen'});
  drawMarks(y, marks, 13);
  y += LANE.marks;
  data.names.forEach((name, at) => {
    label(y + 13, width < 640 ? name.slice(0, 13) : name);
    shape(svg, 'line', {x1: gutter, x2: width, y1: y + LANE.name - 1, y2: y + LANE.name - 1, class: 'rule'});
    bars(y + 1, LANE.name - 2, data.pieces.filter(piece => piece[NAME] === at), name);
    y += LANE.name;
  });
  y += LANE.gap;
  for (const [number, made, ended] of shown) {
    label(y + 10, `table ${number}`);
    const left = Math.max(x(made), gutter), right = Math.min(ended === null ? width : x(ended + 1), width);
    shape(svg, 'rect', {x: left, y: y + 2, width: Math.max(right - left, 1), height: LANE.life - 4, class: 'life'});
    bars(y + 3, LANE.life - 6, data.pieces.filter(piece => piece[TABLE] === number), `table ${number}`);
    drawMarks(y, marks.filter(([one]) => one[1] === number), 11);
    y += LANE.life;
  }
  if (lives.length > shown.length) label(y + 12, `and ${lives.length - shown.length} more tables: zoom in`);
  $('shown').textContent = `operations ${Math.ceil(from).toLocaleString('en')} – ${(Math.ceil(to) - 1).toLocaleString('en')} of ${data.operations.toLocaleString('en')}`;
  box.dataset.from = from;
  box.dataset.to = to;
}
function choose(at) {
  now = (at + DATA.courses.length) % DATA.courses.length;
  mark = -1;
  chosen = null;
  $('which').value = now;
  $('detail').replaceChildren(el('p', {}, 'Choose something in the picture: what it is, and of a finding what led there, is shown here.'));
  document.querySelectorAll('section.map').forEach((one, n) => one.classList.toggle('current', n === now));
  view(1, course().operations + 1);
}
function goMark(at) {
  mark = at;
  const one = course().marks[at], listed = $(`c${now}f${at}`);
  chosen = one[0];
  if (one[0] && (one[0] < from || one[0] >= to || to - from > 400 * course().width)) view(one[0] - 20 * course().width, one[0] + 20 * course().width); else draw();
  $('detail').replaceChildren(el('p', {class: 'mark error'}, `✖ ${one[2]}`), ...[...listed.children].map(part => part.tagName === 'SUMMARY' ? el('h3', {}, part.textContent) : part.cloneNode(true)));
  for (const row of document.querySelectorAll('.part.here')) row.classList.remove('here');
  listed.classList.add('here');
}
function step(by) {
  if (!DATA.courses.some(one => one.marks.length)) { $('detail').replaceChildren(el('p', {}, 'There are no findings.')); return; }
  let at = mark < 0 && by < 0 ? -1 : mark + by;
  while (at < 0 || at >= course().marks.length) { choose(now + by); at = by > 0 ? 0 : course().marks.length - 1; }
  goMark(at);
}
Object.assign(KEYS, {
  '+': () => zoom(0.5), '=': () => zoom(0.5), '-': () => zoom(2), 'ArrowUp': () => zoom(0.5), 'ArrowDown': () => zoom(2),
  'ArrowLeft': () => pan(-0.2), 'ArrowRight': () => pan(0.2), 'Home': () => view(1, course().operations + 1),
  'n': () => step(1), 'p': () => step(-1), ']': () => choose(now + 1), '[': () => choose(now - 1),
});
for (const button of document.querySelectorAll('button[data-key]')) button.addEventListener('click', () => KEYS[button.dataset.key]());
DATA.courses.forEach((one, at) => $('which').append(el('option', {value: at}, `${one.label}: ${one.operations} operations, ${one.marks.length} findings`)));
$('which').addEventListener('change', () => choose(Number($('which').value)));
document.addEventListener('click', event => {
  const link = event.target.closest('a[data-mark]');
  if (!link) return;
  event.preventDefault();
  choose(Number(link.dataset.of));
  goMark(Number(link.dataset.mark));
  box.scrollIntoView({block: 'nearest'});
  box.focus({preventScroll: true});
});
new ResizeObserver(() => { if (box.clientWidth !== width) draw(); }).observe(box);
$('viewer').hidden = false;
const first = DATA.courses.findIndex(one => one.marks.length);
choose(first < 0 ? 0 : first);
})();
