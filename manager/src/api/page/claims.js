// Claims that were made on this page, or whose token was shown to it. Tokens stay in this tab.

import { request } from "./api.js";
import { $, button, element, keyed, set, tell, text } from "./dom.js";

const KEPT = "claims";
const PERIOD = 5000;
const RENEWED_S = 600;

const claims = new Map(); // token -> what is known of the claim

const at = (token) => `/claims/${encodeURIComponent(token)}`;

function remember() {
  sessionStorage.setItem(KEPT, JSON.stringify([...claims.keys()]));
  drawClaims();
}

function know(token, claim) {
  claims.set(token, { ...claim, token, until: claim.lease_left_s === null ? null : performance.now() + claim.lease_left_s * 1000 });
}

async function look(token) {
  try {
    know(token, await request("GET", at(token)));
  } catch (problem) {
    if (problem.status === 404) claims.delete(token);
    else if (problem.status !== 0) throw problem;
  }
}

/** A claim that was answered with. */
export function add(claim, pool) {
  know(claim.token, { guest: claim.guest, pool, state: "claimed", lease_left_s: claim.lease_s });
  remember();
}

/** Claims from before this page was loaded again; those that are over are forgotten. */
export async function recall() {
  let kept = [];
  try { kept = JSON.parse(sessionStorage.getItem(KEPT) ?? "[]"); } catch { /* nothing that was kept by this page */ }
  for (const token of kept) await look(token);
  remember();
}

async function change(token, method, path, body) {
  await request(method, path, body);
  await look(token);
  remember();
}

function left(claim) {
  if (claim.state !== "claimed") return "no lease while it is suspended";
  const seconds = Math.max(0, Math.round((claim.until - performance.now()) / 1000));
  const [h, m, s] = [Math.floor(seconds / 3600), Math.floor(seconds / 60) % 60, seconds % 60];
  const two = (n) => String(n).padStart(2, "0");
  return `${h > 0 ? `${h}:${two(m)}` : m}:${two(s)} left`;
}

function make({ token }) {
  const guest = element("strong");
  const state = element("span", { class: "badge" });
  const words = element("span", { class: "words" });
  const lease = element("span", { class: "words lease" });
  const copy = button("Copy token", async () => {
    await navigator.clipboard.writeText(token);
    text(copy, "Copied");
    setTimeout(() => text(copy, "Copy token"), 1500);
  });
  const renew = button("Renew", () => change(token, "PUT", at(token), { lease_s: RENEWED_S }), { title: "Ten minutes from now" });
  const suspend = button("Suspend", () => change(token, "POST", `${at(token)}/suspend`), { title: "Write its own pages to disk; it takes no memory until it is resumed" });
  const resume = button("Resume", () => change(token, "POST", `${at(token)}/resume`, {}), { class: "primary" });
  const giveBack = button("Release", () => release(token), { class: "danger", title: "Give it back; the guest is gone" });
  const node = element("li", { class: "claim" },
    element("div", { class: "what" }, guest, state, words, lease),
    element("div", { class: "token" }, element("code", { title: "Token" }, token), copy),
    element("div", { class: "actions" }, renew, suspend, resume, giveBack));
  return {
    node,
    update(claim) {
      text(guest, claim.guest);
      const word = claim.state;
      text(state, word);
      state.dataset.state = word;
      text(words, `of ${claim.pool}`);
      text(lease, left(claim));
      const focused = document.activeElement;
      for (const one of [renew, suspend]) one.hidden = claim.state !== "claimed";
      resume.hidden = claim.state !== "suspended";
      for (const one of [renew, suspend, resume, giveBack]) set(one, "aria-label", `${one.textContent} ${claim.guest}`);
      // The keyboard goes on at the button that has taken the other's place.
      if (node.contains(focused) && focused.hidden) (resume.hidden ? giveBack : resume).focus();
    },
  };
}

export function drawClaims() {
  $("no-claims").hidden = claims.size > 0;
  keyed($("claims"), [...claims.values()], (claim) => claim.token, make);
}

/** The token of the claim to this guest, if it is one of this page's. */
export function tokenOf(guest) {
  for (const claim of claims.values()) if (claim.guest === guest && claim.state === "claimed") return claim.token;
  return undefined;
}

export async function release(token) {
  await request("DELETE", at(token));
  claims.delete(token);
  remember();
}

export function start() {
  setInterval(drawClaims, 1000);
  setInterval(async () => {
    if (document.hidden) return;
    for (const token of [...claims.keys()]) await look(token).catch(() => { /* the stream tells */ });
    remember();
  }, PERIOD);
  $("adopt").addEventListener("submit", async (event) => {
    event.preventDefault();
    const token = $("claim-token").value.trim();
    try {
      know(token, await request("GET", at(token)));
      $("claim-token").value = "";
      $("problem").hidden = true;
      remember();
    } catch (problem) { tell(problem); }
  });
}
