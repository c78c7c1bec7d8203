// A stage-2 table as the script needs it, made of what inspector/report/html/picture.py puts into the page.
const [IPA, SIZE, LEVEL, PA, PATTERN, LEAVES, RAW, MAPPED, RANGES] = [0, 1, 2, 3, 4, 5, 6, 7, 8];
class Table {
  constructor(data) {
    this.data = data;
    this.end = 2 ** data.ia_bits;
    this.complete = !data.left_out.length;
    this.pages = [];
    for (const [parent, index, pa, count, state, raw, entries] of data.pages) {
      const up = parent < 0 ? null : this.pages[parent];
      const level = up ? up.level + 1 : data.start_level;
      const span = this.span(level) * 2 ** (data.shift - 3);
      const ia = up ? up.ia + index * this.span(up.level) : index * span;
      const page = {up, index, pa, count, state, raw, entries, level, ia, end: Math.min(ia + span, this.end), kids: new Map(), others: new Map()};
      if (up) up.kids.set(index, page);
      this.pages.push(page);
    }
    for (const [page, index, raw, text] of data.others) this.pages[page].others.set(index, {raw, text});
    this.roots = this.pages.filter(page => !page.up);
    this.levels = [];
    for (let level = data.start_level; level <= 3; level++) this.levels.push(level);
    this.leaves = {};
    this.tables = {};
    for (const level of this.levels) {
      this.leaves[level] = data.ranges.filter(range => range[LEVEL] === level);
      this.tables[level] = this.pages.filter(page => page.level === level);
    }
  }
  span(level) { return 2 ** (this.data.shift + (this.data.shift - 3) * (3 - level)); }
  pattern(range) { return range[PATTERN] < 0 ? null : this.data.patterns[range[PATTERN]]; }
  rangeAt(level, ipa) {
    const all = this.leaves[level] || [];
    let low = 0, high = all.length;
    while (low < high) { const mid = (low + high) >> 1; if (all[mid][IPA] <= ipa) low = mid + 1; else high = mid; }
    const found = all[low - 1];
    return found && ipa < found[IPA] + found[SIZE] ? found : null;
  }
  // What a leaf of a range is: its descriptor, address and words.
  leaf(range, ipa) {
    const each = this.span(range[LEVEL]), step = Math.floor((ipa - range[IPA]) / each) * each;
    if (range[RANGES] > 1) return {raw: null, text: `one of ${range[LEAVES]} leaves in ${range[RANGES]} ranges, merged in this file`};
    const raw = '0x' + (BigInt(range[RAW]) + BigInt(step)).toString(16).padStart(16, '0');
    const pa = range[PA] + step;
    return {raw, pa, text: `${range[LEVEL] === 3 ? 'page' : 'block'} PA ${hex(pa)} ${this.pattern(range).text}`};
  }
  walk(ipa) {
    const steps = [];
    let page = this.roots.find(root => root.ia <= ipa && ipa < root.end);
    while (page) {
      const each = this.span(page.level), index = Math.floor((ipa - page.ia) / each);
      const step = {page, index, level: page.level, ia: page.ia + index * each, size: each};
      steps.push(step);
      const kid = page.kids.get(index), other = page.others.get(index);
      if (kid) { Object.assign(step, {raw: kid.raw, text: `table at PA ${hex(kid.pa)}`, kid}); page = kid; continue; }
      const range = this.rangeAt(page.level, ipa);
      if (range) Object.assign(step, this.leaf(range, ipa), {range});
      else if (other) Object.assign(step, other);
      else if (this.complete) Object.assign(step, {raw: '0x0000000000000000', text: 'not mapped'});
      else Object.assign(step, {raw: null, text: 'not mapped, or not in this file (see what was left out)'});
      return steps;
    }
    return steps;
  }
}
