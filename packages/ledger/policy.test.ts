import { hash } from "node:crypto";
import fc from "fast-check";
import { describe, expect, test } from "vitest";
import { signCheckpoint } from "./checkpoint.ts";
import { emptyRoot } from "./hash.ts";
import { NoteError } from "./note-error.ts";
import { cosignerKeyText, noteCosigner, noteSigner, verifierKeyText } from "./note-key.ts";
import { formatPolicy, MAX_POLICY_BYTES, openByPolicy, parsePolicy, weighSignatures } from "./policy.ts";
import { keyOf, vectors } from "./vectors.test-data.ts";

const key = (i: number) => keyOf(i.toString(16).padStart(64, "0"));
const vkey = (name: string, i: number) => verifierKeyText(name, key(i));
const wkey = (i: number) => cosignerKeyText(`w${i}.example`, key(i));
const log = vkey("log.example", 100);
const names = ["X1", "X2", "X3", "Y1", "Y2", "Y3"];
const witnessLine = (i: number) => `witness ${names[i]} ${wkey(i)}`;

/** The example of the specification, with keys. */
const example = `log ${log}

${[0, 1, 2].map(witnessLine).join("\n")}
group X-witnesses 2 X1 X2 X3

${[3, 4, 5].map(witnessLine).join("\n")}
group Y-witnesses any Y1 Y2 Y3

group X-and-Y all X-witnesses Y-witnesses
quorum X-and-Y
`;

const checkpointBy = (origin: string, i: number, cosigners: readonly (readonly [index: number, seconds: number])[]) =>
  signCheckpoint({ origin, size: 0, root: emptyRoot() }, [
    noteSigner(origin, key(i)),
    ...cosigners.map(([w, seconds]) => noteCosigner(`w${w}.example`, key(w), seconds)),
  ]);

describe("reading", () => {
  test("the specification's example", () => {
    const policy = parsePolicy(Buffer.from(example));
    expect(policy.logs.map((l) => l.key.name)).toEqual(["log.example"]);
    expect(policy.witnesses.map(({ name }) => name)).toEqual(names);
    expect(policy.groups).toEqual([
      { name: "X-witnesses", threshold: 2, members: ["X1", "X2", "X3"] },
      { name: "Y-witnesses", threshold: 1, members: ["Y1", "Y2", "Y3"] },
      { name: "X-and-Y", threshold: 2, members: ["X-witnesses", "Y-witnesses"] },
    ]);
    expect(policy.quorum).toBe("X-and-Y");
  });

  test("addresses, tabs, comments in any encoding, names in UTF-8, and definitions after the quorum", () => {
    const head = Buffer.concat([Buffer.from("  # caf"), Buffer.of(0xe9), Buffer.from(" \n#\n \t\n")]);
    const rest = `\tlog\t ${log}  https://log.example/ \nwitness ä ${wkey(0)} http://127.0.0.1:28480/\nquorum ä\n${witnessLine(1)}`;
    const policy = parsePolicy(Buffer.concat([head, Buffer.from(`${rest}\ngroup any 1 X2\n`)]));
    expect(policy.logs[0]?.url).toBe("https://log.example/");
    expect(policy.witnesses[0]).toMatchObject({ name: "ä", url: "http://127.0.0.1:28480/" });
    expect(policy.witnesses[1]).not.toHaveProperty("url");
    expect(policy.groups).toEqual([{ name: "any", threshold: 1, members: ["X2"] }]);
    expect(parsePolicy("quorum none\n")).toEqual({ logs: [], witnesses: [], groups: [], quorum: "none" });
  });

  test("what is written again is the same policy, without its URLs", () => {
    const withUrl = parsePolicy(example.replace(log, `${log} https://log.example/`));
    const again = formatPolicy(withUrl);
    expect(again).not.toContain("https");
    expect(formatPolicy(parsePolicy(again))).toBe(again);
    const plain = (policy: typeof withUrl) =>
      JSON.parse(JSON.stringify(policy, (name, v) => (name === "url" ? undefined : v)));
    expect(plain(parsePolicy(again))).toEqual(plain(withUrl));
    expect(formatPolicy(parsePolicy("quorum none\n"))).toBe("quorum none\n");
  });

  test("as many lines as the specification asks for", () => {
    const n = 40;
    const lines = Array.from({ length: n }, (_, i) => [
      `log ${vkey(`log${i}.example`, 200 + i)}`,
      `witness ${i} ${wkey(i)} https://w${i}.example/`,
      `group g${i} any ${i}`,
    ]).flat();
    const policy = parsePolicy(
      `${lines.join("\n")}\ngroup q 20 ${lines
        .keys()
        .take(n)
        .map((i) => `g${i}`)
        .toArray()
        .join(" ")}\nquorum q\n`,
    );
    expect([policy.logs.length, policy.witnesses.length, policy.groups.length]).toEqual([n, n, n + 1]);
  });

  test("each rule that is broken is named with its line", () => {
    const w = [0, 1, 2].map(witnessLine).join("\n");
    const bad: [string, string][] = [
      ["", "line 1: the policy ends without a quorum line"],
      [`log ${log}\n`, "line 2: the policy ends without a quorum line"],
      ["quorum none", "line 1: does not end in a line feed"],
      ["quorum none\n\nquorum none\n", "line 3: a policy has one quorum line"],
      ["quorum\n", "line 1: a quorum line is"],
      ["quorum none none\n", "line 1: a quorum line is"],
      ["quorum none # why\n", "line 1: a quorum line is"],
      ["quorum X1\n", "line 1: the quorum is not defined"],
      [`quorum X1\n${w}\n`, "line 1: the quorum is not defined"],
      ["Quorum none\n", "line 1: a line begins with"],
      ["quorum none\n; comment\n", "line 2: a line begins with"],
      ["\u00a0\nquorum none\n", "line 1: a line begins with"],
      ["quorum none\r\n", "line 1: the only control characters"],
      ["quorum none\n# \u007f\n", "line 2: the only control characters"],
      ["quorum none\n# \u0000\n", "line 2: the only control characters"],
      ["log\nquorum none\n", "line 1: a log line is"],
      [`log ${log} url more\nquorum none\n`, "line 1: a log line is"],
      [`log ${log}x\nquorum none\n`, "line 1: malformed note key"],
      [`log ${wkey(0)}\nquorum none\n`, "line 1: a log's key is of type 1"],
      [`log ${log}\nlog ${log}\nquorum none\n`, "line 2: this public key"],
      [`log ${log}\nlog ${vkey("other.example", 100)}\nquorum none\n`, "line 2: this public key"],
      ["witness X1\nquorum none\n", "line 1: a witness line is"],
      [`${witnessLine(0)} url more\nquorum none\n`, "line 1: a witness line is"],
      [`witness X1 ${log}\nquorum none\n`, "line 1: a witness's key is of type 4"],
      [`witness none ${wkey(0)}\nquorum none\n`, 'line 1: the name "none" is predefined'],
      [`${witnessLine(0)}\nwitness X1 ${wkey(1)}\nquorum none\n`, "line 2: this name is defined"],
      [`${witnessLine(0)}\nwitness X9 ${wkey(0)}\nquorum none\n`, "line 2: this public key"],
      [`witness X1 ${cosignerKeyText("v", key(0))}\nwitness X2 ${wkey(0)}\nquorum none\n`, "line 2: this public key"],
      [`${w}\ngroup\nquorum none\n`, "line 4: a group line is"],
      [`${w}\ngroup g\nquorum none\n`, "line 4: a group line is"],
      [`${w}\ngroup g any\nquorum none\n`, "line 4: a group line is"],
      ...["0", "4", "01", "+1", "-1", "1.0", "some", "9007199254740993"].map((k): [string, string] => [
        `${w}\ngroup g ${k} X1 X2 X3\nquorum none\n`,
        "line 4: a group's threshold",
      ]),
      [`${w}\ngroup g any X1 X4\nquorum none\n`, "line 4: a member is not defined"],
      [`${w}\ngroup g any g\nquorum none\n`, "line 4: a member is not defined"],
      [`${w}\ngroup g any none\nquorum none\n`, "line 4: a member is not defined"],
      [`group g any X1\n${w}\nquorum none\n`, "line 1: a member is not defined"],
      [`${w}\ngroup g 2 X1 X1\nquorum none\n`, "line 4: a member is already"],
      [`${w}\ngroup g any X1\ngroup h any X2 X1\nquorum none\n`, "line 5: a member is already"],
      [`${w}\ngroup X3 any X1\nquorum none\n`, "line 4: this name is defined"],
      [`${w}\ngroup none any X1\nquorum none\n`, 'line 4: the name "none"'],
      ["quorum none\n\ud800\n", "UTF-8"],
      [`${"#".repeat(MAX_POLICY_BYTES)}\nquorum none\n`, `at most ${MAX_POLICY_BYTES} bytes`],
    ];
    for (const [policy, rule] of bad) {
      expect(() => parsePolicy(policy), JSON.stringify(policy.slice(0, 300))).toThrow(NoteError);
      expect(() => parsePolicy(policy), JSON.stringify(policy.slice(0, 300))).toThrow(rule);
    }
    expect(() => parsePolicy(Buffer.from("quorum n\xe9\n", "latin1"))).toThrow("line 1: not UTF-8");
  });

  test("two keys of one name and one id, found by trying, are refused: a signature could be of either", () => {
    const text = (i: number) => {
      const raw = hash("sha256", `key ${i}`, "buffer");
      return `w+1380f19b+${Buffer.concat([Buffer.of(4), raw]).toString("base64")}`;
    };
    const policy = `witness a ${text(44_814)}\nwitness b ${text(59_005)}\nquorum none\n`;
    expect(() => parsePolicy(policy)).toThrow("line 2: a key of this name and id");
  });

  test("no input makes it fail with anything but a NoteError, and none is repeated", () => {
    const piece = fc.constantFrom(
      "log ",
      "witness ",
      "group ",
      "quorum ",
      "none",
      "any ",
      "all ",
      "2 ",
      "X1 ",
      "X2 ",
      "g ",
      "\n",
      "# ",
      `${log} `,
      `${wkey(0)} `,
      `${wkey(1)} `,
    );
    const made = fc.array(fc.oneof({ weight: 9, arbitrary: piece }, fc.string({ unit: "binary" })));
    const edited = fc
      .tuple(fc.nat(example.length), fc.nat(4), fc.string({ maxLength: 3 }))
      .map(([at, cut, text]) => [example.slice(0, at) + text + example.slice(at + cut)]);
    fc.assert(
      fc.property(fc.oneof(made, edited), (parts) => {
        try {
          parsePolicy(parts.join(""));
        } catch (error) {
          expect(error).toBeInstanceOf(NoteError);
          expect(String(error)).not.toMatch(/example|X1|[A-Za-z0-9+/]{40}/);
        }
      }),
      { numRuns: 5000 },
    );
  });
});

describe("weighing", () => {
  test("the example's quorum holds for those sets of witnesses of which it should, out of all 64", () => {
    const policy = parsePolicy(example);
    for (let set = 0; set < 64; set += 1) {
      const present = names.map((_, i) => (set >> i) % 2 === 1);
      const cosigners = present.flatMap((there, i) => (there ? [[i, 1_000 + i] as const] : []));
      const verdict = openByPolicy(checkpointBy("log.example", 100, cosigners), policy);
      const [x, y] = [present.slice(0, 3).filter(Boolean).length, present.slice(3).filter(Boolean).length];
      expect(verdict.quorum, `set ${set}`).toBe(x >= 2 && y >= 1);
      expect(verdict.witnesses).toEqual(cosigners.map(([i, seconds]) => ({ name: names[i], seconds })));
      expect(verdict.log.key.name).toBe("log.example");
    }
  });

  test("one witness signing twice counts once, with its earliest time; strangers count for nothing", () => {
    const policy = parsePolicy(`log ${log}\n${[0, 1].map(witnessLine).join("\n")}\ngroup g all X1 X2\nquorum g\n`);
    const twice = openByPolicy(
      checkpointBy("log.example", 100, [
        [0, 9],
        [0, 5],
        [7, 1],
        [8, 1],
      ]),
      policy,
    );
    expect(twice).toMatchObject({ witnesses: [{ name: "X1", seconds: 5 }], quorum: false });
    expect(weighSignatures(policy, []).quorum).toBe(false);
  });

  test("any of the logs will do, but under its own name only, and nobody known may sign wrongly", () => {
    const other = vkey("other.example", 101);
    const renewed = vkey("log.example", 102);
    const policy = parsePolicy(`log ${log}\nlog ${other}\nlog ${renewed}\n${witnessLine(0)}\nquorum none\n`);
    for (const [origin, i] of [
      ["log.example", 100],
      ["other.example", 101],
      ["log.example", 102],
    ] as const) {
      const verdict = openByPolicy(checkpointBy(origin, i, []), policy);
      expect(verdict).toMatchObject({ quorum: true, opened: { origin }, log: { key: { name: origin } } });
    }
    expect(() => openByPolicy(checkpointBy("log.example", 101, []), policy)).toThrow("no log of the policy");
    expect(() => openByPolicy(checkpointBy("third.example", 103, []), policy)).toThrow("no log of the policy");
    expect(() => openByPolicy(checkpointBy("log.example", 100, []), parsePolicy("quorum none\n"))).toThrow("no log");
    const text = { origin: "other.example", size: 0, root: emptyRoot() };
    const both = signCheckpoint(text, [noteSigner("other.example", key(101)), noteSigner("log.example", key(100))]);
    expect(openByPolicy(both, policy).log.key.name).toBe("other.example");
    const good = checkpointBy("log.example", 100, [[0, 1]]);
    const wrong = checkpointBy("other.example", 101, [[0, 1]]);
    const last = (note: string) => note.split("\n").at(-2) ?? "";
    expect(() => openByPolicy(good.replace(last(good), last(wrong)), policy)).toThrow("does not hold");
  });

  test("the reference checkpoint and its cosignature", () => {
    const policy = parsePolicy(`log ${vectors.log_vkey}\nwitness w ${vectors.witness_vkey}\nquorum w\n`);
    expect(openByPolicy(vectors.checkpoint_size8, policy)).toMatchObject({ quorum: false, opened: { size: 8 } });
    expect(openByPolicy(vectors.checkpoint_size8 + vectors.cosignature_line, policy).quorum).toBe(true);
  });
});
