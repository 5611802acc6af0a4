"""The page that a mount shows: one text that needs nothing else, and refreshes itself."""

PAGE = """\
<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>s3mount</title>
<style>
:root { color-scheme: light dark; --line: #8884; --good: #2a8f4e; --weak: #b7791f; --bad: #c0392b; }
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 60rem; padding: 0 1rem; }
header { display: flex; flex-wrap: wrap; align-items: center; gap: .3rem 1rem; }
h1 { font-size: 1.4rem; margin: 0; overflow-wrap: anywhere; }
h2 { font-size: 1rem; margin: 2rem 0 .5rem; }
p { margin: .3rem 0 1.2rem; overflow-wrap: anywhere; }
#state { color: #fff; background: var(--good); border-radius: 1rem; padding: .1rem .8rem; }
#state.weak { background: var(--weak); } #state.bad { background: var(--bad); }
.cards { display: grid; grid-template-columns: repeat(4, minmax(0, 1fr)); gap: 1rem; }
.card { border: 1px solid var(--line); border-radius: .6rem; padding: .6rem 1rem; }
.card b { display: block; font-size: 1.35rem; line-height: 1.3; white-space: nowrap; }
.card span { opacity: .7; font-size: .85rem; }
.card, table { font-variant-numeric: tabular-nums; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; }
th, td { text-align: right; padding: .25rem .6rem; border-bottom: 1px solid var(--line); }
td { white-space: nowrap; }
th:first-child, td:first-child { text-align: left; }
#dirty td:first-child, #dirty td:nth-child(5), #errors td, #notes td { white-space: normal;
  overflow-wrap: anywhere; min-width: 8rem; }
th { font-weight: 600; opacity: .7; font-size: .85rem; }
tr:last-child td { border-bottom: 0; }
#errors tr:not(.quiet) td { color: var(--bad); } .quiet { opacity: .6; }
@media (max-width: 40rem) {
  body { margin: 1rem auto; font-size: 14px; }
  .cards { grid-template-columns: repeat(2, minmax(0, 1fr)); gap: .6rem; }
  .card { padding: .5rem .7rem; } .card b { font-size: 1.15rem; }
  th, td { padding: .25rem .35rem; }
}
</style>
<header><h1 id="title">s3mount</h1><span id="state">...</span></header>
<p id="where" class="quiet"></p>
<div class="cards" id="cards"></div>
<h2>Not uploaded yet</h2><div class="wide"><table id="dirty"></table></div>
<h2>Last warnings and errors</h2><div class="wide"><table id="errors"></table></div>
<h2>Operations</h2><div class="wide"><table id="operations"></table></div>
<h2>Requests to the store</h2><div class="wide"><table id="requests"></table></div>
<h2>About this store</h2><div class="wide"><table id="notes"></table></div>
<script>
"use strict";
const $ = id => document.getElementById(id);
const size = n => {
  const units = ["B", "KiB", "MiB", "GiB", "TiB"];
  let unit = 0;
  while (n >= 1024 && unit < 4) { n /= 1024; unit++; }
  return (unit ? n.toFixed(1) : Math.round(n)) + " " + units[unit];
};
const took = s => s >= 0.9995 ? s.toFixed(s < 9.95 ? 1 : 0) + " s"
  : s >= 0.0009995 ? (1000 * s).toFixed(s < 0.00995 ? 1 : 0) + " ms"
  : s > 0 ? Math.max(1, 1e6 * s).toFixed(0) + " \u00b5s" : "-";
const age = s => s < 120 ? Math.round(s) + " s" : s < 7200 ? Math.round(s / 60) + " min"
  : s < 172800 ? Math.round(s / 3600) + " h" : Math.round(s / 86400) + " d";
const count = n => n ? n.toLocaleString("en") : "-";
const element = (name, text, kind) => {
  const made = document.createElement(name);
  made.textContent = text;
  if (kind) made.className = kind;
  return made;
};
const table = (id, heads, rows, empty) => {
  const body = [];
  const line = (cells, name, kind) => {
    const row = document.createElement("tr");
    if (kind) row.className = kind;
    row.append(...cells.map(text => element(name, text)));
    body.push(row);
  };
  if (rows.length && heads.length) line(heads, "th");
  rows.forEach(row => line(row, "td"));
  if (!rows.length) line([empty], "td", "quiet");
  $(id).replaceChildren(...body);
};
const card = (title, value, more) => {
  const made = element("div", "", "card");
  made.append(element("span", title), element("b", value), element("span", more));
  return made;
};
const show = s => {
  const state = $("state");
  state.textContent = s.state + " for " + age(Date.now() / 1000 - s.began);
  state.className = s.state === "serving" ? "" : "weak";
  document.title = s.source + " - s3mount";
  $("title").textContent = s.source + " at " + s.mountpoint;
  $("where").textContent = s.endpoint + " (" + s.region + "), credentials: "
    + s.credentials.source + (s.read_only ? ", read-only" : "") + ", s3mount " + s.version;
  const hit = s.cache.hit_rate;
  $("cards").replaceChildren(
    card("from the store", size(s.rates.received) + "/s",
      size(s.requests.bytes_received) + " in all"),
    card("to the store", size(s.rates.sent) + "/s", size(s.requests.bytes_sent) + " in all"),
    card("operations", s.rates.operations.toFixed(0) + "/s", "of programs"),
    card("requests", s.rates.requests.toFixed(0) + "/s",
      "$" + s.requests.dollars.toFixed(4) + " at AWS"),
    card("cache hits", hit === null ? "-" : (100 * hit).toFixed(0) + " %",
      size(s.cache.read_bytes) + " read"),
    card("memory", size(s.memory_used), "of " + size(s.memory_limit)),
    ...(s.cache.disk ? [card("cache on disk", size(s.cache.disk.bytes),
      "of " + size(s.cache.disk.limit))] : []),
    card("not uploaded", s.dirty_files ? size(s.dirty_bytes) : "nothing",
      s.dirty_files ? s.dirty_files + (s.dirty_files > 1 ? " files" : " file") + ", for "
        + age(s.dirty_age) : "all is safe"),
    // Four in a row: with a cache on disk there is no place for it.
    ...(s.cache.disk ? [] : [card("oldest of it", s.dirty_files ? age(s.dirty_age) : "-",
      "since it was changed")]));
  const failing = s.dirty.some(file => file.error);
  table("dirty", ["file", "size", "sent", "age", ...(failing ? ["error"] : [])],
    s.dirty.map(file => [file.key, size(file.bytes),
      file.bytes ? (100 * file.sent / file.bytes).toFixed(0) + " %" : "", age(file.age),
      ...(failing ? [file.error] : [])]), "nothing: all is uploaded");
  const operations = Object.entries(s.operations).sort((a, b) => b[1].seconds - a[1].seconds);
  table("operations", ["operation", "count", "failed", "p50", "p99", "bytes"],
    operations.map(([name, o]) => [name, count(o.count), count(o.failed), took(o.p50),
      took(o.p99), o.bytes ? size(o.bytes) : ""]), "none yet");
  const kinds = Object.entries(s.requests.requests).sort((a, b) => b[1] - a[1]);
  table("requests", ["kind", "count", "tried again"],
    kinds.map(([kind, n]) => [kind, count(n), count(s.requests.retried[kind] || 0)]), "none yet");
  table("errors", [], s.errors.slice().reverse().map(e =>
    [new Date(1000 * e.time).toLocaleTimeString() + "  " + e.message]), "none");
  table("notes", [], s.notes.map(note => [note]), "it does all that s3mount asks for");
};
const look = async () => {
  try {
    show(await (await fetch("status.json")).json());
  } catch (error) {
    $("state").textContent = "no answer";
    $("state").className = "bad";
  }
  setTimeout(look, 2000);
};
look();
</script>
</html>
"""
