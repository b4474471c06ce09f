// What the page shows is told by the event stream; what guests cost is asked for every other second,
// while the page is looked at. Texts go in as text, never as markup.
"use strict";

const MOST_ROWS = 300;
const PERIOD = 2000;
const API = "/api/v1";
const claims = new Map(); // guest's name -> token of a claim that was made on this page
let guests = new Map();
let pools = [];
let points = [];

const $ = (id) => document.getElementById(id);

function element(name, attributes = {}, ...children) {
  const svg = ["svg", "rect", "path", "line", "text", "circle"].includes(name);
  const made = svg ? document.createElementNS("http://www.w3.org/2000/svg", name) : document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (key === "onclick") made.addEventListener("click", value);
    else made.setAttribute(key, value);
  }
  made.append(...children);
  return made;
}

function size(bytes) {
  const units = ["B", "KiB", "MiB", "GiB", "TiB"];
  let unit = 0;
  while (bytes >= 1024 && unit < units.length - 1) { bytes /= 1024; unit += 1; }
  return `${bytes >= 100 || unit === 0 ? Math.round(bytes) : bytes.toFixed(1)} ${units[unit]}`;
}

// Requests.

async function request(method, path, body) {
  const headers = {};
  const token = sessionStorage.getItem("token");
  if (token) headers.authorization = `Bearer ${token}`;
  if (body !== undefined) headers["content-type"] = "application/json";
  const response = await fetch(API + path, { method, headers, body: body === undefined ? undefined : JSON.stringify(body) });
  if (response.status === 401) { $("login").hidden = false; }
  if (!response.ok) {
    const problem = await response.json().catch(() => ({ detail: response.statusText }));
    throw new Error(problem.hint ? `${problem.detail}\n${problem.hint}` : problem.detail);
  }
  return response;
}

async function act(method, path, body) {
  try {
    const response = await request(method, path, body);
    $("problem").hidden = true;
    return response.status === 204 ? null : await response.json();
  } catch (error) {
    $("problem").textContent = error.message;
    $("problem").hidden = false;
    return null;
  }
}

const encode = encodeURIComponent;

async function claim(pool) {
  const claimed = await act("POST", `/pools/${encode(pool)}/claims`, {});
  if (claimed) { claims.set(claimed.guest, claimed.token); drawGuests(); }
}

async function release(guest) {
  const token = claims.get(guest);
  claims.delete(guest);
  await act("DELETE", `/claims/${encode(token)}`);
}

const evict = (pool) => act("POST", `/pools/${encode(pool)}/evict`, { entries: 1 });
const pause = (guest) => act("POST", `/guests/${encode(guest)}/pause`);
const resume = (guest) => act("POST", `/guests/${encode(guest)}/resume`);

function destroy(guest) {
  if (confirm(`Destroy ${guest}?`)) act("DELETE", `/guests/${encode(guest)}`);
}

// Drawing.

const cell = (kind, ...children) => element("td", { class: kind }, ...children);
const button = (label, onclick) => element("button", { type: "button", onclick }, label);

function drawPools() {
  $("no-pools").hidden = pools.length > 0;
  $("pools").replaceChildren(...pools.map((pool) => element("tr", {},
    cell("", pool.name),
    cell("number", `${pool.entries.hot}/${pool.hot}`),
    cell("number", String(pool.entries.claimed)),
    cell("number", String(pool.entries.filling)),
    cell("number", pool.most === null ? "-" : String(pool.most)),
    cell("path", pool.checkpoint),
    cell("actions", button("claim", () => claim(pool.name)), button("evict", () => evict(pool.name))))));
}

function strip(guest) {
  const memory = guest.memory_mib * 1048576;
  const width = (bytes) => 100 * Math.min(1, bytes / memory);
  const own = width(guest.private_bytes);
  const shared = width(guest.shared_bytes);
  const drawn = element("svg", { class: "strip", viewBox: "0 0 100 8", preserveAspectRatio: "none", role: "img",
    "aria-label": `${size(guest.private_bytes)} private, ${size(guest.shared_bytes)} shared` });
  drawn.append(
    element("rect", { class: "untouched", x: 0, y: 0, width: 100, height: 8 }),
    element("rect", { class: "private", x: 0, y: 0, width: own, height: 8 }),
    element("rect", { class: "shared", x: own, y: 0, width: Math.min(shared, 100 - own), height: 8 }));
  return drawn;
}

function actions(guest) {
  const name = guest.name;
  const found = [];
  if (claims.has(name)) found.push(button("release", () => release(name)));
  if (guest.state === "running") found.push(button("pause", () => pause(name)));
  if (guest.state === "paused") found.push(button("resume", () => resume(name)));
  found.push(button("destroy", () => destroy(name)));
  return found;
}

function drawGuests() {
  const order = new Intl.Collator("en", { numeric: true });
  const all = [...guests.values()].sort((a, b) => order.compare(a.name, b.name));
  $("no-guests").hidden = all.length > 0;
  $("more-guests").hidden = all.length <= MOST_ROWS;
  $("more-guests").textContent = `and ${all.length - MOST_ROWS} more`;
  $("guests").replaceChildren(...all.slice(0, MOST_ROWS).map((guest) => {
    const known = guest.private_bytes !== undefined;
    return element("tr", { class: guest.state },
      cell("", guest.name),
      cell("", guest.reason ? `${guest.state}: ${guest.reason}` : guest.state),
      known ? cell("", strip(guest)) : cell("number", size(guest.memory_mib * 1048576)),
      cell("number", known ? size(guest.private_bytes) : "-"),
      cell("number", known ? size(guest.shared_bytes) : "-"),
      cell("path", guest.checkpoint),
      cell("actions", ...actions(guest)));
  }));
}

function drawCounters(sample) {
  const sum = (field) => sample.checkpoints.reduce((total, checkpoint) => total + checkpoint[field], 0);
  const cost = sum("private_bytes") + sum("process_bytes") + sum("page_table_bytes");
  const shown = [
    ...Object.entries(sample.guests).filter(([state, count]) => count > 0 || state === "running"),
    ["private", size(sum("private_bytes"))],
    ["would be, unshared", size(sum("memory_bytes"))],
    ["host memory available", size(sample.host.memory_available_bytes)],
  ];
  $("counters").replaceChildren(...shown.map(([name, value]) =>
    element("div", {}, element("dt", {}, name), element("dd", {}, String(value)))));
  points.push({ guests: sum("guests"), cost, unshared: sum("memory_bytes") });
  points = points.slice(-1000);
  drawCurve();
}

function drawCurve() {
  const [left, right, top, bottom] = [70, 710, 10, 195];
  const x = (guests) => left + (right - left) * guests / Math.max(1, ...points.map((p) => p.guests));
  const most = Math.max(1, ...points.map((p) => p.cost)) * 1.1;
  const y = (bytes) => bottom - (bottom - top) * Math.min(1, bytes / most);
  // One value for each number of guests: the newest.
  const byGuests = new Map(points.map((point) => [point.guests, point]));
  const sorted = [...byGuests.values()].sort((a, b) => a.guests - b.guests);
  const path = sorted.map((p, i) => `${i ? "L" : "M"}${x(p.guests)} ${y(p.cost)}`).join("");
  const last = sorted.at(-1);
  const scale = last.unshared > most ? most / last.unshared : 1;
  $("curve").replaceChildren(
    element("line", { class: "axis", x1: left, y1: bottom, x2: right, y2: bottom }),
    element("line", { class: "axis", x1: left, y1: top, x2: left, y2: bottom }),
    element("path", { class: "unshared", d: `M${left} ${bottom}L${x(last.guests * scale)} ${y(last.unshared)}` }),
    element("path", { class: "curve", d: path }),
    ...sorted.map((p) => element("circle", { class: "points", cx: x(p.guests), cy: y(p.cost), r: 2.5 })),
    element("text", { x: 4, y: top + 10 }, size(most)),
    element("text", { x: 4, y: bottom }, "0"),
    element("text", { x: left, y: bottom + 18 }, "0 guests"),
    element("text", { x: right, y: bottom + 18, "text-anchor": "end" }, `${last.guests} guests`));
}

// What is told.

const heard = {
  guests(all) {
    guests = new Map(all.map((guest) => [guest.id, guest]));
    drawGuests();
  },
  guest({ happened, guest }) {
    if (happened === "gone") { guests.delete(guest.id); claims.delete(guest.name); }
    else guests.set(guest.id, { ...guests.get(guest.id), ...guest });
    drawGuests();
  },
  pools(all) { pools = all; drawPools(); },
  counters: drawCounters,
};

async function listen() {
  const response = await request("GET", "/events");
  $("login").hidden = true;
  $("link").textContent = "live";
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let text = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    text += value;
    const events = text.split("\n\n");
    text = events.pop();
    for (const event of events) {
      const kind = /^event: (.*)$/m.exec(event);
      const data = /^data: (.*)$/m.exec(event);
      if (kind && data && Object.hasOwn(heard, kind[1])) heard[kind[1]](JSON.parse(data[1]));
    }
  }
}

const sleep = (ms) => new Promise((done) => { setTimeout(done, ms); });

async function stayConnected() {
  for (;;) {
    try { await listen(); } catch (error) { $("link").textContent = error.message; }
    await sleep(1000);
    if ($("link").textContent === "live") $("link").textContent = "connecting again";
  }
}

async function askForUsage() {
  for (;;) {
    await sleep(PERIOD);
    if (document.hidden || guests.size === 0 || guests.size > MOST_ROWS) continue;
    try {
      const all = await (await request("GET", "/guests?usage=true")).json();
      heard.guests(all);
    } catch { /* the event stream tells that the daemon is gone */ }
  }
}

$("login").addEventListener("submit", (event) => {
  event.preventDefault();
  sessionStorage.setItem("token", $("token").value.trim());
  $("token").value = "";
  $("login").hidden = true;
});
stayConnected();
askForUsage();
