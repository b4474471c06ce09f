// The pools: what there is of each, and what can be done with it.

import { request } from "./api.js";
import { add } from "./claims.js";
import { $, button, count, element, keyed, set, text } from "./dom.js";

const PARTS = ["hot", "claimed", "filling", "suspended"];

function make({ name }) {
  const path = `/pools/${encodeURIComponent(name)}`;
  const title = element("strong", {}, name);
  const checkpoint = element("span", { class: "path" });
  const words = element("span", { class: "words" });
  const bar = element("svg", { class: "stack", viewBox: "0 0 100 8", preserveAspectRatio: "none", role: "img" });
  const parts = PARTS.map((part) => element("rect", { class: part, y: 0, height: 8, x: 0, width: 0 }));
  bar.append(...parts);
  const claim = button("Claim", async () => add(await request("POST", `${path}/claims`, {}), name), { class: "primary", "aria-label": `Claim a guest of ${name}` });
  const evict = button("Evict", () => request("POST", `${path}/evict`, { entries: 1 }), { "aria-label": `Evict a hot guest of ${name}`, title: "Drop the oldest hot guest; the pool restores another" });
  const node = element("li", { class: "pool" },
    element("div", { class: "what" }, title, checkpoint),
    element("div", { class: "how" }, bar, words),
    element("div", { class: "actions" }, claim, evict));
  return {
    node,
    update(pool) {
      const { entries } = pool;
      text(checkpoint, pool.checkpoint);
      set(checkpoint, "title", pool.checkpoint);
      const counts = PARTS.map((part) => entries[part]);
      const most = Math.max(1, pool.hot, counts.reduce((sum, n) => sum + n, 0));
      let x = 0;
      PARTS.forEach((_, i) => {
        set(parts[i], "x", 100 * x / most);
        set(parts[i], "width", 100 * counts[i] / most);
        x += counts[i];
      });
      const told = [`${count(entries.hot)} of ${count(pool.hot)} hot`, `${count(entries.claimed)} claimed`];
      if (entries.filling > 0) told.push(`${count(entries.filling)} filling`);
      if (entries.suspended > 0) told.push(`${count(entries.suspended)} suspended`);
      if (pool.max !== null) told.push(`at most ${count(pool.max)}`);
      text(words, told.join(" · "));
      set(bar, "aria-label", told.join(", "));
      evict.disabled = entries.hot === 0;
    },
  };
}

export function drawPools(pools) {
  $("no-pools").hidden = pools.length > 0;
  keyed($("pools"), pools, (pool) => pool.name, make);
}
