// The guests, a page of them at a time: however many there are, the document stays small. What they
// cost is asked for those that are in sight.

import { request } from "./api.js";
import { release, tokenOf } from "./claims.js";
import { $, button, confirmed, count, element, keyed, set, size, text } from "./dom.js";
import * as strips from "./strip.js";

const ROWS = 25;
const PERIOD = 2000;
const BATCH = 200;
const order = new Intl.Collator("en", { numeric: true });

let guests = new Map(); // id -> guest
let sorted = null;
let first = 0;
let inSight = [];
const memory = new Map(); // id -> what the guest costs
const selected = new Set(); // ids
let by = "name";
let ascending = true;

export function replace(all) {
  guests = new Map(all.map((guest) => [guest.id, guest]));
  for (const id of memory.keys()) if (!guests.has(id)) memory.delete(id);
  for (const id of selected) if (!guests.has(id)) selected.delete(id);
  sorted = null;
}

export function change({ change, guest }) {
  if (change === "gone") {
    for (const known of [guests, memory, selected]) known.delete(guest.id);
  } else guests.set(guest.id, guest);
  sorted = null;
}

/** By the chosen column, then by name. The youngest has the latest time. */
function compare(a, b) {
  const turned = ascending === (by !== "created_at") ? 1 : -1;
  // Times have fractions of any length, which are no numbers to compare by.
  const apart =
    by === "created_at"
      ? Date.parse(a.created_at) - Date.parse(b.created_at)
      : order.compare(a[by] ?? "", b[by] ?? "");
  return turned * apart || order.compare(a.name, b.name);
}

function age(guest) {
  const seconds = Math.max(0, Math.round((Date.now() - Date.parse(guest.created_at)) / 1000));
  if (seconds < 120) return `${seconds} s`;
  if (seconds < 7200) return `${Math.round(seconds / 60)} min`;
  return seconds < 172800 ? `${Math.round(seconds / 3600)} h` : `${Math.round(seconds / 86400)} d`;
}

function found() {
  sorted ??= [...guests.values()].sort(compare);
  const wanted = $("search").value.trim().toLowerCase();
  const state = $("state").value;
  if (!wanted && !state) return sorted;
  return sorted.filter((guest) => (!state || guest.state === state)
    && (guest.name.toLowerCase().includes(wanted) || guest.checkpoint.toLowerCase().includes(wanted) || guest.id === wanted));
}

function make({ name, id }) {
  const path = `/guests/${encodeURIComponent(id)}`;
  const cell = (label, ...children) => element("td", { "data-label": label }, ...children);
  const badge = element("span", { class: "badge" });
  const reason = element("span", { class: "reason" });
  const strip = strips.make();
  const [own, shared] = [cell("Private", "–"), cell("Shared", "–")];
  const old = cell("Age");
  own.className = shared.className = old.className = "number";
  const chosen = element("input", { type: "checkbox", "aria-label": `Select ${name}` });
  chosen.addEventListener("change", () => {
    if (chosen.checked) selected.add(id); else selected.delete(id);
    drawGuests();
  });
  const checkpoint = element("span", { class: "path" });
  const actions = {
    release: button("Release", () => release(tokenOf(name)), { "aria-label": `Release ${name}` }),
    pause: button("Pause", () => request("POST", `${path}/pause`), { "aria-label": `Pause ${name}` }),
    resume: button("Resume", () => request("POST", `${path}/resume`), { "aria-label": `Resume ${name}` }),
    destroy: button("Destroy", async () => {
      if (await confirmed(`Destroy ${name}? What is in its memory is lost.`)) await request("DELETE", path);
    }, { class: "danger", "aria-label": `Destroy ${name}` }),
  };
  const node = element("tr", {},
    element("th", { scope: "row" }, chosen, name),
    cell("State", badge, reason),
    old,
    cell("Memory", strip.node),
    own, shared,
    cell("Checkpoint", checkpoint),
    element("td", { class: "actions" }, ...Object.values(actions)));
  return {
    node,
    update(guest) {
      node.dataset.guest = name;
      chosen.checked = selected.has(guest.id);
      text(old, age(guest));
      set(old, "title", guest.created_at);
      text(badge, guest.state);
      badge.dataset.state = guest.state;
      text(reason, guest.reason ?? "");
      text(checkpoint, guest.checkpoint);
      set(checkpoint, "title", guest.checkpoint);
      const focused = document.activeElement;
      actions.release.hidden = tokenOf(name) === undefined;
      actions.pause.hidden = guest.state !== "running";
      actions.resume.hidden = guest.state !== "paused";
      // The keyboard goes on at the button that has taken the other's place.
      if (node.contains(focused) && focused.hidden) Object.values(actions).find((one) => !one.hidden).focus();
      const known = memory.get(guest.id);
      if (known) {
        text(own, size(known.private_bytes));
        text(shared, size(known.shared_bytes));
        strips.draw(strip, known);
      }
    },
  };
}

export function drawGuests() {
  const all = found();
  first = Math.max(0, Math.min(first, Math.floor((all.length - 1) / ROWS) * ROWS));
  const shown = all.slice(first, first + ROWS);
  const asked = inSight;
  inSight = shown.map((guest) => guest.id);
  if (inSight.some((id) => !asked.includes(id) && !memory.has(id))) soon();
  const many = $("destroy-selected").firstElementChild;
  many.hidden = selected.size === 0;
  text(many, `Destroy ${count(selected.size)} selected`);
  $("select").hidden = all.length === 0;
  text($("select"), selected.size > 0 ? "Select none" : `Select all ${count(all.length)}`);
  for (const head of document.querySelectorAll("thead [data-sort]")) {
    set(head.parentElement, "aria-sort", head.dataset.sort !== by ? "none" : ascending ? "ascending" : "descending");
  }
  $("no-guests").hidden = all.length > 0;
  text($("no-guests"), guests.size > 0 ? "No guest is like that." : "No guests. Restore some: brood restore /var/tmp/ckp/demo --guests 100");
  text($("range"), all.length > 0 ? `${count(first + 1)}–${count(first + shown.length)} of ${count(all.length)}` : "");
  $("pages").hidden = all.length <= ROWS && first === 0;
  $("previous").disabled = first === 0;
  $("next").disabled = first + ROWS >= all.length;
  keyed($("rows"), shown, (guest) => guest.id, make);
}

let timer;
function soon() {
  clearTimeout(timer);
  timer = setTimeout(ask, 100);
}

async function ask() {
  clearTimeout(timer);
  const living = inSight.filter((id) => guests.get(id)?.pid);
  if (!document.hidden && living.length > 0) {
    try {
      const told = await request("GET", `/memory?guests=${living.join(",")}&cells=${strips.CELLS}`);
      for (const one of told) memory.set(one.id, one);
      drawGuests();
    } catch { /* the event stream tells that the daemon is gone */ }
  }
  clearTimeout(timer);
  timer = setTimeout(ask, PERIOD);
}

async function destroySelected() {
  const ids = [...selected].filter((id) => guests.has(id));
  if (!await confirmed(`Destroy ${count(ids.length)} guests, also those that somebody has claimed? What is in their memory is lost.`)) return;
  for (let at = 0; at < ids.length; at += BATCH) {
    const batch = ids.slice(at, at + BATCH);
    await request("DELETE", `/guests?guests=${batch.join(",")}`);
    for (const id of batch) selected.delete(id);
  }
  drawGuests();
}

export function start() {
  $("destroy-selected").append(button("", destroySelected, { class: "danger" }));
  $("select").addEventListener("click", () => {
    if (selected.size > 0) selected.clear();
    else for (const guest of found()) selected.add(guest.id);
    drawGuests();
  });
  for (const head of document.querySelectorAll("thead [data-sort]")) {
    head.addEventListener("click", () => {
      ascending = head.dataset.sort === by ? !ascending : true;
      by = head.dataset.sort;
      sorted = null;
      first = 0;
      drawGuests();
    });
  }
  setInterval(() => { if (!document.hidden) drawGuests(); }, 10000);
  const from = (place) => { first = place; drawGuests(); };
  $("search").addEventListener("input", () => from(0));
  $("state").addEventListener("change", () => from(0));
  $("previous").addEventListener("click", () => from(first - ROWS));
  $("next").addEventListener("click", () => from(first + ROWS));
  timer = setTimeout(ask, PERIOD);
}
