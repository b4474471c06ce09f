// A guest's memory as a strip, from its first page to its last: where it has pages of its own, and
// where it has touched what it shares. Where that cannot be told, as proportions.

import { element, set, size } from "./dom.js";

const HEIGHT = 12;
/** What a cell with one page of many has at least, so that it is seen. */
const LEAST = 5;

export const CELLS = 96;

export function make() {
  const node = element("svg", { class: "strip", viewBox: `0 0 ${CELLS} ${HEIGHT}`, preserveAspectRatio: "none", role: "img" });
  const parts = ["shared", "private"].map((kind) => element("path", { class: kind }));
  node.append(element("rect", { class: "untouched", width: CELLS, height: HEIGHT }), ...parts);
  return { node, shared: parts[0], private: parts[1] };
}

const heightOf = (n, pages) => (n === 0 ? 0 : Math.max(LEAST, HEIGHT * Math.min(1, n / pages)));

/** Bars that stand on the strip's bottom, or on the `below` of each cell. */
function bars(cells, below, pages, width) {
  let path = "";
  cells.forEach((n, i) => {
    const floor = HEIGHT - heightOf(below?.[i] ?? 0, pages);
    const height = Math.min(floor, heightOf(n, pages));
    if (height > 0) path += `M${(i * width).toFixed(2)} ${floor.toFixed(1)}v${(-height).toFixed(1)}h${width.toFixed(2)}v${height.toFixed(1)}z`;
  });
  return path;
}

export function draw(strip, memory) {
  const { map } = memory;
  if (map) {
    const width = CELLS / map.private.length;
    set(strip.private, "d", bars(map.private, null, map.cell_pages, width));
    set(strip.shared, "d", bars(map.shared, map.private, map.cell_pages, width));
  } else {
    const part = (bytes) => CELLS * Math.min(1, bytes / memory.memory_bytes);
    const own = part(memory.private_bytes);
    set(strip.private, "d", `M0 0h${own}v${HEIGHT}h${-own}z`);
    const shared = part(memory.shared_bytes);
    set(strip.shared, "d", `M${own} 0h${shared}v${HEIGHT}h${-shared}z`);
  }
  set(strip.node, "aria-label", `${size(memory.private_bytes)} private, ${size(memory.shared_bytes)} shared, of ${size(memory.memory_bytes)}`);
}
