// Requests to the daemon, and its event stream.

const API = "/api/v1";

/** An error as the daemon tells it (problem details): what failed, why, and what to do next. */
export class Problem extends Error {
  constructor(status, body) {
    super(body.detail ?? "the daemon does not answer");
    this.status = status;
    this.title = body.title ?? "No answer";
    this.hint = body.hint;
  }
}

export const token = {
  get: () => sessionStorage.getItem("token"),
  set: (value) => sessionStorage.setItem("token", value),
  forget: () => sessionStorage.removeItem("token"),
};

async function fetched(method, path, body, signal) {
  const headers = {};
  if (token.get()) headers.authorization = `Bearer ${token.get()}`;
  if (body !== undefined) headers["content-type"] = "application/json";
  let response;
  try {
    response = await fetch(API + path, { method, headers, signal, body: body === undefined ? undefined : JSON.stringify(body) });
  } catch {
    throw new Problem(0, { hint: "the page goes on by itself as soon as it does: brood serve" });
  }
  if (!response.ok) throw new Problem(response.status, await response.json().catch(() => ({ title: response.statusText, detail: `status ${response.status}` })));
  return response;
}

/** Whether the daemon takes this page's requests: it may want a token. It is asked without being refused. */
export async function authorized() {
  const headers = token.get() ? { authorization: `Bearer ${token.get()}` } : {};
  let response;
  try {
    response = await fetch("/health", { headers });
  } catch {
    throw new Problem(0, { hint: "the page goes on by itself as soon as it does: brood serve" });
  }
  if (!response.ok) throw new Problem(response.status, await response.json().catch(() => ({})));
  return (await response.json()).authorized;
}

/** Answers with the body; null where there is none. */
export async function request(method, path, body) {
  const response = await fetched(method, path, body);
  return response.status === 204 ? null : response.json();
}

/** Opens a websocket. It can have no header, so the token is the name of a second subprotocol. */
export function socket(path) {
  const url = new URL(API + path, location.href);
  url.protocol = url.protocol.replace("http", "ws");
  const protocols = ["brood.exec"];
  const bytes = [...new TextEncoder().encode(token.get() ?? "")];
  if (bytes.length) protocols.push(`brood.token.${bytes.map((byte) => byte.toString(16).padStart(2, "0")).join("")}`);
  const opened = new WebSocket(url, protocols);
  opened.binaryType = "arraybuffer";
  return opened;
}

/** Longest silence of the stream: the daemon says something every 15 seconds. */
const SILENCE = 45000;

/** Calls `heard(kind, data)` for each event, until the stream ends or fails. */
export async function listen(opened, heard) {
  const abort = new AbortController();
  let watchdog;
  const alive = () => { clearTimeout(watchdog); watchdog = setTimeout(() => abort.abort(), SILENCE); };
  alive();
  try {
    const response = await fetched("GET", "/events", undefined, abort.signal);
    opened();
    const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
    let text = "";
    for (;;) {
      const { done, value } = await reader.read();
      if (done) return;
      alive();
      text += value;
      const events = text.split("\n\n");
      text = events.pop();
      for (const event of events) {
        const kind = /^event: (.*)$/m.exec(event);
        const data = /^data: (.*)$/m.exec(event);
        if (kind && data) heard(kind[1], JSON.parse(data[1]));
      }
    }
  } finally { clearTimeout(watchdog); }
}
