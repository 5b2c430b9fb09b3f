import { escapeHtml } from "@curfew/bundle/timeline.ts";

/** What is held about a person, as a page for that person: one file, no script, nothing fetched; everything in it is text. */
export interface SubjectPage {
  readonly madeAt: string;
  readonly pseudonym: string;
  readonly holds: readonly { readonly ground: string; readonly reference: string; readonly since: string }[];
  /** How an erasure stands, a line a fact; empty: none was asked for. */
  readonly erasure: readonly string[];
  readonly events: readonly SubjectRow[];
  /** In the JSON, and not on the page. */
  readonly more: number;
  readonly tokens: readonly string[];
  readonly cases: readonly { readonly id: string; readonly state: string; readonly since: string }[];
}

export interface SubjectRow {
  readonly time: string;
  readonly what: string;
  readonly role: string;
  readonly token: string;
  readonly address: string;
  readonly text: string;
}

const style = `
:root { color-scheme: light; --ink: #1a1c20; --soft: #5c626c; --line: #d9dce1; --band: #f4f5f7 }
* { box-sizing: border-box }
body { margin: 0 auto; padding: 2rem 1.5rem 4rem; max-width: 72rem; color: var(--ink); background: #fff; font: 15px/1.5 system-ui, sans-serif }
h1 { margin: 0 0 .25rem; font-size: 1.6rem; line-height: 1.2 }
h2 { margin: 2rem 0 .5rem; font-size: 1.15rem }
p { margin: .25rem 0 .75rem } .soft { color: var(--soft) }
ul { margin: 0; padding-left: 1.25rem } li { overflow-wrap: anywhere }
table { width: 100%; border-collapse: collapse }
th { padding: .4rem .6rem; text-align: left; font-weight: 600; color: var(--soft); border-bottom: 2px solid var(--line) }
td { padding: .4rem .6rem; vertical-align: top; border-bottom: 1px solid var(--line) }
td:first-child { white-space: nowrap } td:last-child { overflow-wrap: anywhere }
.mono { overflow-wrap: anywhere; font-family: ui-monospace, monospace; font-size: .9em }
.card { padding: .75rem 1.25rem; border: 1px solid var(--line); border-radius: .5rem; background: var(--band) }
@media (max-width: 48rem) {
  body { padding: 1.25rem 1rem 3rem } thead { display: none }
  table, tbody, tr, td { display: block } tr { padding: .6rem 0; border-bottom: 1px solid var(--line) }
  td { padding: 0; border: 0; overflow-wrap: anywhere } td:empty { display: none }
  td::before { content: attr(data-head) " "; color: var(--soft) }
}
@media print { body { max-width: none; padding: 0 } }
`;

const table = (heads: readonly string[], rows: readonly (readonly string[])[], empty: string): string =>
  rows.length === 0
    ? `<p class="soft">${escapeHtml(empty)}</p>`
    : `<table><thead><tr>${heads.map((head) => `<th>${escapeHtml(head)}</th>`).join("")}</tr></thead><tbody>
${rows.map((row) => `<tr>${row.map((cell, i) => `<td data-head="${escapeHtml(heads[i] ?? "")}">${escapeHtml(cell)}</td>`).join("")}</tr>`).join("\n")}
</tbody></table>`;

const list = (items: readonly string[], empty: string): string =>
  items.length === 0
    ? `<p class="soft">${escapeHtml(empty)}</p>`
    : `<ul>${items.map((item) => `<li>${escapeHtml(item)}</li>`).join("")}</ul>`;

export const subjectHtml = (page: SubjectPage): string => `<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<meta name="viewport" content="width=device-width">
<title>What is held about you</title>
<style>${style}</style>
</head>
<body>
<h1>What is held about you</h1>
<p class="soft">A copy under Article 15 of the GDPR, made ${escapeHtml(page.madeAt)}. In our records you go by a pseudonym, which we keep apart from who you are.</p>
<p class="card">Your pseudonym: <span class="mono">${escapeHtml(page.pseudonym)}</span></p>
<h2>Uses of access tokens that concern you</h2>
<p class="soft">“source”: an access came from your network address. “reached”: an access touched data about you. Other people are left out.</p>
${table(
  ["When", "What", "You as", "Token", "Your address", "Details"],
  page.events.map(({ time, what, role, token, address, text }) => [time, what, role, token, address, text]),
  "None.",
)}
${page.more > 0 ? `<p>${page.more} more stand in the file export.json.</p>` : ""}
<h2>Tokens that were used</h2>
${list(page.tokens, "None.")}
<h2>Cases in which you may be counted</h2>
${table(
  ["Case", "State", "Since"],
  page.cases.map(({ id, state, since }) => [id, state, since]),
  "None.",
)}
<h2>Data that must be kept</h2>
${table(
  ["Ground", "Reference", "Since"],
  page.holds.map(({ ground, reference, since }) => [ground, reference, since]),
  "No legal hold is in force.",
)}
<h2>Erasure</h2>
${list(page.erasure, "None was asked for.")}
</body>
</html>
`;
