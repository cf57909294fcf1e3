// The read-only page: asks the API like any client, then follows the live stream. No library, no build step.
"use strict";

const POINTS_MAX = 120;          // points of a sparkline
const DEVICES_MAX = 2000;        // devices listed
const HISTORY_DEVICES_MAX = 100; // devices whose sparklines are kept
const METRICS_MAX = 60;          // metrics shown of a device
const ALERTS_SHOWN = 100;
const SILENCE_MS = 40000;        // the server pings every 15 s
const STALE_MS = 60000;          // a value older than this is shown as old

const byId = (id) => document.getElementById(id);
const state = {
  me: null, tenant: null, source: null, heard: 0, devices: new Map(), presence: new Map(), alerts: new Map(),
  selected: null, known: new Map(), rate: [], dirty: new Set(), problems: new Map(),
};

// ---- small helpers

function h(tag, props, ...children) {
  const node = document.createElement(tag);
  for (const [key, value] of Object.entries(props || {})) {
    if (value === undefined || value === null || value === false) continue;
    if (key === "onclick") node.addEventListener("click", value);
    else if (key === "text") node.textContent = value;
    else node.setAttribute(key === "cls" ? "class" : key, value === true ? "" : value);
  }
  node.append(...children.filter((child) => child !== null && child !== undefined));
  return node;
}

class Refused extends Error {
  constructor(status, problem) {
    super((problem && problem.detail) || `the server answered ${status}`);
    this.status = status;
    this.code = problem && problem.code;
  }
}

async function api(path, body) {
  const options = { headers: { accept: "application/json" }, credentials: "same-origin" };
  if (body !== undefined) {
    options.method = "POST";
    options.headers["content-type"] = "application/json";
    options.body = JSON.stringify(body);
  }
  const answer = await fetch(`/api/v1${path}`, options);
  const text = await answer.text();
  let json = null;
  try { json = text ? JSON.parse(text) : null; } catch { json = null; }
  if (!answer.ok) {
    if (answer.status === 401 && state.me) signedOut();
    throw new Refused(answer.status, json);
  }
  return json;
}

const ofTenant = (path) => `/tenants/${encodeURIComponent(state.tenant)}${path}`;

async function pages(path, most) {
  const all = [];
  let cursor = null;
  do {
    const more = cursor ? `&cursor=${encodeURIComponent(cursor)}` : "";
    const page = await api(`${path}${path.includes("?") ? "&" : "?"}limit=500${more}`);
    all.push(...page.items);
    cursor = page.next_cursor;
  } while (cursor && all.length < most);
  return all;
}

const wholeNumber = new Intl.NumberFormat("en");
function count(n) {
  if (n < 1e6) return wholeNumber.format(n);
  const [unit, per] = n < 1e9 ? ["M", 1e6] : ["G", 1e9];
  return `${(n / per).toFixed(2)} ${unit}`;
}

function shown(value) {
  if (typeof value === "boolean") return value ? "yes" : "no";
  if (typeof value !== "number") return String(value);
  const size = Math.abs(value);
  if (value !== 0 && (size < 1e-3 || size >= 1e9)) return value.toExponential(2);
  return value.toLocaleString("en", { maximumFractionDigits: size < 10 ? 3 : size < 1000 ? 2 : 0 });
}

function ago(us) {
  const seconds = Math.max(0, (Date.now() - us / 1000) / 1000);
  if (seconds < 5) return "now";
  if (seconds < 60) return `${Math.floor(seconds)} s ago`;
  if (seconds < 3600) return `${Math.floor(seconds / 60)} min ago`;
  if (seconds < 86400) return `${Math.floor(seconds / 3600)} h ago`;
  return `${Math.floor(seconds / 86400)} d ago`;
}

function timeOf(us) {
  return h("time", { datetime: new Date(us / 1000).toISOString(), title: new Date(us / 1000).toLocaleString(), text: ago(us) });
}

const SVG = "http://www.w3.org/2000/svg";
function spark(points, height, what) {
  const svg = document.createElementNS(SVG, "svg");
  svg.setAttribute("viewBox", `0 0 100 ${height}`);
  svg.setAttribute("preserveAspectRatio", "none");
  svg.setAttribute("role", "img");
  if (points.length < 2) {
    svg.setAttribute("aria-label", `${what}: no history yet`);
    return svg;
  }
  let low = Infinity, high = -Infinity;
  for (const point of points) { low = Math.min(low, point.v); high = Math.max(high, point.v); }
  svg.setAttribute("aria-label", `${what}: between ${shown(low)} and ${shown(high)}`);
  const flat = high - low || 1;
  const first = points[0].t, span = points[points.length - 1].t - first || 1;
  const place = (p) => `${(((p.t - first) / span) * 100).toFixed(2)},${(high === low ? height / 2 : height - 2 - ((p.v - low) / flat) * (height - 4)).toFixed(2)}`;
  const line = points.map(place).join(" ");
  for (const [name, cls, at] of [["polygon", "spark-fill", `0,${height} ${line} 100,${height}`], ["polyline", "spark-line", line]]) {
    const shape = document.createElementNS(SVG, name);
    shape.setAttribute("class", cls);
    shape.setAttribute("points", at);
    svg.append(shape);
  }
  return svg;
}

function empty(title, text) {
  return h("div", { cls: "empty" }, h("b", { text: title }), text || "");
}

function problem(part, error) {
  if (error) state.problems.set(part, error.message); else state.problems.delete(part);
  drawNotice();
}

function drawNotice() {
  const parts = [...state.problems.keys()], [why] = state.problems.values();
  const lost = byId("status").dataset.state === "lost";
  const stale = lost ? `Disconnected. What is shown is as of ${new Date(state.heard).toLocaleTimeString()}; trying again.` : "";
  byId("notice").hidden = !lost && !parts.length;
  byId("notice").textContent = lost ? stale : parts.length ? `${parts.join(", ")} cannot be loaded: ${why}` : "";
  byId("app").dataset.stale = lost ? "yes" : "no";
}

// ---- signing in and out

function showGate(form) {
  byId("app").hidden = true;
  byId("gate").hidden = false;
  byId("login").hidden = form !== "login";
  byId("renew").hidden = form !== "renew";
  byId(form === "login" ? "email" : "old").focus();
}

function signedOut() {
  if (state.source) state.source.close();
  Object.assign(state, { me: null, tenant: null, source: null, selected: null });
  byId("password").value = "";
  showGate("login");
}

function submits(form, error, work) {
  byId(form).addEventListener("submit", async (event) => {
    event.preventDefault();
    const button = byId(form).querySelector("button");
    button.disabled = true;
    byId(error).textContent = "";
    try { await work(); } catch (refused) {
      byId(error).textContent = refused instanceof Refused ? refused.message : "The server cannot be reached.";
    }
    button.disabled = false;
  });
}

submits("login", "login-error", async () => {
  const password = byId("password").value;
  const me = await api("/auth/login", { email: byId("email").value, password });
  byId("password").value = "";
  if (me.password_pending) byId("old").value = password;
  await enter(me);
});

submits("renew", "renew-error", async () => {
  await api("/auth/password", { old_password: byId("old").value, new_password: byId("new").value });
  byId("old").value = byId("new").value = "";
  await enter(await api("/auth/me"));
});

byId("logout").addEventListener("click", async () => {
  try { await api("/auth/logout", {}); } catch { /* the session may have ended before */ }
  signedOut();
});

async function enter(me) {
  state.me = me;
  if (me.password_pending) {
    byId("renew-user").value = me.email || "";
    showGate("renew");
    return;
  }
  byId("gate").hidden = true;
  byId("app").hidden = false;
  byId("who").textContent = me.email || me.id;
  const tenants = me.memberships.map((membership) => membership.tenant).sort();
  const picker = byId("tenant");
  picker.replaceChildren(...tenants.map((tenant) => h("option", { value: tenant, text: tenant })));
  byId("tenant-label").hidden = tenants.length < 2;
  byId("tenant-only").textContent = tenants.length === 1 ? tenants[0] : "";
  if (!tenants.length) {
    problem("The fleet", new Error("this account is in no tenant"));
    return;
  }
  const before = localStorage.getItem("muster-tenant");
  picker.value = tenants.includes(before) ? before : tenants[0];
  await openTenant(picker.value);
}

byId("tenant").addEventListener("change", () => openTenant(byId("tenant").value));

async function openTenant(tenant) {
  localStorage.setItem("muster-tenant", tenant);
  for (const map of [state.devices, state.presence, state.alerts, state.known, state.problems]) map.clear();
  Object.assign(state, { tenant, selected: null, rate: [] });
  follow();
  await reload();
}

async function reload() {
  await Promise.all([loadDevices(), loadPresence(), loadAlerts(), loadLedger()]);
  if (!state.selected && state.devices.size) select(firstDevice());
  else if (state.selected) loadLast(state.selected);
  draw("devices", "alerts", "readings");
}

function firstDevice() {
  const online = [...state.devices.keys()].filter((id) => isOnline(id));
  return (online.length ? online : [...state.devices.keys()])[0];
}

async function part(name, work) {
  try {
    await work();
    problem(name, null);
  } catch (error) {
    if (state.me && error.status !== 401) problem(name, error instanceof Refused ? error : new Error("the server cannot be reached"));
  }
}

const loadDevices = () => part("Devices", async () => {
  const devices = await pages(ofTenant("/devices"), DEVICES_MAX);
  state.devices.clear();
  for (const device of devices) state.devices.set(device.id, device);
});

const loadPresence = () => part("Presence", async () => {
  for (const seen of await pages(ofTenant("/presence"), DEVICES_MAX)) state.presence.set(seen.device, seen);
});

const loadAlerts = () => part("Alerts", async () => {
  const open = await pages(ofTenant("/alerts?state=open"), 500);
  const acked = await pages(ofTenant("/alerts?state=acked"), 500);
  const past = await api(ofTenant(`/alerts?limit=${ALERTS_SHOWN}`));
  state.alerts.clear();
  for (const alert of [...past.items, ...acked, ...open]) state.alerts.set(alert.id, alert);
});

const loadLedger = () => part("The ledger", async () => {
  showLedger(await api(ofTenant("/ledger")));
});

const loadLast = (device) => part("Readings", async () => {
  const last = await api(ofTenant(`/devices/${encodeURIComponent(device)}/last`));
  const known = knownOf(device);
  for (const reading of last.items || last) {
    if (!known.values.has(reading.metric)) setValue(known, reading.metric, reading.value, reading.ts_us, reading.received_at_us);
  }
  draw("readings");
  await loadHistory(device, known);
});

async function loadHistory(device, known) {
  const to = Date.now() * 1000, from = to - 15 * 60e6;
  const numbers = [...known.values].filter(([, held]) => typeof held.value === "number" && !held.loaded).slice(0, 24);
  await Promise.all(numbers.map(async ([metric, held]) => {
    held.loaded = true;
    const query = new URLSearchParams({ metric, from, to, step: "10s", agg: "avg" });
    const answer = await api(ofTenant(`/devices/${encodeURIComponent(device)}/readings?${query}`));
    const points = (answer.points || answer.items || []).filter((point) => typeof point.value === "number");
    const older = points.map((point) => ({ t: point.ts_us, v: point.value }));
    const newer = held.points.filter((point) => !older.length || point.t > older[older.length - 1].t);
    held.points = [...older, ...newer].slice(-POINTS_MAX);
  }));
  draw("readings");
}

// ---- the live stream

function follow() {
  if (state.source) state.source.close();
  setStatus("connecting");
  const source = new EventSource(`/api/v1${ofTenant("/live")}`);
  state.source = source;
  state.heard = Date.now();
  const on = (name, work) => source.addEventListener(name, (event) => {
    if (state.source !== source) return;
    state.heard = Date.now();
    work(event.data);
  });
  on("hello", () => setStatus("live"));
  on("reset", () => { setStatus("live"); reload(); });
  on("ping", () => setStatus("live"));
  on("end", () => setStatus("connecting"));
  on("reading", (data) => onReading(JSON.parse(data)));
  on("event", (data) => onResult(JSON.parse(data)));
  on("alert", (data) => { const alert = JSON.parse(data); state.alerts.set(alert.id, alert); trimAlerts(); draw("alerts"); });
  on("presence", (data) => onPresence(JSON.parse(data)));
  on("ledger", () => askLedger());
  source.onerror = async () => {
    if (state.source !== source) return;
    setStatus("lost");
    if (source.readyState !== EventSource.CLOSED) return;
    // A refused stream is not tried again by the browser: see why, and try again.
    await new Promise((done) => setTimeout(done, 3000));
    if (state.source !== source) return;
    try { await api("/auth/me"); } catch { /* signed out, or still unreachable */ }
    if (state.source === source && state.me) { follow(); reload(); }
  };
}

function setStatus(status) {
  const pill = byId("status");
  if (pill.dataset.state === status) return;
  pill.dataset.state = status;
  pill.textContent = { live: "Live", connecting: "Connecting", lost: "Disconnected" }[status];
  drawNotice();
  document.title = status === "lost" ? "Muster (disconnected)" : "Muster";
}

function knownOf(device) {
  let known = state.known.get(device);
  if (!known) {
    if (state.known.size >= HISTORY_DEVICES_MAX) {
      const oldest = [...state.known.keys()].find((id) => id !== state.selected);
      state.known.delete(oldest);
    }
    known = { values: new Map(), results: new Map() };
    state.known.set(device, known);
  }
  return known;
}

function setValue(known, metric, value, at, received) {
  let held = known.values.get(metric);
  if (!held) {
    if (known.values.size >= METRICS_MAX) return;
    held = { points: [], loaded: false };
    known.values.set(metric, held);
  }
  Object.assign(held, { value, at, received });
  if (typeof value === "number") push(held.points, at, value);
}

function push(points, t, v) {
  if (points.length && t <= points[points.length - 1].t) return;
  points.push({ t, v });
  if (points.length > POINTS_MAX) points.shift();
}

function seen(device, us) {
  const presence = state.presence.get(device) || { device, connected: null };
  presence.last_seen_us = Math.max(us, presence.last_seen_us || 0);
  state.presence.set(device, presence);
}

function onReading(news) {
  const known = knownOf(news.device);
  const entries = Object.entries(news.values);
  for (const [metric, reading] of entries) setValue(known, metric, reading.value, reading.at_us, news.received_at_us);
  state.rate.push({ at: Date.now(), n: entries.length });
  seen(news.device, news.received_at_us);
  if (!state.devices.has(news.device)) askDevices();
  draw("devices", news.device === state.selected ? "readings" : null);
}

function onResult(news) {
  const known = knownOf(news.device);
  for (const [pipeline, result] of Object.entries(news.results)) {
    const held = known.results.get(pipeline) || { points: [] };
    Object.assign(held, result);
    push(held.points, result.at_us, result.score);
    known.results.set(pipeline, held);
  }
  seen(news.device, news.received_at_us);
  draw(news.device === state.selected ? "readings" : null);
}

function onPresence(news) {
  seen(news.device, news.at_us);
  Object.assign(state.presence.get(news.device), { connected: news.connected, since_us: news.at_us });
  if (!state.devices.has(news.device)) askDevices();
  draw("devices");
}

function trimAlerts() {
  if (state.alerts.size <= 4 * ALERTS_SHOWN) return;
  const past = [...state.alerts.values()].filter((alert) => !isOpen(alert)).sort((a, b) => a.opened_at_us - b.opened_at_us);
  for (const alert of past.slice(0, past.length - ALERTS_SHOWN)) state.alerts.delete(alert.id);
}

/// Runs at most once in `ms`, and once after the last call.
function calm(ms, work) {
  let timer = null;
  return () => {
    if (timer) return;
    timer = setTimeout(() => { timer = null; if (state.tenant) work(); }, ms);
  };
}
const askLedger = calm(1000, loadLedger);
const askDevices = calm(2000, async () => { await loadDevices(); draw("devices"); });

// ---- drawing, at most four times a second

function draw(...parts) {
  for (const name of parts) if (name) state.dirty.add(name);
}

setInterval(() => {
  if (!state.tenant || document.hidden) return;
  const parts = { devices: drawDevices, alerts: drawAlerts, readings: drawReadings };
  for (const [name, work] of Object.entries(parts)) if (state.dirty.delete(name)) work();
}, 250);

setInterval(() => {
  if (!state.tenant) return;
  draw("devices", "alerts", "readings");
  if (state.source && Date.now() - state.heard > SILENCE_MS) { setStatus("lost"); follow(); reload(); }
}, 5000);

setInterval(() => { if (state.tenant && !document.hidden) loadLedger(); }, 10000);
setInterval(() => { if (state.tenant && !document.hidden) { reload(); } }, 60000);

function isOnline(id) {
  const presence = state.presence.get(id);
  if (!presence) return false;
  return presence.connected === null ? Date.now() - presence.last_seen_us / 1000 < STALE_MS : Boolean(presence.connected);
}

const isOpen = (alert) => alert.state === "open" || alert.state === "acked";
const RANK = { critical: 0, warning: 1, info: 2 };

function showLedger(answer) {
  const totals = answer.totals || answer;
  const dropped = typeof totals.dropped === "object" && totals.dropped !== null
    ? Object.values(totals.dropped).reduce((sum, n) => sum + n, 0) : totals.dropped || 0;
  const reasons = typeof totals.dropped === "object" && totals.dropped !== null
    ? Object.entries(totals.dropped).filter(([, n]) => n > 0).map(([why, n]) => `${why.replaceAll("_", " ")}: ${count(n)}`).join(", ") : "";
  const lost = totals.lost || 0;
  byId("lost").dataset.state = lost ? "bad" : "good";
  byId("lost-count").textContent = count(lost);
  byId("lost-text").textContent = lost ? "released by a device, and not here" : "every accepted record is accounted for";
  const rows = [
    ["Accepted", totals.accepted], ["Stored", totals.stored], ["Pending", totals.pending], ["Dropped", dropped, reasons],
    ["Sent again", totals.duplicates ?? totals.duplicated], ["Readings", totals.readings], ["Inferences", totals.events],
  ].filter(([, n]) => n !== undefined);
  byId("totals").replaceChildren(...rows.map(([name, n, title]) => h("div", { title: title || wholeNumber.format(n) }, h("dt", { text: name }),
    h("dd", { text: count(n), cls: name === "Dropped" && n ? "look" : null }))));
}

function drawDevices() {
  const wanted = byId("find").value.trim().toLowerCase();
  const text = (device) => `${device.id} ${device.name} ${Object.values(device.labels || {}).join(" ")}`.toLowerCase();
  const all = [...state.devices.values()];
  const online = all.filter((device) => isOnline(device.id)).length;
  byId("devices-count").textContent = all.length ? `${count(online)} of ${count(all.length)} online` : "";
  const found = all.filter((device) => !wanted || text(device).includes(wanted)).slice(0, 300);
  const list = byId("devices");
  if (!found.length) {
    list.replaceChildren(h("li", {}, all.length ? empty("No device fits", "Try another word.")
      : state.problems.has("Devices") ? empty("Not loaded", "Tried again within a minute.") : empty("No devices yet", "Make a claim in the API and start an agent with it.")));
    return;
  }
  const focused = document.activeElement && document.activeElement.dataset.device;
  list.replaceChildren(...found.map(deviceRow));
  if (focused) list.querySelector(`[data-device="${CSS.escape(focused)}"]`)?.focus();
}

function deviceRow(device) {
  const presence = state.presence.get(device.id);
  const on = device.enabled === false ? "off" : isOnline(device.id) ? "yes" : "no";
  const word = { off: "disabled", yes: "online", no: presence && presence.connected === false ? "offline" : "not seen" }[on];
  const open = [...state.alerts.values()].filter((alert) => alert.device === device.id && isOpen(alert));
  const worst = open.sort((a, b) => RANK[a.severity] - RANK[b.severity])[0];
  const labels = Object.entries(device.labels || {}).slice(0, 3).map(([key, value]) => h("span", { cls: "tag", text: `${key}: ${value}` }));
  return h("li", {}, h("button", {
    cls: "row", type: "button", "data-device": device.id, "aria-current": device.id === state.selected ? "true" : "false",
    onclick: () => select(device.id),
  },
  h("span", { cls: "top" }, h("span", { cls: "dot", "data-on": on }), h("span", { cls: "name", text: device.name || device.id }),
    worst ? h("span", { cls: "badge", "data-kind": worst.severity, text: `${open.length} ${open.length > 1 ? "alerts" : "alert"}` }) : null),
  h("span", { cls: "sub" }, word, presence && presence.last_seen_us ? h("span", {}, "· seen ", timeOf(presence.last_seen_us)) : null,
    device.name && device.name !== device.id ? h("span", { text: `· ${device.id}` }) : null, ...labels)));
}

function select(device) {
  state.selected = device;
  draw("devices", "readings");
  loadLast(device);
}

function drawAlerts() {
  const all = [...state.alerts.values()];
  const open = all.filter(isOpen);
  open.sort((a, b) => (a.state === "open" ? 0 : 1) - (b.state === "open" ? 0 : 1) || RANK[a.severity] - RANK[b.severity] || b.opened_at_us - a.opened_at_us);
  const past = all.filter((alert) => !isOpen(alert)).sort((a, b) => b.opened_at_us - a.opened_at_us);
  const badge = byId("alerts-count");
  const unknown = !all.length && state.problems.has("Alerts");
  badge.textContent = unknown ? "unknown" : open.length ? `${open.length} open` : "none open";
  badge.dataset.none = unknown ? "unknown" : open.length ? "no" : "yes";
  const rows = byId("past").checked ? [...open, ...past] : open;
  const list = byId("alerts");
  if (!rows.length) {
    list.replaceChildren(h("li", {}, unknown ? empty("Not loaded", "Tried again within a minute.") : empty("All quiet", past.length ? "No alert is open. Past ones can be shown." : "No rule has opened an alert.")));
    return;
  }
  list.replaceChildren(...rows.slice(0, ALERTS_SHOWN).map(alertRow));
}

function alertRow(alert) {
  const over = !isOpen(alert);
  const told = over ? alert.state : alert.state === "acked" ? "acknowledged" : null;
  return h("li", { cls: over ? "alert over" : "alert" }, h("div", { cls: "row" },
    h("span", { cls: "top" },
      h("span", { cls: "badge", "data-kind": over ? "plain" : alert.severity, text: alert.severity }),
      told ? h("span", { cls: "badge", "data-kind": "plain", text: told }) : null,
      alert.historical ? h("span", { cls: "badge", "data-kind": "plain", text: "from old data", title: "The data was older than five minutes when it came" }) : null,
      h("span", { cls: "grow" }), h("span", { cls: "quiet" }, h("small", {}, timeOf(alert.opened_at_us)))),
    h("span", { cls: "message", text: alert.message }),
    h("span", { cls: "sub" }, h("span", { text: alert.device }), h("span", { text: `· ${alert.subject.replace(/^[a-z]+:/, "")}` }),
      h("span", { text: `· rule “${alert.rule_name}”` }),
      alert.cleared_at_us ? h("span", {}, "· cleared ", timeOf(alert.cleared_at_us)) : null)));
}

function drawReadings() {
  const now = Date.now();
  state.rate = state.rate.filter((entry) => now - entry.at < 10000);
  const shownRate = state.rate.reduce((sum, entry) => sum + entry.n, 0) / 10;
  byId("rate").textContent = shownRate ? `${shownRate.toFixed(1)} values/s shown` : "";
  const device = state.devices.get(state.selected);
  byId("readings-of").textContent = state.selected ? (device && device.name) || state.selected : "";
  const known = state.selected && state.known.get(state.selected);
  byId("results").replaceChildren(...(known ? [...known.results].map(resultRow) : []));
  const metrics = byId("metrics");
  if (!known || !known.values.size) {
    metrics.replaceChildren(known && known.results.size ? "" : empty(state.selected ? "No readings yet" : "No device chosen",
      state.selected ? "Values appear here as soon as the device sends some." : "Choose one on the left."));
    return;
  }
  const entries = [...known.values].sort((a, b) => a[0].localeCompare(b[0]));
  metrics.replaceChildren(...entries.map(([metric, held]) => metricCard(metric, held, now)));
}

function metricCard(metric, held, now) {
  const isNumber = typeof held.value === "number";
  const stale = now - held.received / 1000 > STALE_MS;
  return h("div", { cls: stale ? "metric stale" : "metric" },
    h("div", { cls: "label", text: metric, title: metric }),
    h("div", { cls: "value", text: shown(held.value), title: String(held.value) }),
    isNumber ? spark(held.points, 34, metric) : null,
    h("div", { cls: "age" }, timeOf(held.received)));
}

function resultRow([pipeline, held]) {
  return h("div", { cls: "result" },
    h("span", {}, h("div", { cls: "label", text: `${pipeline} · ${held.kind}` }), h("div", { cls: "answer", text: held.label })),
    spark(held.points, 24, `${pipeline} score`),
    held.kind === "anomaly" ? h("span", {}) : h("meter", { min: "0", max: "1", value: String(held.score), "aria-label": "probability" }),
    h("span", { cls: "score" }, h("div", { text: shown(Math.round(held.score * 1000) / 1000) }), h("small", { cls: "quiet" }, timeOf(held.at_us))));
}

// ---- start

byId("find").addEventListener("input", () => draw("devices"));
byId("past").addEventListener("change", () => draw("alerts"));
document.addEventListener("visibilitychange", () => { if (!document.hidden) draw("devices", "alerts", "readings"); });
byId("theme").addEventListener("click", () => {
  const dark = matchMedia("(prefers-color-scheme: dark)").matches;
  const now = document.documentElement.dataset.theme || (dark ? "dark" : "light");
  setTheme(now === "dark" ? "light" : "dark");
});
function setTheme(theme) {
  if (theme) document.documentElement.dataset.theme = theme;
  if (theme) localStorage.setItem("muster-theme", theme);
}
setTheme(localStorage.getItem("muster-theme"));

(async () => {
  fetch("/healthz").then((answer) => answer.json()).then((health) => { byId("version").textContent = `server ${health.version}`; }).catch(() => {});
  try { await enter(await api("/auth/me")); } catch (error) {
    showGate("login");
    if (!(error instanceof Refused)) byId("login-error").textContent = "The server cannot be reached.";
  }
})();
