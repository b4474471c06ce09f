// A command in a guest, and what it said.

import { request } from "./api.js";
import { $, tell, text } from "./dom.js";

async function run(event) {
  event.preventDefault();
  const form = $("run");
  if (form.ariaBusy === "true") return;
  form.ariaBusy = "true";
  text($("run-code"), "running");
  text($("run-output"), "");
  try {
    const guest = encodeURIComponent($("run-guest").value.trim());
    const command = ["/bin/sh", "-c", $("run-command").value];
    const { code, output, error } = await request("POST", `/guests/${guest}/exec`, { command });
    text($("run-code"), code === 0 ? "ended well" : `ended with code ${code}`);
    text($("run-output"), output + error);
    $("problem").hidden = true;
  } catch (problem) {
    text($("run-code"), "not run");
    tell(problem);
  } finally { form.ariaBusy = "false"; }
}

export function start() {
  $("run").addEventListener("submit", run);
}
