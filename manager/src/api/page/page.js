// What the page shows is told by the event stream; it is drawn once a frame, however much is told.

import { Problem, authorized, listen, token } from "./api.js";
import * as claims from "./claims.js";
import { drawSample } from "./curve.js";
import { $, tell, text } from "./dom.js";
import * as guests from "./guests.js";
import { drawPools } from "./pools.js";
import * as programs from "./programs.js";

const FIRST_REST = 500;
const LONGEST_REST = 5000;

let pools = [];
let sample = null;
let drawing = false;

function draw() {
  if (drawing) return;
  drawing = true;
  requestAnimationFrame(() => {
    drawing = false;
    drawPools(pools);
    guests.drawGuests();
    if (sample) { drawSample(sample); sample = null; }
  });
}

const heard = {
  guests: guests.replace,
  guest: guests.change,
  pools(all) { pools = all; },
  counters(now) { sample = now; },
};

function link(state, words) {
  $("link").dataset.state = state;
  text($("link"), words);
}

function loggedIn() {
  return new Promise((done) => {
    $("login").hidden = false;
    $("main").hidden = true;
    $("token").focus();
    $("login").addEventListener("submit", (event) => {
      event.preventDefault();
      token.set($("token").value.trim());
      $("token").value = "";
      $("login").hidden = true;
      done();
    }, { once: true });
  });
}

async function stayConnected() {
  let rest = FIRST_REST;
  for (;;) {
    try {
      if (!await authorized()) {
        throw new Problem(401, {
          title: "Unauthorized",
          detail: "this is not the daemon's token",
          hint: "it is in the file that brood serve --token-file was given",
        });
      }
      await listen(() => {
        rest = FIRST_REST;
        link("live", "live");
        $("main").hidden = false;
        $("problem").hidden = true;
        claims.recall().catch(tell);
      }, (kind, data) => {
        if (Object.hasOwn(heard, kind)) { heard[kind](data); draw(); }
      });
    } catch (problem) {
      if (problem instanceof Problem && problem.status === 401) {
        link("waiting", "needs a token");
        if (token.get()) {
          token.forget();
          tell(problem);
        }
        await loggedIn();
        continue;
      }
    }
    link("gone", "no answer, trying again");
    await new Promise((done) => { setTimeout(done, rest); });
    rest = Math.min(LONGEST_REST, rest * 2);
  }
}

const THEMES = ["auto", "light", "dark"];

function theme(chosen) {
  if (chosen === "auto") delete document.documentElement.dataset.theme;
  else document.documentElement.dataset.theme = chosen;
  text($("theme"), `Colours: ${chosen}`);
}

$("theme").addEventListener("click", () => {
  const now = document.documentElement.dataset.theme ?? "auto";
  const next = THEMES[(THEMES.indexOf(now) + 1) % THEMES.length];
  theme(next);
  try { localStorage.setItem("theme", next); } catch { /* then it is not remembered */ }
});
theme(document.documentElement.dataset.theme ?? "auto");
$("problem-close").addEventListener("click", () => { $("problem").hidden = true; });
claims.start();
guests.start();
programs.start();
stayConnected();
