#!/usr/bin/env python3
"""Checks an evidence bundle: python3 verify.py BUNDLE.zip VKEY
VKEY is the ledger's verifier key, from somebody you trust: the copy in the bundle proves nothing.
Needs Python 3.8 and the program openssl 3, nothing else. Exit 0: everything holds."""
import base64, hashlib, json, re, subprocess, sys, tempfile, zipfile

def need(holds, why):
    if not holds: sys.exit("NOT VERIFIED: " + why)
def sha(data): return hashlib.sha256(data).digest()
def node(left, right): return sha(b"\1" + left + right)
def b64(text): return base64.b64decode(text, validate=True)
def tree(lines): return lines[0], int(lines[1]), b64(lines[2])

def signed_by(key, text, signature):  # Ed25519
    with tempfile.TemporaryDirectory() as folder:
        for name, data in ("key", bytes.fromhex("302a300506032b6570032100") + key), ("text", text), ("sig", signature):
            with open(f"{folder}/{name}", "wb") as out: out.write(data)
        command = "openssl pkeyutl -verify -pubin -keyform DER -inkey key -rawin -in text -sigfile sig"
        return subprocess.run(command.split(), cwd=folder, capture_output=True).returncode == 0

def open_note(note, vkey, what):  # c2sp.org/signed-note
    (name, key_id, key), (text, _, lines) = vkey.split("+", 2), note.decode().rpartition("\n\n")
    key = b64(key)
    need(key[0] == 1 and len(key) == 33 and sha(name.encode() + b"\n" + key)[:4].hex() == key_id, "malformed key")
    for _, who, blob in (line.split(" ") for line in lines.split("\n")[:-1]):
        if who == name and b64(blob)[:4].hex() == key_id:
            need(signed_by(key[1:], f"{text}\n".encode(), b64(blob)[4:]), what + ": the signature does not hold")
            return text.split("\n")
    need(False, what + ": the ledger has not signed it")

def fold(fn, sn, hashes, value, step):  # RFC 9162, 2.1.3.2 and 2.1.4.2
    for each in hashes:
        need(sn > 0, "a proof is too long")
        left = fn & 1 or fn == sn
        value = step(value, each, left)
        while left and fn and not fn & 1: fn, sn = fn >> 1, sn >> 1
        fn, sn = fn >> 1, sn >> 1
    return value if sn == 0 else None

def main(path, vkey):
    infos, name = (archive := zipfile.ZipFile(path)).infolist(), vkey.split("+")[0]
    need(all(i.compress_type == 0 and i.file_size < 1 << 26 for i in infos), "a file is compressed or too large")
    files = {i.filename: archive.read(i) for i in infos}
    note, digest = open_note(files["manifest.note"], vkey, "manifest.note"), sha(files["manifest.json"])
    need(note == ["curfew-evidence-bundle/1", name, base64.b64encode(digest).decode()], "manifest.json was changed")
    manifest = json.loads(files["manifest.json"])
    listed = [f["name"] for f in manifest["files"]] + ["manifest.json", "manifest.note"]
    need(listed == [i.filename for i in infos], "files are missing, surplus or in another order")
    for f in manifest["files"]: need(sha(files[f["name"]]).hex() == f["sha256"], f["name"] + " was changed")
    origin, size, root = tree(open_note(files["checkpoint"], vkey, "checkpoint"))
    need(origin == manifest["origin"] == name and size == manifest["size"], "the checkpoint is of another ledger")
    older = {"checkpoints": tree(open_note(files["checkpoints/first"], vkey, "checkpoints/first"))}
    if "timestamp/checkpoint" in files: older["timestamp"] = tree(files["timestamp/checkpoint"].decode().split("\n"))
    for folder, (of, old, old_root) in older.items():
        hashes = [b64(line) for line in files[folder + "/consistency"].decode().split("\n\n")[0].split("\n")[1:]]
        roots = (old_root, root) if (old, old_root, hashes) == (size, root, []) else None
        if old < size:
            first, *rest = ([old_root] if old & (old - 1) == 0 else []) + hashes
            ones = (old ^ (old - 1)).bit_length() - 1  # at the end of old - 1
            both = lambda v, c, left: (node(c, v[0]), node(c, v[1])) if left else (v[0], node(v[1], c))
            roots = fold(old - 1 >> ones, size - 1 >> ones, rest, (first, first), both)
        need(of == origin and roots == (old_root, root), folder + "/consistency: the log was rewritten")
    present = [int(n[8:24]) for n in files if re.fullmatch(r"entries/\d{16}\.bin", n)]
    up = lambda value, other, left: node(other, value) if left else node(value, other)
    for index in present:
        lines = files[f"entries/{index:016}.tlog-proof"].decode().split("\n\n")[0].split("\n")
        need(lines[:2] == ["c2sp.org/tlog-proof@v1", f"index {index}"] and index < size, f"the proof of entry {index}")
        leaf = sha(b"\0" + files[f"entries/{index:016}.bin"])
        need(fold(index, size - 1, map(b64, lines[2:]), leaf, up) == root, f"entry {index} is not in the ledger")
    print(f"integrity holds: {len(present)} entries are in the tree of {size} that {origin} has signed")
    if "timestamp" in older: print(f"not checked: the timestamp over leaves before {old}: VERIFY.md says how")
    first, end, asked = manifest["range"]["first"], manifest["range"]["end"], manifest["selection"]
    if asked["token"] or asked["case"]: return print("that no other entry belongs to them is the signer's word")
    need(present == list(range(first, end)), "leaves of the range are missing")
    print(f"every leaf from {first} to {end - 1} is there")

if len(sys.argv) != 3: sys.exit(__doc__)
try: main(*sys.argv[1:])
except Exception as error: sys.exit(f"NOT VERIFIED: no bundle, or a damaged one ({repr(error)[:200]})")
