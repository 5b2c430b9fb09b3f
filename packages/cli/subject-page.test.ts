import { expect, it } from "vitest";
import { type SubjectPage, subjectHtml } from "./subject-page.ts";

const hostile = `<script>alert(1)</script>"'&\u202e`;
const page: SubjectPage = {
  madeAt: "2026-11-27T02:00:00.000Z",
  pseudonym: "psn_000102030405060708090a0b0c0d0e0f",
  holds: [{ ground: hostile, reference: hostile, since: hostile }],
  erasure: [hostile],
  events: [{ time: hostile, what: hostile, role: hostile, token: hostile, address: hostile, text: hostile }],
  more: 3,
  tokens: [hostile],
  cases: [{ id: hostile, state: hostile, since: hostile }],
};

it("the page shows text alone, whatever stands in it, and fetches nothing", () => {
  const html = subjectHtml(page);
  expect(html).not.toMatch(/<script|\u202e|<a |<img|src=|http:|https:|@import|url\(/);
  expect(html.match(/&lt;script&gt;alert\(1\)&lt;\/script&gt;&quot;&#39;&amp;/g)).toHaveLength(14);
  expect(html).toContain("default-src 'none'");
  expect(html).toContain("3 more stand in the file export.json");
});

it("a page of nothing says so", () => {
  const html = subjectHtml({ ...page, holds: [], erasure: [], events: [], more: 0, tokens: [], cases: [] });
  expect(html.match(/None\.|No legal hold is in force\.|None was asked for\./g)).toHaveLength(5);
  expect(html).not.toContain("more stand");
});
