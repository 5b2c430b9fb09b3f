"""Writes ocsf-1.8.0.json: the OCSF 1.8.0 classes that curfew.siem.v1 uses, as JSON Schema, with the captions of their enums.

Source: the OCSF schema as schema.ocsf.io exports it (Apache-2.0, Copyright OCSF contributors), carried and turned into JSON Schema by the
PyPI package ocsf-json-schema 1.2.0 (MIT). Run once for a new version of OCSF:
    python3 -m venv .venv && .venv/bin/pip install ocsf-json-schema==1.2.0 && .venv/bin/python test/ocsf/compile.py
Without profiles: an attribute that only a profile brings is unknown. Titles are left out.
"""
import json
import pathlib

from ocsf_json_schema import OcsfJsonSchemaEmbedded, get_ocsf_schema

VERSION = "1.8.0"
CLASSES = ["entity_management", "authentication", "api_activity", "detection_finding", "incident_finding"]
CAPTIONED = ["activity_id", "severity_id", "status_id", "auth_protocol_id", "category_uid", "class_uid", "type_uid"]

raw = get_ocsf_schema(VERSION)
compiler = OcsfJsonSchemaEmbedded(raw)


def plain(schema):
    """Without titles; enums in order, so that the file is the same each time."""
    if isinstance(schema, list):
        return [plain(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    kept = {k: plain(v) for k, v in schema.items() if not (k == "title" and isinstance(v, str))}
    if isinstance(kept.get("enum"), list):
        kept["enum"] = sorted(kept["enum"])
    return kept


schema = {"$id": f"https://schema.ocsf.io/{VERSION}", "$schema": "https://json-schema.org/draft/2020-12/schema", "$defs": {}}
captions = {}
for name in CLASSES:
    compiled = plain(compiler.get_class_schema(name))
    for key, value in compiled.pop("$defs").items():
        assert schema["$defs"].setdefault(key, value) == value, key
    compiled.pop("$id"), compiled.pop("$schema")
    schema["$defs"][name] = compiled
    attributes = raw["classes"][name]["attributes"]
    captions[name] = {
        attribute: {key: each["caption"] for key, each in sorted(attributes[attribute]["enum"].items(), key=lambda e: int(e[0]))}
        for attribute in CAPTIONED
        if "enum" in attributes.get(attribute, {})
    }

lines = [f"{json.dumps(key)}: {json.dumps(value, sort_keys=True)}" for key, value in sorted(schema.pop("$defs").items())]
top = json.dumps({**schema, "$comment": "Made by compile.py; OCSF contributors, Apache-2.0", "captions": captions})
text = top[:-1] + ',"$defs": {\n' + ",\n".join(lines) + "\n}}\n"
json.loads(text)
pathlib.Path(__file__).with_name(f"ocsf-{VERSION}.json").write_text(text)
