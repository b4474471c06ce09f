// Making and changing what is shown. Texts go in as text, never as markup.

export const $ = (id) => document.getElementById(id);

const SVG = new Set(["svg", "rect", "path", "line", "text", "circle", "g"]);

export function element(name, attributes = {}, ...children) {
  const made = SVG.has(name) ? document.createElementNS("http://www.w3.org/2000/svg", name) : document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (key === "onclick") made.addEventListener("click", value);
    else if (value !== undefined && value !== null) made.setAttribute(key, value);
  }
  made.append(...children);
  return made;
}

/** Changes a text only where it is another one: what is selected or read out stays. */
export function text(node, value) {
  if (node.textContent !== value) node.textContent = value;
}

export function set(node, name, value) {
  if (node.getAttribute(name) !== String(value)) node.setAttribute(name, value);
}

/**
 * Makes the children of a list those of `items`, in their order. The child of an item that stays is
 * kept, and with it the keyboard's focus; `make` answers with `{ node, update }`.
 */
export function keyed(parent, items, keyOf, make) {
  const made = parent.made ??= new Map();
  const wanted = new Set(items.map(keyOf));
  for (const [key, child] of made) {
    if (!wanted.has(key)) { child.node.remove(); made.delete(key); }
  }
  let place = parent.firstElementChild;
  for (const item of items) {
    const key = keyOf(item);
    let child = made.get(key);
    if (!child) { child = make(item); made.set(key, child); }
    child.update(item);
    if (child.node === place) place = place.nextElementSibling;
    else parent.insertBefore(child.node, place);
  }
}

const UNITS = ["B", "KiB", "MiB", "GiB", "TiB"];

export function size(bytes) {
  let unit = 0;
  while (bytes >= 1024 && unit < UNITS.length - 1) { bytes /= 1024; unit += 1; }
  return `${bytes >= 100 || unit === 0 ? Math.round(bytes) : bytes.toFixed(1)} ${UNITS[unit]}`;
}

export const count = (number) => number.toLocaleString("en");

/** Tells an error, until it is dismissed or something goes well. */
export function tell(problem) {
  text($("problem-title"), problem.title ?? "Error");
  text($("problem-detail"), problem.message);
  text($("problem-hint"), problem.hint ?? "");
  $("problem").hidden = false;
}

/** A button that is busy until what it does is done, and tells when that fails. */
export function button(label, action, attributes = {}) {
  const made = element("button", { type: "button", ...attributes }, label);
  made.addEventListener("click", async () => {
    if (made.ariaBusy === "true") return;
    made.ariaBusy = "true";
    try {
      await action(made);
      $("problem").hidden = true;
    } catch (problem) {
      tell(problem);
    } finally { made.ariaBusy = "false"; }
  });
  return made;
}

/** Asks before something is lost. */
export function confirmed(question) {
  const dialog = $("confirm");
  text($("confirm-text"), question);
  dialog.returnValue = "no";
  dialog.showModal();
  return new Promise((answer) => {
    dialog.addEventListener("close", () => answer(dialog.returnValue === "yes"), { once: true });
  });
}
