// What guests cost: the figures of the newest sample, and the curve of all since the page was opened.

import { $, count, element, keyed, set, size, text } from "./dom.js";

const [LEFT, RIGHT, TOP, BOTTOM] = [64, 628, 14, 222];
const STATES = ["running", "paused", "restoring", "dead"];
const MOST_POINTS = 400;
const byGuests = new Map(); // number of guests -> newest sample with so many

const costOf = (one) => one.private_bytes + one.process_bytes + one.page_table_bytes + one.kernel_bytes;
const sum = (sample, of) => sample.checkpoints.reduce((total, checkpoint) => total + of(checkpoint), 0);

function tile({ name }) {
  const value = element("dd");
  const more = element("dd", { class: "more" });
  const node = element("div", { "data-name": name }, element("dt", {}, name), value, more);
  return { node, update(tile) { text(value, tile.value); text(more, tile.more); } };
}

export function drawSample(sample) {
  const guests = sum(sample, (checkpoint) => checkpoint.guests);
  const [cost, unshared] = [sum(sample, costOf), sum(sample, (checkpoint) => checkpoint.memory_bytes)];
  const { memory_total_bytes: total, memory_available_bytes: available } = sample.host;
  const states = STATES.map((state) => [state, sample.guests[state] ?? 0]).filter(([, n]) => n > 0);
  keyed($("counters"), [
    { name: "Guests", value: count(states.reduce((all, [, n]) => all + n, 0)), more: states.map(([state, n]) => `${count(n)} ${state}`).join(" · ") || "none yet" },
    { name: "Memory they take", value: size(cost), more: guests > 0 ? `${size(cost / guests)} each, all told` : "private memory, processes, kernel" },
    { name: "Unshared it would be", value: size(unshared), more: cost > 0 ? `${count(Math.round(unshared / cost))} times as much` : "" },
    { name: "Host memory available", value: size(available), more: `of ${size(total)}` },
  ], (one) => one.name, tile);
  const measured = sample.checkpoints.every((checkpoint) => checkpoint.kernel_measured);
  text($("kernel"), measured && guests > 0 ? "That is what density runs of these checkpoints found." : "That is what guests cost in general: brood density measures it.");
  if (guests > 0) {
    $("no-curve").hidden = true;
    $("curve").removeAttribute("hidden");
    byGuests.set(guests, { guests, cost, unshared });
    if (byGuests.size > MOST_POINTS) byGuests.delete(byGuests.keys().next().value);
    drawCurve(guests);
  }
}

/** Round steps, at most `most` of them up to `end`. */
function steps(end, most, base) {
  let step = base ** Math.floor(Math.log(Math.max(1, end / most)) / Math.log(base));
  const factors = base === 2 ? [1, 2] : [1, 2, 5, 10];
  step *= factors.find((factor) => end / (step * factor) <= most) ?? base;
  return Array.from({ length: Math.floor(end / step) + 1 }, (_, i) => i * step);
}

function drawCurve(now) {
  const sorted = [...byGuests.values()].sort((a, b) => a.guests - b.guests);
  const widest = sorted.at(-1);
  const highest = 1.15 * Math.max(...sorted.map((point) => point.cost));
  const x = (guests) => LEFT + (RIGHT - LEFT) * guests / widest.guests;
  const y = (bytes) => BOTTOM - (BOTTOM - TOP) * Math.min(1, bytes / highest);
  const line = sorted.map((point) => `L${x(point.guests)} ${y(point.cost)}`).join("");
  const last = byGuests.get(now);
  $("curve").replaceChildren(
    ...steps(highest, 4, 2).map((bytes) => element("g", {},
      element("line", { class: "grid", x1: LEFT, x2: RIGHT, y1: y(bytes), y2: y(bytes) }),
      element("text", { x: LEFT - 8, y: y(bytes) + 4, "text-anchor": "end" }, size(bytes).replace(".0 ", " ")))),
    ...steps(widest.guests, 5, 10).map((guests) => element("text", { x: x(guests), y: BOTTOM + 20, "text-anchor": x(guests) > RIGHT - 20 ? "end" : "middle" }, count(guests))),
    element("text", { x: RIGHT, y: BOTTOM + 36, "text-anchor": "end" }, "guests"),
    element("path", { class: "area", d: `M${LEFT} ${BOTTOM}${line}V${BOTTOM}z` }),
    element("path", { class: "curve", d: `M${LEFT} ${BOTTOM}${line}` }),
    ...sorted.map((point) => element("circle", { class: point === last ? "point now" : "point", cx: x(point.guests), cy: y(point.cost), r: point === last ? 5 : 2.5 })),
    element("text", { class: "told", x: Math.min(RIGHT, Math.max(LEFT + 60, x(last.guests))), y: Math.max(TOP, y(last.cost) - 12), "text-anchor": "end" }, `${count(last.guests)} guests, ${size(last.cost)}`));
  set($("curve"), "aria-label", `${count(last.guests)} guests take ${size(last.cost)}; unshared they would take ${size(last.unshared)}`);
}
