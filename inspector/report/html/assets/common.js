// SPDX-License-Identifier: GPL-2.0-or-later
// What every page has: its data, how numbers are written, the theme.  Text is only ever put in as text.
'use strict';
const DATA = JSON.parse(document.getElementById('data').textContent);
const $ = id => document.getElementById(id);
const hex = n => '0x' + n.toString(16);
const UNITS = 'BKMGTPE';
function size(n) {
  let unit = 0;
  while (n && n % 1024 === 0 && unit < 6) { n /= 1024; unit++; }
  return n + UNITS[unit];
}
function el(name, attributes, ...inside) {
  const made = document.createElement(name);
  for (const key in attributes) {
    if (key === 'class') made.className = attributes[key]; else made.setAttribute(key, attributes[key]);
  }
  made.append(...inside);
  return made;
}
const SVG = 'http://www.w3.org/2000/svg';
function shape(parent, name, attributes, text, title) {
  const made = document.createElementNS(SVG, name);
  for (const key in attributes) made.setAttribute(key, attributes[key]);
  if (text !== undefined) made.textContent = text;
  if (title) { const t = document.createElementNS(SVG, 'title'); t.textContent = title; made.append(t); }
  parent.append(made);
  return made;
}
function setTheme(name) {
  if (name === 'auto') delete document.documentElement.dataset.theme;
  else document.documentElement.dataset.theme = name;
  $('theme').textContent = 'theme: ' + name;
  $('theme').dataset.now = name;
}
function nextTheme() {
  const order = ['auto', 'light', 'dark'];
  setTheme(order[(order.indexOf($('theme').dataset.now || 'auto') + 1) % 3]);
}
document.documentElement.classList.add('js');
$('theme').addEventListener('click', nextTheme);
const KEYS = {};
document.addEventListener('keydown', event => {
  if (event.ctrlKey || event.metaKey || event.altKey || /^(INPUT|SELECT|TEXTAREA)$/.test(event.target.tagName)) return;
  if (event.key === 't') return nextTheme();
  if (event.key === '?') { $('keys').open = !$('keys').open; return; }
  const moves = event.key.startsWith('Arrow') || event.key === 'Enter' || event.key === 'Home';
  if (moves && !event.target.closest('.picture') && event.target !== document.body) return;
  if (KEYS[event.key]) { event.preventDefault(); KEYS[event.key](); }
});
