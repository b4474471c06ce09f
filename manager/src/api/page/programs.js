// A command in a guest, and what it says.

import { Problem, socket } from "./api.js";
import { $, tell, text } from "./dom.js";

/** As much of the output as is shown, in characters. */
const SHOWN = 256 * 1024;

/** Output as it comes: bytes of each stream become text, however they are cut. */
function output(node) {
  const decoders = [new TextDecoder(), new TextDecoder()];
  let shown = "", due = 0;
  const draw = () => {
    due = 0;
    const below = node.scrollTop + node.clientHeight >= node.scrollHeight - 4;
    text(node, shown);
    if (below) node.scrollTop = node.scrollHeight;
  };
  draw();
  return (message) => {
    const bytes = new Uint8Array(message);
    shown = (shown + decoders[bytes[0] - 1].decode(bytes.subarray(1), { stream: true })).slice(-SHOWN);
    due ||= requestAnimationFrame(draw);
  };
}

function running(is) {
  $("run").ariaBusy = String(is);
  $("run-start").disabled = is;
  $("run-cancel").disabled = !is;
}

function ended({ code, signal }) {
  if (signal) return `ended by signal ${signal}`;
  return code === 0 ? "ended well" : `ended with code ${code}`;
}

function run(event) {
  event.preventDefault();
  if ($("run").ariaBusy === "true") return;
  const program = socket(`/guests/${encodeURIComponent($("run-guest").value.trim())}/exec`);
  const start = { type: "start", command: ["/bin/sh", "-c", $("run-command").value] };
  const show = output($("run-output"));
  let over = false;
  const end = (status, problem) => {
    if (over) return;
    over = true;
    running(false);
    $("run-cancel").onclick = null;
    text($("run-code"), status);
    if (problem) tell(problem);
    else $("problem").hidden = true;
    program.close();
  };
  running(true);
  text($("run-code"), "starting");
  $("run-cancel").onclick = () => end("cancelled");
  program.addEventListener("open", () => program.send(JSON.stringify(start)));
  program.addEventListener("message", ({ data }) => {
    if (over) return;
    if (typeof data !== "string") return show(data);
    const said = JSON.parse(data);
    if (said.type === "started") text($("run-code"), "running");
    if (said.type === "exited") end(ended(said));
    if (said.type === "failed") end("not run", new Problem(said.problem.status, said.problem));
  });
  program.addEventListener("close", () => {
    const hint = "see whether the daemon runs, and whether its token is right";
    end("lost", new Problem(0, { title: "Connection lost", detail: "the connection to the daemon has ended", hint }));
  });
}

export function start() {
  $("run").addEventListener("submit", run);
}
